"""LoRA state dicts in the forms loaders read. Inputs are left as they are; arithmetic is float32, casting comes last.

A module's delta is `alpha / rank * up @ down` in every form. Kohya names (`lora_unet_...`) carry the scale as `.alpha`;
dotted names (`diffusion_model....`) use the PEFT suffixes and carry the scale inside the weights, since readers of that form ignore or misread alpha.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]
KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class FormatError(ValueError):
    """A tensor cannot be written in the wanted form; the message names the key and the reason."""


def modules(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """Module name -> (down, up, alpha) from keys `<name>.lora_down`, `<name>.lora_up` (with or without `.weight`) and `<name>.alpha`.

    A missing alpha means alpha = rank. Raises FormatError on keys of any other kind and on incomplete modules.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        name, _, kind = key.removesuffix(".weight").rpartition(".")
        if kind not in ("lora_down", "lora_up", "alpha"):
            raise FormatError(f"{key}: is not part of a LoRA with lora_down, lora_up and alpha.")
        parts.setdefault(name, {})[kind] = value
    found = {}
    for name, part in parts.items():
        if "lora_down" not in part or "lora_up" not in part:
            raise FormatError(f"{name}: has {', '.join(part)} but needs both lora_down and lora_up.")
        rank = part["lora_down"].shape[0]
        found[name] = (part["lora_down"], part["lora_up"], float(part["alpha"]) if "alpha" in part else float(rank))
    return found


def to_file(state: Mapping[str, torch.Tensor]) -> State:
    """The tensors to write, float32: Kohya form for Kohya names, A/B form with the scale folded in for dotted names."""
    out: State = {}
    for name, (down, up, alpha) in modules(state).items():
        if name.startswith(KOHYA_PREFIXES):
            out[f"{name}.lora_down.weight"], out[f"{name}.lora_up.weight"] = down.float(), up.float()
            out[f"{name}.alpha"] = torch.tensor(alpha)
        else:
            scale = alpha / down.shape[0]
            root = abs(scale) ** 0.5  # split over both factors, so neither leaves the range of fp16
            out[f"{name}.lora_A.weight"] = down.float() * root
            out[f"{name}.lora_B.weight"] = up.float() * (root if scale >= 0 else -root)
    return out


def cast(state: Mapping[str, torch.Tensor], dtype: str) -> tuple[State, float]:
    """(state in `dtype`, share of non-zero values that became zero). Alpha stays float32-exact. Raises FormatError on overflow."""
    out, lost, total = {}, 0, 0
    for key, value in state.items():
        small = value.float() if key.endswith(".alpha") else value.to(DTYPES[dtype])
        if not torch.isfinite(small).all():
            raise FormatError(f"{key}: holds values that do not fit {dtype}; save as fp32 or bf16.")
        lost += int(((small == 0) & (value != 0)).sum())
        total += int((value != 0).sum())
        out[key] = small
    return out, lost / max(1, total)


def is_lora(state: Mapping[str, torch.Tensor]) -> bool:
    return any(".lora_" in key for key in state)


def describe(state: Mapping[str, torch.Tensor]) -> tuple[int, float]:
    """(rank, alpha) of the first module, as metadata wants them."""
    for key, value in state.items():
        if key.endswith((".lora_down.weight", ".lora_A.weight")):
            alpha = state.get(key.replace(".lora_down.weight", ".alpha"))
            return value.shape[0], float(alpha) if alpha is not None and alpha.numel() == 1 else float(value.shape[0])
    return 0, 0.0
