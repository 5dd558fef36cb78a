"""Blocks of a layer's output rows: which columns of a matrix belong to which block, and blocks on a diagonal."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def owned_columns(blocks: Sequence[torch.Tensor], rank: int) -> list[range] | None:
    """Which columns of a block-diagonal matrix, given as its blocks of rows, belong to which block; None when it is not block-diagonal."""
    used = torch.stack([(b != 0).any(0) for b in blocks])  # (blocks, rank)
    count = len(blocks)
    if rank % count == 0:
        step = rank // count
        inside = torch.zeros_like(used)
        for n in range(count):
            inside[n, n * step : (n + 1) * step] = True
        if not (used & ~inside).any():
            return [range(n * step, (n + 1) * step) for n in range(count)]
    if (used.sum(0) == 1).all():
        owner = used.int().argmax(0)
        if (owner.diff() >= 0).all():
            ends = torch.bincount(owner, minlength=count).cumsum(0).tolist()
            return [range(a, b) for a, b in zip([0, *ends], ends)]
    return None


def diagonal(blocks: Sequence[torch.Tensor | None], rows: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """(sum of `rows`, sum of the blocks' columns, ...) with the blocks on its diagonal; None is a block of rows of zeros, which takes no column."""
    present = [block for block in blocks if block is not None]
    columns = sum(block.shape[1] for block in present)
    out = torch.zeros(sum(rows), columns, *present[0].shape[2:], dtype=dtype)
    row = column = 0
    for block, count in zip(blocks, rows, strict=True):
        if block is not None:
            out[row : row + count, column : column + block.shape[1]] = block
            column += block.shape[1]
        row += count
    return out
