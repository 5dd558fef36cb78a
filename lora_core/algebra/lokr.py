"""LoKr (KronA, Edalati et al. 2022, arXiv 2212.10650; LyCORIS): the update is a Kronecker product of a small matrix and a larger, low-rank one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .kind import BIAS_PART, MAGNITUDES, Acting, Kind, Part, Parts, Shape, kaiming, unflattened
from .products import squared_norm, squared_norm_of_core
from .walk import Walk


class Lokr(Kind):
    """lokr_w1 (a, b), or (a, rank) and (rank, b); lokr_w2 (c, d, *kernel), or lokr_w2_a (c, rank) and lokr_w2_b (rank, d * kernel); a * c = out, b * d = in.

    In Tucker form lokr_w2_a is (rank, c), lokr_w2_b (rank, d) and lokr_t2 (rank, rank, *kernel). w2 (or w2_b) starts at zero: no effect before step 1.
    """

    name, title, algorithm, peft = "lokr", "LoKr", "lokr", "LOKR"
    stores_flat, core_unread = True, True
    signs = frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"})
    parts = (
        Part("lokr_w1", optional=True, up=True),
        Part("lokr_w1_a", optional=True),
        Part("lokr_w1_b", optional=True, rank_axis=0),
        Part("lokr_w2", optional=True),
        Part("lokr_w2_a", optional=True, up=True),
        Part("lokr_w2_b", optional=True, rank_axis=0),
        Part("lokr_t2", optional=True, scales=False),
        MAGNITUDES,
        BIAS_PART,
    )

    def shape(self, p: Parts, kernel: tuple[int, ...] = ()) -> tuple[int, ...]:
        one, two = kronecker_factors(
            {name: value.to("meta") for name, value in p.items()}
        )  # sizes alone; the product may be far larger than the file
        rows, columns = one.shape[0] * two.shape[0], one.shape[1] * two.shape[1]
        return (rows, columns, *two.shape[2:]) if two.ndim > 2 else unflattened(rows, columns, kernel)

    def by_rows(self, p: Parts) -> bool:
        return False

    def spans(self, p: Parts) -> dict[str, int]:
        """A row of the first factor stands for as many outputs as the second factor has rows."""
        second = len(p["lokr_w2"]) if "lokr_w2" in p else p["lokr_w2_a"].shape["lokr_t2" in p]
        return {"lokr_w1" if "lokr_w1" in p else "lokr_w1_a": second, **dict.fromkeys(self.row_parts(p), 1)}

    def variant(self, p: Parts) -> str:
        plain = MAGNITUDES.name not in p and {"lokr_w1", "lokr_w2"} <= p.keys()
        return f"{self.name}_full" if plain else super().variant(p)

    def settled(self, p: Parts, alpha: float | None) -> tuple[Parts, float | None]:
        return p, alpha if self.rank(p) else None  # every program ignores alpha where both factors are full

    def delta(
        self, p: Parts, scale: float, weight: tuple[int, ...] = (), base: torch.Tensor | None = None
    ) -> torch.Tensor:
        one, two = kronecker_factors(p)
        one = one.reshape(*one.shape, *[1] * (two.ndim - 2))
        return (scale * torch.kron(one, two.contiguous())).reshape(weight or self.shape(p))

    def squared_norm(self, p: Parts, scale: float) -> torch.Tensor:
        """||A kron B|| = ||A|| ||B||."""
        one = p["lokr_w1"].square().sum() if "lokr_w1" in p else squared_norm(p["lokr_w1_a"], p["lokr_w1_b"])
        if "lokr_w2" in p:
            two = p["lokr_w2"].square().sum()
        elif "lokr_t2" in p:
            a, b = p["lokr_w2_a"], p["lokr_w2_b"]
            two = squared_norm_of_core(p["lokr_t2"], a @ a.t(), b @ b.t())
        else:
            two = squared_norm(p["lokr_w2_a"], p["lokr_w2_b"])
        return one * two * scale**2

    def kronecker(self, p: Parts) -> tuple[torch.Tensor, torch.Tensor]:
        return kronecker_factors(p)

    def core_numbers(self, p: Parts) -> int:
        if "lokr_t2" not in p:
            return 0
        return math.prod((p["lokr_w2_a"].shape[1], p["lokr_w2_b"].shape[1], *p["lokr_t2"].shape[2:]))

    def without_core(self, p: Parts, alpha: float | None) -> tuple[dict[str, torch.Tensor], float | None]:
        """The second factor multiplied out, the scale inside, for a LoKr of two full factors has none."""
        _, two = kronecker_factors({name: value.float() for name, value in p.items()})
        rest = {name: value for name, value in p.items() if name not in ("lokr_t2", "lokr_w2_a", "lokr_w2_b")}
        return {**rest, "lokr_w2": two * self.scale(p, alpha)}, None

    def ends(self, p: Parts) -> tuple[tuple[str, ...], ...]:
        return (
            (next(n for n in ("lokr_w1", "lokr_w1_b") if n in p), next(n for n in ("lokr_w2", "lokr_w2_a") if n in p)),
        )

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        kernel = shape.weight[2:]
        (a, c), (b, d) = (factors(n, shape.options.get("lokr_factor", 0)) for n in shape.weight[:2])
        first = kaiming(rng, a, b)
        if shape.rank < max(c, d) / 2:
            return {
                "lokr_w1": first,
                "lokr_w2_a": kaiming(rng, c, shape.rank),
                "lokr_w2_b": torch.zeros(shape.rank, d * math.prod(kernel)),
            }
        return {"lokr_w1": first, "lokr_w2": torch.zeros(c, d, *kernel)}

    def add_to(self, out: torch.Tensor, x: torch.Tensor, acting: Acting) -> torch.Tensor:
        """By (w1 kron w2) x = w1 X w2^T on the input seen as a (b, d) table, so the dense update is never made."""
        x = acting.drop(x)
        first, second = (factor.to(x.dtype) for factor in kronecker_factors(acting.parts))
        b, d = first.shape[1], acting.weight[1] // first.shape[1]
        second = second.reshape(-1, d, *acting.weight[2:])
        if acting.walk.conv is None:
            table = F.linear(x.unflatten(-1, (b, d)), second)  # (..., b, c)
            change = torch.einsum("ab,...bc->...ac", first, table).flatten(-2)
        else:
            table = acting.walk(x.unflatten(1, (b, d)).flatten(0, 1), second)
            change = torch.einsum("ab,nbc...->nac...", first, table.unflatten(0, (-1, b))).flatten(1, 2)
        return torch.add(out, change, alpha=acting.scale)


KIND = Lokr()


def kronecker_factors(p: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors whose Kronecker product a LoKr is, their own low-rank parts multiplied out."""
    one = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if "lokr_w2" in p:
        return one, p["lokr_w2"]
    if "lokr_t2" in p:
        return one, torch.einsum("i j ..., i p, j r -> p r ...", p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
    return one, p["lokr_w2_a"] @ p["lokr_w2_b"].flatten(1)


def factors(dimension: int, factor: int) -> tuple[int, int]:
    """(m, n) with m * n = dimension and m <= n: the largest m up to `factor` (0: up to the root); `factor` itself where it divides. As LyCORIS."""
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    limit = min(math.isqrt(dimension), factor or dimension)
    small = next(m for m in range(limit, 0, -1) if dimension % m == 0)
    return small, dimension // small
