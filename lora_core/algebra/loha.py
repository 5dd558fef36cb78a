"""LoHa (FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098; LyCORIS): the update is the elementwise product of two low-rank matrices, of rank up to r^2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .kind import BIAS_PART, MAGNITUDES, Kind, Member, Part, Parts, Shape, kaiming, stacked_beside, unflattened
from .products import blocks, total
from .rows import diagonal
from .walk import Walk


class Loha(Kind):
    """hada_w1_a, hada_w2_a (out, rank); hada_w1_b, hada_w2_b (rank, in * kernel). w2_b starts at zero. As PEFT's LoHa.

    In Tucker form w_a is (rank, out), w_b (rank, in), and hada_t1, hada_t2 are (rank, rank, *kernel).
    """

    name, title, algorithm, peft = "loha", "LoHa", "loha", "LOHA"
    stores_flat = True
    signs = frozenset({"hada_w1_a", "hada_w2_a"})
    parts = (
        Part("hada_w1_a", up=True, rows=True),
        Part("hada_w1_b", rank_axis=0),
        Part("hada_w2_a", up=True, rows=True),
        Part("hada_w2_b"),
        Part("hada_t1", optional=True, scales=False),
        Part("hada_t2", optional=True, scales=False),
        MAGNITUDES,
        BIAS_PART,
    )

    def shape(self, p: Parts, kernel: tuple[int, ...] = ()) -> tuple[int, ...]:
        if "hada_t1" in p:
            return (p["hada_w1_a"].shape[1], p["hada_w1_b"].shape[1], *p["hada_t1"].shape[2:])
        return unflattened(p["hada_w1_a"].shape[0], p["hada_w1_b"].shape[1], kernel)

    def by_rows(self, p: Parts) -> bool:
        return "hada_t1" not in p

    def problem(self, p: Parts) -> str:
        one, two = (p["hada_w1_a"], p["hada_w1_b"]), (p["hada_w2_a"], p["hada_w2_b"])
        if any(t.ndim != 2 for t in (*one, *two)) or ("hada_t1" in p) != ("hada_t2" in p):
            fits = False
        elif "hada_t1" in p:
            fits = all(
                t.ndim > 2 and tuple(t.shape[:2]) == (a.shape[0], b.shape[0])
                for t, (a, b) in ((p["hada_t1"], one), (p["hada_t2"], two))
            )
        else:
            fits = (
                one[0].shape[0] == two[0].shape[0]
                and one[1].shape[1] == two[1].shape[1]
                and all(a.shape[1] == b.shape[0] for a, b in (one, two))
            )
        return "" if fits else "problem.loha.factors"

    def delta(
        self, p: Parts, scale: float, weight: tuple[int, ...] = (), base: torch.Tensor | None = None
    ) -> torch.Tensor:
        one, two = (_matrix(p, n) for n in (1, 2))
        product = (
            one * two if torch.is_grad_enabled() else one.mul_(two)
        )  # two tables at a time where no gradient asks for more
        return (product * scale if torch.is_grad_enabled() else product.mul_(scale)).reshape(weight or self.shape(p))

    def factored(self, p: Parts, most: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The elementwise product of two matrices of rank r is one of rank r^2."""
        if "hada_t1" in p:
            return None
        rows, columns = p["hada_w1_a"].shape[0], p["hada_w1_b"].shape[1]
        rank = p["hada_w1_b"].shape[0] * p["hada_w2_b"].shape[0]
        if rank * (rows + columns) > most:
            return None
        down = _row_products(p["hada_w1_b"].t(), p["hada_w2_b"].t()).t()
        return _row_products(p["hada_w1_a"], p["hada_w2_a"]), down.contiguous()

    def squared_norm(self, p: Parts, scale: float) -> torch.Tensor:
        """By the factors alone, or by rows of the product, which may be far larger than them: whichever is less work. Where both are out of proportion
        to the factors, by evenly spaced rows, which tells it to about a hundredth.
        """
        shape = self.shape(p)
        ranks = p["hada_w1_b"].shape[0], p["hada_w2_b"].shape[0]
        by_rows, allowed = math.prod(shape) * sum(ranks), WORK + WORK_A_NUMBER * sum(t.numel() for t in p.values())
        by_factors = (shape[0] + math.prod(shape[1:])) * math.prod(ranks) ** 2
        if "hada_t1" not in p and by_factors <= min(by_rows, allowed):
            up, down = _gram(p["hada_w1_a"], p["hada_w2_a"]), _gram(p["hada_w1_b"].t(), p["hada_w2_b"].t())
            return (up * down).sum() * scale**2
        every = slice(None, None, -(-by_rows // allowed))
        taken = {name: p[name][:, every] if "hada_t1" in p else p[name][every] for name in ("hada_w1_a", "hada_w2_a")}
        count = self.shape({**p, **taken})[0]

        def part(rows: slice) -> torch.Tensor:
            cut = {name: value[:, rows] if "hada_t1" in p else value[rows] for name, value in taken.items()}
            return (_matrix({**p, **cut}, 1) * _matrix({**p, **cut}, 2)).square().sum()

        return total(part(rows) for rows in blocks(count, math.prod(shape[1:]))) * (scale**2 * shape[0] / count)

    def peft_config(self, members: Sequence[Parts], alpha: float) -> dict[str, Any]:
        return {
            "alpha": alpha,
            "use_effective_conv2d": any("hada_t1" in p for p in members),
            "module_dropout": 0.0,
            "rank_dropout": 0.0,
        }

    def stacked(
        self, members: Sequence[Member | None], rows: Sequence[int]
    ) -> tuple[dict[str, torch.Tensor], float | None] | None:
        """Both w_a on a diagonal, the ranks add up."""
        present = [member for member in members if member is not None]
        if not rows or any("hada_t1" in p for p, _ in present):
            return None
        scale = self.scale(*present[0])
        parts = [None if member is None else self.at_scale(member, scale) for member in members]
        kept = [p for p in parts if p is not None]
        out = {name: torch.cat([p[name] for p in kept]) for name in ("hada_w1_b", "hada_w2_b")}
        for name in ("hada_w1_a", "hada_w2_a"):
            out[name] = diagonal([None if p is None else p[name] for p in parts], rows, kept[0][name].dtype)
        return {**out, **stacked_beside(members, rows)}, scale * self.rank(out)

    def ends(self, p: Parts) -> tuple[tuple[str, ...], ...]:
        return (("hada_w1_b", "hada_w1_a"),)

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        rows, columns = shape.weight[0], math.prod(shape.weight[1:])
        sizes = {"hada_w1_a": (rows, shape.rank), "hada_w1_b": (shape.rank, columns), "hada_w2_a": (rows, shape.rank)}
        return {
            **{name: kaiming(rng, *size) for name, size in sizes.items()},
            "hada_w2_b": torch.zeros(shape.rank, columns),
        }


KIND = Loha()
WORK, WORK_A_NUMBER = (
    1 << 28,
    1 << 8,
)  # multiplications that a norm may cost: in any case, and for each number of the factors


def _row_products(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """(n, r), (n, s) -> (n, r * s): each row the outer product of two rows."""
    return torch.einsum("ni,nj->nij", one, two).flatten(1)


def _gram(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """P^T P of P = _row_products(one, two), by rows."""
    parts = (_row_products(one[rows], two[rows]) for rows in blocks(len(one), one.shape[1] * two.shape[1]))
    return total(part.t() @ part for part in parts)


def _matrix(p: Parts, n: int) -> torch.Tensor:
    """The low-rank matrix number 1 or 2."""
    a, b = p[f"hada_w{n}_a"], p[f"hada_w{n}_b"]
    return torch.einsum("i j ..., j r, i p -> p r ...", p[f"hada_t{n}"], b, a) if f"hada_t{n}" in p else a @ b
