"""Import Settings: the configuration of another trainer as settings for Train LoRA, with what became of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..lora_core.importing.programs import Text, imported
from ..lora_core.importing.result import Imported, require_job
from ..lora_core.importing.texts import MAX_TEXT
from ..lora_core.messages.message import Message, Setting
from .host.access.api import io, make_input, make_output, schema
from .settings import Settings, SettingsSocket
from .sockets import CATEGORY, in_english, in_words, plain_errors, report_output

OF_NODES = (
    "data.",
    "base",
    "name",
    "companion",
    "storage",
    "offload",
    "trackers",
    "precision",
    "cache.",
    "adapter.start_from",
    "text_encoder.clip_skip",
)


class ImportSettings(io.ComfyNode):
    LONG_TEXTS = {"text": MAX_TEXT, "more": MAX_TEXT}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomImportSettings",
            display_name="Import Settings",
            category=f"{CATEGORY}/settings",
            description="Takes over the settings of another trainer: a diffusers or kohya command line, a kohya .toml, an OneTrainer .json, "
            "an ai-toolkit .yaml, a SimpleTuner config. Says of every setting what maps, what maps otherwise, and what has no counterpart.",
            search_aliases=[
                "kohya",
                "diffusers",
                "onetrainer",
                "ai-toolkit",
                "simpletuner",
                "convert config",
                "migrate",
                "sd-scripts",
            ],
            inputs=[
                make_input(
                    io.String,
                    "text",
                    multiline=True,
                    default="",
                    tooltip="The command line or the configuration file, as text.",
                ),
                make_input(
                    io.String,
                    "more",
                    multiline=True,
                    default="",
                    tooltip="A file that goes with it, as text: kohya's dataset config, OneTrainer's concepts, SimpleTuner's data backends.",
                ),
                make_input(Settings, "settings", optional=True, tooltip="Other settings to pass on."),
            ],
            outputs=[
                make_output(
                    Settings,
                    "settings",
                    tooltip="For Train LoRA, Train Embedding, Check Training, or the next settings node.",
                ),
                make_output(io.String, "job", tooltip="The same as a job file for lora-loom train."),
                report_output(),
            ],
            is_output_node=True,
        )

    @classmethod
    @plain_errors("text")
    def execute(cls, text: str, more: str, settings: SettingsSocket | None = None) -> io.NodeOutput:
        result = imported([Text("text", text), Text("more", more)])
        require_job(result, Path())
        values = settings_of(result)
        lines = [*result.messages()]
        left_out = [
            path for path in (*result.paths(), *(["sets"] if "sets" in result.values else [])) if path not in values
        ]
        if left_out:
            lines.insert(1, Message.of("import.left_out", settings=[Setting(path) for path in left_out]))
        passed = SettingsSocket({**(settings.values if settings else {}), **values})
        return io.NodeOutput(passed, result.toml(), in_english(lines), ui=in_words(lines))


def settings_of(result: Imported) -> dict[str, Any]:
    """Config path -> value of what travels to a training node: what is about pictures, files and the base model stays with the nodes for these."""
    values: dict[str, Any] = {path: value for path, value in result.paths().items() if not path.startswith(OF_NODES)}
    if values.get("prior.count"):
        values.setdefault("prior.required", True)
    return values
