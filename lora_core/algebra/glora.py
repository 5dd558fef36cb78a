"""GLoRA (Chavan et al. 2023, arXiv 2306.07967; LyCORIS): W + (alpha / rank) * (W A + B), both A and B of low rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .kind import Acting, Kind, Part, Parts, Shape, kaiming
from .products import squared_norm
from .walk import CONVS, Walk


class Glora(Kind):
    """A = a1 @ a2 with a1 (in, rank), a2 (rank, in); B = b1 @ b2 with b1 (out, rank), b2 (rank, in, *kernel). a2 and b2 start at zero: no effect."""

    name, title, algorithm = "glora", "GLoRA", "glora"
    signs = frozenset({"a1"})
    parts = (
        Part("a1", ending="a1.weight", up=True),
        Part("a2", ending="a2.weight", rank_axis=0),
        Part("b1", ending="b1.weight", up=True, rows=True),
        Part("b2", ending="b2.weight"),
    )
    needs_base = True

    def signed(self, p: Parts) -> bool:
        return "a1" in p and "bm" not in p  # no trainer writes the Tucker form, and no program reads it

    def shape(self, p: Parts, kernel: tuple[int, ...] = ()) -> tuple[int, ...]:
        return (p["b1"].shape[0], p["b2"].shape[1], *p["b2"].shape[2:])

    def problem(self, p: Parts) -> str:
        a1, a2, b1, b2 = (p[name].flatten(1) if p[name].ndim > 1 else p[name] for name in ("a1", "a2", "b1", "b2"))
        if not all(t.ndim == 2 for t in (a1, a2, b1, b2)):
            return "problem.glora.parts_are_not_matrices"
        rank, inputs = a2.shape
        fits = a1.shape == (inputs, rank) and b1.shape[1] == b2.shape[0] == rank and p["b2"].shape[1] == inputs
        return "" if fits else "problem.glora.ranks_or_inputs_are_not_equal"

    def delta(
        self, p: Parts, scale: float, weight: tuple[int, ...] = (), base: torch.Tensor | None = None
    ) -> torch.Tensor:
        if base is None:
            raise ValueError("glora changes a weight relative to its value, which was not given")
        inside = torch.einsum("o i ..., i r, r j -> o j ...", base, p["a1"].flatten(1), p["a2"].flatten(1))
        return scale * (inside + (p["b1"].flatten(1) @ p["b2"].flatten(1)).view(base.shape))

    def squared_norm(self, p: Parts, scale: float) -> torch.Tensor:
        """||A||^2 + ||B||^2."""
        return (squared_norm(p["a1"], p["a2"]) + squared_norm(p["b1"], p["b2"])) * scale**2

    def degree(self, p: Parts) -> int:
        return 2

    def ends(self, p: Parts) -> tuple[tuple[str, ...], ...]:
        return (("a2", "a1"), ("b2", "b1"))

    def summed(self, members: list[tuple[Parts, float]]) -> dict[str, torch.Tensor]:
        """Their factors side by side; the ranks add up."""
        plain = [self.stretched(p, scale) for p, scale in members]
        return {
            name: torch.cat([p[name].float() for p in plain], axis)
            for name, axis in (("a1", 1), ("a2", 0), ("b1", 1), ("b2", 0))
        }

    def largest_rank(self, weight: tuple[int, ...]) -> int:
        return min(weight[0], weight[1])

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        out, inputs, *kernel = shape.weight
        ones = [1] * len(kernel)
        return {
            "a1": kaiming(rng, inputs, shape.rank, *ones),
            "a2": torch.zeros(shape.rank, inputs, *ones),
            "b1": kaiming(rng, out, shape.rank, *ones),
            "b2": torch.zeros(shape.rank, inputs, *kernel),
        }

    def fitted(self, p: Parts, weight: tuple[int, ...]) -> dict[str, torch.Tensor]:
        ones = [1] * (len(weight) - 2)
        return {
            **{name: p[name].reshape(*p[name].shape[:2], *ones) for name in ("a1", "a2", "b1")},
            "b2": p["b2"].reshape(-1, *weight[1:]),
        }

    def around(self, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, acting: Acting) -> torch.Tensor:
        """W (x + s A x) + s B x: the layer on a changed input, and a branch beside it."""
        a1, a2, b1, b2 = (acting.parts[name].to(x.dtype) for name in ("a1", "a2", "b1", "b2"))
        seen = acting.drop(x)
        if acting.walk.conv is None:
            inner, beside = F.linear(F.linear(seen, a2), a1), F.linear(F.linear(seen, b2), b1)
        else:
            conv = CONVS[b1.ndim]
            inner, beside = conv(conv(seen, a2), a1), conv(acting.walk(seen, b2), b1)
        return forward(x + acting.scale * inner) + acting.scale * beside


KIND = Glora()
