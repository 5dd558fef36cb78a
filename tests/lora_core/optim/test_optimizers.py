import dataclasses
import json
import sys

import pytest
import torch
from lora_loom.lora_core.config import OptimizerConfig, TrainConfig
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.optim.groups import drop
from lora_loom.lora_core.optim.optimizers import OPTIMIZERS, averaged, effective_lr, filled, make_optimizer, settle
from lora_loom.lora_core.runs import checkpoints
from slow_rows import mostly_slow

NAMES = sorted(OPTIMIZERS)


def config_of(name, **changes):
    return filled(TrainConfig(optimizer=OptimizerConfig(name=name, **changes))).optimizer


def parameters(seed=0):
    """A LoRA pair, a convolution and token vectors."""
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(*shape, generator=rng)) for shape in ((4, 16), (24, 4), (4, 6, 3, 3), (2, 16))
    ]


def groups_of(params, config):
    base = {"lr": config.lr, "base_lr": config.lr, "weight_decay": config.weight_decay, "stop": None}
    return [
        {**base, "name": "embedding", "params": params[3:], "weight_decay": 0.0},
        {**base, "name": "model", "params": params[:3]},
    ]


def make(name, params, **changes):
    config = config_of(name, **changes)
    return make_optimizer(groups_of(params, config), config)


def advance(optimizer, params, steps, seed=1):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = p.detach() * 0.1 + torch.randn(p.shape, generator=rng) if p.requires_grad else None
        optimizer.step()


def test_adamw_follows_torch_adamw_with_the_configured_numbers():
    config = config_of("adamw", lr=3e-3, beta1=0.8, beta2=0.95, weight_decay=0.1, eps=0.01)
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(5, 4, generator=rng)
    ours, plain = (torch.nn.Parameter(start.clone()) for _ in range(2))
    reference = torch.optim.AdamW(
        [plain], lr=3e-3, betas=(0.8, 0.95), weight_decay=0.1, eps=0.01, foreach=False, fused=False
    )
    optimizers = [
        make_optimizer([{"params": [ours], "lr": 3e-3, "weight_decay": 0.1, "name": "model"}], config),
        reference,
    ]
    for _ in range(10):
        gradient = torch.randn(5, 4, generator=rng)
        for p, optimizer in zip((ours, plain), optimizers):
            p.grad = gradient.clone()
            optimizer.step()
    # The fused kernel orders the same operations differently: float32 rounding over ten steps of size 3e-3.
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours, start)


def test_zero_takes_the_usual_numbers_of_an_optimizer_and_given_ones_stand():
    usual = {"adamw": (1e-4, 0.999), "prodigy": (1.0, 0.99), "lion": (3e-5, 0.99), "schedule_free": (5e-4, 0.999)}
    assert {name: (config_of(name).lr, config_of(name).beta2) for name in usual} == usual
    for name in NAMES:
        given = config_of(name, lr=0.25, beta2=0.5)
        assert (given.lr, given.beta2) == (0.25, 0.5)


def test_every_optimizer_of_the_config_exists():
    choices = next(f for f in dataclasses.fields(OptimizerConfig) if f.name == "name").metadata["choices"]
    assert set(choices) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_brings_a_quadratic_down(name):
    target = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    params = [torch.nn.Parameter(target + 0.1 * torch.randn(8, 8, generator=torch.Generator().manual_seed(4)))]
    config = config_of(name, weight_decay=0.0)
    optimizer = make_optimizer([{"params": params, "lr": config.lr, "weight_decay": 0.0, "name": "model"}], config)
    before = (params[0] - target).square().sum().item()
    for _ in range(400):
        params[0].grad = 2 * (params[0].detach() - target)
        optimizer.step()
    with averaged(optimizer):
        assert (params[0] - target).square().sum().item() < 0.9 * before


def test_adafactor_moves_what_starts_at_zero_by_its_rate():
    """lora_up starts at zero; a step relative to the weight's own size would leave it there."""
    up = torch.nn.Parameter(torch.zeros(8, 4))
    optimizer = make_optimizer(
        [{"params": [up], "lr": 1e-3, "weight_decay": 0.0, "name": "model"}], config_of("adafactor", lr=1e-3)
    )
    up.grad = torch.ones(8, 4)
    optimizer.step()
    assert up.abs().mean().item() == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_written_to_disk_and_read_back_goes_on_bit_for_bit(name, tmp_path):
    straight, broken = parameters(), parameters()
    whole = make(name, straight)
    advance(whole, straight, 4, seed=1)
    advance(whole, straight, 4, seed=2)

    first = make(name, broken)
    advance(first, broken, 4, seed=1)
    folder = checkpoints.save(tmp_path, 4, {str(n): p.detach().clone() for n, p in enumerate(broken)}, first, {})
    checkpoint = checkpoints.read(folder)
    fresh = [torch.nn.Parameter(checkpoint.adapter[str(n)].clone()) for n in range(4)]
    second = make(name, fresh)
    second.load_state_dict(checkpoint.optimizer)
    advance(second, fresh, 4, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(fresh, straight))


@pytest.mark.parametrize("name", NAMES)
def test_a_dropped_group_never_moves_again_and_the_rest_goes_on(name):
    params = parameters()
    optimizer = make(name, params)
    advance(optimizer, params, 5)
    group = next(g for g in optimizer.param_groups if g["name"] == "embedding")
    settle(optimizer, group)
    drop(optimizer, group)
    assert all(g is not group for g in optimizer.param_groups)
    assert not any(p in optimizer.state for p in group["params"])  # nor is memory kept for it
    frozen, moving = params[3].detach().clone(), params[0].detach().clone()
    advance(optimizer, params, 50, seed=9)
    with averaged(optimizer):
        assert torch.equal(params[3], frozen)
    assert torch.equal(params[3], frozen)
    assert not torch.equal(params[0], moving)


def test_prodigy_with_learning_rate_zero_would_not_freeze():
    """The control for the test above: what the published pivotal-tuning scripts do moves the vectors on and on."""
    params = parameters()
    optimizer = make("prodigy", params)
    advance(optimizer, params, 20)
    next(g for g in optimizer.param_groups if g["name"] == "embedding")["lr"] = 0.0
    before = params[3].detach().clone()
    advance(optimizer, params, 50, seed=9)
    assert not torch.equal(params[3], before)


def test_prodigy_has_the_defaults_of_the_recipe():
    group = make("prodigy", parameters()).param_groups[0]
    wanted = {
        "lr": 1.0,
        "betas": (0.9, 0.99),
        "decouple": True,
        "use_bias_correction": True,
        "safeguard_warmup": True,
        "d_coef": 1.0,
        "beta3": None,
    }
    assert {key: group[key] for key in wanted} == wanted
    assert make("prodigy", parameters()).param_groups[1]["weight_decay"] == 0.01


@pytest.mark.parametrize("switch", ["decouple", "use_bias_correction", "safeguard_warmup"])
def test_each_switch_of_prodigy_reaches_it_and_changes_what_it_does(switch):
    def trained(**changes):
        params = parameters()
        optimizer = make("prodigy", params, weight_decay=0.5, **changes)
        for step in range(30):
            for group in optimizer.param_groups:
                group["lr"] = min(1.0, (step + 1) / 8)  # a warm-up
            advance(optimizer, params, 1)
        return optimizer.param_groups[0], params[0].detach()

    (plain, before), (group, after) = trained(), trained(**{f"prodigy_{switch}": False})
    assert (plain[switch], group[switch]) == (True, False)
    assert {
        k: v for k, v in plain.items() if k in ("decouple", "use_bias_correction", "safeguard_warmup") and k != switch
    } == {
        k: v for k, v in group.items() if k in ("decouple", "use_bias_correction", "safeguard_warmup") and k != switch
    }
    assert not torch.equal(before, after)


def test_beta3_of_prodigy_is_the_root_of_beta2_unless_it_is_given():
    assert make("prodigy", parameters()).param_groups[0]["beta3"] is None
    assert make("prodigy", parameters(), prodigy_beta3=0.9).param_groups[0]["beta3"] == 0.9


def test_d_coef_of_prodigy_multiplies_the_rate_it_finds():
    def found(factor):
        params = parameters()
        optimizer = make("prodigy", params, prodigy_d_coef=factor)
        advance(optimizer, params, 60)
        assert optimizer.param_groups[0]["d_coef"] == factor
        return optimizer.param_groups[0]["d"]

    assert found(0.5) < found(1.0) < found(2.0)


def test_prodigy_reports_the_rate_it_found():
    params = parameters()
    optimizer = make("prodigy", params)
    assert effective_lr(optimizer) == pytest.approx(1e-6)
    for _ in range(50):  # a slope that always points the same way
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert effective_lr(optimizer) == optimizer.param_groups[-1]["d"] > 1e-6


def test_one_rate_optimizers_refuse_several_rates_before_the_first_step():
    config = config_of("prodigy")
    groups = groups_of(parameters(), config)
    groups[0]["lr"] = 3e-4
    with pytest.raises(
        LoomError,
        match="prodigy finds one learning rate for everything, but several are set .embedding 0.0003, model 1.; leave",
    ):
        make_optimizer(groups, config)


def test_schedule_free_hands_out_its_average_and_goes_on_from_where_it_was():
    params = parameters()
    optimizer = make("schedule_free", params)
    advance(optimizer, params, 10)
    raw = [p.detach().clone() for p in params]
    with averaged(optimizer):
        assert not any(torch.equal(p, r) for p, r in zip(params, raw))
    assert all(torch.equal(p, r) for p, r in zip(params, raw))


def test_muon_is_for_matrices_and_adamw_for_tokens():
    groups = make("muon", parameters()).param_groups
    assert {(g["name"], g["use_muon"]) for g in groups} == {("embedding", False), ("model", True)}


@pytest.mark.parametrize("name", [n for n in NAMES if OPTIMIZERS[n].package])
def test_a_missing_package_is_named_with_the_command_that_installs_it(name, monkeypatch, toy_config, run_toy, tmp_path):
    row = OPTIMIZERS[name]
    monkeypatch.setitem(sys.modules, row.module or row.package, None)
    with pytest.raises(
        LoomError,
        match=f"optimizer.name: {name} needs the package {row.package}; install it with: pip install {row.package}",
    ):
        run_toy(toy_config(optimizer={"name": name}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", mostly_slow(NAMES, ("adamw", "prodigy", "schedule_free").__contains__))
def test_every_optimizer_runs_on_the_toy_and_a_continued_run_equals_the_unbroken_one(
    name, toy_config, run_toy, tmp_path
):
    from lora_loom.lora_core.events import Control, Listener

    class StopAt(Listener):
        def __init__(self, control, step):
            self.control, self.step = control, step

        def on_step(self, report):
            if report.step == self.step:
                self.control.stop_and_keep()

    config = toy_config(optimizer={"name": name, "lr": 0.0}, steps=4, ema_decay=0.0 if name == "schedule_free" else 0.9)
    whole = run_toy(config, tmp_path / "whole")
    control = Control()
    run_toy(config, tmp_path / "parts", StopAt(control, 2), control=control)
    parts = run_toy(config, tmp_path / "parts", resume=True)
    assert parts.losses == whole.losses
    assert all(torch.equal(parts.tensors[k], whole.tensors[k]) for k in whole.tensors)
    lines, again = (
        [json.loads(line)["lr"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("whole", "parts")
    )
    assert lines == again
    assert all(lr > 0 for lr in lines)
    drawn = [(tmp_path / n / "learning-rate.png").read_bytes() for n in ("whole", "parts")]
    assert drawn[0] == drawn[1]
