"""LoHa (FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098; LyCORIS): the update is the elementwise product of two low-rank matrices, of rank up to r^2."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..rng import generator
from .base import DenseAdapter, Shape, Weight, weight_of


class LohaAdapter(DenseAdapter):
    """hada_w1_a, hada_w2_a (out, rank); hada_w1_b, hada_w2_b (rank, in * kernel). w2_b starts at zero: no effect before step 1. As PEFT's LoHa."""

    def __init__(self, name: str, layer: nn.Module, shape: Shape, seed: int, device: torch.device | str, weight: Weight = weight_of):
        super().__init__(shape, layer)
        rows, columns = shape.weight[0], math.prod(shape.weight[1:])
        rng = generator(seed, "init", name)

        def start(*size: int) -> nn.Parameter:
            return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(size), a=math.sqrt(5), generator=rng).to(device))

        self.hada_w1_a, self.hada_w1_b, self.hada_w2_a = start(rows, shape.rank), start(shape.rank, columns), start(rows, shape.rank)
        self.hada_w2_b = nn.Parameter(torch.zeros(shape.rank, columns, device=device))

    def delta_weight(self) -> torch.Tensor:
        return ((self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b) * self.scale).view(self.shape.weight)
