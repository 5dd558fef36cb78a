"""DoRA (Liu et al. 2024, arXiv 2402.09353): the columns or rows of W + LoRA are brought to length one and given a trained magnitude m (eq. 5).

Over inputs, m is (1, in) as in the paper, and ComfyUI, Forge and A1111 apply the file just as it was trained. Over outputs, m is (out, 1) as in PEFT; those
programs divide by another length. As in the paper (section 4.3) and in PEFT, the length is a constant for the gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .base import CONVS, Shape, Weight, weight_of
from .lora import LoraAdapter


class DoraAdapter(LoraAdapter):
    """LoRA's factors and `dora_scale`, the magnitudes m, (1, in, 1, ...) or (out, 1, ...) as files hold them. They start as W's own lengths: no effect."""

    def __init__(self, name: str, layer: nn.Module, shape: Shape, seed: int, device: torch.device | str, weight: Weight = weight_of):
        super().__init__(name, layer, shape, seed, device)
        self.over_inputs = shape.dora_axis == "input"
        ones = [1] * (len(shape.weight) - 2)
        size = (1, shape.weight[1], *ones) if self.over_inputs else (shape.weight[0], 1, *ones)
        self.dora_scale = nn.Parameter(torch.zeros(size, device=device))
        self._layer, self._weight = [layer], weight  # in a list, so the layer's own weights are not counted as ours
        self._bias: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None
        self._lengths: torch.Tensor | None = None

    @torch.no_grad()
    def prepare(self) -> None:
        with self._weight(self._layer[0]) as (weight, bias):
            self._squares = self._summed(weight.to(self.lora_up).square().flatten(1))
            self._bias = None if bias is None else bias.to(self.lora_up).clone()
        if not self.dora_scale.any():  # not taken over from an earlier LoRA
            self.dora_scale.copy_(self._squares.sqrt().view_as(self.dora_scale))

    def _summed(self, table: torch.Tensor) -> torch.Tensor:
        """(out, in * kernel) summed for each input channel, or for each row."""
        return table.sum(0).view(self.shape.weight[1], -1).sum(1) if self.over_inputs else table.sum(1)

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """Over inputs (W + update) diag(r) x is the layer on r * x, r = m / length."""
        if not self.over_inputs:
            return x
        ratio = (self.dora_scale.flatten() / self.lengths()).to(x.dtype)
        return x * (ratio if self._conv is None else ratio.view(-1, *[1] * (len(self.shape.weight) - 2)))

    def add_to(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self.over_inputs:
            return super().add_to(out, x)
        x = self.drop(x)
        down, up = self.lora_down.to(x.dtype), self.lora_up.to(x.dtype)
        shape = (-1, *[1] * (down.ndim - 2))
        if self._conv is None:
            change = F.linear(F.linear(x, down), up)
        else:
            conv = CONVS[down.ndim]
            change = conv(conv(x, down, **self._conv), up)
        ratio = (self.dora_scale.flatten() / self.lengths()).to(out.dtype).view(shape)
        plain = out if self._bias is None else out - self._bias.to(out.dtype).view(shape)
        return out + (ratio - 1) * plain + ratio * change * self.scale

    @torch.no_grad()
    def lengths(self) -> torch.Tensor:
        """Lengths of the columns (by input channel) or rows of W + update, |w|^2 + 2 s <w, b a> + s^2 |b a|^2; kept until the weights change."""
        if self._lengths is None:
            up, down = self.lora_up.flatten(1), self.lora_down.flatten(1)
            with self._weight(self._layer[0]) as (weight, _):
                table = weight.to(up).flatten(1)
                if self.over_inputs:
                    cross, square = (up.t() @ table) * down, ((up.t() @ up) @ down) * down
                else:
                    cross, square = (table @ down.t()) * up, (up @ (down @ down.t())) * up
            assert self._squares is not None
            total = self._squares + 2 * self.scale * self._summed(cross) + self.scale**2 * self._summed(square)
            self._lengths = total.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        return self._lengths

    def begin_pass(self) -> None:
        self.lengths()

    def weights_changed(self) -> None:
        self._lengths = None
