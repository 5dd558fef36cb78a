"""Each kind's formulas against LyCORIS' own module of that kind, and their gradients against finite differences in float64."""

import pytest
import torch
import torch.nn.functional as F
from lora_loom.lora_core.adapters import AdapterSet, KindAdapter, Shape, attach
from lora_loom.lora_core.algebra import NAMES
from lora_loom.lora_core.algebra.kind import NORMS, Acting
from lora_loom.lora_core.algebra.kinds import KINDS, recognised, trained_as
from lora_loom.lora_core.algebra.lokr import factors
from lora_loom.lora_core.algebra.oft import rotations, skew_norm
from lora_loom.lora_core.config import AdapterConfig
from lora_loom.lora_core.messages.errors import LoomError
from lycoris.functional.general import power2factorization
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.norms import NormModule
from since import since
from torch import nn


def rms_norm(width):
    if not hasattr(nn, "RMSNorm"):
        pytest.skip(f"torch {torch.__version__}: RMSNorm since 2.4")
    return nn.RMSNorm(width, eps=1e-6)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 12), (2, 5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 12, bias=False), (3, 6)),
    "conv 3x3": (lambda: nn.Conv2d(6, 12, 3, padding=1, stride=2), (2, 6, 5, 4)),
    "conv 1x1": (lambda: nn.Conv2d(6, 12, 1), (2, 6, 5, 4)),
}
NORM_LAYERS = {
    "layer norm": (lambda: nn.LayerNorm(6), (2, 5, 6)),
    "group norm": (lambda: nn.GroupNorm(3, 6), (2, 6, 5, 4)),
    "rms norm": (lambda: rms_norm(6), (2, 5, 6)),
}
# Kind -> LyCORIS' module for a layer, and where its state dict has other names than ours.
LYCORIS = {
    "oft": (lambda layer: DiagOFTModule("x", layer, lora_dim=6), {}),
    "boft": (lambda layer: ButterflyOFTModule("x", layer, lora_dim=6), {}),
    "glora": (
        lambda layer: GLoRAModule("x", layer, lora_dim=2, alpha=3.0),
        {p: f"{p}.weight" for p in ("a1", "a2", "b1", "b2")},
    ),
    "ia3": (lambda layer: IA3Module("x", layer), {}),
    "ia3 on inputs": (lambda layer: IA3Module("x", layer, train_on_input=True), {}),
    "full": (lambda layer: FullModule("x", layer), {"diff": "weight", "diff_b": "bias"}),
    "norm": (lambda layer: NormModule("x", layer), {"diff": "w_norm", "diff_b": "b_norm"}),
}
OPTIONS = {"ia3 on inputs": {"ia3_axis": "input"}}
WITH_BIAS = since("lycoris-lora", "4.0", "full differences of a layer with a bias can be merged")
PLACES = [
    pytest.param(kind, place, marks=WITH_BIAS if kind == "full" and "without" not in place else ())
    for kind in LYCORIS
    for place in (NORM_LAYERS if kind == "norm" else LAYERS)
    if place != "rms norm"
]


def places(kind):
    return NORM_LAYERS if KINDS[kind.split()[0]].trains == NORMS else LAYERS


def build(kind, layer, given=None, **options):
    shape = Shape(
        tuple(layer.weight.shape), 6 if "oft" in kind else 2, 3.0, options={**OPTIONS.get(kind, {}), **options}
    )
    return KindAdapter(KINDS[kind.split()[0]], "layer", layer, shape, 0, "cpu", start=given)


def fill(adapter, seed=1, size=0.2):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * size)
    adapter.prepare()
    return adapter


def attached(layer, adapter):
    return attach({"layer": layer}, AdapterSet({"layer": adapter}))


@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_output_and_gradients_are_those_of_lycoris(kind, place):
    torch.manual_seed(1)
    make, size = places(kind)[place]
    layer = make().requires_grad_(False)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape))
    x, (theirs_of, names) = torch.randn(size), LYCORIS[kind]
    adapter, theirs = fill(build(kind, layer)), theirs_of(layer)
    if kind.startswith("boft"):
        assert adapter.oft_blocks.shape[1:3] == (power2factorization(12, 6)[1], power2factorization(12, 6)[0])
    pairs = {name: theirs.get_parameter(names.get(name, name)) for name, _ in adapter.named_parameters()}
    for name, p in adapter.named_parameters():
        assert p.shape == pairs[name].shape
        pairs[name].data.copy_(p)
    weight, bias = theirs.get_merged_weight()
    bias = layer.bias if bias is None else bias
    if isinstance(layer, nn.LayerNorm):
        expected = F.layer_norm(x, (6,), weight, bias)
    elif isinstance(layer, nn.GroupNorm):
        expected = F.group_norm(x, 3, weight, bias)
    else:
        expected = (
            F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, layer.stride, layer.padding)
        )
    probe = torch.randn(expected.shape)  # a rotation keeps the sum of squares
    (expected * probe).sum().backward()
    with attached(layer, adapter):
        out = layer(x)
    (out * probe).sum().backward()
    # float32 on both sides; a rotation solves a small system, which costs a few roundings more
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    for name, p in adapter.named_parameters():
        assert pairs[name].grad.abs().max() > 0
        torch.testing.assert_close(p.grad, pairs[name].grad, rtol=1e-3, atol=1e-5 * p.grad.abs().max().item())


EXACT = [
    (kind, place)
    for kind in (*NAMES, "ia3 on inputs")
    for place in places(kind)
    if not (kind == "bias" and place == "linear without bias")
]


@pytest.mark.parametrize(("kind", "place"), EXACT)
def test_gradients_are_exact(kind, place):
    if kind == "dora":
        pytest.skip(
            "the length is a constant for the gradient, by the paper; compared with PEFT in adapters/test_kinds.py"
        )
    torch.manual_seed(1)
    make, size = places(kind)[place]
    layer = make().double().requires_grad_(False)
    adapter = fill(build(kind, layer).double())
    values = {name: value.detach() for name, value in adapter.parts().items()}
    learnt = [part.name for part in adapter.kind.parts if part.name in values and not part.constant]

    def output(x, *learning):
        parts = {**values, **dict(zip(learnt, learning))}
        acting = Acting(parts, adapter.scale, adapter.shape.weight, adapter.walk, adapter._kept, {}, lambda x: x)
        return adapter.kind.around(layer, x, acting)

    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, *(values[name].clone().requires_grad_() for name in learnt)))


@pytest.mark.parametrize(("kind", "place"), EXACT)
def test_the_branch_is_the_dense_change_and_at_the_start_there_is_none(kind, place):
    torch.manual_seed(2)
    make, size = places(kind)[place]
    layer, x = make().double().requires_grad_(False), torch.randn(size, dtype=torch.float64)
    plain, adapter = layer(x), build(kind, layer).double()
    adapter.prepare()
    with attached(layer, adapter):
        # DoRA divides by a length and multiplies again, a rotation solves with the identity: rounding. All others add exactly zero.
        torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-12 if kind in ("dora", "oft", "boft") else 0)
    if adapter.kind.trains == NORMS or kind in ("bias", "dora"):
        return
    fill(adapter)
    with attached(layer, adapter), torch.no_grad():
        out = layer(x)
    weight = layer.weight + adapter.kind.delta(adapter.parts(), adapter.scale, adapter.shape.weight, layer.weight)
    bias = layer.bias + adapter.diff_b if hasattr(adapter, "diff_b") else layer.bias
    dense = F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, layer.stride, layer.padding)
    torch.testing.assert_close(out, dense.detach(), rtol=1e-9, atol=1e-9)


def test_the_rotations_are_orthogonal_and_the_identity_for_zeros():
    blocks = torch.randn(3, 5, 5, dtype=torch.float64)
    turns = rotations(blocks)
    torch.testing.assert_close(
        turns @ turns.transpose(1, 2), torch.eye(5, dtype=torch.float64).expand(3, 5, 5), rtol=0, atol=1e-12
    )
    assert torch.equal(rotations(torch.zeros(2, 4, 4)), torch.eye(4).expand(2, 4, 4))


@pytest.mark.parametrize("kind", ["oft", "boft"])
def test_a_rotation_above_its_limit_is_brought_back_after_each_step(kind):
    adapter = fill(build(kind, nn.Linear(6, 12), oft_constraint=0.01))
    before = adapter.oft_blocks.detach().clone()
    assert skew_norm(before) > 0.12  # 0.01 for each of 12 outputs
    adapter.keep_bounds()
    torch.testing.assert_close(skew_norm(adapter.oft_blocks.detach()), torch.tensor(0.12))
    torch.testing.assert_close(
        adapter.oft_blocks.detach() / before, torch.full_like(before, (adapter.oft_blocks / before).flatten()[1].item())
    )
    inside = adapter.oft_blocks.detach().clone()
    adapter.keep_bounds()
    torch.testing.assert_close(adapter.oft_blocks.detach(), inside, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["oft", "boft"])
def test_the_limit_in_a_file_is_meant_as_lycoris_trained_it(kind):
    """LyCORIS: alpha * outputs on ||Q||. Once it is in the blocks, no program needs to know it."""
    layer = nn.Linear(6, 12)
    module = {"oft": DiagOFTModule, "boft": ButterflyOFTModule}[kind]("x", layer, lora_dim=6, constraint=0.01)
    with torch.no_grad():
        module.oft_blocks.copy_(fill(build(kind, layer)).oft_blocks)
    parts, alpha = KINDS[kind].settled({"oft_blocks": module.oft_blocks.detach()}, 0.01)
    assert alpha is None
    assert KINDS[kind].alpha(parts, 1.0) == 0.0
    assert not torch.equal(parts["oft_blocks"], module.oft_blocks)
    expected = (module.get_merged_weight()[0] - layer.weight).detach()
    torch.testing.assert_close(
        KINDS[kind].delta(parts, 1.0, base=layer.weight.detach()), expected, rtol=1e-4, atol=1e-6
    )


def test_boft_takes_the_smallest_block_where_none_is_small_enough_and_refuses_an_odd_number_of_outputs():
    assert build("boft", nn.Linear(4, 144)).oft_blocks.shape == (
        4,
        8,
        18,
        18,
    )  # 144 = 8 * 18; blocks of at most 6 do not divide it by a power of two
    with pytest.raises(
        LoomError, match="boft cannot be trained on layer layer: it has an odd number of outputs; choose oft"
    ):
        build("boft", nn.Linear(4, 9))


def test_oft_splits_as_lycoris_does():
    assert build("oft", nn.Linear(4, 320)).oft_blocks.shape == (64, 5, 5)
    assert factors(320, 6) == (5, 64)


@pytest.mark.parametrize("kind", sorted(set(NAMES) - {"dora", "bias"}))
def test_limiting_the_norm_scales_the_change_and_leaves_small_ones_alone(kind):
    make, _ = next(iter(places(kind).values()))
    adapter = fill(build(kind, make().double()).double())
    before, norm = adapter.squared_norm().sqrt().item(), adapter.squared_norm().sqrt().item()
    adapter.limit_norm(2 * norm)
    assert adapter.squared_norm().sqrt().item() == pytest.approx(before, rel=1e-9)
    adapter.limit_norm(norm / 2)
    assert adapter.squared_norm().sqrt().item() == pytest.approx(norm / 2, rel=1e-6)


def test_every_kind_is_a_choice_of_the_job_and_called_like_its_file():
    assert all(kind.name == name for name, kind in KINDS.items())
    assert AdapterConfig.__dataclass_fields__["algorithm"].metadata["choices"] == NAMES == tuple(KINDS)


@pytest.mark.parametrize("kind", NAMES)
def test_a_kind_is_known_again_by_its_parts(kind):
    make, _ = next(iter(places(kind).values()))
    parts = build(kind, make()).parts()
    assert trained_as(parts) is KINDS[kind]
    assert recognised(parts) is KINDS[KINDS[kind].form or kind]
    assert trained_as({**parts, "diff_c": torch.zeros(1)}) is None


def test_magnitudes_beside_a_loha_are_no_kind_that_can_be_trained():
    parts = build("loha", nn.Linear(6, 12)).parts() | {"dora": torch.ones(1, 6)}
    assert recognised(parts) is KINDS["loha"]
    assert trained_as(parts) is None
