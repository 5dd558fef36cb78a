"""OFT (Qiu et al. 2023, arXiv 2306.07280; LyCORIS: diag-oft): the layer's outputs are rotated in blocks. R = (I + Q)(I - Q)^-1 (Cayley), Q = B - B^T.

A rotation changes a weight relative to its value. Programs agree on it at full strength alone: LyCORIS goes half the way to R, ComfyUI a quarter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .kind import BIAS_PART, Acting, Kind, Part, Parts, Shape
from .lokr import factors
from .walk import Walk


def rotations(blocks: torch.Tensor) -> torch.Tensor:
    """(..., b, b) any matrices -> orthogonal ones; the identity for zeros."""
    skew = blocks - blocks.transpose(-1, -2)
    one = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    return torch.linalg.solve(one - skew, one + skew, left=False)


def skew_norm(blocks: torch.Tensor) -> torch.Tensor:
    """||Q|| of all blocks together: how far they rotate, for small angles."""
    return (blocks - blocks.transpose(-1, -2)).square().sum().sqrt()


def outputs(p: Parts) -> int:
    """Of the layer, which is all that the blocks tell of it."""
    return p["oft_blocks"].shape[-3] * p["oft_blocks"].shape[-1]


class Rotating(Kind):
    """A kind that rotates the outputs. `oft_blocks` start at zero, the identity. `rescale` (out, 1, ...) multiplies the rotated rows; only files have it."""

    needs_base, keeps_base, proportional, drops_inputs = True, True, False, False
    parts = (Part("oft_blocks", rows=True), Part("rescale", optional=True, rows=True, scales=False), BIAS_PART)

    def rotated(self, p: Parts, table: torch.Tensor) -> torch.Tensor:
        """(out, columns), each column rotated."""
        raise NotImplementedError(f"{type(self).__name__} must say how it rotates")

    def fits(self, p: Parts, weight: tuple[int, ...]) -> bool:
        return outputs(p) == weight[0]

    def size(self, p: Parts) -> int:
        return p["oft_blocks"].shape[-1]

    def alpha(self, p: Parts, scale: float) -> float:
        """Where others write a limit on ||Q||, 0 is none."""
        return 0.0

    def settled(self, p: Parts, alpha: float | None) -> tuple[Parts, float | None]:
        """kohya and LyCORIS train with a limit of alpha * out on ||Q||, ComfyUI reads alpha itself as the limit: it is put into the blocks."""
        limit = (alpha or 0.0) * outputs(p)
        norm = float(skew_norm(p["oft_blocks"].float()))
        return ({**p, "oft_blocks": p["oft_blocks"].float() * (limit / norm)} if 0 < limit < norm else p), None

    def delta(
        self, p: Parts, scale: float, weight: tuple[int, ...] = (), base: torch.Tensor | None = None
    ) -> torch.Tensor:
        if base is None:
            raise ValueError(f"{self.name} changes a weight relative to its value, which was not given")
        table = self.rotated(p, base.flatten(1))
        table = table * p["rescale"].reshape(-1, 1) if "rescale" in p else table
        return scale * (table.view(base.shape) - base)

    def squared_norm(self, p: Parts, scale: float) -> torch.Tensor:
        """||Q||^2."""
        return skew_norm(p["oft_blocks"]).square() * scale**2

    def bounded(self, p: Parts, shape: Shape) -> dict[str, torch.Tensor]:
        """||Q|| at most `oft_constraint` * out, as LyCORIS counts it, by projection (COFT, section 4 of the paper)."""
        limit = shape.options.get("oft_constraint", 0.0) * shape.weight[0]
        if not limit:
            return {}
        return {"oft_blocks": p["oft_blocks"] * (limit / skew_norm(p["oft_blocks"]).clamp_min(limit))}

    def kept(self, p: Parts, weight: torch.Tensor, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return {} if bias is None else {"bias": bias.to(p["oft_blocks"]).clone()}

    def around(self, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, acting: Acting) -> torch.Tensor:
        """R (W x) + bias: the layer's output without its bias is rotated, so the weight itself is not needed."""
        out, p = forward(x), acting.parts
        plain = out if "bias" not in acting.kept else out - acting.walk.spread(acting.kept["bias"], out)
        table = plain.to(p["oft_blocks"].dtype).movedim(acting.walk.axis, 0)
        rotated = self.rotated(p, table.flatten(1))
        rotated = rotated * p["rescale"].reshape(-1, 1) if "rescale" in p else rotated
        change = (rotated - table.flatten(1)).view(table.shape).movedim(0, acting.walk.axis)
        return out + (acting.scale * change).to(out.dtype)


class Oft(Rotating):
    """oft_blocks (n, b, b) with n * b = out: block k rotates the outputs k * b to (k + 1) * b by R^T, as kohya, LyCORIS and ComfyUI apply it."""

    name, title, algorithm = "oft", "OFT", "diag-oft"
    signs = frozenset({"oft_blocks"})

    def signed(self, p: Parts) -> bool:
        return "oft_blocks" in p and p["oft_blocks"].ndim == 3

    def remark(self, p: Parts) -> str:
        return "note.oft" if "rescale" in p else ""

    def problem(self, p: Parts) -> str:
        return "" if p["oft_blocks"].shape[-1] == p["oft_blocks"].shape[-2] else "problem.oft.not_square"

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        size, count = factors(
            shape.weight[0], shape.rank
        )  # LyCORIS: the rank is the size of the blocks where it divides the outputs
        return {"oft_blocks": torch.zeros(count, size, size)}

    def rotated(self, p: Parts, table: torch.Tensor) -> torch.Tensor:
        turn = rotations(p["oft_blocks"]).transpose(-1, -2)
        return (turn @ table.reshape(len(turn), turn.shape[-1], -1)).flatten(0, 1)


KIND = Oft()
