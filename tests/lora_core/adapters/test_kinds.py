"""DoRA, LoHa, LoKr and rank-stabilized LoRA against PEFT's tuner of the same name: output, and the gradient of every factor and of the input."""

import contextlib
import math

import pytest
import torch
from lora_loom.convert import read, write
from lora_loom.convert.families import UNKNOWN
from lora_loom.convert.lora import delta
from lora_loom.lora_core.adapters import AdapterSet, KindAdapter, Shape, attach
from lora_loom.lora_core.adapters.base import weight_of
from lora_loom.lora_core.algebra.kinds import KINDS as ADAPTERS
from lora_loom.lora_core.algebra.lokr import factors
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from since import since
from slow_rows import mostly_slow
from torch import nn

# float64 throughout, where two orders of the same arithmetic agree to 1e-12; the demand is 1e-6, relative to the largest entry.
LIMIT = 1e-9
LAYERS = {
    "linear": (lambda: nn.Linear(12, 20), (2, 7, 12)),
    "linear without bias": (lambda: nn.Linear(12, 20, bias=False), (5, 12)),
    "conv 3x3": (lambda: nn.Conv2d(12, 20, 3, padding=1), (2, 12, 9, 8)),
    "conv 1x1": (lambda: nn.Conv2d(12, 20, 1), (2, 12, 9, 8)),
    "conv with stride": (lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 9, 8)),
}
KINDS = {
    "dora": (dict(rank=4, alpha=2.0, dora_axis="output"), lambda: LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=["layer"]),
             {"lora_down": "lora_A.default.weight", "lora_up": "lora_B.default.weight", "dora_scale": "lora_magnitude_vector.default.weight"}),
    "lora rank-stabilized": (dict(rank=4, alpha=2.0, rank_stabilized=True), lambda: LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=["layer"]),
                             {"lora_down": "lora_A.default.weight", "lora_up": "lora_B.default.weight"}),
    "loha": (dict(rank=4, alpha=2.0), lambda: LoHaConfig(r=4, alpha=2, target_modules=["layer"]),
             {n: f"{n}.default" for n in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}),
    "lokr low rank": (dict(rank=1, alpha=2.0), lambda: LoKrConfig(r=1, alpha=2, target_modules=["layer"]),
                      {n: f"{n}.default" for n in ("lokr_w1", "lokr_w2_a", "lokr_w2_b")}),
    "lokr full": (dict(rank=8, alpha=8.0), lambda: LoKrConfig(r=8, alpha=8, target_modules=["layer"]), {n: f"{n}.default" for n in ("lokr_w1", "lokr_w2")}),
}  # fmt: skip


def build(kind, layer, **shape):
    options = {key: value for key, value in shape.items() if key not in ("rank", "alpha", "rank_stabilized")}
    own = {key: value for key, value in shape.items() if key not in options}
    adapter = KindAdapter(
        ADAPTERS[kind.split()[0]], "layer", layer, Shape(tuple(layer.weight.shape), **own, options=options), 0, "cpu"
    ).to(layer.weight.dtype)
    adapter.prepare()
    return adapter


LOKR = since("peft", "0.14", "LoKr is scaled by alpha / r")


def fill(adapter, seed=1):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * 0.3)
    return adapter


@pytest.mark.parametrize("place", LAYERS)
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=LOKR) if "lokr" in kind else kind for kind in KINDS])
def test_output_and_every_gradient_match_peft(kind, place):
    torch.manual_seed(1)
    shape, config, names = KINDS[kind]
    make, size = LAYERS[place]
    layer = make().double().requires_grad_(False)
    x = torch.randn(size, dtype=torch.float64)
    ours_x, theirs_x = (x.clone().requires_grad_() for _ in range(2))
    adapter = fill(build(kind, layer, **shape))

    reference = nn.Sequential()
    reference.add_module("layer", make().double())
    reference.layer.load_state_dict(layer.state_dict())
    peft = get_peft_model(reference, config()).double()
    theirs = {mine: peft.base_model.model.layer.get_parameter(other) for mine, other in names.items()}
    mine = dict(adapter.named_parameters())
    assert mine.keys() == theirs.keys()
    with torch.no_grad():
        for name, p in theirs.items():
            p.copy_(mine[name].reshape(p.shape))

    expected = peft(theirs_x)
    expected.square().sum().backward()
    with attach({"layer": layer}, AdapterSet({"layer": adapter})):
        found = layer(ours_x)
    found.square().sum().backward()
    close(found, expected)
    close(ours_x.grad, theirs_x.grad)
    for name, p in theirs.items():
        assert p.grad.abs().max() > 0
        close(mine[name].grad, p.grad.reshape(mine[name].shape))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=LIMIT * theirs.abs().max().item())


@pytest.mark.parametrize("place", LAYERS)
def test_dora_over_inputs_is_equation_5_of_the_paper_with_its_gradients(place):
    """W' = m V / ||V||_c with V = W + update and the norm, held constant, over everything but the input channel."""
    torch.manual_seed(1)
    make, size = LAYERS[place]
    layer, x = make().double().requires_grad_(False), torch.randn(size, dtype=torch.float64)
    adapter = fill(build("dora", layer, rank=4, alpha=2.0, dora_axis="input"))
    with attach({"layer": layer}, AdapterSet({"layer": adapter})):
        found = layer(x)
    found.square().sum().backward()
    ours = {n: p.grad.clone() for n, p in adapter.named_parameters()}
    adapter.zero_grad()
    dense = layer.weight + adapter.delta_weight()
    length = dense.detach().transpose(0, 1).flatten(1).norm(dim=1).view_as(adapter.dora_scale)
    weight = dense * (adapter.dora_scale / length)
    if dense.ndim == 2:
        expected = nn.functional.linear(x, weight, layer.bias)
    else:
        expected = nn.functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
    expected.square().sum().backward()
    close(found, expected)
    for name, p in adapter.named_parameters():
        close(ours[name], p.grad)


@pytest.mark.parametrize("place", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_has_no_effect_before_the_first_step(kind, place):
    torch.manual_seed(2)
    make, size = LAYERS[place]
    layer, x = make().double(), torch.randn(size, dtype=torch.float64)
    plain = layer(x)
    with attach({"layer": layer}, AdapterSet({"layer": build(kind, layer, **KINDS[kind][0])})):
        # DoRA divides each row by its length and multiplies it again: rounding. All others add exactly zero.
        torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-12 if kind == "dora" else 0)


@pytest.mark.parametrize("place", LAYERS)
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"dora"}))
def test_norm_is_that_of_the_dense_update_and_limiting_it_keeps_the_direction(kind, place):
    make, _ = LAYERS[place]
    adapter = fill(build(kind, make().double(), **KINDS[kind][0]))
    dense = adapter.delta_weight().detach()
    assert adapter.squared_norm().item() == pytest.approx(dense.square().sum().item(), rel=1e-9)
    adapter.limit_norm(dense.norm().item() * 2)
    torch.testing.assert_close(adapter.delta_weight().detach(), dense)  # below the limit nothing moves
    adapter.limit_norm(0.5)
    torch.testing.assert_close(adapter.delta_weight().detach(), dense * (0.5 / dense.norm()))


@pytest.mark.parametrize("place", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_read_back_has_the_update_the_training_had(kind, place):
    """Names, alpha and shapes in the file say the same as the running adapter; DoRA's magnitudes arrive as they are."""
    make, _ = LAYERS[place]
    layer = make()
    adapter = fill(build(kind, layer, **KINDS[kind][0]))
    name = (
        "lora_unet_mid_block_resnets_0_conv1"
        if layer.weight[0, 0].numel() > 1
        else "lora_unet_mid_block_attentions_0_proj_in"
    )
    state = {f"{name}.{k}": v.detach() for k, v in adapter.named_parameters()} | {
        f"{name}.alpha": torch.tensor(adapter.alpha)
    }
    written = read(write(read(state, family="sd1"), "kohya"), family="sd1")
    (module,) = written.modules.values()
    expected = adapter.delta_weight().detach()
    torch.testing.assert_close(delta(module).reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)
    if kind == "dora":
        assert torch.equal(module.parts["dora"].flatten(), adapter.dora_scale.detach().flatten())


def test_dora_in_half_precision_and_a_recomputed_block_use_lengths_of_the_current_factors():
    torch.manual_seed(3)
    layer = nn.Linear(16, 16).to(torch.bfloat16).requires_grad_(False)
    adapter = KindAdapter(
        ADAPTERS["dora"], "layer", layer, Shape((16, 16), 2, 2.0, options={"dora_axis": "output"}), 0, "cpu"
    )
    adapter.prepare()
    first = adapter.derived()["lengths"].clone()
    with torch.no_grad():
        adapter.lora_up.fill_(0.5)
    adapter.weights_changed()
    with weight_of(layer) as (weight, _):
        expected = (weight.float() + adapter.delta_weight()).norm(dim=1)
    torch.testing.assert_close(adapter.derived()["lengths"], expected.detach())
    assert not torch.allclose(adapter.derived()["lengths"], first)


@pytest.mark.parametrize(("dimension", "factor", "expected"), [(128, 0, (8, 16)), (128, 4, (4, 32)), (127, 0, (1, 127)), (320, 0, (16, 20)), (320, 7, (5, 64)),
                                                         (4, 16, (2, 2)), (768, 16, (16, 48))])  # fmt: skip
def test_lokr_splits_as_lycoris_does(dimension, factor, expected):
    from lycoris.functional.general import factorization

    assert factors(dimension, factor) == expected
    assert tuple(factorization(dimension, factor or -1)) == expected


@pytest.mark.parametrize("kind", sorted(name for name, kind in ADAPTERS.items() if kind.keeps_base))
def test_weights_that_are_lent_in_inference_mode_leave_nothing_that_autograd_could_not_keep(kind):
    @contextlib.contextmanager
    def lent(layer):
        with torch.inference_mode(), weight_of(layer) as (weight, bias):
            yield weight * 1, bias * 1

    layer = nn.Linear(8, 6).requires_grad_(False)
    adapter = KindAdapter(
        ADAPTERS[kind], "layer", layer, Shape((6, 8), 2, 1.0, options={"dora_axis": "output"}), 0, "cpu", lent
    )
    adapter.prepare()
    with torch.inference_mode():  # as a host reads a text
        adapter.begin_pass()
    assert not any(value.is_inference() for value in (*adapter._kept.values(), *adapter.derived().values()))
    with attach({"layer": layer}, AdapterSet({"layer": adapter})):
        layer(torch.randn(3, 8)).square().sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())


def test_rank_stabilized_scale_is_alpha_over_the_root_of_the_rank_and_files_say_it_in_alpha():
    adapter = KindAdapter(
        ADAPTERS["lora"], "layer", nn.Linear(64, 64), Shape((64, 64), 16, 8.0, rank_stabilized=True), 0, "cpu"
    )
    assert adapter.scale == pytest.approx(8 / math.sqrt(16))
    assert adapter.alpha / adapter.rank == pytest.approx(adapter.scale)


@pytest.mark.parametrize("kind", ["dora", "full", "loha", "lokr", "lora"])  # the others: test_matrix.py
def test_a_kind_that_adds_a_difference_trains_and_its_file_has_its_layers(kind, toy_config, run_toy, tmp_path):
    result = run_toy(toy_config(adapter={"algorithm": kind, "targets": "conv"}, steps=3), tmp_path)
    found = read(result.tensors, family=UNKNOWN)
    assert {m.kind for m in found.modules.values()} == {{"dora": "lora"}.get(kind, kind)}
    assert len(found.modules) == result.facts["layers"] > 50
    assert all(torch.isfinite(v).all() for v in result.tensors.values())
    assert max(delta(m).abs().max() for m in found.modules.values()) > 0


@pytest.mark.parametrize(
    ("axis", "name"),
    mostly_slow(
        [(axis, name) for axis in ("input", "output") for name in ("adamw", "adamw8bit", "prodigy")],
        (("input", "adamw"), ("output", "adamw8bit")).__contains__,
    ),
)
def test_dora_follows_its_weights_whatever_the_optimizer_does(axis, name, toy_config, run_toy, tmp_path):
    """Fused optimizers do not count a tensor's version up. A run that was stopped and continued, with samples in between, equals the unbroken one."""
    from lora_loom.lora_core.events import Control, Listener

    class StopAt(Listener):
        control = Control()

        def on_step(self, report):
            if report.step == 2:
                self.control.stop_and_keep()

    config = toy_config(
        steps=5,
        adapter={"algorithm": "dora", "dora_axis": axis},
        optimizer={"name": name, "lr": 0.0 if name == "prodigy" else 1e-2},
    )
    whole = run_toy(config, tmp_path / "whole")
    stopper = StopAt()
    stopper.control = Control()
    run_toy(config, tmp_path / "parts", stopper, control=stopper.control)
    parts = run_toy(config, tmp_path / "parts", resume=True)
    assert parts.losses == whole.losses
    assert all(torch.equal(parts.tensors[k], whole.tensors[k]) for k in whole.tensors)


@pytest.mark.parametrize("changes", [{"rank": 1}, {"rank": 64}, {"rank": 2, "lokr_factor": 4}])
def test_a_lokr_goes_on_from_its_own_file_whatever_its_split(changes, toy_config, toy_backend, run_toy, tmp_path):
    from lora_loom.convert.results import starting_point
    from lora_loom.lora_core.training.build import make_adapters

    config = toy_config(adapter={"algorithm": "lokr", **changes}, steps=2)
    made = run_toy(config, tmp_path)
    names = [name for name, _ in make_adapters(config, toy_backend)[1]]
    start = starting_point(read(made.tensors, family=UNKNOWN), names, "lokr")
    other = toy_config(adapter={"algorithm": "lokr", "rank": 4})  # what the file says goes before what the job says
    _, adapters = make_adapters(other, toy_backend, "", start)
    written = read(made.tensors, family=UNKNOWN).modules
    for name, adapter in adapters:
        torch.testing.assert_close(
            adapter.delta_weight().detach(), delta(written[name]).reshape(adapter.shape.weight), rtol=1e-5, atol=1e-7
        )
