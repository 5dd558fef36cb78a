"""Merge LoRAs, Resize LoRA, Extract LoRA, Merge into Checkpoint: operations on whole files, with progress, cancellable between layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..convert.files.jobs import (
    BESIDE,
    Options,
    Size,
    Taken,
    Written,
    bake_file,
    extract_file,
    merge_files,
    open_lora,
    resize_file,
)
from ..convert.lora import DTYPES
from ..lora_core.messages.message import Message
from .convert_format import NO_FILE, approximate_input, chosen_family, family_input, lora_input, stamp
from .host.access.api import io, make_input, schema
from .host.access.paths import checkpoint_file, checkpoint_folders, checkpoint_names, lora_folders, model_file
from .host.web.live import layer_progress
from .save import LORA_FORMS, destination_input, on_exists_input, place_for
from .sockets import CATEGORY, in_english, in_words, lora_output, on_the_wire, path_output, plain_errors, report_output

SLOTS = 4


def _output_inputs(name: str) -> list[Any]:
    """What the nodes that write a LoRA have in common."""
    return [
        make_input(io.String, "name", default=name, tooltip="File name without folder and ending."),
        destination_input(lora_folders(), "LoRAs"),
        make_input(io.Combo, "dtype", options=list(DTYPES), default="fp16", tooltip="Number format on disk."),
        make_input(
            io.Combo,
            "form",
            options=list(LORA_FORMS),
            default="universal",
            advanced=True,
            tooltip="Names of the layers in the file.",
        ),
        on_exists_input(),
    ]


def _size_inputs(rank: int) -> list[Any]:
    """How large a LoRA made by SVD may be."""
    return [
        make_input(io.Int, "rank", default=rank, min=1, max=4096, tooltip="Largest rank."),
        make_input(
            io.Float,
            "energy",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Share of the squared norm to keep in each layer; 1: all.",
        ),
        make_input(
            io.Int,
            "conv_rank",
            default=0,
            min=0,
            max=4096,
            zero="rank",
            advanced=True,
            tooltip="Largest rank of 3x3 convolutions; 0: as rank.",
        ),
    ]


def _lora_outputs() -> list[Any]:
    return [lora_output(), path_output(), report_output()]


class FromFiles(io.ComfyNode):
    """A node whose result depends on files: it runs again when one of them changes."""

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> str:
        loras = [stamp("loras", str(value)) for name, value in widgets.items() if name.startswith("file")]
        models = [
            stamp(*value.split("/", 1))
            for name, value in widgets.items()
            if name in ("base", "tuned", "checkpoint") and "/" in str(value)
        ]
        return " ".join(loras + models)


def _options(widgets: dict[str, Any]) -> Options:
    return Options(
        widgets["form"],
        widgets["dtype"],
        widgets.get("approximate_rank", 0),
        overwrite=widgets["on_exists"] == "overwrite",
    )


def _result(written: Written) -> io.NodeOutput:
    lora = open_lora(written.path)
    lines = [written.path.name, Message.of("report.modules", count=len(lora.modules)), *written.notes]
    return io.NodeOutput(on_the_wire(lora), str(written.path), in_english(lines), ui=in_words(lines))


def _weighted_files(widgets: dict[str, Any]) -> list[tuple[Path, float]]:
    chosen = [(widgets[f"file_{n}"], widgets[f"strength_{n}"]) for n in range(1, SLOTS + 1)]
    return [(model_file("loras", file), strength) for file, strength in chosen if file != NO_FILE]


def _target(destination: str, name: str, widgets: dict[str, Any]) -> Path:
    return place_for(lora_folders(), destination, name, widgets["on_exists"] == "overwrite")


def _slots() -> list[Any]:
    out = []
    for n in range(1, SLOTS + 1):
        out.append(lora_input(f"file_{n}", optional=n > 1))
        out.append(
            make_input(
                io.Float,
                f"strength_{n}",
                default=1.0,
                min=-10.0,
                max=10.0,
                step=0.05,
                tooltip="Weight of this LoRA in the sum.",
            )
        )
    return out


class MergeLoras(FromFiles):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomMergeLoras",
            display_name="Merge LoRAs",
            category=CATEGORY,
            description="The weighted sum of up to four LoRAs as one file: exact, or at a rank you choose, with the error told.",
            search_aliases=["combine lora", "lora merge", "svd merge"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *_slots(),
                make_input(
                    io.Int,
                    "rank",
                    default=0,
                    min=0,
                    max=4096,
                    zero="exact",
                    tooltip="Rank of the result. 0 is exact: the ranks add up.",
                ),
                *_output_inputs("merged"),
                family_input(),
                approximate_input(),
            ],
            outputs=_lora_outputs(),
        )

    @classmethod
    @plain_errors("file_1")
    def execute(cls, name: str, destination: str, rank: int, base_model: str, **widgets: Any) -> io.NodeOutput:
        sources, path = _weighted_files(widgets), _target(destination, name, widgets)
        progress = layer_progress(cls.hidden.unique_id)
        return _result(merge_files(sources, path, _options(widgets), rank, chosen_family(base_model), progress))


class ResizeLora(FromFiles):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomResizeLora",
            display_name="Resize LoRA",
            category=CATEGORY,
            description="Makes a LoRA smaller: a largest rank, fewer where a share of its energy needs fewer. The error is told.",
            search_aliases=["lora rank", "svd", "shrink lora", "compress"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                lora_input(),
                *_size_inputs(16),
                *_output_inputs("resized"),
                family_input(),
            ],
            outputs=_lora_outputs(),
        )

    @classmethod
    @plain_errors("file")
    def execute(
        cls,
        file: str,
        rank: int,
        energy: float,
        conv_rank: int,
        name: str,
        destination: str,
        base_model: str,
        **widgets: Any,
    ) -> io.NodeOutput:
        path = _target(destination, name, widgets)
        progress = layer_progress(cls.hidden.unique_id)
        return _result(
            resize_file(
                model_file("loras", file),
                path,
                _options(widgets),
                Size(rank, conv_rank, energy),
                chosen_family(base_model),
                progress,
            )
        )


class ExtractLora(FromFiles):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomExtractLora",
            display_name="Extract LoRA",
            category=CATEGORY,
            description="A LoRA for the difference of two checkpoints, read layer by layer: neither is loaded as a whole. The error is told.",
            search_aliases=["checkpoint difference", "svd", "extract lora from model"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                make_input(io.Combo, "base", options=checkpoint_names(), tooltip="The model the LoRA will be used on."),
                make_input(io.Combo, "tuned", options=checkpoint_names(), tooltip="The fine-tuned model to imitate."),
                *_size_inputs(32),
                make_input(
                    io.Boolean,
                    "text_encoders",
                    default=True,
                    advanced=True,
                    tooltip="Also extract what changed in the text encoders.",
                ),
                *_output_inputs("extracted"),
                make_input(
                    io.Combo,
                    "norms_biases",
                    options=list(BESIDE),
                    default=BESIDE[0],
                    advanced=True,
                    optional=True,
                    tooltip="Changes of norms and biases. auto: kept where a program reads them and none stops at them; the report says which.",
                ),
            ],
            outputs=_lora_outputs(),
        )

    @classmethod
    @plain_errors("tuned")
    def execute(
        cls,
        base: str,
        tuned: str,
        rank: int,
        energy: float,
        conv_rank: int,
        text_encoders: bool,
        name: str,
        destination: str,
        **widgets: Any,
    ) -> io.NodeOutput:
        path = _target(destination, name, widgets)
        progress = layer_progress(cls.hidden.unique_id)
        files = checkpoint_file(base), checkpoint_file(tuned)
        taken = Taken(text_encoders, widgets.get("norms_biases", BESIDE[0]))
        return _result(extract_file(files, path, _options(widgets), Size(rank, conv_rank, energy), taken, progress))


class MergeIntoCheckpoint(FromFiles):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomMergeIntoCheckpoint",
            display_name="Merge into Checkpoint",
            category=CATEGORY,
            description="Adds LoRAs to a checkpoint for good and writes a new one, tensor by tensor; every weight keeps its number format.",
            search_aliases=["bake lora", "lora into checkpoint", "merge lora into model"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                make_input(
                    io.Combo,
                    "checkpoint",
                    options=checkpoint_names(),
                    tooltip="The model to add to. It is not changed.",
                ),
                *_slots(),
                make_input(
                    io.String, "name", default="merged_checkpoint", tooltip="File name without folder and ending."
                ),
                destination_input(checkpoint_folders(), "checkpoints"),
                on_exists_input(),
            ],
            outputs=[path_output(), report_output()],
        )

    @classmethod
    @plain_errors("checkpoint")
    def execute(cls, checkpoint: str, name: str, destination: str, on_exists: str, **widgets: Any) -> io.NodeOutput:
        loras = _weighted_files(widgets)
        overwrite = on_exists == "overwrite"
        path = place_for(checkpoint_folders(), destination, name, overwrite)
        written = bake_file(checkpoint_file(checkpoint), loras, path, overwrite, layer_progress(cls.hidden.unique_id))
        lines = [f"{path.name}: {path.stat().st_size / 1e9:.2f} GB", *written.notes]
        return io.NodeOutput(str(path), in_english(lines), ui=in_words(lines))
