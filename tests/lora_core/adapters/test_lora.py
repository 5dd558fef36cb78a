import pytest
import torch
from lora_loom.lora_core.adapters import AdapterSet, KindAdapter, Shape, attach
from lora_loom.lora_core.algebra.kinds import KINDS
from lora_loom.lora_core.messages.errors import LoomError
from peft import LoraConfig, get_peft_model
from torch import nn

# Ours and PEFT's differ only in where the scale is multiplied in: a few float32 roundings of values of order 1.
ROUNDING = dict(rtol=1e-5, atol=1e-5)
LAYERS = {
    "linear": (lambda: nn.Linear(12, 20), (5, 12)),
    "linear on tokens": (lambda: nn.Linear(12, 20, bias=False), (2, 7, 12)),
    "conv 3x3": (lambda: nn.Conv2d(12, 20, 3, padding=1), (2, 12, 9, 8)),
    "conv 1x1": (lambda: nn.Conv2d(12, 20, 1), (2, 12, 9, 8)),
    "conv with stride": (lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 9, 8)),
    "conv with dilation": (lambda: nn.Conv2d(12, 20, 3, stride=2, padding=2, dilation=2), (2, 12, 9, 8)),
}


def make_adapter(layer, rank=4, alpha=0.0, dropout=0.0, init="kaiming", name="layer"):
    return KindAdapter(
        KINDS["lora"],
        name,
        layer,
        Shape(tuple(layer.weight.shape), rank, alpha or float(rank), dropout, options={"init": init}),
        0,
        "cpu",
    )


def fill(adapter, seed=1):
    """Random weights in both factors, so both gradients are non-zero."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.3)
    return adapter


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_zero_init_adapter_leaves_output_bit_identical(kind, init):
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    layer, x = build(), torch.randn(shape)
    plain = layer(x)
    adapter = make_adapter(layer, init=init)
    assert adapter.lora_down.abs().sum() > 0
    with attach({"layer": layer}, AdapterSet({"layer": adapter})):
        assert torch.equal(layer(x), plain)


@pytest.mark.parametrize("kind", sorted(LAYERS.keys() - {"conv with dilation"}))  # PEFT leaves the dilation out
@pytest.mark.parametrize("alpha", [4.0, 1.0, 10.0])
def test_output_and_gradients_match_peft(kind, alpha):
    torch.manual_seed(1)
    build, shape = LAYERS[kind]
    layer, x = build().requires_grad_(False), torch.randn(shape)
    adapter = fill(make_adapter(layer, rank=4, alpha=alpha))

    reference = nn.Sequential()
    reference.add_module("layer", build())
    reference.layer.load_state_dict(layer.state_dict())
    peft = get_peft_model(reference, LoraConfig(r=4, lora_alpha=alpha, target_modules=["layer"]))
    down, up = (peft.base_model.model.layer.__getattr__(part)["default"].weight for part in ("lora_A", "lora_B"))
    with torch.no_grad():
        down.copy_(adapter.lora_down)
        up.copy_(adapter.lora_up)

    theirs = peft(x)
    theirs.square().sum().backward()
    with attach({"layer": layer}, AdapterSet({"layer": adapter})):
        ours = layer(x)
    ours.square().sum().backward()
    torch.testing.assert_close(ours, theirs, **ROUNDING)
    # Gradients sum over up to 150 positions of values of order 10, so the absolute part is scaled to the largest entry.
    for mine, other in ((adapter.lora_down.grad, down.grad), (adapter.lora_up.grad, up.grad)):
        assert other.abs().max() > 0
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("kind", LAYERS)
def test_delta_weight_added_to_the_layer_gives_the_same_output_as_the_branch(kind):
    torch.manual_seed(2)
    build, shape = LAYERS[kind]
    layer, x = build(), torch.randn(shape)
    adapter = fill(make_adapter(layer, rank=3, alpha=2.0))
    with attach({"layer": layer}, AdapterSet({"layer": adapter})):
        branch = layer(x)
    with torch.no_grad():
        layer.weight += adapter.delta_weight()
    torch.testing.assert_close(layer(x), branch, **ROUNDING)


def test_conv1d_and_conv3d_branches_match_their_delta_weight():
    torch.manual_seed(3)
    for layer, x in (
        (nn.Conv1d(6, 8, 3, padding=1), torch.randn(2, 6, 9)),
        (nn.Conv3d(6, 8, 3, padding=1), torch.randn(1, 6, 3, 5, 4)),
    ):
        adapter = fill(make_adapter(layer, rank=2, alpha=1.0))
        with attach({"layer": layer}, AdapterSet({"layer": adapter})):
            branch = layer(x)
        with torch.no_grad():
            layer.weight += adapter.delta_weight()
        torch.testing.assert_close(layer(x), branch, **ROUNDING)


def test_alpha_zero_means_a_scale_of_one():
    layer = nn.Linear(8, 8)
    assert make_adapter(layer, rank=4, alpha=0.0).scale == 1.0
    assert make_adapter(layer, rank=4, alpha=2.0).scale == 0.5


def test_kaiming_start_has_the_bound_of_peft_and_gaussian_the_deviation_one_over_rank():
    layer = nn.Linear(256, 256)
    down = make_adapter(layer, rank=64).lora_down
    assert down.abs().max() <= 1 / 16  # kaiming_uniform with a = sqrt(5) draws from +- 1 / sqrt(in)
    assert (
        down.abs().max() > 0.99 / 16
    )  # 16384 draws: the largest is within 1 % of the bound with probability 1 - 0.99^16384
    gaussian = make_adapter(layer, rank=64, init="gaussian").lora_down
    assert gaussian.std().item() == pytest.approx(1 / 64, rel=0.05)  # 16384 draws: the deviation is known to 0.6 %


def test_start_depends_on_seed_and_layer_name_only():
    layer = nn.Linear(8, 8)
    assert torch.equal(make_adapter(layer, name="a").lora_down, make_adapter(layer, name="a").lora_down)
    assert not torch.equal(make_adapter(layer, name="a").lora_down, make_adapter(layer, name="b").lora_down)


@pytest.mark.parametrize("layer", [nn.Linear(6, 40), nn.Linear(40, 6), nn.Conv2d(40, 6, 3)])
def test_rank_larger_than_the_layer_is_refused_by_name(layer):
    make_adapter(layer, rank=6)
    with pytest.raises(LoomError, match=r"adapter\.rank: 7 is larger than layer down\.0\.proj allows .* at most 6"):
        make_adapter(layer, rank=7, name="down.0.proj")


def test_adapters_are_float32_beside_a_half_precision_layer_and_keep_its_output_type():
    torch.manual_seed(4)
    layer = nn.Linear(8, 8).to(torch.bfloat16)
    adapter = fill(make_adapter(layer))
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    with attach({"layer": layer}, AdapterSet({"layer": adapter})):
        out = layer(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert adapter.lora_up.dtype == adapter.lora_up.grad.dtype == torch.float32


def test_dropout_mask_is_the_same_when_a_block_is_recomputed():
    torch.manual_seed(5)
    layer, x = nn.Linear(64, 8), torch.randn(4, 64)
    adapter = fill(make_adapter(layer, dropout=0.5))
    adapters = AdapterSet({"layer": adapter})
    with attach({"layer": layer}, adapters):
        adapters.begin_pass(0, 3, 0)
        first, again = layer(x), layer(x)
        loss = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False).square().sum()
        loss.backward()
        recomputed = adapter.lora_up.grad.clone()
        adapter.zero_grad()
        layer(x).square().sum().backward()
        adapters.begin_pass(0, 4, 0)
        other_step = layer(x)
    assert torch.equal(first, again)
    assert torch.equal(recomputed, adapter.lora_up.grad)
    assert not torch.equal(first, other_step)


def test_dropout_zeroes_the_asked_share_and_keeps_the_mean():
    adapter = make_adapter(nn.Linear(100, 100), dropout=0.3)
    dropped = adapter.drop(torch.ones(1000, 100))
    # 100 000 coin flips: the share is known to 0.0014 (one deviation), five of them are allowed.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.008)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.012)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])


def test_dropout_is_off_when_no_gradient_is_wanted_and_differs_between_layers():
    adapters = AdapterSet({name: make_adapter(nn.Linear(100, 4), dropout=0.5, name=name) for name in ("a", "b")})
    adapters.begin_pass(0, 0, 0)
    x = torch.ones(1, 100)
    assert not torch.equal(adapters["a"].drop(x), adapters["b"].drop(x))
    with torch.no_grad():
        assert torch.equal(adapters["a"].drop(x), x)
