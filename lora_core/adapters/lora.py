"""LoRA (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) * up @ down, as a branch, on linear and convolution layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import LoomError
from ..rng import generator
from .base import Adapter

CONVS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def conv_settings(layer: Any) -> dict[str, Any]:
    """How a convolution layer walks over its input, as the functions of CONVS take it."""
    return dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


class LoraAdapter(Adapter):
    """down (rank, in) or (rank, in, *kernel); up (out, rank) or (out, rank, 1, ...). `up` starts at zero: no effect before step 1."""

    def __init__(self, name: str, layer: nn.Module, weight_shape: tuple[int, ...], rank: int, alpha: float, dropout: float, init: str, seed: int, device):
        super().__init__()
        limit = min(weight_shape[0], math.prod(weight_shape[1:]))
        if rank > limit:
            raise LoomError(
                f"adapter.rank: {rank} is larger than layer {name} allows (its weight is {'x'.join(map(str, weight_shape))}, "
                f"at most {limit}); choose a smaller rank or fewer targets."
            )
        self.rank, self.alpha, self.dropout = rank, alpha or float(rank), dropout
        self.scale = self.alpha / rank
        kernel = weight_shape[2:]
        down = torch.empty(rank, *weight_shape[1:])
        rng = generator(seed, "init", name)
        if init == "gaussian":
            down.normal_(std=1 / rank, generator=rng)
        else:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=rng)  # as PEFT and kohya
        self.lora_down = nn.Parameter(down.to(device))
        self.lora_up = nn.Parameter(torch.zeros(weight_shape[0], rank, *[1] * len(kernel), device=device))
        self._conv: dict[str, Any] | None = conv_settings(layer) if kernel else None

    def add_to(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(x)
        down, up = self.lora_down.to(x.dtype), self.lora_up.to(x.dtype)
        if self._conv is None:
            hidden = F.linear(x, down)
            return torch.addmm(out.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=self.scale).view(out.shape)
        conv = CONVS[down.ndim]
        return torch.add(out, conv(conv(x, down, **self._conv), up), alpha=self.scale)

    def delta_weight(self) -> torch.Tensor:
        """(alpha / rank) * up @ down in the layer's weight shape, float32."""
        return (self.lora_up.flatten(1) @ self.lora_down.flatten(1)).view(len(self.lora_up), *self.lora_down.shape[1:]) * self.scale
