"""LoRA (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) * up @ down, as a branch, on linear and convolution layers (LoCon)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .joint import Joint, joint_conv, joint_linear
from .kind import BIAS_PART, MAGNITUDES, Acting, Kind, Member, Part, Parts, Shape, kaiming, stacked_beside
from .products import squared_norm, squared_norm_of_core
from .rows import diagonal, owned_columns
from .walk import CONVS, Walk


class Lora(Kind):
    """down (rank, in) or (rank, in, *kernel); up (out, rank) or (out, rank, 1, ...), zero at the start. mid (rank, rank, *kernel) in Tucker form."""

    name, title, paired, peft = "lora", "LoRA", True, "LORA"
    signs = frozenset({"down", "up"})
    parts: tuple[Part, ...] = (
        Part("down", "lora_down", "lora_down.weight", rank_axis=0),
        Part("up", "lora_up", "lora_up.weight", up=True, rows=True),
        Part("mid", "lora_mid", "lora_mid.weight", optional=True, scales=False),
        MAGNITUDES,
        BIAS_PART,
    )

    def shape(self, p: Parts, kernel: tuple[int, ...] = ()) -> tuple[int, ...]:
        return (p["up"].shape[0], p["down"].shape[1], *(p["mid"] if "mid" in p else p["down"]).shape[2:])

    def problem(self, p: Parts) -> str:
        down, up = p["down"], p["up"]
        if not (2 <= down.ndim <= 5 and 2 <= up.ndim <= 5 and math.prod(up.shape[2:]) == 1):
            return "problem.lora.shapes"
        inner = tuple(p["mid"].shape[:2]) if "mid" in p else (down.shape[0], down.shape[0])
        return "" if inner == (up.shape[1], down.shape[0]) else "problem.lora.ranks"

    def delta(
        self, p: Parts, scale: float, weight: tuple[int, ...] = (), base: torch.Tensor | None = None
    ) -> torch.Tensor:
        p = untuckered(p)
        down, up = p["down"], p["up"]
        return (up.flatten(1) @ down.flatten(1)).view(weight or (len(up), *down.shape[1:])) * scale

    def squared_norm(self, p: Parts, scale: float) -> torch.Tensor:
        """By the factors (see `products`)."""
        up, down = p["up"].flatten(1), p["down"].flatten(1)
        if "mid" in p:
            return squared_norm_of_core(p["mid"], up.t() @ up, down @ down.t()) * scale**2
        return squared_norm(up, down) * scale**2

    def factored(self, p: Parts, most: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        if "mid" in p and p["down"].shape[1] * math.prod((p["mid"].shape[0], *p["mid"].shape[2:])) > most:
            return None
        plain = untuckered(p)
        return plain["up"].flatten(1), plain["down"].flatten(1)

    def core_numbers(self, p: Parts) -> int:
        return p["mid"].shape[0] * math.prod((p["down"].shape[1], *p["mid"].shape[2:])) if "mid" in p else 0

    def without_core(self, p: Parts, alpha: float | None) -> tuple[dict[str, torch.Tensor], float | None]:
        return dict(untuckered(p)), alpha

    def peft_config(self, members: Sequence[Parts], alpha: float) -> dict[str, Any]:
        return {
            "lora_alpha": alpha,
            "use_rslora": False,
            "use_dora": any(MAGNITUDES.name in p for p in members),
            "bias": "none",
            "fan_in_fan_out": False,
            "lora_dropout": 0.0,
        }

    def cut(self, p: Parts, counts: Mapping[str, Sequence[int]]) -> list[dict[str, torch.Tensor] | None]:
        """Where `up` is block-diagonal each share has the columns of its own, else every share all of `down`."""
        pieces = [piece for piece in super().cut(p, counts) if piece is not None]
        columns = owned_columns([piece["up"].flatten(1) for piece in pieces], self.rank(p))
        # with these a share without weights still says something about its outputs
        even_zero = MAGNITUDES.name in p or BIAS_PART.name in p
        if columns is None:
            every = even_zero or not p["up"].any()
            return [piece if every or piece["up"].any() else None for piece in pieces]
        return [_of_columns(piece, chosen, even_zero) for piece, chosen in zip(pieces, columns, strict=True)]

    def stacked(
        self, members: Sequence[Member | None], rows: Sequence[int]
    ) -> tuple[dict[str, torch.Tensor], float | None] | None:
        """Their `up` on a diagonal, the ranks add up; where all have the same `down`, once that."""
        if not rows:
            return None
        present = [member for member in members if member is not None]
        (first, alpha), scales = present[0], {self.scale(*member) for member in present}
        beside = stacked_beside(members, rows)
        if len(scales) == 1 and all(torch.equal(p["down"], first["down"]) for p, _ in present):
            tail, dtype = first["up"].shape[1:], first["up"].dtype
            ups = [torch.zeros(n, *tail, dtype=dtype) if m is None else m[0]["up"] for m, n in zip(members, rows)]
            return {"down": first["down"], "up": torch.cat(ups), **beside}, alpha
        scale = scales.pop() if len(scales) == 1 else 1.0
        parts = [None if member is None else self.at_scale(member, scale) for member in members]
        kept = [p for p in parts if p is not None]
        dtype = torch.result_type(kept[0]["up"], kept[-1]["up"])
        up = diagonal([None if p is None else p["up"] for p in parts], rows, dtype)
        down = torch.cat([p["down"].to(dtype) for p in kept])
        return {"down": down, "up": up, **beside}, scale * len(down)

    def ends(self, p: Parts) -> tuple[tuple[str, ...], ...]:
        return (("down", "up"),)

    def summed(self, members: list[tuple[Parts, float]]) -> dict[str, torch.Tensor]:
        """Their factors side by side; the ranks add up."""
        plain = [self.stretched(untuckered(p), scale) if scale != 1.0 else untuckered(p) for p, scale in members]
        return {
            "down": torch.cat([p["down"].float() for p in plain], 0),
            "up": torch.cat([p["up"].float() for p in plain], 1),
        }

    def largest_rank(self, weight: tuple[int, ...]) -> int:
        return min(weight[0], math.prod(weight[1:]))

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        down = torch.empty(shape.rank, *shape.weight[1:])
        if shape.options.get("init") == "gaussian":
            down.normal_(std=1 / shape.rank, generator=rng)
        else:
            down = kaiming(rng, *down.shape)
        return {"down": down, "up": torch.zeros(shape.weight[0], shape.rank, *[1] * (len(shape.weight) - 2))}

    def fitted(self, p: Parts, weight: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Kernels of 1x1 come and go between programs."""
        p = untuckered(p)
        return {
            **p,
            "down": p["down"].reshape(-1, *weight[1:]),
            "up": p["up"].reshape(*p["up"].shape[:2], *[1] * (len(weight) - 2)),
        }

    def joint(self, p: Parts, walk: Walk) -> Joint | None:
        if p.keys() != {"down", "up"} or (walk.conv is not None and isinstance(walk.conv["padding"], str)):
            return None
        return joint_linear if walk.conv is None else joint_conv(walk.conv)

    def add_to(self, out: torch.Tensor, x: torch.Tensor, acting: Acting) -> torch.Tensor:
        x = acting.drop(x)
        down, up = acting.parts["down"].to(x.dtype), acting.parts["up"].to(x.dtype)
        if acting.walk.conv is None:
            hidden = F.linear(x, down)
            return torch.addmm(out.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=acting.scale).view(out.shape)
        return torch.add(out, CONVS[down.ndim](acting.walk(x, down), up), alpha=acting.scale)


KIND = Lora()


def _of_columns(piece: Parts, chosen: range, even_zero: bool) -> dict[str, torch.Tensor] | None:
    """A share with some columns of its `up`; without any None, or where it is written all the same (`even_zero`), one of zeros."""
    down, up = piece["down"], piece["up"]
    if len(chosen):
        columns = slice(chosen.start, chosen.stop)
        return {**piece, "down": down[columns].clone(), "up": up[:, columns].clone()}
    return {**piece, "down": torch.zeros_like(down[:1]), "up": torch.zeros_like(up[:, :1])} if even_zero else None


def untuckered(p: Parts) -> Parts:
    """A Tucker LoRA as an ordinary one of the same rank: the middle factor is multiplied into `down`. Others as they are."""
    if "mid" not in p:
        return p
    down = torch.einsum("n m ..., m j -> n j ...", p["mid"].float(), p["down"].float().flatten(1))
    up = p["up"].flatten(1)
    rest = {k: v for k, v in p.items() if k not in ("mid", "down")}
    return {**rest, "down": down, "up": up.reshape(*up.shape, *[1] * (down.ndim - 2))}
