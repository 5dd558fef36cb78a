"""Settings nodes: each fills one part of a job and passes on what was wired into it, so Train LoRA stays short."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from .host.access.api import io, make_input, make_output, schema
from .host.access.paths import training_folder, training_folders
from .sockets import CATEGORY, widget

Settings = io.Custom("LORALOOM_SETTINGS")
NO_FOLDER = "(none)"


@dataclasses.dataclass(frozen=True)
class SettingsSocket:
    """What travels on a LORALOOM_SETTINGS wire: config path -> value, such as text_encoder.lr -> 5e-5."""

    values: Mapping[str, Any]

    def over(self, config: dict[str, Any]) -> dict[str, Any]:
        """`config` (nested) with these values in it."""
        out = copy.deepcopy(config)
        for path, value in self.values.items():
            *sections, leaf = path.split(".")
            place = out
            for section in sections:
                place = place[section]
            place[leaf] = value
        return out


def optimizer_of(settings: SettingsSocket | None) -> str:
    return settings.values.get("optimizer.name", "adamw") if settings else "adamw"


class SettingsNode(io.ComfyNode):
    """One node class per part: a subclass names its widgets by config path, and what choosing the node itself means."""

    NODE_ID = ""
    TITLE = ""
    DESCRIPTION = ""
    ALIASES: tuple[str, ...] = ()
    PATHS: tuple[str, ...] = ()
    ADVANCED: tuple[str, ...] = ()
    CHANGES: Mapping[str, dict[str, Any]] = {}
    FIXED: Mapping[str, Any] = {}
    FOLDER = ""  # config path of a folder that can be chosen
    FOLDER_TOOLTIP = ""

    @classmethod
    def define_schema(cls) -> io.Schema:
        widgets = [widget(path, advanced=path in cls.ADVANCED, **cls.CHANGES.get(path, {})) for path in (*cls.PATHS, *cls.ADVANCED)]
        if cls.FOLDER:
            choices = [NO_FOLDER, *training_folders()]
            widgets.insert(len(cls.PATHS), make_input(io.Combo, "folder", options=choices, default=NO_FOLDER, tooltip=cls.FOLDER_TOOLTIP))
        chain = make_input(Settings, "settings", optional=True, tooltip="Other settings to pass on.")
        return schema(
            node_id=cls.NODE_ID, display_name=cls.TITLE, category=f"{CATEGORY}/settings", description=cls.DESCRIPTION, search_aliases=list(cls.ALIASES),
            inputs=[*widgets, chain],
            outputs=[make_output(Settings, "settings", tooltip="For Train LoRA, Train Embedding, Check Training, or the next settings node.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, settings: SettingsSocket | None = None, **values: Any) -> io.NodeOutput:
        own = {path: values[path.rpartition(".")[2]] for path in (*cls.PATHS, *cls.ADVANCED)}
        if cls.FOLDER:
            own[cls.FOLDER] = "" if values["folder"] == NO_FOLDER else str(training_folder(values["folder"]))
        return io.NodeOutput(SettingsSocket({**(settings.values if settings else {}), **cls.FIXED, **own}))


class OptimizerSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomOptimizerSettings", "Optimizer Settings"
    DESCRIPTION = "Which optimizer trains, and how. Leave the learning rate of Train LoRA at 0 for the optimizer's usual one."
    ALIASES = ("prodigy", "adafactor", "lion", "came", "muon", "schedule free", "8bit", "ema", "lora+")
    PATHS = ("optimizer.name", "ema_decay", "optimizer.lora_plus_ratio")
    ADVANCED = (
        "optimizer.beta1", "optimizer.beta2", "optimizer.eps", "optimizer.prodigy_d_coef", "optimizer.prodigy_beta3", "schedule.cycles", "schedule.power",
    )  # fmt: skip
    CHANGES = {"optimizer.eps": {"step": 1e-9, "round": 1e-16}, "ema_decay": {"step": 0.001, "round": 0.00001}}


class AdapterSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomAdapterSettings", "Adapter Settings"
    DESCRIPTION = "Which kind of adapter is trained: LoRA, DoRA, LoHa, LoKr, OFT, norms and others, with ranks and learning rates by layer."
    ALIASES = ("dora", "loha", "lokr", "oft", "boft", "glora", "ia3", "full", "norm", "bitfit", "lycoris", "locon", "rslora", "block weight", "max norm")
    PATHS = ("adapter.algorithm", "adapter.conv_rank", "adapter.conv_alpha", "adapter.rank_stabilized", "adapter.max_norm")
    ADVANCED = (
        "adapter.dora_axis", "adapter.lokr_factor", "adapter.layer_rank", "adapter.layer_lr", "adapter.oft_constraint", "adapter.ia3_axis",
    )  # fmt: skip
    CHANGES = {path: {"multiline": True} for path in ("adapter.layer_rank", "adapter.layer_lr")}


class TextEncoderSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomTextEncoderSettings", "Text Encoder Settings"
    DESCRIPTION = "Also trains a LoRA on the text encoders of the wired CLIP."
    ALIASES = ("train text encoder", "te", "clip lora")
    PATHS = ("text_encoder.lr", "text_encoder.stop", "text_encoder.rank", "text_encoder.targets")
    ADVANCED = ("text_encoder.alpha", "text_encoder.weight_decay", "text_encoder.encoders")
    CHANGES = {"text_encoder.lr": {"step": 0.00001, "round": 0.0000001}}
    FIXED = {"text_encoder.train": True}


class PivotalSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomPivotalSettings", "Pivotal Tuning Settings"
    DESCRIPTION = "Learns new words beside the LoRA: their vectors are trained up to the pivot and then frozen. Two files: the LoRA and <name>_emb."
    ALIASES = ("pivotal tuning", "textual inversion", "TOK", "embedding")
    PATHS = ("embedding.tokens", "embedding.vectors", "embedding.init", "embedding.lr", "embedding.stop")
    ADVANCED = ("embedding.weight_decay", "embedding.keep_norm")
    CHANGES = {
        "embedding.tokens": {"multiline": True}, "embedding.stop": {"default": 0.5}, "embedding.vectors": {"default": 2},
        "embedding.lr": {"step": 0.0001, "round": 0.0000001},
    }  # fmt: skip
    FIXED = {"method": "pivotal"}


class PriorSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomPriorSettings", "Prior Preservation Settings"
    DESCRIPTION = "Trains pictures of the class beside the subject (DreamBooth), so the class stays what it was. Missing pictures are made first, once."
    ALIASES = ("dreambooth", "regularization", "class images", "prior preservation")
    PATHS = ("prior.prompt", "prior.class_word", "prior.count", "prior.weight")
    ADVANCED = ("prior.steps", "prior.cfg")

    FOLDER = "prior.folder"
    FOLDER_TOOLTIP = "Folder of real class pictures inside ComfyUI's input folder; what it lacks of count is made."


class ValidationSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomValidationSettings", "Validation Settings"
    DESCRIPTION = "Measures held-out pictures at fixed noise while training: shows over-training, ends the run, and brings the best step's weights back."
    ALIASES = ("validation loss", "early stopping", "overfitting", "best checkpoint")
    PATHS = ("validation.every", "validation.share", "validation.patience", "validation.restore_best")
    ADVANCED = ("validation.pictures", "validation.levels")
    CHANGES = {"validation.every": {"default": 50, "min": 1}, "validation.restore_best": {"default": True}}
    FOLDER = "validation.folder"
    FOLDER_TOOLTIP = "Folder of pictures to validate on, inside ComfyUI's input folder; (none) holds a share of the dataset out."


SETTINGS_NODES = [OptimizerSettings, AdapterSettings, TextEncoderSettings, PivotalSettings, PriorSettings, ValidationSettings]
