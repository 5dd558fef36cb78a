"""The change of a layer's bias alone (BitFit, Ben Zaken et al. 2022, arXiv 2106.10199), written as `diff_b`."""

from __future__ import annotations

import dataclasses

import torch

from ..messages.message import Message
from .full import Full
from .kind import BIAS_PART, BIASES, Acting, Parts, Shape
from .walk import Walk


class Bias(Full):
    """diff_b (out,), zero at the start. A file holds it as a full difference without a change of the weight."""

    name, title, form, algorithm, trains = "bias", Message.of("kind.bias"), "full", "full", BIASES
    signs = frozenset({"diff_b"})
    parts = (dataclasses.replace(BIAS_PART, optional=False),)
    drops_inputs = False

    def fits(self, p: Parts, weight: tuple[int, ...]) -> bool:
        return len(p["diff_b"]) == weight[0]

    def squared_norm(self, p: Parts, scale: float) -> torch.Tensor:
        return p["diff_b"].square().sum() * scale**2

    def fitted(self, p: Parts, weight: tuple[int, ...]) -> dict[str, torch.Tensor]:
        return dict(p)

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        return {"diff_b": torch.zeros(shape.weight[0])}

    def add_to(self, out: torch.Tensor, x: torch.Tensor, acting: Acting) -> torch.Tensor:
        return out + acting.walk.spread(acting.parts["diff_b"] * acting.scale, out)


KIND = Bias()
