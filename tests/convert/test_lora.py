"""The arithmetic on one module, against definitions written out in `lora_cases.dense`, in peft's own code, and by hand."""

import dataclasses
import math

import pytest
import torch
from lora_cases import dense, error, kohya, loha, lokr, lora, random
from lora_loom.convert import FormatError, Module, cast, is_lora
from lora_loom.convert.lora import (
    applied,
    component,
    concatenated,
    delta,
    folded,
    low_rank,
    multiplied,
    plain,
    resized,
    truncated_svd,
)
from peft.tuners.loha.layer import make_weight, make_weight_cp
from peft.tuners.lokr.layer import make_kron

LORAS = {
    "linear": lora(),
    "alpha": lora(alpha=0.5),
    "negative": lora(alpha=-3.0),
    "conv1x1": lora(alpha=1.0, kernel=(1, 1)),
    "conv3x3": lora(alpha=3.0, kernel=(3, 3)),
    "conv1x3": lora(alpha=3.0, kernel=(1, 3)),
    "conv3d": lora(alpha=3.0, kernel=(1, 2, 2)),
    "tucker": lora(alpha=3.0, kernel=(3, 3), tucker=True),
    "half": lora(alpha=3.0, dtype=torch.float16),
}
LOHAS = {
    "loha": loha(alpha=0.5),
    "loha-no-alpha": loha(),
    "loha-tucker": loha(alpha=3.0, kernel=(3, 3), tucker=True),
}
LOKRS = {
    f"lokr-{one}-{two}{'-conv' if kernel else ''}": lokr(one, two, alpha=alpha, kernel=kernel)
    for one, two, alpha, kernel in (
        ("full", "full", None, ()), ("full", "low", 3.0, ()), ("low", "full", 3.0, ()), ("low", "low", 0.5, ()), ("full", "full", None, (3, 3)),
        ("low", "full", 3.0, (3, 3)), ("full", "tucker", 3.0, (3, 3)), ("low", "tucker", 0.5, (3, 3)),
    )
}  # fmt: skip
FULL = {"full": Module("full", {"diff": random(3, 6, 5)}), "full-conv": Module("full", {"diff": random(3, 6, 5, 3, 3)})}
ALL = {**LORAS, **LOHAS, **LOKRS, **FULL}
# Products and sums of a few float32 numbers of order 1, against float64: each rounding is 6e-8, fewer than ten of them meet.
ROUNDING = 5e-7


@pytest.mark.parametrize("name", ALL)
def test_delta_is_the_definition_of_each_adapter(name):
    got = delta(ALL[name])
    assert got.dtype == torch.float32
    assert error(got, dense(ALL[name])) < ROUNDING


@pytest.mark.parametrize("name", ALL)
def test_the_shape_of_a_module_is_the_shape_of_its_delta(name):
    assert ALL[name].shape == tuple(dense(ALL[name]).shape)


def test_delta_by_hand():
    module = Module(
        "lora",
        {"down": torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "up": torch.tensor([[1.0, 0.0], [2.0, 3.0], [0.0, -1.0]])},
        alpha=4.0,
    )
    # up @ down = [[1, 2], [2, 4 + 3], [0, -1]], times alpha / rank = 4 / 2
    assert torch.equal(delta(module), torch.tensor([[2.0, 4.0], [4.0, 14.0], [0.0, -2.0]]))


@pytest.mark.parametrize("name", LOHAS)
def test_loha_is_what_peft_computes(name):
    m = LOHAS[name]
    p, scale = m.parts, torch.tensor(m.alpha / 2 if m.alpha else 1.0)
    if "hada_t1" in p:
        theirs = make_weight_cp(
            p["hada_t1"], p["hada_w1_a"], p["hada_w1_b"], p["hada_t2"], p["hada_w2_a"], p["hada_w2_b"], scale
        )
    else:
        theirs = make_weight(p["hada_w1_a"], p["hada_w1_b"], p["hada_w2_a"], p["hada_w2_b"], scale)
    assert error(delta(m), theirs) < ROUNDING


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_lokr_is_what_peft_computes(kernel):
    m = lokr("low", "full", alpha=3.0, kernel=kernel)
    theirs = 1.5 * make_kron(m.parts["lokr_w1_a"] @ m.parts["lokr_w1_b"], m.parts["lokr_w2"])
    assert error(delta(m), theirs) < ROUNDING


@pytest.mark.parametrize("alpha", [None, 0.0, 3.0])
@pytest.mark.parametrize("make", [lora, loha])
def test_a_missing_alpha_and_alpha_zero_mean_rank(make, alpha):
    module = make(rank=3, alpha=alpha)
    assert module.scale == 1.0
    assert torch.equal(delta(module), delta(make(rank=3)))


def test_alpha_is_ignored_where_both_factors_of_a_lokr_are_full():
    assert torch.equal(delta(lokr(alpha=64.0)), delta(lokr()))


@pytest.mark.parametrize(
    ("name", "keep"), [(n, k) for n in (*LORAS, *LOHAS, *LOKRS) for k in (1.0, 0.5, 3.0) if ALL[n].rank or k == 1.0]
)
def test_folding_the_scale_into_the_factors_changes_the_effect_by_rounding_only(name, keep):
    out = folded(ALL[name], keep)
    assert out.scale == keep
    # Both factors are rounded once more after the root of the scale.
    assert error(dense(out), dense(ALL[name])) < ROUNDING


@pytest.mark.parametrize("name", ["linear", "conv3x3", "half"])
def test_a_scale_that_is_kept_leaves_every_bit(name):
    module = ALL[name]
    out = folded(module, module.scale)
    assert all(torch.equal(v, out.parts[k]) and v.dtype == out.parts[k].dtype for k, v in module.parts.items())


def test_a_folded_scale_is_shared_evenly_so_neither_factor_leaves_half_precision():
    module = Module("lora", {"down": torch.ones(1, 4), "up": torch.ones(4, 1)}, alpha=4096.0)
    parts = folded(module).parts
    assert parts["down"].unique().item() == parts["up"].unique().item() == 64.0
    negative = folded(dataclasses.replace(module, alpha=-4096.0)).parts
    assert (negative["down"].unique().item(), negative["up"].unique().item()) == (64.0, -64.0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("factor", [2.0, -0.25, 1 / 3])
def test_multiplied_has_so_many_times_the_effect(name, factor):
    assert error(dense(multiplied(ALL[name], factor)), factor * dense(ALL[name])) < ROUNDING


@pytest.mark.parametrize("name", ["linear", "alpha", "conv3x3", "tucker", "loha", "lokr-full-low"])
def test_multiplying_a_module_with_a_rank_moves_only_its_alpha(name):
    before, after = ALL[name].parts, multiplied(ALL[name], 0.3).parts
    assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.mark.parametrize("name", ["linear", "alpha", "loha", "lokr-full-full", "full"])
def test_multiplying_by_zero_leaves_no_effect(name):
    # alpha 0 means "as rank" in files, so a zero cannot be left to alpha.
    assert not delta(multiplied(ALL[name], 0.0)).any()


@pytest.mark.parametrize("module", [lora(alpha=3.0), loha(), Module("full", {"diff": random(3, 6, 5)})])
def test_a_change_of_the_bias_is_multiplied_too_and_never_by_alpha(module):
    bias = random(4, 6)
    out = multiplied(module.replaced(diff_b=bias), 0.25)
    assert torch.equal(out.parts["diff_b"], 0.25 * bias)
    assert torch.equal(folded(module.replaced(diff_b=bias)).parts["diff_b"], bias)


@pytest.mark.parametrize("dims", [(6, 5), (6, 5, 3, 3)])
def test_a_tucker_lora_becomes_an_ordinary_one_of_the_same_rank(dims):
    module = lora(*dims[:2], rank=3, alpha=2.0, kernel=dims[2:] or (1, 1), tucker=True)
    out = plain(module)
    assert set(out.parts) == {"down", "up"}
    assert (out.rank, out.alpha) == (3, 2.0)
    assert error(dense(out), dense(module)) < ROUNDING


def test_plain_leaves_everything_else_as_it_is():
    for name in ("linear", "conv3x3", "loha", "lokr-low-low", "full"):
        assert plain(ALL[name]) is ALL[name]


@pytest.mark.parametrize("shape", [(40, 30), (12, 10, 3, 3)])
def test_low_rank_is_the_best_approximation_and_tells_its_error(shape):
    weight = random(1, *shape)
    module, told = low_rank(weight, 4)
    spectrum = torch.linalg.svdvals(weight.double().flatten(1))
    best = float(spectrum[4:].square().sum().sqrt() / spectrum.square().sum().sqrt())  # Eckart and Young
    assert (module.rank, module.scale, module.shape) == (4, 1.0, shape)
    assert told == pytest.approx(best, rel=1e-4)  # a difference of squared float32 sums
    assert error(dense(module), weight) == pytest.approx(best, rel=1e-4)


def test_low_rank_of_a_low_rank_change_is_exact():
    module, told = low_rank(delta(lora(40, 30, rank=3, alpha=1.5)), 8, energy=0.999999)
    assert told < 2e-3
    assert module.rank <= 3
    assert (
        error(dense(low_rank(delta(lora(40, 30, rank=3)), 3)[0]), dense(lora(40, 30, rank=3))) < 1e-5
    )  # float32 SVD of numbers of order 1


def test_energy_stops_at_the_rank_that_holds_the_share():
    weight = torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0]))  # squares 9, 4, 1, 1: 9/15, 13/15, 14/15, 1
    for energy, rank in ((0.5, 1), (0.7, 2), (0.9, 3), (0.95, 4)):
        assert low_rank(weight, 4, energy)[0].rank == rank
    assert low_rank(weight, 2, 0.95)[0].rank == 2
    assert low_rank(weight, 2)[1] == pytest.approx(math.sqrt(2 / 15), rel=1e-5)


def test_the_low_rank_of_nothing_is_nothing_and_no_error():
    module, told = low_rank(torch.zeros(6, 5), 2)
    assert told == 0.0
    assert not delta(module).any()


def test_large_matrices_are_cut_the_same_way_every_time_and_nearly_as_well_as_by_a_full_svd():
    weight = random(5, 400, 320) @ torch.diag(0.97 ** torch.arange(320.0)) @ random(6, 320, 320)
    u, s, v = truncated_svd(weight, 8)
    assert torch.equal(truncated_svd(weight, 8)[0], u)
    exact = torch.linalg.svdvals(weight.double())[:8]
    torch.testing.assert_close(s.double(), exact, rtol=2e-2, atol=0)  # four power iterations on a flat spectrum
    assert error(u.t() @ u, torch.eye(8)) < 1e-4


@pytest.mark.parametrize(
    "module",
    [
        lora(12, 10, rank=4, alpha=2.0),
        lora(12, 10, rank=4, alpha=-2.0, kernel=(3, 3)),
        lora(12, 10, 4, 2.0, (3, 3), tucker=True),
    ],
)
def test_resizing_finds_the_same_change_as_an_svd_of_the_dense_matrix(module):
    ours, told = resized(module, 2)
    theirs, wanted = low_rank(dense(module).float(), 2)
    assert told == pytest.approx(wanted, rel=1e-3)  # two float32 routes to one number
    assert error(dense(ours), dense(theirs)) < 1e-4
    assert error(dense(resized(module, 4)[0]), dense(module)) < 1e-5


def test_resizing_to_a_larger_rank_changes_nothing():
    module = lora(12, 10, rank=3, alpha=2.0)
    out, told = resized(module, 8)
    assert out.rank <= 3
    assert told == pytest.approx(0.0, abs=1e-3)
    assert error(dense(out), dense(module)) < 1e-5


def test_concatenating_loras_is_their_exact_sum():
    parts = [lora(rank=2, alpha=1.0), lora(rank=3, seed=5), lora(rank=1, alpha=-2.0, seed=9)]
    out = concatenated(parts)
    assert (out.rank, out.scale) == (6, 1.0)
    assert error(dense(out), sum(dense(m) for m in parts)) < ROUNDING
    conv = [lora(rank=2, alpha=1.0, kernel=(3, 3)), lora(rank=3, alpha=2.0, kernel=(3, 3), tucker=True)]
    assert error(dense(concatenated(conv)), sum(dense(m) for m in conv)) < ROUNDING


def test_factors_of_scale_one_are_concatenated_bit_for_bit():
    first, second = lora(rank=2), lora(rank=3, seed=5)
    out = concatenated([first, second])
    assert torch.equal(out.parts["down"][:2], first.parts["down"])
    assert torch.equal(out.parts["up"][:, 2:], second.parts["up"])


@pytest.mark.parametrize("kernel", [(), (3, 3)])
@pytest.mark.parametrize("axis", ["output", "input"])
def test_baking_dora_rescales_each_row_or_column_to_its_magnitude(axis, kernel):
    module, weight = lora(alpha=1.0, kernel=kernel), random(8, 6, 5, *kernel)
    count = 6 if axis == "output" else 5
    magnitude = random(9, count).abs() + 0.1
    shape = (count, 1) if axis == "output" else (1, count)
    baked = applied(weight, module.replaced(dora=magnitude.reshape(*shape, *[1] * len(kernel))))
    changed = weight.double() + dense(module)
    for n in range(count):
        row = changed[n] if axis == "output" else changed[:, n]
        wanted = magnitude[n].double() * row / row.norm()
        assert error(baked[n] if axis == "output" else baked[:, n], wanted) < ROUNDING


def test_baking_at_a_strength_scales_the_change_and_takes_weights_in_another_shape():
    module, weight = lora(alpha=3.0), random(8, 6, 5)
    assert (
        error(applied(weight, module, 0.5) - weight, 0.5 * dense(module)) < 1e-6
    )  # the difference of sums loses a digit
    assert applied(weight[..., None, None], module).shape == (6, 5, 1, 1)
    magnitudes = module.replaced(dora=weight.norm(dim=1, keepdim=True))
    full, half = applied(weight, magnitudes), applied(weight, magnitudes, 0.5)
    assert error(half - weight, 0.5 * (full - weight)) < 1e-6


def test_a_module_without_a_weight_change_says_so():
    with pytest.raises(FormatError, match="'full'.*diff_b.*no weight delta"):
        delta(Module("full", {"diff_b": torch.ones(3)}))
    with pytest.raises(FormatError, match="oft_blocks"):
        delta(Module("other", {"oft_blocks": torch.ones(2, 3, 3)}))


@pytest.mark.parametrize("function", [delta, folded, plain, lambda m: multiplied(m, 2.0), lambda m: resized(m, 1)])
def test_the_module_given_is_left_as_it_is(function):
    module = lora(alpha=3.0, kernel=(3, 3), tucker=True)
    before = {k: v.clone() for k, v in module.parts.items()}
    function(module)
    assert module.alpha == 3.0
    assert all(torch.equal(module.parts[k], v) for k, v in before.items())


def test_the_component_is_the_first_word_of_a_canonical_name():
    assert component("clip_l.text_model.encoder.layers.0.mlp.fc1") == "clip_l"


# --- cast ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_cast_rounds_every_factor_once(dtype, kind):
    state = kohya("lora_unet_a", lora(rank=4, alpha=2.0))
    out, lost = cast(state, dtype)
    assert lost == 0
    for key in ("lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight"):
        assert torch.equal(out[key], state[key].to(kind))


def test_overflow_is_refused_by_key_and_fits_where_the_range_is_larger():
    state = {"lora_unet_a.lora_up.weight": torch.tensor([1.0, 70_000.0])}
    with pytest.raises(
        FormatError, match="lora_unet_a.lora_up.weight: holds values that do not fit fp16; save as fp32 or bf16"
    ):
        cast(state, "fp16")
    assert cast(state, "bf16")[1] == 0


def test_the_share_of_values_that_became_zero_is_counted():
    state = {"a.lora_up.weight": torch.tensor([1e-9, 0.0, 1.0, 1.0, 1.0])}
    assert cast(state, "fp16")[1] == 0.25
    assert cast(state, "bf16")[1] == 0.0
    assert cast({}, "fp16") == ({}, 0.0)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("alpha", [0.1, 257.0, 1 / 3])
def test_alpha_stays_exact_in_every_file_type(dtype, alpha):
    state = kohya("lora_unet_a", lora(alpha=alpha))
    assert float(cast(state, dtype)[0]["lora_unet_a.alpha"]) == state["lora_unet_a.alpha"].item()


def test_cast_leaves_its_input_as_it_is():
    state = kohya("lora_unet_a", lora(alpha=2.0))
    copies = {k: v.clone() for k, v in state.items()}
    cast(state, "fp16")
    assert all(torch.equal(state[k], v) and state[k].dtype == torch.float32 for k, v in copies.items())


def test_a_lora_is_told_from_other_files():
    assert is_lora(kohya("lora_unet_a", lora()))
    assert is_lora({"diffusion_model.a.lora_A.weight": torch.zeros(1)})
    assert not is_lora({"emb_params": torch.zeros(1), "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)})
