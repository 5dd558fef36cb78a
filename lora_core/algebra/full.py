"""A full difference (LyCORIS: full): the change of the weight itself, and of the bias where the layer has one."""

from __future__ import annotations

import torch

from ..messages.message import Message
from .kind import BIAS_PART, MAGNITUDES, Acting, Kind, Part, Parts, Shape
from .walk import Walk


class Full(Kind):
    """diff, in the weight's own shape; diff_b (out,). Both start at zero. A file may also hold diff_b alone."""

    name, title, algorithm, has_alpha, trains_bias = "full", Message.of("kind.full"), "full", False, True
    signs = frozenset({"diff", "diff_b"})
    parts: tuple[Part, ...] = (Part("diff", optional=True, up=True, rows=True), BIAS_PART, MAGNITUDES)

    def signed(self, p: Parts) -> bool:
        return bool(p) and p.keys() <= self.signs

    def shape(self, p: Parts, kernel: tuple[int, ...] = ()) -> tuple[int, ...]:
        return tuple(p["diff"].shape) if "diff" in p else ()

    def changes_weight(self, p: Parts) -> bool:
        return "diff" in p

    def delta(
        self, p: Parts, scale: float, weight: tuple[int, ...] = (), base: torch.Tensor | None = None
    ) -> torch.Tensor:
        return p["diff"].reshape(weight or p["diff"].shape) * scale

    def degree(self, p: Parts) -> int:
        return 1

    def ends(self, p: Parts) -> tuple[tuple[str, ...], ...]:
        return (("diff",),) if "diff" in p else ()

    def summed(self, members: list[tuple[Parts, float]]) -> dict[str, torch.Tensor] | None:
        changes = [p["diff"].float() * scale for p, scale in members if "diff" in p]
        return {"diff": torch.stack(changes).sum(0)} if changes else {}

    def fitted(self, p: Parts, weight: tuple[int, ...]) -> dict[str, torch.Tensor]:
        return {**p, "diff": p["diff"].reshape(weight)}

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        return {"diff": torch.zeros(shape.weight), **({"diff_b": torch.zeros(shape.weight[0])} if walk.bias else {})}

    def add_to(self, out: torch.Tensor, x: torch.Tensor, acting: Acting) -> torch.Tensor:
        out = out + acting.walk(acting.drop(x), (acting.parts["diff"] * acting.scale).to(x.dtype))
        return out + acting.walk.spread(acting.parts["diff_b"] * acting.scale, out) if "diff_b" in acting.parts else out


KIND = Full()
