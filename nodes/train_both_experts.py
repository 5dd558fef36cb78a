"""Train Both Experts: the two MODELs of Wan 2.2 A14B in; each with its LoRA, and both files, out of one run."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..convert import trained
from ..convert.results import EXPERTS, by_expert
from ..lora_core.config import TrainConfig
from ..lora_core.data.dataset import Dataset
from ..lora_core.messages.errors import LoomError
from ..lora_core.names import check_name
from .host.access.api import io, make_input, make_output
from .host.access.check import require_matched
from .host.access.loras import with_lora
from .host.engine.experts import HostExperts
from .host.web.panel import on_panel
from .jobs.datasets import Base, PictureSets
from .settings import Settings, SettingsSocket
from .sockets import LoraWeights, dataset_input, loss_output, plain_errors
from .train_lora import INPUTS as OF_ONE
from .train_lora import config_from as config_of_one
from .train_node import LAST, TrainNode, empty_lora, train_schema
from .training import job_of, train
from .widgets import Row, row

_STEPS = row(
    "steps",
    automatic=True,
    default=0,
    min=0,
    zero="auto",
    tooltip="Weight updates of both together, half of them each; 0 takes twice the preset's.",
)
_NOT_OF_BOTH = {"memory", "auto_fit", "epochs", "settings", "lora", "preset", "clip_vision"}


def _of_both(entry: Any) -> bool:
    """Whether two in turn have what Train LoRA has."""
    name = entry.name if isinstance(entry, Row) else entry.id
    return name not in _NOT_OF_BOTH and not (isinstance(entry, Row) and entry.moved)


def _is_optional(entry: Any) -> bool:
    return bool(entry.changes.get("optional") if isinstance(entry, Row) else entry.optional)


_SHARED = [_STEPS if getattr(entry, "name", "") == "steps" else entry for entry in OF_ONE[4:] if _of_both(entry)]
INPUTS = (
    make_input(
        io.Model, "model_high", tooltip="The expert for high noise levels (file name with high_noise). It is not copied and not changed."
    ),
    make_input(
        io.Model, "model_low", tooltip="The expert for low noise levels (file name with low_noise). It is not copied and not changed."
    ),
    make_input(io.Clip, "clip", tooltip="The text encoder of both."),
    make_input(io.Vae, "vae", tooltip="The VAE of both."),
    dataset_input(),
    *(entry for entry in _SHARED if not _is_optional(entry)),
    row(
        "switch_every", default=10, min=1,
        tooltip="Steps after which the other expert has its turn. Each switch loads a model: more spares time, fewer keep both alike.",
    ),
    make_input(
        io.Float, "boundary", default=0.0, min=0.0, zero="auto", max=0.999, step=0.005, advanced=True,
        tooltip="Noise level (sigma) at which the one passes to the other; 0: 0.875 for text-to-video, 0.9 for image-to-video.",
    ),
    *(entry for entry in _SHARED if _is_optional(entry)),  # the host lays widgets that may be absent behind the others
    make_input(Settings, "settings", optional=True, tooltip="From the settings nodes: optimizer, adapter, text encoders, tokens, class pictures."),
)  # fmt: skip
PRESET = "concept"


class TrainBothExperts(TrainNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return train_schema(
            INPUTS,
            node_id="LoraLoomTrainBothExperts",
            display_name="Train Both Experts",
            description="Trains a LoRA for each of the two networks of Wan 2.2 A14B in turn: one run, one dataset, one cache, "
            "one of them on the GPU at a time, two files.",
            search_aliases=["wan 2.2", "high noise", "low noise", "moe", "dual expert", "train", "lora training"],
            outputs=[
                make_output(io.Model, "model_high", tooltip="The high noise expert with its LoRA."),
                make_output(io.Model, "model_low", tooltip="The low noise expert with its LoRA."),
                make_output(io.LoraModel, "lora_high", tooltip="The LoRA of the high noise expert, <name>_high_noise."),
                make_output(io.LoraModel, "lora_low", tooltip="The LoRA of the low noise expert, <name>_low_noise."),
                loss_output(),
                make_output(io.String, "path_high", tooltip="The written file of the high noise expert."),
                make_output(io.String, "path_low", tooltip="The written file of the low noise expert."),
            ],
        )

    @classmethod
    @on_panel
    @plain_errors("lora")
    def execute(
        cls,
        model_high: Any,
        model_low: Any,
        clip: Any,
        vae: Any,
        dataset: PictureSets,
        resume: str,
        switch_every: int,
        boundary: float,
        settings: SettingsSocket | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        check_name("name", widgets["name"])
        models = dict(zip(EXPERTS, (model_high, model_low), strict=True))
        with torch.inference_mode(False):
            backend = HostExperts(model_high, model_low, clip, vae, switch_every, boundary)
            config, pictures = config_from({**widgets, "switch_every": switch_every}, dataset, backend, settings)
            for expert, state in by_expert(empty_lora(backend, config)).items():
                require_matched(trained(state, backend.family), models[expert])
            result, paths = train(cls.hidden, job_of(backend, config, pictures), resume == LAST)
        written = {stem: tensors for stem, (tensors, _) in result.products.items()}
        loras, files = _by_expert(written), _by_expert({path.stem: path for path in paths})
        tuned = []
        for expert in EXPERTS:
            require_matched(loras[expert], models[expert])
            tuned.append(with_lora(models[expert], None, loras[expert])[0])
        wired = [LoraWeights(loras[expert], backend.family, result.facts) for expert in EXPERTS]
        return io.NodeOutput(*tuned, *wired, {"loss": result.losses}, *(str(files[expert]) for expert in EXPERTS))


def config_from(
    widgets: dict[str, Any], dataset: PictureSets, base: Base, settings: SettingsSocket | None = None
) -> tuple[TrainConfig, Dataset]:
    """The job of these widgets for two models in turn, and the pictures it will train on. Raises LoomError."""
    config, pictures = config_of_one({**widgets, "preset": PRESET}, dataset, base, settings)
    return _for_both(config, widgets, settings), pictures


def _for_both(config: TrainConfig, widgets: dict[str, Any], settings: SettingsSocket | None) -> TrainConfig:
    """The job of one model as that of two. Raises LoomError for what two in turn cannot have."""
    if not config.trains_lora or config.trains_tokens or config.text_encoder.train:
        raise LoomError("experts.text", field="settings")
    if config.adapter.fixed:
        raise LoomError("experts.fixed", field="adapter.fixed")
    has_steps = widgets["steps"] or (settings is not None and "steps" in settings.values)
    steps = config.steps if has_steps else 2 * config.steps
    return dataclasses.replace(config, steps=steps, switch_every=widgets["switch_every"])


def _by_expert(named: dict[str, Any]) -> dict[str, Any]:
    """Of what has an expert's name at the end of its own."""
    return {expert: value for name, value in named.items() for expert in EXPERTS if name.endswith(f"_{expert}")}
