"""DoRA (Liu et al. 2024, arXiv 2402.09353): the columns or rows of W + LoRA are brought to length one and given a trained magnitude m (eq. 5).

Over inputs, m is (1, in) as in the paper, and ComfyUI, Forge and A1111 apply the file just as it was trained. Over outputs, m is (out, 1) as in PEFT; those
programs divide by another length. As in the paper (section 4.3) and in PEFT, the length is a constant for the gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .kind import BIAS_PART, MAGNITUDES, Acting, Parts, Shape
from .lora import Lora
from .walk import CONVS, Walk


class Dora(Lora):
    """LoRA's factors and the magnitudes m, (1, in, 1, ...) or (out, 1, ...) as files hold them. They start as W's own lengths: no effect."""

    name, title, form, algorithm, arguments = "dora", "DoRA", "lora", "lora", {"dora_wd": "True"}
    paired, needs_base, keeps_base, derives, proportional = False, True, True, True, False
    parts = (
        *(part for part in Lora.parts if part not in (MAGNITUDES, BIAS_PART)),
        dataclasses.replace(MAGNITUDES, optional=False),
        BIAS_PART,
    )

    def delta(
        self, p: Parts, scale: float, weight: tuple[int, ...] = (), base: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Without the base weight the update of the direction alone, before rows or columns are rescaled."""
        change = super().delta(p, scale, weight)
        return change if base is None else rescaled(base + change.reshape(base.shape), p["dora"]) - base

    def start(self, shape: Shape, walk: Walk, rng: torch.Generator) -> dict[str, torch.Tensor]:
        ones = [1] * (len(shape.weight) - 2)
        over_inputs = shape.options.get("dora_axis", "input") == "input"
        size = (1, shape.weight[1], *ones) if over_inputs else (shape.weight[0], 1, *ones)
        return {**super().start(shape, walk, rng), "dora": torch.zeros(size)}

    def fitted(self, p: Parts, weight: tuple[int, ...]) -> dict[str, torch.Tensor]:
        return {**super().fitted(p, weight), "dora": p["dora"].reshape(*p["dora"].shape[:2], *[1] * (len(weight) - 2))}

    def kept(self, p: Parts, weight: torch.Tensor, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
        squares = _summed(p, weight.to(p["up"]).square().flatten(1))
        return {"squares": squares} if bias is None else {"squares": squares, "bias": bias.to(p["up"]).clone()}

    def filled(self, p: Parts, kept: Parts) -> dict[str, torch.Tensor]:
        if p["dora"].any():  # taken over from an earlier LoRA
            return {}
        return {"dora": kept["squares"].sqrt().view_as(p["dora"])}

    def derived(self, p: Parts, scale: float, kept: Parts, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Lengths of the columns (by input channel) or rows of W + update, |w|^2 + 2 s <w, b a> + s^2 |b a|^2, without the dense update."""
        up, down = p["up"].flatten(1), p["down"].flatten(1)
        table = weight.to(up).flatten(1)
        if over_inputs(p):
            cross, square = (up.t() @ table) * down, ((up.t() @ up) @ down) * down
        else:
            cross, square = (table @ down.t()) * up, (up @ (down @ down.t())) * up
        total = kept["squares"] + 2 * scale * _summed(p, cross) + scale**2 * _summed(p, square)
        return {"lengths": total.clamp_min(torch.finfo(torch.float32).tiny).sqrt()}

    def joint(self, p: Parts, walk: Walk) -> None:
        return None

    def around(self, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, acting: Acting) -> torch.Tensor:
        """Over inputs (W + update) diag(r) x is the layer on r * x, r = m / length."""
        ratio = acting.parts["dora"].flatten() / acting.derived["lengths"]
        if over_inputs(acting.parts):
            x = x * acting.walk.spread(ratio, x)
            return super().add_to(forward(x), x, acting)
        out = forward(x)
        change = self._product(acting.drop(x), acting)
        plain = out if "bias" not in acting.kept else out - acting.walk.spread(acting.kept["bias"], out)
        ratio = acting.walk.spread(ratio, out)
        return out + (ratio - 1) * plain + ratio * change * acting.scale

    def _product(self, x: torch.Tensor, acting: Acting) -> torch.Tensor:
        down, up = acting.parts["down"].to(x.dtype), acting.parts["up"].to(x.dtype)
        hidden = acting.walk(x, down)
        return F.linear(hidden, up) if acting.walk.conv is None else CONVS[down.ndim](hidden, up)


KIND = Dora()


def over_inputs(p: Parts) -> bool:
    """Whether the magnitudes are for inputs."""
    return p["dora"].shape[0] == 1 and p["dora"].shape[1] == p["down"].shape[1]


def rescaled(changed: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """m * V / ||V|| for the changed weight V, the norm taken along the axes that the magnitudes leave out, as PEFT and LyCORIS do."""
    over = 0 if magnitudes.shape[0] == 1 else 1
    flat = changed.flatten(1) if over else changed.transpose(0, 1).flatten(1)
    norm = flat.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    axis = [1] * changed.ndim
    axis[1 - over] = -1
    return changed * (magnitudes.reshape(axis) / norm.reshape(axis))


def _summed(p: Parts, table: torch.Tensor) -> torch.Tensor:
    """(out, in * kernel) summed for each input channel, or for each row."""
    return table.sum(0).view(p["down"].shape[1], -1).sum(1) if over_inputs(p) else table.sum(1)
