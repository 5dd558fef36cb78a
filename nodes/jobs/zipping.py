"""ZipLoRA between files and engine: two LoRAs as the layers of a model, and the one that comes out as a file. On every host."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ...convert import FormatError, Lora, Module, read, write
from ...convert.families import FAMILIES, UNKNOWN
from ...convert.lora import as_lora, folded, plain
from ...convert.merge import merge
from ...lora_core.data.dataset import Dataset
from ...lora_core.messages.errors import LoomError
from ...lora_core.messages.figures import figure
from ...lora_core.messages.message import Message
from ...lora_core.training.job import Job
from ...lora_core.training.ziplora import Factors, zip_loras


@dataclasses.dataclass(frozen=True)
class Zipped:
    """`tensors`: one file in the form that ComfyUI and diffusers read; `losses`: one a step; `lines`: what to say of it."""

    tensors: dict[str, torch.Tensor]
    losses: list[float]
    lines: list[Message]


def zipped(job: Job, second: Dataset, loras: Sequence[Lora], family: str, similarity: float) -> Zipped:
    """Two LoRAs for a model of `family` in one, learned on the job's pictures and on `second`. Raises LoomError."""
    result = zip_loras(job, second, (_denoiser(loras[0], family), _denoiser(loras[1], family)), similarity)
    if not result.losses:
        raise LoomError("zip.stopped_first")
    tensors, notes = _together(result.factors, loras, family)
    first, last = figure(result.losses[0]), figure(result.losses[-1])
    lines = [
        Message.of("zip.layers", count=len(result.factors)),
        Message.of("zip.difference", first=first, last=last, steps=len(result.losses)),
        Message.of("zip.overlap", overlap=figure(result.overlap)),
        *notes,
    ]
    return Zipped(tensors, result.losses, lines)


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
        if not module.is_plain or "diff_b" in module.parts:
            raise FormatError("zip.not_plain", name=name, kind=module.kind, way=as_lora(module))
        parts = folded(plain(module)).parts
        out[name] = parts["down"].float(), parts["up"].float()
    return out


def _together(
    factors: dict[str, Factors], canonical: Sequence[Lora], family: str
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
