"""LoHa (FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098; LyCORIS): the update is the elementwise product of two low-rank matrices, of rank up to r^2."""

from __future__ import annotations

import math

import torch

from .kind import BIAS_PART, MAGNITUDES, Kind, Part, Parts, Shape, kaiming, unflattened
from .products import blocks, squared_norm, total
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
        return (one * two * scale).reshape(weight or self.shape(p))

    def squared_norm(self, p: Parts, scale: float) -> torch.Tensor:
        """By rows of the product, which may be far larger than the factors; at very low ranks by the factors alone: the elementwise product of two
        matrices of rank r is one of rank r^2.
        """
        if "hada_t1" not in p and max(p["hada_w1_b"].shape[0], p["hada_w2_b"].shape[0]) <= 4:
            up = torch.einsum("oi,oj->oij", p["hada_w1_a"], p["hada_w2_a"]).flatten(1)
            return squared_norm(up, torch.einsum("ik,jk->ijk", p["hada_w1_b"], p["hada_w2_b"]).flatten(0, 1)) * scale**2
        axis, shape = (1, self.shape(p)) if "hada_t1" in p else (0, self.shape(p))
        ups = ("hada_w1_a", "hada_w2_a")

        def part(rows: slice) -> torch.Tensor:
            cut = {**p, **{name: p[name].narrow(axis, rows.start, rows.stop - rows.start) for name in ups}}
            return (_matrix(cut, 1) * _matrix(cut, 2)).square().sum()

        return total(part(rows) for rows in blocks(shape[0], math.prod(shape[1:]))) * scale**2

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


def _matrix(p: Parts, n: int) -> torch.Tensor:
    """The low-rank matrix number 1 or 2."""
    a, b = p[f"hada_w{n}_a"], p[f"hada_w{n}_b"]
    return torch.einsum("i j ..., j r, i p -> p r ...", p[f"hada_t{n}"], b, a) if f"hada_t{n}" in p else a @ b
