"""Settings nodes: each fills one part of a job and passes on what was wired into it, so Train LoRA stays short."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..lora_core.algebra import NAMES
from .convert_format import stamp
from .host.access.api import io, make_input, make_output, schema
from .host.access.paths import training_folder, training_folders
from .sockets import CATEGORY
from .widgets import NO_FILE, LoraRow, Row, inputs, row
from .widgets import settings as values_of

Settings = io.Custom("LORALOOM_SETTINGS")
NO_FOLDER = "(none)"


@dataclasses.dataclass(frozen=True)
class SettingsSocket:
    """What travels on a LORALOOM_SETTINGS wire: config path -> value, such as text_encoder.lr -> 5e-5."""

    values: Mapping[str, Any]


def optimizer_of(settings: SettingsSocket | None) -> str:
    return settings.values.get("optimizer.name", "adamw") if settings else "adamw"


def _first_advanced(rows: Sequence[Row]) -> int:
    """Where the first advanced row stands; rows that came later stand behind those, so that old workflows keep their values."""
    return next((place for place, entry in enumerate(rows) if entry.advanced), len(rows))


class SettingsNode(io.ComfyNode):
    """One node class per part: a subclass lists its rows, and what choosing the node itself means."""

    NODE_ID = ""
    TITLE = ""
    DESCRIPTION = ""
    ALIASES: tuple[str, ...] = ()
    ROWS: tuple[Row, ...] = ()
    FIXED: Mapping[str, Any] = {}
    FOLDER = ""  # config path of a folder that can be chosen
    FOLDER_TOOLTIP = ""

    @classmethod
    def define_schema(cls) -> io.Schema:
        widgets = inputs(cls.ROWS)
        if cls.FOLDER:
            choices, first_advanced = [NO_FOLDER, *training_folders()], _first_advanced(cls.ROWS)
            widgets.insert(
                first_advanced,
                make_input(io.Combo, "folder", options=choices, default=NO_FOLDER, tooltip=cls.FOLDER_TOOLTIP),
            )
        chain = make_input(Settings, "settings", optional=True, tooltip="Other settings to pass on.")
        return schema(
            node_id=cls.NODE_ID,
            display_name=cls.TITLE,
            category=f"{CATEGORY}/settings",
            description=cls.DESCRIPTION,
            search_aliases=list(cls.ALIASES),
            inputs=[*widgets, chain],
            outputs=[
                make_output(
                    Settings,
                    "settings",
                    tooltip="For Train LoRA, Train Embedding, Check Training, or the next settings node.",
                )
            ],
        )

    @classmethod
    def collected(cls, settings: SettingsSocket | None, values: Mapping[str, Any]) -> SettingsSocket:
        """Those of the nodes before, with what this node's widgets say over them."""
        chosen = values_of(cls.ROWS, values)
        if cls.FOLDER:
            chosen[cls.FOLDER] = "" if values["folder"] == NO_FOLDER else str(training_folder(values["folder"]))
        return SettingsSocket({**(settings.values if settings else {}), **cls.FIXED, **chosen})

    @classmethod
    def execute(cls, settings: SettingsSocket | None = None, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(cls.collected(settings, values))


class OptimizerSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomOptimizerSettings", "Optimizer Settings"
    DESCRIPTION = (
        "Which optimizer trains, and how. Leave the learning rate of Train LoRA at 0 for the optimizer's usual one."
    )
    ALIASES = ("prodigy", "adafactor", "lion", "came", "muon", "schedule free", "8bit", "ema", "lora+")
    ROWS = (
        row("optimizer.name"),
        row("ema_decay", step=0.001, round=1e-05),
        row("optimizer.lora_plus_ratio"),
        row("optimizer.beta1", advanced=True),
        row("optimizer.beta2", advanced=True),
        row("optimizer.eps", advanced=True, step=1e-09, round=1e-16),
        row("optimizer.prodigy_d_coef", advanced=True),
        row("optimizer.prodigy_beta3", advanced=True),
        row("schedule.cycles", advanced=True),
        row("schedule.power", advanced=True),
        row("optimizer.prodigy_use_bias_correction", advanced=True, optional=True),
        row("optimizer.prodigy_safeguard_warmup", advanced=True, optional=True),
        row("optimizer.prodigy_decouple", advanced=True, optional=True),
    )


class AdapterSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomAdapterSettings", "Adapter Settings"
    DESCRIPTION = "Which kind of adapter is trained: LoRA, DoRA, LoHa, LoKr, OFT, norms and others, with ranks and learning rates by layer."
    ALIASES = (
        *NAMES,
        "bitfit",
        "lycoris",
        "locon",
        "rslora",
        "block weight",
        "max norm",
        "de-distill",
        "training adapter",
        "assistant lora",
    )
    ROWS = (
        row("adapter.algorithm"),
        row("adapter.conv_rank"),
        row("adapter.conv_alpha"),
        row("adapter.rank_stabilized"),
        row("adapter.max_norm"),
        row("adapter.dora_axis", advanced=True),
        row("adapter.lokr_factor", advanced=True),
        row("adapter.layer_rank", advanced=True, multiline=True),
        row("adapter.layer_lr", advanced=True, multiline=True),
        row("adapter.oft_constraint", advanced=True),
        row("adapter.ia3_axis", advanced=True),
        LoraRow("adapter.fixed", "fixed_lora", changes={"optional": True}),
        row("adapter.fixed_strength", advanced=True, optional=True, step=0.05),
    )

    @classmethod
    def fingerprint_inputs(cls, fixed_lora: str = NO_FILE, **_: Any) -> str:
        """A file that was changed under its name is read anew."""
        return stamp("loras", fixed_lora)


class TextEncoderSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomTextEncoderSettings", "Text Encoder Settings"
    DESCRIPTION = "Also trains a LoRA on the text encoders of the wired CLIP."
    ALIASES = ("train text encoder", "te", "clip lora")
    ROWS = (
        row("text_encoder.lr", step=1e-05, round=1e-07),
        row("text_encoder.stop"),
        row("text_encoder.rank"),
        row("text_encoder.targets"),
        row("text_encoder.alpha", advanced=True),
        row("text_encoder.weight_decay", advanced=True),
        row("text_encoder.encoders", advanced=True),
    )
    FIXED = {"text_encoder.train": True}


class PivotalSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomPivotalSettings", "Pivotal Tuning Settings"
    DESCRIPTION = "Learns new words beside the LoRA: their vectors are trained up to the pivot and then frozen. Two files: the LoRA and <name>_emb."
    ALIASES = ("pivotal tuning", "textual inversion", "TOK", "embedding")
    ROWS = (
        row("embedding.tokens", multiline=True),
        row("embedding.vectors", default=2),
        row("embedding.init"),
        row("embedding.lr", step=0.0001, round=1e-07),
        row("embedding.stop", default=0.5),
        row("embedding.weight_decay", advanced=True),
        row("embedding.keep_norm", advanced=True),
    )
    FIXED = {"method": "pivotal"}


class PriorSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomPriorSettings", "Prior Preservation Settings"
    DESCRIPTION = "Trains pictures of the class beside the subject (DreamBooth), so the class stays what it was. Missing pictures are made first, once."
    ALIASES = ("dreambooth", "regularization", "class images", "prior preservation")
    ROWS = (
        row("prior.prompt"),
        row("prior.class_word"),
        row("prior.count"),
        row("prior.weight"),
        row("prior.steps", advanced=True),
        row("prior.cfg", advanced=True),
        row("prior.held_by", optional=True),
    )
    FIXED = {"prior.required": True}
    FOLDER = "prior.folder"
    FOLDER_TOOLTIP = "Folder of real class pictures inside ComfyUI's input folder; what it lacks of count is made."


class LossNoiseSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomLossNoiseSettings", "Loss and Noise Settings"
    DESCRIPTION = "What the loss is, how noise levels are weighed and drawn, and what is added to the noise. Nothing of it is needed for a first LoRA."
    ALIASES = (
        "min snr",
        "noise offset",
        "huber",
        "timestep",
        "shift",
        "pyramid noise",
        "zero terminal snr",
        "v prediction",
        "debiased",
    )
    ROWS = (
        row("loss"),
        row("objective.weighting"),
        row("objective.min_snr_gamma"),
        row("objective.noise_offset"),
        row("objective.timesteps"),
        row("objective.timestep_bias"),
        row("objective.min_timestep"),
        row("objective.max_timestep"),
        row("objective.shift", advanced=True),
        row("objective.logit_mean", advanced=True),
        row("objective.logit_std", advanced=True),
        row("huber_delta", advanced=True),
        row("huber_schedule", advanced=True),
        row("objective.p2_gamma", advanced=True),
        row("objective.multires_iterations", advanced=True),
        row("objective.multires_discount", advanced=True),
        row("objective.input_perturbation", advanced=True),
        row("objective.prediction", advanced=True),
        row("objective.zero_terminal_snr", advanced=True),
    )


class ValidationSettings(SettingsNode):
    NODE_ID, TITLE = "LoraLoomValidationSettings", "Validation Settings"
    DESCRIPTION = "Measures validation pictures at fixed noise during training: shows overtraining, ends the run, and restores the weights of the best step."
    ALIASES = ("validation loss", "early stopping", "overfitting", "best checkpoint")
    ROWS = (
        row("validation.every", default=50, min=1),
        row("validation.share"),
        row("validation.patience"),
        row("validation.restore_best", default=True),
        row("validation.pictures", advanced=True),
        row("validation.levels", advanced=True),
        row("validation.calibrate", optional=True),
        row("validation.concepts", optional=True),
        row("validation.each_picture", optional=True),
    )
    FOLDER = "validation.folder"
    FOLDER_TOOLTIP = (
        "Folder of pictures to validate on, inside ComfyUI's input folder; (none) sets a share of the dataset aside."
    )


SETTINGS_NODES = [
    OptimizerSettings,
    AdapterSettings,
    TextEncoderSettings,
    PivotalSettings,
    PriorSettings,
    LossNoiseSettings,
    ValidationSettings,
]
