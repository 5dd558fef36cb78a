"""Borrowing without any host: a model of a made-up one, whose layers fetch their weights, trains as plain autograd does and is given back."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from lora_loom.lora_core.borrowing import borrow, frozen
from lora_loom.lora_core.borrowing.borrow import Borrowing, Measures
from lora_loom.lora_core.borrowing.comparison import compared
from lora_loom.lora_core.borrowing.frozen import input_gradient
from made_up_host import Host, LayerNorm, Linear, adapters_of, answer, gradients
from torch import nn

ALL = Measures(checkpointing=True, guard=True, freeze=True)


def exact_gradients(model, adapters):
    """Plain autograd through ordinary tensors: weights as fetched plus the adapters' deltas, nothing in place."""
    weights = {n: p.clone() * (2 if n.endswith(".weight") else 1) for n, p in model.named_parameters()}
    for name, adapter in adapters:
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + adapter.delta_weight()

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = linear("first", torch.linspace(-2, 2, 40).view(5, 8)) + model.offset.clone()
    for n in range(len(model.blocks)):
        at = f"blocks.{n}"
        normed = F.layer_norm(x, (8,), weights[f"{at}.norm.weight"], weights[f"{at}.norm.bias"])
        x = x + linear(f"{at}.outer", F.gelu(linear(f"{at}.inner", normed)))
    return torch.autograd.grad((x**2).mean(), adapters.parameters())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_gradients_are_those_of_plain_autograd_though_weights_are_fetched_and_blocks_write_in_place(
    model, checkpointing
):
    layers, adapters = adapters_of(model)
    borrowing = Borrowing(model, layers, adapters, Host(), Measures(checkpointing=checkpointing))
    borrowing.inject()
    ours = gradients(model, adapters)
    borrowing.eject()
    for mine, exact in zip(ours, exact_gradients(model, adapters), strict=True):
        torch.testing.assert_close(mine, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_without_guards_autograd_refuses_a_block_that_writes_in_place(model):
    """The control of the test above."""
    layers, adapters = adapters_of(model)
    borrowing = Borrowing(model, layers, adapters, Host(), Measures(guard=False))
    borrowing.inject()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(model, adapters)
    borrowing.eject()


def state_of(model):
    """Every object and every attribute of every module."""
    tables = [
        (name, key, id(value))
        for name, m in model.named_modules()
        for key, value in {**m._parameters, **m._buffers}.items()
    ]
    return tables, {name: sorted(m.__dict__) for name, m in model.named_modules()}


def test_everything_is_taken_off_again_however_often_it_was_put_on(model):
    layers, adapters = adapters_of(model)
    before, with_inference = state_of(model), answer_in_host(model)
    borrowing = Borrowing(model, layers, adapters, Host(), ALL)
    for _ in range(2):
        borrowing.inject()
    assert borrowing.installed
    assert state_of(model) != before
    borrowing.eject()
    borrowing.eject()
    assert not borrowing.installed
    assert state_of(model) == before
    assert torch.equal(answer_in_host(model), with_inference)


def answer_in_host(model):
    with torch.inference_mode():
        return answer(model)


def test_an_installation_that_fails_half_way_leaves_nothing(model, monkeypatch):
    layers, adapters = adapters_of(model)
    before = state_of(model)
    monkeypatch.setattr(borrow, "checkpointed", lambda block, pure: 1 / 0)
    borrowing = Borrowing(model, layers, adapters, Host(), ALL)
    with pytest.raises(ZeroDivisionError):
        borrowing.inject()
    assert not borrowing.installed
    assert state_of(model) == before


def test_a_weight_the_host_has_moved_meanwhile_stays_moved(model):
    layers, adapters = adapters_of(model)
    borrowing = Borrowing(model, layers, adapters, Host(), Measures(freeze=False))
    borrowing.inject()
    moved = nn.Parameter(torch.ones(8, 8), requires_grad=False)
    model.first._parameters["weight"] = moved
    borrowing.eject()
    assert model.first.weight is moved


def test_a_layer_somebody_else_has_hooked_is_not_frozen(model):
    layers, adapters = adapters_of(model)
    plain = model.first.forward
    model.first.forward = hooked = lambda x: 3 * plain(x)
    borrowing = Borrowing(model, layers, adapters, Host(), Measures())
    assert not frozen.can_freeze(model.first, Host())
    borrowing.inject()
    borrowing.eject()
    assert model.first.__dict__["forward"] is hooked


LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 6)),
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2, padding=1), (2, 6, 9)),
    "conv2d": (nn.Conv2d(6, 4, 3, stride=2, padding=1, dilation=2, groups=2), (2, 6, 9, 9)),
    "conv3d": (nn.Conv3d(6, 4, (1, 3, 3), padding=(0, 1, 1)), (2, 6, 3, 5, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_gradient_for_the_input_is_autograds(kind):
    layer, shape = LAYERS[kind]
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    out = layer(x)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (exact,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close(input_gradient(grad, layer.weight.detach(), layer, x.shape), exact)


@dataclasses.dataclass
class Wrong:
    """Spoils the gradient of every frozen layer by a factor."""

    factor: float

    def __call__(self, grad, weight, layer, shape):
        return self.factor * input_gradient(grad, weight, layer, shape)


@pytest.mark.parametrize(("factor", "tolerable"), [(1.0, True), (1.05, False), (float("nan"), False)])
def test_the_comparison_with_the_slow_way_tells_a_wrong_gradient_and_where_it_is_largest(
    model, monkeypatch, factor, tolerable
):
    """A model whose weights lie ready, so the slow way needs no frozen layers."""
    layers, adapters = adapters_of(model)
    borrowing = Borrowing(model, layers, adapters, Host(), ALL)
    borrowing.inject()
    monkeypatch.setattr(frozen, "input_gradient", Wrong(factor))
    monkeypatch.setattr(Linear, "fetching", False)
    monkeypatch.setattr(LayerNorm, "fetching", False)
    monkeypatch.setattr(Linear, "fetch", lambda self: self.weight)
    difference = compared(model, borrowing, adapters, lambda: answer(model), torch.float32)
    assert borrowing.installed
    borrowing.eject()
    assert difference.tolerable(torch.float32) is tolerable
    assert difference.worst in dict(adapters.named_parameters())
    if factor == 1.0:
        assert difference.error < 1e-5
