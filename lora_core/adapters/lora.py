"""LoRA (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) * up @ down, as a branch, on linear and convolution layers (LoCon)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..messages.errors import LoomError
from ..rng import generator
from .base import CONVS, Adapter, Shape, Weight, conv_settings, weight_of


class LoraAdapter(Adapter):
    """down (rank, in) or (rank, in, *kernel); up (out, rank) or (out, rank, 1, ...). `up` starts at zero: no effect before step 1."""

    def __init__(self, name: str, layer: nn.Module, shape: Shape, seed: int, device: torch.device | str, weight: Weight = weight_of):
        super().__init__(shape)
        limit = min(shape.weight[0], math.prod(shape.weight[1:]))
        if shape.rank > limit:
            raise LoomError(
                "adapter.rank.too_large",
                field="adapter.rank",
                rank=shape.rank,
                layer=name,
                shape="x".join(map(str, shape.weight)),
                limit=limit,
            )
        kernel = shape.weight[2:]
        down = torch.empty(shape.rank, *shape.weight[1:])
        rng = generator(seed, "init", name)
        if shape.init == "gaussian":
            down.normal_(std=1 / shape.rank, generator=rng)
        else:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=rng)  # as PEFT and kohya
        self.lora_down = nn.Parameter(down.to(device))
        self.lora_up = nn.Parameter(torch.zeros(shape.weight[0], shape.rank, *[1] * len(kernel), device=device))
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
        return (self.lora_up.flatten(1) @ self.lora_down.flatten(1)).view(len(self.lora_up), *self.lora_down.shape[1:]) * self.scale

    def squared_norm(self) -> torch.Tensor:
        """Of the update, by the Gram matrices of its factors: tr(B^T B A A^T)."""
        up, down = self.lora_up.flatten(1), self.lora_down.flatten(1)
        return ((up.t() @ up) * (down @ down.t())).sum() * self.scale**2
