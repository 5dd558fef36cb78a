"""Zip LoRAs: a subject LoRA and a style LoRA in one, with coefficients learned on the wired MODEL."""

from __future__ import annotations

from typing import Any

import torch

from ..convert import FormatError, Lora, Module, read, write
from ..convert.families import FAMILIES, UNKNOWN, known_family
from ..convert.lora import as_lora, folded, plain
from ..convert.merge import merge
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.message import Message
from ..lora_core.training.job import Job
from ..lora_core.training.ziplora import Factors, zip_config, zip_loras
from .host.access.api import io, make_input, make_output, schema
from .host.access.loras import with_lora
from .host.access.paths import runs_root
from .host.engine.backend import HostBackend
from .host.web.live import LiveNode, registered
from .jobs.datasets import PictureSets
from .sockets import (
    CATEGORY,
    Dataset,
    LoraWeights,
    in_english,
    in_words,
    lora_output,
    loss_output,
    plain_errors,
    report_output,
)
from .widgets import widget


class ZipLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomZipLoras",
            display_name="Zip LoRAs",
            category=CATEGORY,
            description="ZipLoRA: merges a subject and a style LoRA so that each keeps its effect, by learning a coefficient for every column of every layer.",
            search_aliases=["ziplora", "merge subject and style", "learned merge"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                make_input(
                    io.Model,
                    "model",
                    tooltip="The base model both LoRAs were made for. It is not copied and not changed.",
                ),
                make_input(io.Clip, "clip", tooltip="The text encoder of the base model."),
                make_input(io.Vae, "vae", tooltip="The VAE of the base model."),
                make_input(io.LoraModel, "lora_1", tooltip="The first LoRA, from Train LoRA or Inspect."),
                make_input(io.LoraModel, "lora_2", tooltip="The second LoRA."),
                make_input(
                    Dataset,
                    "pictures_1",
                    tooltip="Pictures and captions of what the first LoRA shows, its training set for instance.",
                ),
                make_input(Dataset, "pictures_2", tooltip="The same for the second LoRA."),
                make_input(
                    io.Int, "steps", default=100, min=1, max=10000, tooltip="Weight updates; the paper uses 100."
                ),
                make_input(
                    io.Float,
                    "learning_rate",
                    default=0.01,
                    min=0.00001,
                    max=1.0,
                    step=0.001,
                    round=0.00001,
                    tooltip="The paper uses 0.01; coefficients start at 1.",
                ),
                make_input(
                    io.Float,
                    "similarity",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=0.000001,
                    tooltip="How strongly the two are kept from using the same columns (lambda in the paper). Lower it when a concept fades.",
                ),
                widget(
                    "data.resolution",
                    default=0,
                    min=0,
                    step=8,
                    tooltip="Resolution in px; 0 takes what the model was made for.",
                ),
                widget("seed"),
                widget("batch_size", advanced=True),
                widget("checkpointing", advanced=True),
            ],
            outputs=[
                make_output(io.Model, "model", tooltip="The base model with the merged LoRA."),
                lora_output(),
                loss_output(),
                report_output(),
            ],
        )

    @classmethod
    @plain_errors("lora")
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        lora_1: dict,
        lora_2: dict,
        pictures_1: PictureSets,
        pictures_2: PictureSets,
        steps: int,
        learning_rate: float,
        similarity: float,
        resolution: int,
        seed: int,
        batch_size: int,
        checkpointing: bool,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        with torch.inference_mode(False):
            backend = HostBackend(model, clip, vae)
            family = known_family(backend.family)
            canonical = [read({k: v.clone() for k, v in lora.items()}, family=family) for lora in (lora_1, lora_2)]
            sets = [pictures.sized(resolution, backend) for pictures in (pictures_1, pictures_2)]
            config = zip_config(sets[0].parts()["data"], steps, learning_rate, batch_size, seed, checkpointing)
            first, second = sets[0].opened(), sets[1].opened()
            job = Job(config, backend, first, runs_root(), LiveNode(node_id, steps))
            with registered(node_id, job.control):
                result = zip_loras(
                    job, second, (_denoiser(canonical[0], family), _denoiser(canonical[1], family)), similarity
                )
            if not result.losses:
                raise LoomError("zip.stopped_first")
            tensors, notes = _together(result.factors, canonical, family)
        tuned, _ = with_lora(model, None, tensors)
        first, last = f"{result.losses[0]:.4g}", f"{result.losses[-1]:.4g}"
        lines = [
            Message.of("zip.layers", count=len(result.factors)),
            Message.of("zip.difference", first=first, last=last, steps=len(result.losses)),
            Message.of("zip.overlap", overlap=f"{result.overlap:.3f}"),
            *notes,
        ]
        weights, losses = LoraWeights(tensors, backend.family, {}), {"loss": result.losses}
        return io.NodeOutput(tuned, weights, losses, in_english(lines), ui=in_words(lines))


def _form(family: str) -> str:
    """The spelling whose names are those of the backend's layers."""
    return "kohya" if family != UNKNOWN and FAMILIES[family].universal == "kohya" else "comfyui"


def _denoiser(lora: Lora, family: str) -> dict[str, Factors]:
    """(down, up) of the denoiser's layers, by the backend's names. Raises LoomError for what is not a plain LoRA."""
    out = {}
    for name, module in read(
        write(lora, _form(family) if family != UNKNOWN else "universal", one_alpha=False), family=UNKNOWN
    ).modules.items():
        if name.startswith(("lora_te", "text_encoders.")):
            continue
        if module.kind != "lora" or {"dora", "diff_b"} & module.parts.keys():
            raise FormatError("zip.not_plain", name=name, kind=module.kind, way=as_lora(module))
        parts = folded(plain(module)).parts
        out[name] = parts["down"].float(), parts["up"].float()
    return out


def _together(
    factors: dict[str, Factors], canonical: list[Lora], family: str
) -> tuple[dict[str, torch.Tensor], list[Message]]:
    """The universal file of the zipped denoiser and the summed text encoders, and what to say about it."""
    state = {
        f"{name}.{part}": tensor
        for name, pair in factors.items()
        for part, tensor in zip(("lora_down", "lora_up"), pair, strict=True)
    }
    if family == UNKNOWN:
        return write(read(state, family=UNKNOWN)), []
    zipped = read(state, family=family)
    prefix = FAMILIES[family].component
    texts = [_texts_of(lora, family, prefix) for lora in canonical]
    summed: dict[str, Module] = {}
    if any(lora.modules for lora in texts):
        try:
            summed = merge([(lora, 1.0) for lora in texts]).lora.modules
        except FormatError as error:
            raise LoomError("zip.texts", field="lora", reason=error) from error
    notes = [Message.of("zip.texts_summed", count=len(summed))] if summed else []
    return write(Lora(family, {**zipped.modules, **summed})), notes


def _texts_of(lora: Lora, family: str, prefix: str) -> Lora:
    """The text encoder layers of a LoRA: all whose names do not begin with that of the denoiser."""
    return Lora(family, {name: m for name, m in lora.modules.items() if not name.startswith(f"{prefix}.")})
