"""LoKr (KronA, Edalati et al. 2022, arXiv 2212.10650; LyCORIS): the update is a Kronecker product of a small matrix and a larger, low-rank one."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..rng import generator
from .base import CONVS, Adapter, Shape, Weight, conv_settings, weight_of


def factors(dimension: int, factor: int) -> tuple[int, int]:
    """(m, n) with m * n = dimension and m <= n: the largest m up to `factor` (0: up to the root); `factor` itself where it divides. As LyCORIS."""
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    limit = min(math.isqrt(dimension), factor or dimension)
    small = next(m for m in range(limit, 0, -1) if dimension % m == 0)
    return small, dimension // small


class LokrAdapter(Adapter):
    """lokr_w1 (a, b); lokr_w2 (c, d, *kernel), or of low rank lokr_w2_a (c, rank) and lokr_w2_b (rank, d * kernel); a * c = out, b * d = in.

    w2 (or w2_b) starts at zero: no effect before step 1.
    """

    def __init__(self, name: str, layer: nn.Module, shape: Shape, seed: int, device: torch.device | str, weight: Weight = weight_of):
        super().__init__(shape)
        kernel = shape.weight[2:]
        (a, c), (b, d) = (factors(n, shape.lokr_factor) for n in shape.weight[:2])
        if shape.lokr_split is not None:
            a, b = shape.lokr_split
            c, d = shape.weight[0] // a, shape.weight[1] // b
        rng = generator(seed, "init", name)
        self.lokr_w1 = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(a, b), a=math.sqrt(5), generator=rng).to(device))
        self._low_rank = shape.rank < max(c, d) / 2 if shape.lokr_full is None else not shape.lokr_full
        if self._low_rank:
            start = nn.init.kaiming_uniform_(torch.empty(c, shape.rank), a=math.sqrt(5), generator=rng)
            self.lokr_w2_a = nn.Parameter(start.to(device))
            self.lokr_w2_b = nn.Parameter(torch.zeros(shape.rank, d * math.prod(kernel), device=device))
        else:
            self.lokr_w2 = nn.Parameter(torch.zeros(c, d, *kernel, device=device))
            self.scale = 1.0  # readers ignore alpha where both factors are full
        self._second_shape = (c, d, *kernel)
        self._conv: dict[str, Any] | None = conv_settings(layer) if kernel else None

    def second(self) -> torch.Tensor:
        return (self.lokr_w2_a @ self.lokr_w2_b).view(self._second_shape) if self._low_rank else self.lokr_w2

    def add_to(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """By (w1 kron w2) x = w1 X w2^T on the input seen as a (b, d) table, so the dense update is never made."""
        x = self.drop(x)
        first, second = self.lokr_w1.to(x.dtype), self.second().to(x.dtype)
        b, d = first.shape[1], second.shape[1]
        if self._conv is None:
            table = F.linear(x.unflatten(-1, (b, d)), second)  # (..., b, c)
            change = torch.einsum("ab,...bc->...ac", first, table).flatten(-2)
        else:
            table = CONVS[second.ndim](x.unflatten(1, (b, d)).flatten(0, 1), second, **self._conv)
            change = torch.einsum("ab,nbc...->nac...", first, table.unflatten(0, (-1, b))).flatten(1, 2)
        return torch.add(out, change, alpha=self.scale)

    def delta_weight(self) -> torch.Tensor:
        first, second = self.lokr_w1, self.second()
        return torch.kron(first.view(*first.shape, *[1] * (second.ndim - 2)), second.contiguous()).view(self.shape.weight) * self.scale

    def squared_norm(self) -> torch.Tensor:
        return self.lokr_w1.square().sum() * self.second().square().sum() * self.scale**2
