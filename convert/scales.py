"""Quantised weights in a checkpoint: numbers that mean something only together with scales or code books stored beside them."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Iterable, Mapping

import torch

from ..lora_core.matching.scales import SCALE
from ..lora_core.messages.message import Message


def scaled_layers(keys: Iterable[str]) -> dict[str, list[str]]:
    """Layer -> the keys of its scales; a mark for a whole model stands under the model's prefix."""
    out: dict[str, list[str]] = {}
    for key in keys:
        match = SCALE.fullmatch(key)
        if match:
            out.setdefault(match["layer"] or "", []).append(key)
    return out


def warning(keys: Iterable[str]) -> Message:
    """What to tell about a checkpoint with such keys."""
    return Message.of("checkpoint.scaled", key=next(iter(keys)))


Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
_FACTORS = {"scale_weight", "weight_scale"}
_BESIDE = {
    "scale_input",
    "input_scale",
    "comfy_quant",
}  # of the layer's inputs, or how to compute; the weight is none of their business
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def factors(layout: Layout, tensor: Callable[[str], torch.Tensor]) -> dict[str, str]:
    """Key of an fp8 weight -> key of the plain factor that makes numbers of it: one for the whole weight, or one for each output."""
    out = {}
    for layer, keys in scaled_layers(layout).items():
        names = {key.removeprefix(f"{layer}.") for key in keys}
        factor, weight = names & _FACTORS, f"{layer}.weight"
        if len(factor) != 1 or names - _FACTORS - _BESIDE or weight not in layout:
            continue
        scale = f"{layer}.{factor.pop()}"
        (dtype, shape), (_, size) = layout[weight], layout[scale]
        whole, rows = all(n == 1 for n in size), size[:1] == shape[:1] and all(n == 1 for n in size[1:])
        if dtype in _LARGEST and (whole or rows) and _is_plain(layer, layout, tensor):
            out[weight] = scale
    return out


def _is_plain(layer: str, layout: Layout, tensor: Callable[[str], torch.Tensor]) -> bool:
    """Whether ComfyUI's note beside a weight, where there is one, says fp8 and nothing more."""
    key = f"{layer}.comfy_quant"
    if key not in layout:
        return True
    try:
        note = json.loads(bytes(tensor(key).to(torch.uint8).flatten().tolist()))
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(note, dict)
        and note.get("format") in _FORMATS
        and note.keys() <= {"format", "full_precision_matrix_mult"}
    )


def unapplied(layout: Layout, plain: Mapping[str, str]) -> dict[str, list[str]]:
    """As `scaled_layers`, without the layers whose factor is known; the mark of a model counts where one of its fp8 weights has no factor."""
    out = {}
    fp8 = (key for key, (dtype, _) in layout.items() if dtype in _LARGEST and key not in plain and not _marks(key))
    unknown = sorted(fp8)  # weights without a factor
    for layer, keys in scaled_layers(layout).items():
        first = bisect.bisect_left(unknown, layer)  # of those below the layer
        some = first < len(unknown) and unknown[first].startswith(layer)
        unread = [key for key in keys if some or not _marks(key)]
        if unread and f"{layer}.weight" not in plain:
            out[layer] = unread
    return out


def _marks(key: str) -> bool:
    """Whether a key says of a model that its fp8 weights have factors."""
    return key.endswith("scaled_fp8")


def dequantised(value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The numbers an fp8 weight stands for, float32."""
    return value.float() * _spread(scale.float(), value)


def quantised(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(fp8 weight, its factor) for float32 numbers. `scale`: the factor before, which stays where the numbers fit, so that what did not change
    is not rounded anew.
    """
    sizes = weight.abs().flatten(1).amax(1) if scale.numel() > 1 else weight.abs().max()
    needed = torch.maximum(scale.float().flatten(), sizes.flatten() / _LARGEST[dtype])
    new = needed.reshape(scale.shape).to(scale.dtype)
    divided = weight / _spread(new.float(), weight)
    return divided.clamp(-_LARGEST[dtype], _LARGEST[dtype]).to(dtype), new


def _spread(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return scale.reshape(-1, *[1] * (weight.ndim - 1)) if scale.numel() > 1 else scale.reshape(())
