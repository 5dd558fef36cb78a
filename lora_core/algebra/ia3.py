"""(IA)^3 (Liu et al. 2022, arXiv 2205.05638; LyCORIS): one learned factor for each output, or each input, of a layer: W (1 + w)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .kind import Acting, Kind, Part, Parts, Shape
from .walk import Walk


class Ia3(Kind):
    """weight (channels,), or (1, channels, 1, ...) of a convolution: what is added to a factor of one. on_input: 1 for factors of the inputs, 0 of outputs.

    LyCORIS, A1111 and Forge read such files; ComfyUI does not.
    """

    name, title, algorithm, has_alpha = "ia3", "(IA)^3", "ia3", False
    signs = frozenset({"on_input"})
    parts = (Part("weight"), Part("on_input", scales=False, constant=True))
    needs_base, keeps_base, drops_inputs = True, True, False

    def fits(self, p: Parts, weight: tuple[int, ...]) -> bool:
        return p["weight"].numel() == weight[1 if p["on_input"].item() else 0]

    def problem(self, p: Parts) -> str:
        return "" if p["on_input"].numel() == 1 else "problem.ia3.on_input"

    def by_rows(self, p: Parts) -> bool:
        return False

    def remark(self, p: Parts) -> str:
        return "note.ia3"

    def delta(
        self, p: Parts, scale: float, weight: tuple[int, ...] = (), base: torch.Tensor | None = None
    ) -> torch.Tensor:
        if base is None:
            raise ValueError("ia3 changes a weight relative to its value, which was not given")
        axis = [1] * base.ndim
        axis[1 if p["on_input"].item() else 0] = -1
        return base * (scale * p["weight"].flatten()).view(axis)

    def squared_norm(self, p: Parts, scale: float) -> torch.Tensor:
        return p["weight"].square().sum() * scale**2

    def ends(self, p: Parts) -> tuple[tuple[str, ...], ...]:
        return (("weight",),)

    def summed(self, members: list[tuple[Parts, float]]) -> dict[str, torch.Tensor] | None:
        first = members[0][0]
        if len({p["on_input"].item() for p, _ in members}) > 1:
            return None
        return {
            "weight": torch.stack([p["weight"].float() * scale for p, scale in members]).sum(0),
            "on_input": first["on_input"],
        }

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        on_input = shape.options.get("ia3_axis", "output") == "input"
        channels, ones = shape.weight[int(on_input)], [1] * (len(shape.weight) - 2)
        return {
            "weight": torch.zeros(1, channels, *ones) if ones else torch.zeros(channels),
            "on_input": torch.tensor(float(on_input)),
        }

    def kept(self, p: Parts, weight: torch.Tensor, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return {} if bias is None else {"bias": bias.to(p["weight"]).clone()}

    def around(self, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, acting: Acting) -> torch.Tensor:
        factors = acting.scale * acting.parts["weight"].flatten()
        if acting.parts["on_input"].item():
            return forward(x + x * acting.walk.spread(factors, x))
        out = forward(x)
        plain = out if "bias" not in acting.kept else out - acting.walk.spread(acting.kept["bias"], out)
        return out + plain * acting.walk.spread(factors, out)


KIND = Ia3()
