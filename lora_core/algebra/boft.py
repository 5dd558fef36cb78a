"""BOFT (Liu et al. 2024, arXiv 2311.06243; LyCORIS): several rotations in blocks one after the other, the outputs shuffled between them like a butterfly."""

from __future__ import annotations

import torch

from .kind import Part, Parts, Shape
from .oft import Rotating, rotations
from .walk import Walk


class Boft(Rotating):
    """oft_blocks (m, n, b, b) with n * b = out, n a power of two and m - 1 its exponent: stage i lets outputs mix that lie up to 2^i * b apart."""

    name, title, algorithm = "boft", "BOFT", "boft"
    signs = frozenset({"oft_blocks"})
    parts = (Part("oft_blocks"), *Rotating.parts[1:])

    def signed(self, p: Parts) -> bool:
        return "oft_blocks" in p and p["oft_blocks"].ndim == 4

    def by_rows(self, p: Parts) -> bool:
        return False

    def problem(self, p: Parts) -> str:
        stages, count, rows, columns = p["oft_blocks"].shape
        fits = rows == columns and rows % 2 == 0 and (count * rows) % (2 ** (stages - 1) * rows) == 0
        return "" if fits else "problem.boft.blocks"

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        size = block_size(shape.weight[0], shape.rank)
        if not size:
            raise ValueError("problem.boft.odd")
        count = shape.weight[0] // size
        return {"oft_blocks": torch.zeros(count.bit_length(), count, size, size)}

    def rotated(self, p: Parts, table: torch.Tensor) -> torch.Tensor:
        for stage, turns in enumerate(rotations(p["oft_blocks"])):
            order = butterfly(len(table), 2**stage * turns.shape[-1] // 2, table.device)
            mixed = (turns @ table[order].view(len(turns), turns.shape[-1], -1)).flatten(0, 1)
            table = mixed[order.argsort()]
        return table


def block_size(outputs: int, limit: int) -> int:
    """The largest even size up to `limit` of which a power of two fit into the outputs, else the smallest above; 0 for an odd number of outputs."""
    power = outputs & -outputs
    sizes = [outputs // 2**n for n in range(power.bit_length()) if (outputs // 2**n) % 2 == 0]
    return max((s for s in sizes if s <= limit), default=min(sizes, default=0))


def butterfly(length: int, step: int, device: torch.device) -> torch.Tensor:
    """The order in which output j and output j + step stand side by side, in every run of 2 * step outputs."""
    return torch.arange(length, device=device).view(-1, 2, step).transpose(1, 2).flatten()


KIND = Boft()
