"""Parameters side by side in one buffer are trained as they are one by one, and saved state does not tell which it was."""

from __future__ import annotations

import copy

import pytest
import torch
from lora_loom.lora_core import compat
from lora_loom.lora_core.adapters import AdapterSet, KindAdapter, Shape, attach
from lora_loom.lora_core.algebra.kinds import KINDS
from lora_loom.lora_core.borrowing.frozen import resident_only
from lora_loom.lora_core.config import OptimizerConfig, TrainConfig
from lora_loom.lora_core.optim import optimizers
from lora_loom.lora_core.optim.ema import Ema
from lora_loom.lora_core.optim.flat import Flat
from lora_loom.lora_core.optim.groups import drop
from lora_loom.lora_core.optim.optimizers import OPTIMIZERS, averaged, filled, gather, gathering, make_optimizer, pieces
from since import since
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

FLAT = sorted(name for name, row in OPTIMIZERS.items() if row.flat)
SHAPES = ((4, 16), (24, 4), (4, 6, 3, 3), (2, 16), (7, 3), (1,))


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def parameters(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(*shape, generator=rng) * (n != 1)) for n, shape in enumerate(SHAPES)]


def config_of(name, **changes):
    return filled(TrainConfig(optimizer=OptimizerConfig(name=name, **changes))).optimizer


def made(name, params, flat=True, monkeypatch=None):
    """Three groups of their own weight decay; `flat` False: by parameter, as before."""
    config = config_of(name)
    base = {"lr": config.lr, "base_lr": config.lr, "stop": None}
    groups = [
        {**base, "name": "embedding", "params": params[:1], "weight_decay": 0.0},
        {**base, "name": "model", "params": params[1:5], "weight_decay": 0.1},
        {**base, "name": "text_encoder", "params": params[5:], "weight_decay": 0.01},
    ]
    return make_optimizer(groups, config) if flat else OPTIMIZERS[name].make(groups, config)


def advance(optimizer, params, steps, seed=1, without=lambda step, n: False):
    """Some steps, in which parameter n has no gradient where `without(step, n)` says so."""
    rng = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for n, p in enumerate(params):
            grad = p.detach() * 0.1 + torch.randn(p.shape, generator=rng)
            p.grad = None if without(step, n) or not p.requires_grad else grad
        optimizer.step()
        optimizer.zero_grad()


def sometimes(step, n):
    return (n == 2 and step in (1, 3)) or (n == 4 and step == 3) or n == 3


def test_which_optimizers_take_parameters_together():
    assert FLAT == ["adamw", "lion", "prodigy", "schedule_free"]
    for name in OPTIMIZERS:
        assert isinstance(made(name, parameters()), Flat) == (name in FLAT)
    mixed = parameters()
    mixed[1].data = mixed[1].data.double()
    assert not isinstance(made("adamw", mixed), Flat)


@pytest.mark.parametrize("without", [lambda step, n: False, sometimes], ids=["all", "some without a gradient"])
@pytest.mark.parametrize("name", FLAT)
def test_together_they_move_as_one_by_one_and_leave_the_same_state(name, without):
    ours, theirs = parameters(), parameters()
    together, apart = made(name, ours), made(name, theirs, flat=False)
    for optimizer, params in ((together, ours), (apart, theirs)):
        advance(optimizer, params, 6, without=without)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # sums of a whole buffer round otherwise
        assert torch.equal(one, other) or name in ("adamw", "prodigy")  # the rest of a vector may round otherwise too
    mine, others = together.state_dict(), apart.state_dict()
    known = {n: values for n, values in others["state"].items() if values}
    assert mine["state"].keys() == known.keys()
    for n, values in known.items():
        assert mine["state"][n].keys() == values.keys()
        for key, value in values.items():
            torch.testing.assert_close(mine["state"][n][key], value, rtol=1e-4, atol=1e-6, msg=f"{n} {key}")
    for one, other in zip(mine["param_groups"], others["param_groups"], strict=True):
        assert one.keys() == other.keys()
        assert one["params"] == other["params"]


@pytest.mark.parametrize("name", FLAT)
def test_a_run_that_is_broken_off_goes_on_bit_for_bit(name):
    straight, first = parameters(), parameters()
    whole, begun = made(name, straight), made(name, first)
    for optimizer, params in ((whole, straight), (begun, first)):
        advance(optimizer, params, 5, without=sometimes)
    state, fresh = copy.deepcopy(begun.state_dict()), [nn.Parameter(p.detach().clone()) for p in first]
    again = made(name, fresh)
    again.load_state_dict(state)
    for optimizer, params in ((whole, straight), (again, fresh)):
        advance(optimizer, params, 5, seed=2, without=sometimes)
    assert all(torch.equal(one, other) for one, other in zip(straight, fresh, strict=True))
    assert not torch.equal(fresh[0], first[0])


@pytest.mark.parametrize("name", FLAT)
def test_state_saved_by_parameter_is_taken_up_together_and_the_other_way_round(name):
    for before, after in ((False, True), (True, False)):
        params, other = parameters(), None
        first = made(name, params, flat=before)
        advance(first, params, 4, without=sometimes)
        state, other = copy.deepcopy(first.state_dict()), [nn.Parameter(p.detach().clone()) for p in params]
        second = made(name, other, flat=after)
        second.load_state_dict(state)
        for optimizer, values in ((first, params), (second, other)):
            advance(optimizer, values, 4, seed=2)
        for one, value in zip(params, other, strict=True):
            torch.testing.assert_close(one, value, rtol=1e-5, atol=1e-6)


def test_a_group_that_is_dropped_stands_still_and_the_others_go_on():
    params = parameters()
    optimizer = made("adamw", params)
    advance(optimizer, params, 2)
    drop(optimizer, optimizer.param_groups[1])
    before = [p.detach().clone() for p in params]
    advance(optimizer, params, 2, seed=2)
    assert [torch.equal(p, old) for p, old in zip(params, before, strict=True)] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]
    assert [g["name"] for g in optimizer.param_groups] == ["embedding", "text_encoder"]


def test_a_learning_rate_of_a_group_acts_on_that_group_alone():
    params = parameters()
    optimizer = made("adamw", params)
    for group in optimizer.param_groups[:2]:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in params]
    advance(optimizer, params, 1)
    assert [torch.equal(p, old) for p, old in zip(params, before, strict=True)] == [True] * 5 + [False]


def test_the_average_of_schedule_free_is_looked_at_and_left_as_by_parameter():
    ours, theirs = parameters(), parameters()
    both = (made("schedule_free", ours), ours), (made("schedule_free", theirs, flat=False), theirs)
    for optimizer, params in both:
        advance(optimizer, params, 3)
        with averaged(optimizer):
            seen = [p.detach().clone() for p in params]
        optimizer.seen = seen
        advance(optimizer, params, 3)
    for one, other in zip([*both[0][0].seen, *ours], [*both[1][0].seen, *theirs], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


# ---- gradients that go straight into the buffers --------------------------------------------------------------------------


def chain(dtype=torch.float32, layers=3, scale=0.5):
    """Layers one after another, each with a LoRA that has numbers in both factors."""
    torch.manual_seed(0)
    linears = {str(n): nn.Linear(8, 8).to(dtype).requires_grad_(False) for n in range(layers)}
    members = {k: KindAdapter(KINDS["lora"], k, v, Shape((8, 8), 2, 2 * scale), 0, "cpu") for k, v in linears.items()}
    for adapter in members.values():
        nn.init.normal_(adapter.lora_up, std=0.5)
    return linears, AdapterSet(members)


def flat_of(adapters, name="adamw"):
    groups = [
        {
            "params": adapters.parameters(),
            "lr": 1e-3,
            "base_lr": 1e-3,
            "weight_decay": 0.1,
            "name": "model",
            "stop": None,
        }
    ]
    optimizer = make_optimizer(groups, config_of(name))
    for _, adapter in adapters:
        adapter.begin_run()
    return optimizer


def passes(layers, adapters, x, count, choose=resident_only, optimizer=None):
    """The gradients of `count` passes together."""
    with attach(layers, adapters, choose):
        for n in range(count):
            out = x * (n + 1)
            for layer in layers.values():
                out = layer(out)
            loss = out.float().square().sum()
            if optimizer is None:
                loss.backward()
            else:
                with gathering(optimizer):
                    loss.backward()
    if optimizer is not None:
        gather(optimizer)
    return [p.grad.clone() for p in adapters.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_added_up_in_place_are_those_of_autograd(dtype, count):
    layers, adapters = chain(dtype)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = passes(layers, adapters, x, count)
    for p in adapters.parameters():
        p.grad = None
    optimizer = flat_of(adapters)
    with attach(layers, adapters, resident_only):  # the layers' own way, not a sum of loose gradients
        assert all(p.sink.total.abs().sum() == 0 for p in adapters.parameters())
    given = passes(layers, adapters, x, count, optimizer=optimizer)
    tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=0.02, atol=0.05)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
        assert one.abs().sum() > 0
    (whole,) = pieces(optimizer)
    assert torch.equal(whole.grad[: given[0].numel()], given[0].flatten())


def test_a_gradient_asked_for_outside_of_a_step_comes_from_autograd():
    layers, adapters = chain()
    optimizer = flat_of(adapters)
    with attach(layers, adapters, resident_only):
        loss = layers["0"](torch.ones(2, 8)).sum()
        grads = torch.autograd.grad(loss, list(adapters["0"].parameters()))
    assert all(grad.abs().sum() > 0 for grad in grads)
    gather(optimizer)
    assert pieces(optimizer) == []


def test_layers_that_know_a_buffer_and_those_that_do_not_are_gathered_together():
    layers, adapters = chain()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    expected = passes(layers, adapters, x, 2)
    for p in adapters.parameters():
        p.grad = None
    one, two = list(layers.values())[:2]
    given = passes(
        layers, adapters, x, 2, lambda layer: resident_only(layer) if layer in (one, two) else None, flat_of(adapters)
    )
    for mine, other in zip(given, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_a_step_has_as_many_operations_whatever_the_number_of_layers():
    def operations(count):
        layers, adapters = chain(layers=count)
        optimizer, x = flat_of(adapters), torch.randn(5, 8)
        ema = Ema(adapters, 0.9)
        for step in range(2):
            passes(layers, adapters, x, 2, optimizer=optimizer)
            with Operations() as seen:
                gather(optimizer)
                torch.nn.utils.clip_grad_norm_(pieces(optimizer), 1.0, foreach=True)
                optimizer.step()
                ema.update(step + 1)
                optimizer.zero_grad()
        return [name for name in seen.names if name != "detach"]

    assert operations(2) == operations(9)
    assert operations(2).count("_fused_adamw_") + operations(2).count("_foreach_lerp_") >= 1


def test_the_moving_average_of_a_buffer_is_that_of_each_parameter():
    layers, adapters = chain()
    apart = Ema(adapters, 0.5)
    optimizer = flat_of(adapters)
    together = Ema(adapters, 0.5)
    for step in range(3):
        passes(layers, adapters, torch.ones(2, 8), 1, optimizer=optimizer)
        optimizer.step()
        optimizer.zero_grad()
        apart._pairs = [(apart._shadow[name], p, p) for name, p in adapters.named_parameters()]
        for ema in (apart, together):
            ema.update(step + 1)
    mine, theirs = together.state_dict(), apart.state_dict()
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-6, atol=1e-7)


@since("torch", "2.3", "gradients are scaled on a CPU too")
@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_an_overflow_of_a_scaled_gradient_moves_nothing(name):
    params = parameters()
    optimizer = made(name, params)
    scaler = compat.GradScaler("cpu", init_scale=4.0, enabled=True)
    scaler.scale(torch.ones(()))
    before = [p.detach().clone() for p in params]
    for value in (float("inf"), 2.0):
        for p in params:
            p.grad = torch.full_like(p, value)
        gather(optimizer)
        scaler.unscale_(optimizer)
        assert value == float("inf") or all(
            (p.grad == 2 / 2).all() for p in params
        )  # after an overflow the scale is half
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = [not torch.equal(p, old) for p, old in zip(params, before, strict=True)]
        assert all(moved) if value == 2.0 else not any(moved)


def test_several_processes_give_a_parameter_without_a_gradient_one_of_zero():
    params = parameters()
    optimizer = made("adamw", params)
    params[2].grad = torch.ones_like(params[2])
    gather(optimizer, everywhere=True)
    assert all(p.grad is not None for p in params)
    assert [len(pieces(optimizer))] == [3]
    assert params[1].grad.abs().sum() == 0


def test_functions_of_torch_func_see_a_layer_with_its_lora():
    layers, adapters = chain(layers=1)
    with (
        attach(layers, adapters, resident_only),
        pytest.raises(RuntimeError),
    ):  # as from any autograd function without rules
        torch.func.grad(lambda x: layers["0"](x).sum())(torch.ones(2, 8))
    assert optimizers.pieces(torch.optim.SGD(adapters.parameters(), 0.1)) == []
