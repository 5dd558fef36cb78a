"""Layers whose weights lie ready run without an op of ours, a layer and its LoRA are one node of the graph, and what a layer costs in calls stays small."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from lora_loom.lora_core.adapters import AdapterSet, KindAdapter, Shape, attach
from lora_loom.lora_core.algebra.kinds import KINDS
from lora_loom.lora_core.algebra.walk import weight_shape
from lora_loom.lora_core.borrowing import borrow, comparison, frozen, proof
from lora_loom.lora_core.borrowing.borrow import Borrowing, Measures
from lora_loom.lora_core.borrowing.frozen import is_ordinary, place_of, resident_only
from made_up_host import Host, LayerNorm, Linear, adapters_of, answer, gradients
from torch import nn

HERE = place_of("cpu", torch.float32)
SHAPES = {
    "linear": (lambda: nn.Linear(6, 4), (2, 3, 6)),
    "without a bias": (lambda: nn.Linear(6, 4, bias=False), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, stride=2, padding=1), (2, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1, dilation=2), (2, 6, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(6, 4, (1, 3, 3), padding=(0, 1, 1)), (2, 6, 3, 5, 5)),
}


def made(kind, scale, dtype=torch.float64):
    """A frozen layer, its adapter with numbers in both factors, and an input."""
    torch.manual_seed(0)
    make, shape = SHAPES[kind]
    layer = make().to(dtype).requires_grad_(False)
    weight = weight_shape(layer)
    adapter = KindAdapter(KINDS["lora"], "layer", layer, Shape(weight, 2, 2.0 * scale), 0, "cpu")
    nn.init.normal_(adapter.lora_up, std=0.5)
    return layer, adapter, torch.randn(shape, dtype=dtype)


def ways(layer, adapter, x, choose):
    """(output, gradients for input, down, up) of the layer with its adapter."""
    x = x.clone().requires_grad_()
    with attach({"layer": layer}, AdapterSet({"layer": adapter}), choose):
        out = layer(x)
        probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
        return out.detach(), *torch.autograd.grad(out, [x, adapter.lora_down, adapter.lora_up], probe)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("kind", SHAPES)
def test_layer_and_lora_as_one_node_give_what_they_give_apart(kind, scale):
    layer, adapter, x = made(kind, scale)
    together = ways(layer, adapter, x, resident_only)
    for one, apart in zip(together, ways(layer, adapter, x, lambda layer: None), strict=True):
        torch.testing.assert_close(one, apart, rtol=1e-5, atol=1e-6)  # the factors' gradients are float32


def test_a_pass_in_half_precision_uses_copies_that_follow_the_weights():
    layer, adapter, x = made("linear", 0.5, torch.bfloat16)
    adapters = AdapterSet({"layer": adapter})
    for _ in range(2):
        together = ways(layer, adapter, x, resident_only)
        for one, apart in zip(together, ways(layer, adapter, x, lambda layer: None), strict=True):
            torch.testing.assert_close(one, apart, rtol=0.02, atol=0.02)
        assert together[2].dtype == torch.float32
        with torch.no_grad():
            adapter.lora_up.add_(1)
        adapters.weights_changed()


@pytest.mark.parametrize("alone", ["lora_down", "lora_up"])
def test_a_factor_that_is_not_trained_gets_no_gradient_and_the_other_the_same(alone):
    layer, adapter, x = made("linear", 0.5)
    _, _, down, up = ways(layer, adapter, x, resident_only)
    getattr(adapter, {"lora_down": "lora_up", "lora_up": "lora_down"}[alone]).requires_grad_(False)
    with attach({"layer": layer}, AdapterSet({"layer": adapter}), resident_only):
        out = layer(x)
        probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
        (grad,) = torch.autograd.grad(out, [getattr(adapter, alone)], probe)
    assert torch.equal(grad, {"lora_down": down, "lora_up": up}[alone])


def test_a_block_may_write_into_what_a_layer_gives_it():
    layer, adapter, x = made("linear", 0.5)
    with attach({"layer": layer}, AdapterSet({"layer": adapter}), resident_only):
        out = layer(x.requires_grad_())
        out += 1
        out.mul_(2).sum().backward()
    assert x.grad is not None


def test_under_autocast_and_for_an_input_of_another_type_layer_and_lora_stay_apart():
    layer, adapter, x = made("linear", 0.5, torch.float32)
    choice = resident_only(layer)
    assert choice(x) is not None
    assert choice(x.double()) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert choice(x) is None
        with attach({"layer": layer}, AdapterSet({"layer": adapter}), resident_only):
            assert layer(x).dtype == torch.bfloat16


def test_only_ordinary_layers_are_joined():
    class Own(nn.Linear):
        pass

    hooked = nn.Linear(2, 2)
    hooked.forward = lambda x: x
    assert is_ordinary(nn.Linear(2, 2))
    others = [
        Own(2, 2),
        hooked,
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding_mode="circular"),
        nn.LayerNorm(2),
    ]
    assert not any(map(is_ordinary, others))


# ---- the choice ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ready(monkeypatch):
    """The host keeps its weights as they are used."""
    for kind in (Linear, LayerNorm):
        monkeypatch.setattr(kind, "fetching", False)


def fetch_in_host(monkeypatch):
    """`fetch` as the layers of test_borrowing have it, but of those that fetch alone."""
    monkeypatch.setattr(Linear, "fetch", lambda self: self.weight * 2 if self.fetching else self.weight)


def exact(model, adapters):
    """Plain autograd, with the weights doubled of those layers that fetch at the moment."""
    weights = {
        f"{name}.weight": m.weight.clone() * (2 if m.fetching else 1)
        for name, m in model.named_modules()
        if isinstance(m, Linear | LayerNorm)
    }
    for name, adapter in adapters:
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + adapter.delta_weight()
    biases = {n: p.clone() for n, p in model.named_parameters() if n.endswith("bias")}

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], biases[f"{name}.bias"])

    x = linear("first", torch.linspace(-2, 2, 40).view(5, 8)) + model.offset.clone()
    for n in range(len(model.blocks)):
        at = f"blocks.{n}"
        normed = F.layer_norm(x, (8,), weights[f"{at}.norm.weight"], biases[f"{at}.norm.bias"])
        x = x + linear(f"{at}.outer", F.gelu(linear(f"{at}.inner", normed)))
    return torch.autograd.grad((x**2).mean(), adapters.parameters())


def assert_exact(model, adapters):
    for mine, wanted in zip(gradients(model, adapters), exact(model, adapters), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_ready_layer_without_an_adapter_has_no_op_of_ours(model, ready):
    layers, adapters = adapters_of(model)
    some = {"blocks.0.inner": layers["blocks.0.inner"]}
    borrowing = Borrowing(model, some, adapters.only(some), Host(), Measures(guard=False, place=HERE))
    borrowing.inject()
    assert len(borrowing.resident) == len(layers) + len(model.blocks)
    overridden = [name for name, m in model.named_modules() if "forward" in m.__dict__]
    assert overridden == ["blocks.0.inner"]
    out = model.first(torch.ones(1, 8, requires_grad=True))
    assert type(out.grad_fn).__name__ == "AddmmBackward0"
    borrowing.eject()
    assert not any("forward" in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_the_choice_is_right_when_the_host_moves_weights_in_the_middle_of_a_run(
    model, monkeypatch, ready, checkpointing
):
    """It patches one layer and keeps another in a type of its own, without taking us off; then puts the first back and loads anew."""
    fetch_in_host(monkeypatch)
    layers, adapters = adapters_of(model)
    borrowing = Borrowing(model, layers, adapters, Host(), Measures(checkpointing=checkpointing, place=HERE))
    borrowing.inject()
    everything = len(borrowing.resident)
    assert everything == len(layers) + len(model.blocks)
    assert_exact(model, adapters)

    patched = model.blocks[1].inner
    patched.fetching = True
    borrowing.choose_again()
    assert patched not in borrowing.resident
    assert len(borrowing.resident) == everything - 1
    assert patched.weight.is_inference()  # as the host has it: autograd never sees it
    assert_exact(model, adapters)

    del patched.fetching
    borrowing.choose_again()
    assert patched not in borrowing.resident  # exact as it is: the next load chooses anew
    assert_exact(model, adapters)
    borrowing.inject()
    assert patched in borrowing.resident
    assert_exact(model, adapters)
    borrowing.eject()
    assert all(p.is_inference() for p in model.parameters())


def test_without_choosing_again_the_patched_layer_would_be_trained_through_wrongly(model, monkeypatch, ready):
    """The control of the test above: the buffer that a weight is fetched through is the next layer's when the gradient asks for it."""
    layers, adapters = adapters_of(model)
    borrowing = Borrowing(model, {}, adapters.only(()), Host(), Measures(place=HERE))
    borrowing.inject()
    for layer in layers.values():
        layer.fetching = True
    x = torch.ones(1, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="(?i)inplace"):
        model(x * 1).sum().backward()
    borrowing.choose_again()
    model(x * 1).sum().backward()
    borrowing.eject()


def test_the_self_test_measures_both_kinds_and_tells_a_wrong_one_of_each(model, monkeypatch, ready):
    class Provable(Host):
        def kind(self, layer):
            return type(layer)

        @staticmethod
        def dequantised(layer):
            return borrow.contextlib.nullcontext()

    fetch_in_host(monkeypatch)
    model.blocks[1].inner.fetching = True
    host = Provable()
    chosen = proof.one_of_each_kind(model, host, HERE)
    linear = {layer.fetching: layer for layer in chosen.values() if isinstance(layer, Linear)}
    assert linear.keys() == {False, True}
    for layer in linear.values():
        assert proof.tolerable(proof.error_of(layer, host, HERE), torch.float32)
        assert layer.weight.is_inference()
    right = frozen.input_gradient
    monkeypatch.setattr(frozen, "input_gradient", lambda *args: 1.05 * right(*args))
    for layer in linear.values():
        assert not proof.tolerable(proof.error_of(layer, host, HERE), torch.float32)


def test_the_comparison_with_the_slow_way_tells_a_wrong_gradient_of_layer_and_lora_together(model, monkeypatch, ready):
    fetch_in_host(monkeypatch)
    layers, adapters = adapters_of(model)
    borrowing = Borrowing(model, layers, adapters, Host(), Measures(place=HERE))
    borrowing.inject()
    right = comparison.compared(model, borrowing, adapters, lambda: answer(model), torch.float32)
    assert right.error < 1e-5
    monkeypatch.setattr(frozen.Resident, "gradient", lambda self, grad, shape: 1.05 * grad @ self._parameters["weight"])
    wrong = comparison.compared(model, borrowing, adapters, lambda: answer(model), torch.float32)
    assert not wrong.tolerable(torch.float32)
    borrowing.eject()


# ---- what a layer costs --------------------------------------------------------------------------------------------------


def calls_of(step):
    """Calls of Python functions."""
    count = 0

    def seen(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        step()
    finally:
        sys.setprofile(None)
    return count


class Stack(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(Linear(8, 8) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def calls_a_layer(adapted, place):
    """Calls of Python functions that a further layer costs, forward and backward."""

    def total(depth):
        with torch.inference_mode():
            stack = Stack(depth).requires_grad_(False)
        layers, adapters = adapters_of(stack)
        kept = layers if adapted else {}
        borrowing = Borrowing(stack, kept, adapters.only(kept), Host(), Measures(guard=False, place=place))
        borrowing.inject()

        def step():
            stack(torch.ones(2, 3, 8, requires_grad=True)).sum().backward()

        step()
        return calls_of(step)

    return (total(12) - total(2)) / 10


@pytest.mark.parametrize(
    ("adapted", "resident", "most"), [(False, True, 6), (True, True, 27), (False, False, 52), (True, False, 57)]
)
def test_a_layer_costs_few_calls(monkeypatch, adapted, resident, most):
    """Counted, so that it cannot grow back: without anything of ours a layer costs 5."""
    monkeypatch.setattr(Linear, "fetching", not resident)
    assert calls_a_layer(adapted, HERE) <= most


def test_a_layer_and_its_lora_are_one_node_of_the_graph(model, ready):
    layers, adapters = adapters_of(model)
    borrowing = Borrowing(model, layers, adapters, Host(), Measures(guard=False, place=HERE))
    borrowing.inject()
    out = model.first(torch.ones(1, 8, requires_grad=True))
    names = [type(node).__name__ for node, _ in out.grad_fn.next_functions if node is not None]
    assert type(out.grad_fn).__name__ == "_LinearBackward"
    assert names == ["AccumulateGrad"] * 3  # the input and both factors
    borrowing.eject()
