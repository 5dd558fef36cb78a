"""Sums, smaller ranks and strengths by block, against sums of dense float64 changes and the optimal cut of Eckart and Young."""

import math

import pytest
import torch
from lora_cases import dense, error, kohya, loha, lokr, lora, random
from lora_loom.convert import FormatError, Lora, Module, read
from lora_loom.convert.lora import low_rank, resized, truncated_svd
from lora_loom.convert.merge import block_of, in_block, merge, resize, squared_norm, weighted
from lora_loom.lora_core.messages.message import Message

# Factors and roots of scales are rounded to float32 a few times, 6e-8 each, and a change sums a few dozen products of them.
ROUNDING = 1e-6
# A told error is the root of a difference of squared float32 sums: relative 1e-7 of a square, so this far below the errors of 0.05 and more used here.
TOLD = 1e-3
A, B, C = (f"unet.down_blocks.{n}.attentions.0.transformer_blocks.0.attn1.to_q" for n in (0, 1, 2))
CONV = "unet.down_blocks.1.resnets.0.conv1"
KINDS = {
    "lora": lora(12, 10, rank=3, alpha=1.5), "half": lora(12, 10, rank=3, alpha=1.5, dtype=torch.float16), "loha": loha(12, 10, rank=2, alpha=1.0),
    "lokr": lokr("full", "low", alpha=3.0), "lokr-full": lokr(), "full": Module("full", {"diff": random(3, 12, 10)}),
}  # fmt: skip
CONV_KINDS = {
    "lora": lora(12, 10, 3, 1.5, (3, 3)), "tucker": lora(12, 10, 3, 1.5, (3, 3), tucker=True), "loha-tucker": loha(12, 10, 2, 1.0, (3, 3), tucker=True),
    "lokr-tucker": lokr("full", "tucker", alpha=3.0, kernel=(3, 3)), "full": Module("full", {"diff": random(3, 12, 10, 3, 3)}),
}  # fmt: skip
PAIRS = [
    *((KINDS[a], KINDS[b]) for a in KINDS for b in KINDS),
    *((CONV_KINDS[a], CONV_KINDS[b]) for a in CONV_KINDS for b in CONV_KINDS),
]
PAIR_NAMES = [*(f"{a}, {b}" for a in KINDS for b in KINDS), *(f"conv {a}, {b}" for a in CONV_KINDS for b in CONV_KINDS)]


def a_lora(
    modules: dict[str, Module] | None = None,
    seed: int = 0,
    rank: int = 3,
    alpha: float | None = 2.0,
    family: str = "sd1",
    **more,
) -> Lora:
    if modules is None:
        modules = {
            A: lora(12, 10, rank, alpha, seed=seed), B: lora(9, 14, rank + 1, None, seed=seed + 1), CONV: lora(8, 6, rank, alpha, kernel=(3, 3), seed=seed + 2)
        }  # fmt: skip
    return Lora(family, modules, **more)


def dense_sum(parts: list[tuple[Lora, float]]) -> dict[str, torch.Tensor]:
    """Layer -> weighted sum of the dense changes, float64."""
    out: dict[str, torch.Tensor] = {}
    for one, weight in parts:
        for name, module in one.modules.items():
            out[name] = out.get(name, 0) + weight * dense(module)
    return out


def best(matrix: torch.Tensor, rank: int) -> float:
    """Relative error of the best approximation of a rank (Eckart and Young)."""
    spectrum = torch.linalg.svdvals(matrix.flatten(1))
    return float(spectrum[rank:].square().sum().sqrt() / spectrum.square().sum().sqrt())


def true_error(made: Lora, wanted: dict[str, torch.Tensor]) -> float:
    """Relative error over all layers."""
    lost = sum(float((dense(made.modules[n]) - d).square().sum()) for n, d in wanted.items())
    return math.sqrt(lost / sum(float(d.square().sum()) for d in wanted.values()))


# --- merging ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3), (1.0, -1.0), (-0.5, -2.0), (1e-4, 3.0)])
def test_an_exact_merge_is_the_weighted_sum_and_its_ranks_add_up(weights):
    parts = [(a_lora(seed=1), weights[0]), (a_lora(seed=50, rank=2, alpha=-3.0), weights[1])]
    outcome = merge(parts)
    wanted = dense_sum(parts)
    assert set(outcome.lora.modules) == set(wanted)
    for name, value in wanted.items():
        assert error(dense(outcome.lora.modules[name]), value) < ROUNDING
    assert outcome.lora.modules[A].rank == 5
    assert outcome.error == 0.0
    assert set(outcome.errors.values()) == {0.0}


def test_three_loras_are_summed_and_modules_of_only_one_of_them_are_kept_at_its_weight():
    parts = [
        (a_lora({A: lora(12, 10, seed=1)}), 0.5),
        (a_lora({B: lora(9, 14, alpha=3.0, seed=2)}), -2.0),
        (a_lora({A: lora(12, 10, seed=3)}), 1.5),
    ]
    made = merge(parts).lora
    for name, value in dense_sum(parts).items():
        assert error(dense(made.modules[name]), value) < ROUNDING
    assert made.modules[B].rank == 2


def test_a_lora_minus_itself_is_nothing():
    one = a_lora()
    made = merge([(one, 1.0), (one, -1.0)]).lora
    for name, module in one.modules.items():
        # Each product is met by its exact negative; what is left is the rounding of float64 sums.
        assert dense(made.modules[name]).norm() < 1e-12 * dense(module).norm()


def test_a_single_lora_at_weight_one_keeps_its_factors_bit_for_bit():
    one = a_lora()
    made = merge([(one, 1.0)]).lora
    for name, module in one.modules.items():
        assert all(torch.equal(made.modules[name].parts[k], v) for k, v in module.parts.items())
        assert made.modules[name].scale == pytest.approx(module.scale, rel=1e-12)


def test_a_single_lora_at_a_weight_is_multiplied():
    one = a_lora()
    made = merge([(one, -0.3)]).lora
    assert all(error(dense(made.modules[n]), -0.3 * dense(m)) < ROUNDING for n, m in one.modules.items())


def test_a_lora_of_weight_zero_adds_neither_change_nor_rank():
    one, none = a_lora(seed=1), a_lora({A: lora(12, 10, seed=7), C: lora(5, 5, seed=8)})
    made = merge([(one, 1.0), (none, 0.0)]).lora
    assert set(made.modules) == set(one.modules)
    assert all(
        made.modules[n].rank == m.rank and error(dense(made.modules[n]), dense(m)) < ROUNDING
        for n, m in one.modules.items()
    )


@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_NAMES)
def test_every_pair_of_kinds_is_summed_exactly(pair):
    parts = [(a_lora({A: pair[0]}), 1.0), (a_lora({A: pair[1]}), -0.8)]
    outcome = merge(parts)
    made = dense(outcome.lora.modules[A])
    # A module and itself leave a fifth, so the rounding is that of a five times larger sum.
    assert error(made, dense_sum(parts)[A]) < 5 * ROUNDING
    assert outcome.error == 0.0


@pytest.mark.parametrize(
    "pair",
    [("lora", "loha"), ("loha", "lokr"), ("lokr-full", "full"), ("full", "lora"), ("loha", "loha"), ("full", "full")],
    ids=", ".join,
)
def test_kinds_merged_to_a_rank_are_the_best_lora_of_that_rank(pair):
    parts = [(a_lora({A: KINDS[pair[0]]}), 1.0), (a_lora({A: KINDS[pair[1]]}), -0.5)]
    outcome = merge(parts, rank=3)
    wanted, made = dense_sum(parts)[A], dense(outcome.lora.modules[A])
    assert torch.linalg.matrix_rank(made, rtol=1e-5) <= 3
    assert error(made, wanted) == pytest.approx(best(wanted, 3), rel=TOLD)
    assert outcome.errors[A] == pytest.approx(error(made, wanted), rel=TOLD)
    assert outcome.error == pytest.approx(error(made, wanted), rel=TOLD)


@pytest.mark.parametrize("kind", ["lora", "loha", "full"])
def test_one_lora_merged_to_a_rank_has_at_most_that_rank(kind):
    made = dense(merge([(a_lora({A: KINDS[kind]}), 2.0)], rank=2).lora.modules[A])
    assert torch.linalg.matrix_rank(made, rtol=1e-5) <= 2
    assert error(made, 2 * dense(KINDS[kind])) == pytest.approx(best(2 * dense(KINDS[kind]), 2), rel=TOLD)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_merge_to_a_rank_is_the_best_approximation_of_the_sum_and_tells_its_error(rank):
    parts = [(a_lora(seed=1), 0.8), (a_lora(seed=60, rank=4), -0.6), (a_lora({A: lora(12, 10, 5, seed=80)}), 1.0)]
    outcome = merge(parts, rank)
    wanted = dense_sum(parts)
    for name, value in wanted.items():
        got = error(dense(outcome.lora.modules[name]), value)
        assert outcome.lora.modules[name].rank == rank
        assert got == pytest.approx(best(value, rank), rel=TOLD)
        assert outcome.errors[name] == pytest.approx(got, rel=TOLD)
    assert outcome.error == pytest.approx(true_error(outcome.lora, wanted), rel=TOLD)


def test_the_overall_error_counts_layers_that_stayed_exact():
    parts = [(a_lora({A: lora(12, 10, 4, seed=1), B: lora(9, 14, 1, seed=2)}), 1.0)]
    outcome = merge(parts, rank=2)
    assert outcome.errors[B] == 0.0
    assert outcome.error == pytest.approx(true_error(outcome.lora, dense_sum(parts)), rel=TOLD)
    assert outcome.error < outcome.errors[A]


def test_a_rank_that_holds_the_sum_loses_nothing():
    parts = [(a_lora(seed=1), 1.0), (a_lora(seed=50, rank=2), 1.0)]
    outcome = merge(parts, rank=8)
    assert outcome.error == 0.0
    assert outcome.lora.modules[A].rank == 5
    assert all(error(dense(outcome.lora.modules[n]), d) < ROUNDING for n, d in dense_sum(parts).items())


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("pair", [("lora", "lora"), ("full", "full"), ("lora", "loha"), ("lora", "full")])
def test_changes_of_biases_are_summed_with_their_weights(pair, rank):
    biases = [random(41, 12), random(42, 12)]
    parts = [
        (a_lora({A: KINDS[kind].replaced(diff_b=bias)}), weight)
        for kind, bias, weight in zip(pair, biases, (0.5, -2.0))
    ]
    made = merge(parts, rank).lora.modules[A]
    assert "diff_b" in made.parts
    assert error(made.parts["diff_b"], 0.5 * biases[0].double() - 2.0 * biases[1].double()) < ROUNDING


def test_a_bias_only_one_of_them_changes_is_kept():
    bias = random(41, 12)
    parts = [(a_lora({A: lora(12, 10, seed=1)}), 1.0), (a_lora({A: lora(12, 10, seed=2).replaced(diff_b=bias)}), 0.5)]
    assert torch.equal(merge(parts).lora.modules[A].parts["diff_b"], 0.5 * bias)
    norm = Module("full", {"diff": random(1, 12), "diff_b": random(2, 12)})
    parts = [(a_lora({"unet.conv_norm_out": norm}), 2.0), (a_lora({A: lora(12, 10)}), 1.0)]
    made = merge(parts, rank=1).lora.modules["unet.conv_norm_out"]  # norms have no rank
    assert torch.equal(made.parts["diff"], 2 * norm.parts["diff"])
    assert torch.equal(made.parts["diff_b"], 2 * norm.parts["diff_b"])


@pytest.mark.parametrize("rank", [0, 2])
def test_a_loha_and_a_lora_over_one_convolution_are_summed(rank):
    flat = loha(8, 6, rank=2, alpha=1.0, kernel=(3, 3))  # as LyCORIS writes it: (out, rank), (rank, in * 9)
    conv = lora(8, 6, rank=2, alpha=1.0, kernel=(3, 3))
    made = merge(
        [
            (read(kohya("lora_unet_down_blocks_1_resnets_0_conv1", flat), family="sd1"), 1.0),
            (a_lora({CONV: conv}), 0.5),
        ],
        rank,
    ).lora.modules[CONV]
    wanted = dense(flat) + 0.5 * dense(conv).flatten(1)
    got = error(dense(made).flatten(1), wanted)
    assert got == pytest.approx(best(wanted, 2), rel=TOLD) if rank else got < ROUNDING


def test_loras_of_different_families_are_refused_with_both_named():
    with pytest.raises(FormatError, match=r"different models \(sd1, sdxl\)"):
        merge([(a_lora(), 1.0), (a_lora(family="sdxl"), 1.0)])


def test_shapes_that_differ_are_refused_with_the_layer_named():
    with pytest.raises(FormatError, match=rf"{A}: has different shapes.*\(12, 10\).*\(12, 11\)"):
        merge([(a_lora({A: lora(12, 10)}), 1.0), (a_lora({A: lora(12, 11)}), 1.0)])


@pytest.mark.parametrize("rank", [0, 2])
def test_dora_is_refused_with_the_layer_named(rank):
    with pytest.raises(FormatError, match=f"{B}: has DoRA"):
        merge([(a_lora(), 1.0), (a_lora({B: lora(9, 14).replaced(dora=torch.ones(9, 1))}), 1.0)], rank)


def test_parts_that_do_not_add_up_are_refused_with_the_layer_named():
    with pytest.raises(FormatError, match=f"{A}: has oft_blocks, which cannot be added"):
        merge([(a_lora({A: Module("other", {"oft_blocks": torch.ones(2, 3, 3)})}), 1.0)])


def test_nothing_cannot_be_merged():
    with pytest.raises(FormatError, match="at least one"):
        merge([])


def test_bundled_embeddings_are_not_lost_without_a_word():
    notes = merge([(a_lora(embeddings={"zog": {"clip_l": torch.ones(1, 768)}}), 1.0)]).lora.notes
    assert any("zog" in str(note) for note in notes)


def test_the_loras_given_stay_as_they_are():
    one, two = a_lora(seed=1), a_lora({A: KINDS["full"]})
    before = [{(n, k): v.clone() for n, m in x.modules.items() for k, v in m.parts.items()} for x in (one, two)]
    merge([(one, -0.5), (two, 2.0)], rank=2)
    for x, kept in zip((one, two), before):
        assert all(torch.equal(x.modules[n].parts[k], v) for (n, k), v in kept.items())


# --- resizing -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_resizing_to_a_rank_is_the_best_approximation_and_tells_its_error(rank):
    one = a_lora({A: lora(12, 10, 6, alpha=-3.0), B: lora(9, 14, 5), CONV: lora(8, 6, 4, 2.0, (3, 3), tucker=True)})
    outcome = resize(one, rank)
    for name, module in one.modules.items():
        made = outcome.lora.modules[name]
        assert made.rank == rank
        assert made.shape == module.shape
        got = error(dense(made), dense(module))
        assert got == pytest.approx(best(dense(module), rank), rel=TOLD)
        assert outcome.errors[name] == pytest.approx(got, rel=TOLD)
    wanted = {n: dense(m) for n, m in one.modules.items()}
    assert outcome.error == pytest.approx(true_error(outcome.lora, wanted), rel=TOLD)


def spectrum_of(values: list[float], out: int = 20, into: int = 16, alpha: float | None = None) -> Module:
    """A LoRA whose change has exactly these singular values."""
    count = len(values)
    u, v = torch.linalg.qr(random(1, out, count)).Q, torch.linalg.qr(random(2, into, count)).Q
    scale = 1.0 if alpha is None else alpha / count
    return Module("lora", {"down": (v * torch.tensor(values) / scale).t().contiguous(), "up": u}, alpha)


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.7, 2), (0.9, 3), (0.95, 4), (0.1, 1)])
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_energy_finds_the_smallest_rank_that_keeps_the_share(energy, rank, alpha):
    one = a_lora({A: spectrum_of([3.0, 2.0, 1.0, 1.0], alpha=alpha)})  # shares 9/15, 13/15, 14/15, 1
    outcome = resize(one, 16, energy=energy)
    assert outcome.lora.modules[A].rank == rank
    kept = 1 - outcome.errors[A] ** 2
    assert kept >= energy - 1e-5  # float32 singular values
    assert outcome.errors[A] == pytest.approx(
        best(dense(one.modules[A]), rank), abs=1e-3
    )  # 0 where nothing is lost, up to the root of a rounding


def test_energy_never_exceeds_the_rank_asked_for():
    assert resize(a_lora({A: spectrum_of([1.0, 1.0, 1.0, 1.0])}), 2, energy=0.99).lora.modules[A].rank == 2


def test_convolutions_have_a_rank_of_their_own_and_one_by_one_ones_count_as_linear():
    one = a_lora({A: lora(12, 10, 6), B: lora(12, 10, 6, kernel=(1, 1)), CONV: lora(8, 6, 6, kernel=(3, 3))})
    ranks = {n: m.rank for n, m in resize(one, 4, conv_rank=2).lora.modules.items()}
    assert ranks == {A: 4, B: 4, CONV: 2}
    assert {m.rank for m in resize(one, 4).lora.modules.values()} == {4}


def test_a_module_that_is_small_enough_keeps_its_bits():
    one = a_lora({A: lora(12, 10, 2, alpha=0.5), B: lora(9, 14, 6)})
    outcome = resize(one, 2)
    assert outcome.lora.modules[A] is one.modules[A]
    assert outcome.errors[A] == 0.0
    assert outcome.lora.modules[B].rank == 2


def test_what_is_no_plain_lora_keeps_its_size_and_is_told():
    dora = lora(12, 10, 6).replaced(dora=torch.ones(12, 1))
    one = a_lora({A: loha(12, 10, 4), B: lokr(), C: dora, CONV: lora(8, 6, 6, kernel=(3, 3))})
    outcome = resize(one, 1)
    assert all(outcome.lora.modules[n] is one.modules[n] for n in (A, B, C))
    assert outcome.lora.modules[CONV].rank == 1
    assert any(
        "3 modules that are not plain LoRA" in str(note) and "keep their size" in str(note)
        for note in outcome.lora.notes
    )
    assert one.notes == []
    assert not resize(a_lora(), 1).lora.notes


def test_resizing_keeps_what_is_said_about_the_file_and_changes_of_biases():
    bias = random(4, 12)
    one = a_lora({A: lora(12, 10, 6).replaced(diff_b=bias)}, metadata={"ss_steps": "7"})
    made = resize(one, 2).lora
    assert made.metadata == {"ss_steps": "7"}
    assert torch.equal(made.modules[A].parts["diff_b"], bias)


def test_a_lora_of_zeros_is_resized_to_zeros_without_error():
    module = Module("lora", {"down": random(1, 6, 10), "up": torch.zeros(12, 6)})
    outcome = resize(a_lora({A: module}), 2, energy=0.9)
    assert not dense(outcome.lora.modules[A]).any()
    assert outcome.error == 0.0


@pytest.mark.parametrize(
    ("given", "says"), [({"rank": 0}, "rank"), ({"rank": -3}, "rank"), ({"rank": 2, "conv_rank": -1}, "rank"), ({"rank": 2, "energy": 0.0}, "energy"),
                        ({"rank": 2, "energy": 1.5}, "energy"), ({"rank": 2, "energy": float("nan")}, "energy")]
)  # fmt: skip
def test_ranks_and_shares_that_are_none_are_refused(given, says):
    with pytest.raises(FormatError, match=says):
        resize(a_lora(), **given)


# --- the singular value decomposition -----------------------------------------------------------------------------------------------------


def decaying(out: int, into: int, decay: float) -> torch.Tensor:
    """A matrix whose singular values fall by a factor from one to the next."""
    size = min(out, into)
    u, v = torch.linalg.qr(random(5, out, size)).Q, torch.linalg.qr(random(6, into, size)).Q
    return u @ torch.diag(decay ** torch.arange(float(size))) @ v.t()


@pytest.mark.parametrize("shape", [(300, 280), (280, 420)])
def test_large_matrices_are_cut_almost_as_well_as_possible(shape):
    matrix = decaying(*shape, 0.9)
    u, s, v = truncated_svd(matrix, 16)
    assert (u.shape, s.shape, v.shape) == ((shape[0], 16), (16,), (16, shape[1]))
    exact = torch.linalg.svdvals(matrix.double())
    # After four power iterations what the range finder misses is (0.9^16)^9 of a singular value; float32 is coarser.
    torch.testing.assert_close(s.double(), exact[:16], rtol=1e-4, atol=1e-6)
    assert error(u @ torch.diag(s) @ v, matrix) == pytest.approx(best(matrix.double(), 16), rel=1e-4)
    module, told = low_rank(matrix, 16)
    assert told == pytest.approx(best(matrix.double(), 16), rel=TOLD)


def test_small_matrices_are_cut_exactly():
    matrix = random(1, 256, 400)
    _, s, _ = truncated_svd(matrix, 4)
    torch.testing.assert_close(s.double(), torch.linalg.svdvals(matrix.double())[:4], rtol=1e-5, atol=0)  # float32 SVD


def test_the_randomised_cut_gives_the_same_every_time_and_leaves_the_global_generator_alone():
    matrix = decaying(300, 280, 0.95)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = truncated_svd(matrix, 8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, truncated_svd(matrix, 8)))


def test_resizing_a_wide_lora_needs_no_dense_matrix_and_is_still_the_best():
    module = lora(400, 300, rank=12, alpha=6.0)
    made, told = resized(module, 4)
    assert error(dense(made), dense(module)) == pytest.approx(best(dense(module), 4), rel=TOLD)
    assert told == pytest.approx(best(dense(module), 4), rel=TOLD)


# --- strengths by block -------------------------------------------------------------------------------------------------------------------

SD1 = {
    "unet.conv_in": "IN00", "unet.down_blocks.0.attentions.0.proj_in": "IN01", "unet.down_blocks.0.downsamplers.0.conv": "IN03",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "IN04", "unet.down_blocks.2.attentions.1.proj_out": "IN08",
    "unet.down_blocks.3.resnets.1.conv2": "IN11", "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": "MID", "unet.mid_block.resnets.1.conv1": "MID",
    "unet.up_blocks.0.resnets.0.conv1": "OUT00", "unet.up_blocks.0.upsamplers.0.conv": "OUT02",
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v": "OUT03", "unet.up_blocks.3.attentions.2.proj_in": "OUT11",
    "unet.time_embedding.linear_1": "time_embed", "unet.conv_out": "out", "clip_l.text_model.encoder.layers.3.mlp.fc1": "BASE",
}  # fmt: skip
SDXL = {
    "unet.conv_in": "IN00", "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": "IN04", "unet.down_blocks.2.attentions.1.proj_in": "IN08",
    "unet.mid_block.attentions.0.transformer_blocks.9.ff.net.2": "MID", "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "OUT00",
    "unet.up_blocks.1.attentions.2.proj_out": "OUT05", "unet.up_blocks.2.resnets.2.conv1": "OUT08", "unet.add_embedding.linear_1": "label_emb",
    "clip_l.text_model.encoder.layers.0.self_attn.q_proj": "BASE", "clip_g.text_model.encoder.layers.31.mlp.fc2": "BASE",
}  # fmt: skip
FLUX = {
    "transformer.transformer_blocks.3.attn.to_q": "double_blocks.03", "transformer.transformer_blocks.3.ff_context.net.2": "double_blocks.03",
    "transformer.single_transformer_blocks.12.proj_mlp": "single_blocks.12", "transformer.x_embedder": "img_in",
    "clip_l.text_model.encoder.layers.0.mlp.fc1": "BASE", "t5xxl.encoder.block.0.layer.0.SelfAttention.q": "BASE",
}  # fmt: skip
NAMED = [
    (family, name, block)
    for family, names in (("sd1", SD1), ("sdxl", SDXL), ("flux1", FLUX))
    for name, block in names.items()
]


@pytest.mark.parametrize(("family", "name", "block"), NAMED)
def test_the_block_of_a_layer(family, name, block):
    assert block_of(family, name) == block


def test_a_layer_of_an_unknown_model_belongs_to_its_first_word():
    assert block_of("unknown", "blocks.3.attn.q") == "blocks"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_block_name_fits_the_layers_of_that_block_and_no_others(family):
    for name, block in (SD1 if family == "sd1" else SDXL).items():
        for other in {f"IN{n:02d}" for n in range(12)} | {f"OUT{n:02d}" for n in range(12)} | {"MID", "BASE"}:
            assert in_block(family, name, other) == (other == block), (name, other)
        assert in_block(family, name, "M00") == (block == "MID")


def test_a_pattern_is_searched_in_the_canonical_name():
    assert in_block("sd1", C, r"attn1\.to_[qk]$")
    assert in_block("flux1", "transformer.transformer_blocks.3.attn.to_q", r"(^|\.)transformer_blocks\.3\.")
    assert not in_block("flux1", "transformer.single_transformer_blocks.3.attn.to_q", r"\.transformer_blocks\.3\.")
    with pytest.raises(FormatError, match="neither a block name nor a regular expression"):
        in_block("sd1", A, "attn1(")


def scales(before: Lora, after: Lora) -> dict[str, float]:
    """Layer -> factor between the changes, which are otherwise the same."""
    out = {}
    for name, module in before.modules.items():
        old, new = dense(module), dense(after.modules[name])
        factor = float((old * new).sum() / old.square().sum())
        assert (new - factor * old).norm() < ROUNDING * old.norm()
        out[name] = round(factor, 6)
    return out


def over(names, family: str) -> Lora:
    return Lora(family, {n: lora(6, 5, 2, alpha=3.0, seed=k) for k, n in enumerate(names)})


@pytest.mark.parametrize("factor", [2.0, 0.25, -1.5, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_multiplies_every_kind_of_module(kind, factor):
    made = weighted(a_lora({A: KINDS[kind]}), factor).modules[A]
    wanted = factor * dense(KINDS[kind])
    assert torch.equal(dense(made), wanted * 0) if factor == 0 else error(dense(made), wanted) < ROUNDING


def test_a_factor_multiplies_changes_of_biases_too():
    bias = random(4, 12)
    made = weighted(a_lora({A: lora(12, 10).replaced(diff_b=bias)}), -0.5).modules[A]
    assert torch.equal(made.parts["diff_b"], -0.5 * bias)


def test_a_factor_of_one_leaves_every_module_alone():
    one = over(SD1, "sd1")
    assert all(weighted(one, 1.0, {"IN04": 1.0}).modules[n] is m for n, m in one.modules.items())


@pytest.mark.parametrize(
    ("family", "names", "blocks"),
    [
        ("sd1", SD1, {"IN04": 0.5, "OUT03": -2.0, "MID": 0.0, "BASE": 3.0}),
        ("sdxl", SDXL, {"IN08": 0.5, "OUT05": 4.0, "BASE": 0.0}),
    ],
)
def test_blocks_of_a_unet_are_multiplied_and_others_are_not(family, names, blocks):
    one = over(names, family)
    assert scales(one, weighted(one, 1.0, blocks)) == {n: blocks.get(block, 1.0) for n, block in names.items()}


def test_the_factor_and_every_block_that_fits_multiply():
    one = over(SD1, "sd1")
    got = scales(one, weighted(one, 2.0, {"IN04": 0.5, "attn1": 3.0, "to_q": 0.1, "attn": -1.0}))
    assert got[C.replace("down_blocks.2", "down_blocks.1")] == pytest.approx(2.0 * 0.5 * 3.0 * 0.1 * -1.0)
    assert got["unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"] == pytest.approx(-2.0)
    assert got["unet.conv_in"] == pytest.approx(2.0)


def test_blocks_of_a_transformer_are_multiplied_by_a_pattern():
    one = over(FLUX, "flux1")
    got = scales(
        one,
        weighted(one, 1.0, {r"\.transformer_blocks\.3\.": 0.5, r"single_transformer_blocks\.1\d\.": -1.0, "BASE": 2.0}),
    )
    assert got == {
        n: {"double_blocks.03": 0.5, "single_blocks.12": -1.0, "BASE": 2.0}.get(block, 1.0) for n, block in FLUX.items()
    }


def test_blocks_of_a_transformer_are_multiplied_by_the_name_that_inspect_shows():
    one = over(FLUX, "flux1")
    got = scales(one, weighted(one, 1.0, {"double_blocks.03": 0.5, "single_blocks.12": -1.0}))
    assert got == {n: {"double_blocks.03": 0.5, "single_blocks.12": -1.0}.get(block, 1.0) for n, block in FLUX.items()}


@pytest.mark.parametrize("block", ["IN02", "OUT10", "IN4", "nowhere", "IN12", "double_blocks"])
def test_a_block_that_fits_no_layer_is_refused_by_name(block):
    with pytest.raises(FormatError, match=f"'{block}' matches no layer"):
        weighted(over(SD1, "sd1"), 1.0, {"IN04": 0.5, block: 0.5})


def test_dora_cannot_be_weighted_unless_its_factor_is_one():
    one = a_lora({A: lora(12, 10).replaced(dora=torch.ones(12, 1)), B: lora(9, 14)})
    with pytest.raises(FormatError, match=f"{A}: has DoRA"):
        weighted(one, 0.5)
    assert weighted(one, 1.0, {"IN04": 0.5}).modules[A] is one.modules[A]


def test_weighting_keeps_what_else_is_in_the_file():
    one = a_lora(metadata={"a": "b"}, embeddings={"zog": {"clip_l": torch.ones(1, 768)}}, notes=[Message("note.hash")])
    made = weighted(one, 0.5)
    assert (made.metadata, made.embeddings, made.notes, made.family) == (one.metadata, one.embeddings, one.notes, "sd1")


# --- norms and progress -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "negative", "conv", "tucker-conv", "half"])
def test_the_squared_norm_is_that_of_the_dense_change(kind):
    more = {
        "negative": lora(12, 10, 3, alpha=-2.0), "conv": lora(8, 6, 3, 2.0, (3, 3)), "tucker-conv": lora(8, 6, 3, 2.0, (3, 3), tucker=True),
        "half": lora(12, 10, 3, alpha=0.3, dtype=torch.float16),
    }  # fmt: skip
    module = {**KINDS, **more}[kind]
    assert squared_norm(module) == pytest.approx(
        float(dense(module).square().sum()), rel=1e-5
    )  # LoHa and LoKr in float32


def test_the_squared_norm_of_what_has_no_change_of_a_weight_is_zero():
    assert squared_norm(Module("full", {"diff_b": torch.ones(3)})) == 0.0
    assert squared_norm(Module("lora", {"down": random(1, 2, 5), "up": torch.zeros(6, 2)})) == 0.0


class Stop(BaseException):
    """An interrupt that is no Exception, as ComfyUI's is."""


OPERATIONS = {
    "merge": lambda progress: merge([(a_lora(), 1.0), (a_lora(seed=9), 1.0)], 2, progress),
    "resize": lambda p: resize(a_lora(), 2, progress=p),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_progress_counts_every_layer_by_name(operation):
    told = []
    OPERATIONS[operation](lambda done, total, name: told.append((done, total, name)))
    assert [t[:2] for t in told] == [(0, 3), (1, 3), (2, 3)]
    assert {t[2] for t in told} == {A, B, CONV}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, RuntimeError])
def test_an_exception_from_progress_ends_the_work(operation, kind):
    def stop(done, total, name):
        if done == 1:
            raise kind("enough")

    with pytest.raises(kind, match="enough"):
        OPERATIONS[operation](stop)


def test_a_block_given_as_a_pattern_that_re_searches_for_ages_is_answered_at_once():
    assert not in_block("sd1", "unet." + "a" * 200, r"(\w+\.?)+!")
    assert in_block("sd1", "unet.mid_block.attentions.0.proj_in", r"(\w+\.?)+proj_in$")
    with pytest.raises(FormatError, match="blocks: .* is neither a block name nor a regular expression"):
        in_block("sd1", "unet.a", "(")
