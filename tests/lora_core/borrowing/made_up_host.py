"""A made-up host: layers that fetch their weights, blocks that write over their inputs, and what borrowing asks of it."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from lora_loom.lora_core.adapters import AdapterSet, KindAdapter, Shape
from lora_loom.lora_core.algebra.kinds import KINDS
from lora_loom.lora_core.borrowing.aliases import as_normal
from lora_loom.lora_core.rng import generator
from torch import nn


class Linear(nn.Linear):
    """A layer of the host: keeps half of its weight and doubles it whenever it is fetched, through one buffer for all layers of a size."""

    buffers_of = {}
    fetching = True

    def fetch(self):
        buffer = self.buffers_of.setdefault(self.weight.shape, torch.empty_like(self.weight))
        return torch.mul(self.weight, 2, out=buffer)

    def forward(self, x):
        return F.linear(x, self.fetch() if self.fetching else self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """The host's norm, which also fetches its weight."""

    fetching = True

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight * 2 if self.fetching else self.weight, self.bias)


class Block(nn.Module):
    """Updates its input in place after a norm has read it, as blocks of hosts do that only sample."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.inner, self.outer = LayerNorm(width), Linear(width, 2 * width), Linear(2 * width, width)

    def forward(self, x):
        x += self.outer(F.gelu(self.inner(self.norm(x))))
        return x


class Model(nn.Module):
    def __init__(self, width=8, depth=3):
        super().__init__()
        self.first = Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.register_buffer("offset", torch.linspace(-1, 1, width))

    def forward(self, x):
        x = self.first(x) + self.offset
        for block in self.blocks:
            x = block(x)
        return x


class Host:
    """What borrowing asks of it."""

    as_they_stand = {"fetching": False}

    @contextlib.contextmanager
    def fetched(self, layer, dtype, device):
        yield (layer.fetch() if isinstance(layer, Linear) else layer.weight * 2).to(device, dtype), layer.bias

    def input_factor(self, layer, like):
        return None

    def fetches(self, layer):
        return hasattr(layer, "fetching")

    def stands(self, layer, x):
        return not layer.fetching

    def resident(self, layer, place):
        return not layer.fetching and layer.weight.dtype == place.dtype and layer.weight.device == place.device

    def is_linear(self, layer):
        return isinstance(layer, Linear)

    def alias(self, value):
        return as_normal(value)


def adapters_of(model):
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Linear)}
    members = {
        n: KindAdapter(KINDS["lora"], n, m, Shape(tuple(m.weight.shape), 2, 4.0), 0, torch.device("cpu"))
        for n, m in layers.items()
    }
    adapters = AdapterSet(members)
    for name, adapter in adapters:
        with torch.no_grad():
            adapter.lora_up.normal_(std=0.3, generator=generator(1, name))
    return layers, adapters


def answer(model):
    x = torch.linspace(-2, 2, 40).view(5, 8)
    return model(x)


def gradients(model, adapters):
    params = adapters.parameters()
    return torch.autograd.grad((answer(model) ** 2).mean(), params)
