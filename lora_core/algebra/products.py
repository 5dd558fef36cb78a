"""Norms of products of factors, without the product: cost and memory follow the factors, whatever the rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

BLOCK = 1 << 20  # numbers of a product that are held at a time


def squared_norm(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """||up @ down||^2 of (out, rank) and (rank, in): by the Gram matrices of the factors, tr(B^T B A A^T), or, where the rank is above a side,
    by rows of the product.
    """
    up, down = up.flatten(1), down.flatten(1)
    rank, sides = up.shape[1], (up.shape[0], down.shape[1])
    if rank <= min(sides):
        return total(((up[:, rows].t() @ up) * (down[rows] @ down.t())).sum() for rows in blocks(rank, rank))
    return total((up[rows] @ down).square().sum() for rows in blocks(*sides))


def total(numbers: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of single numbers. None is kept: among large blocks that come and go, each would keep the memory of one from being used again."""
    numbers = iter(numbers)
    out = next(numbers).clone()
    for number in numbers:
        out += number
    return out


def squared_norm_of_core(core: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """||core x left x right||^2 of a Tucker form, core (n, m, *kernel), from the Gram matrices left (n, n) and right (m, m) of its factors."""
    core = core.flatten(2)
    return (torch.einsum("nmk,nl,mp->lpk", core, left, right) * core).sum()


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a (rows, columns) matrix, of about BLOCK numbers each."""
    step = max(1, BLOCK // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
