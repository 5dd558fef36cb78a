"""DoRA (Liu et al. 2024, arXiv 2402.09353): the rows of W + LoRA are brought to length one and given a trained magnitude m (eq. 5).

As in the paper (section 4.3) and in PEFT, the length is a constant for the gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .base import CONVS, Shape, Weight, weight_of
from .lora import LoraAdapter


class DoraAdapter(LoraAdapter):
    """LoRA's factors and `dora_scale`, the magnitudes m, (out, 1, ...) as files hold them. They start as the lengths of W's rows: no effect."""

    def __init__(self, name: str, layer: nn.Module, shape: Shape, seed: int, device: torch.device | str, weight: Weight = weight_of):
        super().__init__(name, layer, shape, seed, device)
        self.dora_scale = nn.Parameter(torch.zeros(shape.weight[0], *[1] * (len(shape.weight) - 1), device=device))
        self._layer, self._weight = [layer], weight  # in a list, so the layer's own weights are not counted as ours
        self._bias: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None
        self._lengths: torch.Tensor | None = None

    @torch.no_grad()
    def prepare(self) -> None:
        with self._weight(self._layer[0]) as (weight, bias):
            self._squares = weight.to(self.lora_up).flatten(1).square().sum(1)
            self._bias = None if bias is None else bias.to(self.lora_up).clone()
        if not self.dora_scale.any():  # not taken over from an earlier LoRA
            self.dora_scale.copy_(self._squares.sqrt().view_as(self.dora_scale))

    def add_to(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
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
        """(out,) lengths of the rows of W + update, |w|^2 + 2 s b (W A^T)_row + s^2 b (A A^T) b^T, without a dense update. Kept until the weights change."""
        if self._lengths is None:
            up, down = self.lora_up.flatten(1), self.lora_down.flatten(1)
            with self._weight(self._layer[0]) as (weight, _):
                cross = weight.to(up).flatten(1) @ down.t()
            assert self._squares is not None
            square = self._squares + 2 * self.scale * (cross * up).sum(1) + self.scale**2 * ((up @ (down @ down.t())) * up).sum(1)
            self._lengths = square.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        return self._lengths

    def weights_changed(self) -> None:
        self._lengths = None
