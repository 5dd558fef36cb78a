"""The change of a norm's weight and bias (LyCORIS: train_norm), for LayerNorm, GroupNorm and RMSNorm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from ..messages.message import Message
from .full import Full
from .kind import NORMS, Acting, Part, Parts, Shape
from .walk import Walk


class Norm(Full):
    """diff (channels,) and, where the norm has a bias, diff_b (channels,). Both start at zero.

    LyCORIS calls them w_norm and b_norm and reads no other name; ComfyUI reads both.
    """

    name, title, algorithm, arguments, trains = "norm", Message.of("kind.norm"), "lora", {"train_norm": "True"}, NORMS
    parts = (
        Part("diff", ending="w_norm", native="diff", rows=True),
        dataclasses.replace(Full.parts[1], ending="b_norm", native="diff_b"),
    )
    drops_inputs = False

    def signed(self, p: Parts) -> bool:
        return super().signed(p) and "diff" in p and p["diff"].ndim == 1

    def around(self, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, acting: Acting) -> torch.Tensor:
        assert acting.walk.norm is not None
        out, p = forward(x), acting.parts
        out = out + acting.walk.norm(x).to(out.dtype) * acting.walk.spread(p["diff"] * acting.scale, out)
        return out + acting.walk.spread(p["diff_b"] * acting.scale, out) if "diff_b" in p else out

    def fitted(self, p: Parts, weight: tuple[int, ...]) -> dict[str, torch.Tensor]:
        return dict(p)

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        return {"diff": torch.zeros(shape.weight), **({"diff_b": torch.zeros(shape.weight)} if walk.bias else {})}


KIND = Norm()
