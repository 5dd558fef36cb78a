"""Fused and separate layers: the rules of the file formats, with numbers worked out by hand."""

import pytest
import torch
from lora_cases import dense, error, loha, lokr, lora, random
from lora_loom.convert import FormatError, Lora, Module, read, write
from lora_loom.convert.families import FAMILIES
from lora_loom.convert.fuse import divides, join, sizes, split, swapped, swaps
from lora_loom.convert.lora import applied

THREE = (1, 1, 1)
# One more rounding to float32 where a scale is folded.
ROUNDING = 5e-7


def ones(out=2, into=3, rank=1, alpha=None, value=1.0) -> Module:
    return Module("lora", {"down": torch.full((rank, into), value), "up": torch.full((out, rank), value)}, alpha)


def stacked(parts, shapes) -> torch.Tensor:
    """The dense change of parts one above the other; None is a part of zeros of the shape given."""
    return torch.cat([torch.zeros(s, dtype=torch.float64) if p is None else dense(p) for p, s in zip(parts, shapes)])


@pytest.mark.parametrize(
    ("rows", "shares", "wanted"),
    [
        (9, THREE, [3, 3, 3]),
        (21, (1, 1, 1, 4), [3, 3, 3, 12]),
        (10, (3, 1, 1), [6, 2, 2]),
        (3840, (3, 1, 1), [2304, 768, 768]),
    ],
)
def test_rows_are_divided_in_proportion(rows, shares, wanted):
    assert sizes(rows, shares) == wanted


def test_rows_that_do_not_fit_the_proportions_are_refused():
    with pytest.raises(FormatError, match="10 output rows .* 1:1:1"):
        sizes(10, THREE)


# --- separate to fused --------------------------------------------------------------------------------------------------------------------


def test_alpha_of_the_fused_layer_is_scale_times_its_whole_rank():
    parts = [lora(rank=4, alpha=2.0, seed=n) for n in range(3)]
    out = join(parts, THREE)
    assert (out.rank, out.alpha) == (12, 6.0)  # alpha 2 unchanged would be a third of the effect
    assert out.scale == 0.5
    assert torch.equal(dense(out), stacked(parts, [(6, 5)] * 3))


def test_the_fused_up_matrix_is_block_diagonal_and_keeps_every_bit():
    parts = [lora(rank=2, seed=n) for n in range(3)]
    out = join(parts, THREE).parts
    assert torch.equal(out["down"], torch.cat([p.parts["down"] for p in parts]))
    for n, part in enumerate(parts):
        block = out["up"][6 * n : 6 * n + 6]
        assert torch.equal(block[:, 2 * n : 2 * n + 2], part.parts["up"])
        assert not block[:, : 2 * n].any()
        assert not block[:, 2 * n + 2 :].any()


def test_identical_downs_are_kept_once_and_the_ups_stacked():
    down = random(1, 2, 5)
    parts = [Module("lora", {"down": down.clone(), "up": random(n, 6, 2)}, alpha=1.0) for n in range(3)]
    out = join(parts, THREE)
    assert (out.rank, out.alpha) == (2, 1.0)
    assert torch.equal(out.parts["down"], down)
    assert torch.equal(out.parts["up"], torch.cat([p.parts["up"] for p in parts]))


def test_identical_downs_of_different_scales_are_still_exact():
    down = random(1, 2, 5)
    parts = [Module("lora", {"down": down.clone(), "up": random(n, 6, 2)}, alpha=float(n + 1)) for n in range(3)]
    assert error(dense(join(parts, THREE)), stacked(parts, [(6, 5)] * 3)) < ROUNDING


def test_unequal_ranks_and_scales_add_up():
    parts = [lora(rank=1, alpha=3.0, seed=1), lora(rank=4, alpha=None, seed=2), lora(rank=2, alpha=-0.5, seed=3)]
    out = join(parts, THREE)
    assert out.rank == 7
    assert error(dense(out), stacked(parts, [(6, 5)] * 3)) < ROUNDING


def test_unequal_ranks_of_one_scale_keep_every_bit():
    parts = [lora(rank=1, alpha=0.5, seed=1), lora(rank=4, alpha=2.0, seed=2), lora(rank=2, alpha=1.0, seed=3)]
    out = join(parts, THREE)
    assert (out.rank, out.alpha) == (7, 3.5)
    assert torch.equal(dense(out), stacked(parts, [(6, 5)] * 3))


@pytest.mark.parametrize("missing", [{0}, {1}, {2}, {0, 1}, {1, 2}, {0, 2}])
def test_a_missing_part_is_rows_of_zeros_and_no_rank(missing):
    parts = [None if n in missing else lora(rank=2, alpha=1.0, seed=n) for n in range(3)]
    out = join(parts, THREE)
    assert out.rank == 2 * (3 - len(missing))
    assert out.scale == 0.5
    assert torch.equal(dense(out), stacked(parts, [(6, 5)] * 3))


def test_shares_of_unequal_size_are_joined_by_their_rows():
    parts = [lora(out=3, seed=1), None, lora(out=3, seed=2), lora(out=12, rank=5, seed=3)]
    out = join(parts, (1, 1, 1, 4))
    assert out.shape == (21, 5)
    assert torch.equal(dense(out), stacked(parts, [(3, 5)] * 3 + [(12, 5)]))


def test_parts_whose_rows_are_not_in_proportion_are_refused():
    with pytest.raises(FormatError, match="proportions 1:1:1"):
        join([lora(out=6), lora(out=6), lora(out=9)], THREE)


def test_mixed_precision_parts_meet_in_the_wider_type():
    parts = [lora(dtype=torch.float16, seed=1), lora(seed=2), lora(dtype=torch.bfloat16, seed=3)]
    assert torch.equal(dense(join(parts, THREE)), stacked(parts, [(6, 5)] * 3))


def test_a_tucker_part_is_multiplied_out():
    parts = [lora(rank=2, kernel=(3, 3), tucker=n == 1, seed=n, alpha=1.0) for n in range(3)]
    assert error(dense(join(parts, THREE)), stacked(parts, [(6, 5, 3, 3)] * 3)) < ROUNDING


# --- fused to separate --------------------------------------------------------------------------------------------------------------------


def test_a_dense_fused_layer_gives_each_part_the_whole_down_and_its_rows_of_up():
    whole = lora(out=18, rank=3, alpha=6.0)  # rank divides by three, but up has no zero blocks: it must not be chunked
    parts = split(whole, THREE)
    for n, part in enumerate(parts):
        assert (part.rank, part.alpha) == (3, 6.0)
        assert torch.equal(part.parts["down"], whole.parts["down"])
        assert torch.equal(part.parts["up"], whole.parts["up"][6 * n : 6 * n + 6])


def test_one_number_off_the_diagonal_makes_it_dense():
    whole = join([lora(rank=2, seed=n) for n in range(3)], THREE)
    whole.parts["up"][17, 0] = 1e-30
    parts = split(whole, THREE)
    assert [p.rank for p in parts] == [6, 6, 6]
    assert torch.equal(torch.cat([dense(p) for p in parts]), dense(whole))


def test_a_block_diagonal_layer_is_cut_back_into_its_parts():
    parts = [lora(rank=4, alpha=2.0, seed=n) for n in range(3)]
    parts[1].parts["up"][:, 2] = 0  # a column that training has not moved belongs to its block all the same
    back = split(join(parts, THREE), THREE)
    for was, now in zip(parts, back):
        assert (now.rank, now.alpha) == (4, 2.0)  # alpha * rank / whole rank
        assert all(torch.equal(was.parts[k], now.parts[k]) for k in was.parts)


def test_alpha_of_the_parts_by_hand():
    down, up = torch.eye(6), torch.zeros(6, 6)
    for n in range(3):
        up[2 * n : 2 * n + 2, 2 * n : 2 * n + 2] = n + 1
    parts = split(Module("lora", {"down": down, "up": up}, alpha=12.0), THREE)  # scale 2
    for n, part in enumerate(parts):
        assert (part.rank, part.alpha) == (2, 4.0)
        wanted = torch.zeros(2, 6)
        wanted[:, 2 * n : 2 * n + 2] = 2.0 * (n + 1)
        assert torch.equal(dense(part).float(), wanted)


def test_parts_of_unequal_ranks_are_found_again():
    parts = [lora(rank=r, alpha=r / 2, seed=r) for r in (1, 4, 2)]
    back = split(join(parts, THREE), THREE)
    assert [m.rank for m in back] == [1, 4, 2]
    assert all(torch.equal(was.parts[k], now.parts[k]) for was, now in zip(parts, back) for k in was.parts)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("missing", [{0}, {1}, {0, 2}, {1, 2}])
def test_missing_parts_stay_missing(missing, rank):
    parts = [None if n in missing else lora(rank=rank, alpha=1.0, seed=n) for n in range(3)]
    back = split(join(parts, THREE), THREE)
    assert [m is None for m in back] == [m is None for m in parts]
    assert all(error(dense(now), dense(was)) < ROUNDING for was, now in zip(parts, back) if was is not None)


def test_identical_downs_come_back_with_the_whole_down():
    down = random(1, 2, 5)
    parts = [Module("lora", {"down": down.clone(), "up": random(n, 6, 2)}, alpha=1.0) for n in range(3)]
    back = split(join(parts, THREE), THREE)
    assert all(m.rank == 2 and m.alpha == 1.0 and torch.equal(m.parts["down"], down) for m in back)


def test_an_untrained_layer_keeps_its_parts_and_their_effect_of_nothing():
    whole = Module("lora", {"down": random(1, 6, 5), "up": torch.zeros(18, 6)}, alpha=6.0)
    parts = split(whole, THREE)
    assert all(m is not None and not dense(m).any() for m in parts)


@pytest.mark.parametrize("shares", [THREE, (1, 1, 1, 4), (3, 1, 1)])
@pytest.mark.parametrize("rank", [1, 2, 3, 5, 7, 21])
def test_cutting_never_changes_the_dense_change(shares, rank):
    for alpha in (None, 0.0, 2.5, -1.0):
        whole = lora(out=2 * sum(shares), rank=rank, alpha=alpha)
        pieces = torch.cat([dense(p) for p in split(whole, shares)])
        torch.testing.assert_close(
            pieces, dense(whole), rtol=1e-6, atol=1e-6 * float(dense(whole).abs().max())
        )  # a product of fewer rows may sum in another order


def test_cut_parts_share_no_memory():
    whole = lora(out=18, rank=6)
    parts = split(whole, THREE)
    ups = [p.parts["up"].data_ptr() for p in parts]
    assert len({*ups, whole.parts["up"].data_ptr()}) == 4
    assert all(p.parts["up"].is_contiguous() for p in parts)


def test_grouped_queries_are_cut_three_to_one_to_one():
    whole = lora(out=10, rank=4, alpha=2.0)
    q, k, v = split(whole, (3, 1, 1))
    assert [m.shape for m in (q, k, v)] == [(6, 5), (2, 5), (2, 5)]
    back = join([q, k, v], (3, 1, 1))
    assert (back.rank, back.alpha) == (4, 2.0)
    assert torch.equal(back.parts["up"], whole.parts["up"])


# --- other kinds ----------------------------------------------------------------------------------------------------------------------------


def test_loha_parts_become_an_exact_block_diagonal_loha():
    parts = [loha(rank=2, alpha=1.0, seed=10 * n) for n in range(3)]
    out = join(parts, THREE)
    assert (out.kind, out.rank, out.alpha) == ("loha", 6, 3.0)
    assert error(dense(out), stacked(parts, [(6, 5)] * 3)) < ROUNDING


def test_loha_parts_of_unequal_scale_and_rank_and_missing_ones():
    parts = [loha(rank=2, alpha=1.0, seed=1), None, loha(rank=3, alpha=6.0, seed=30)]
    assert error(dense(join(parts, THREE)), stacked(parts, [(6, 5)] * 3)) < ROUNDING


def test_a_loha_is_cut_by_rows():
    whole = loha(out=18, alpha=1.0)
    assert torch.equal(torch.cat([dense(m) for m in split(whole, THREE)]), dense(whole))


@pytest.mark.parametrize("second", ["full", "low", "tucker"])
@pytest.mark.parametrize("first", ["full", "low"])
def test_a_lokr_is_cut_between_the_rows_of_its_first_factor_and_joined_again(first, second):
    whole = lokr(first, second, alpha=1.0, kernel=(3, 3) if second == "tucker" else ())
    assert divides(whole, THREE)
    parts = split(whole, THREE)
    assert torch.equal(torch.cat([dense(m) for m in parts]), dense(whole))
    assert torch.equal(dense(join(parts, THREE)), dense(whole))


def test_the_rows_of_a_lokr_keep_their_magnitudes_and_biases():
    whole = lokr().replaced(dora=random(5, 12, 1), diff_b=random(6, 12))
    joined = join(split(whole, THREE), THREE)
    assert all(torch.equal(joined.parts[part], value) for part, value in whole.parts.items())


@pytest.mark.parametrize("module", [lokr(), lokr("low", "low", alpha=1.0), loha(out=12, kernel=(3, 3), tucker=True)])
def test_kinds_without_an_exact_form_are_refused_with_the_way_out(module):
    halves = (1, 1)  # of 12 rows, in which a second factor of 4 is cut
    assert not divides(module, halves)
    for attempt in (
        lambda: split(module, halves),
        lambda: join([module, lokr(seed=9)][:2] if module.kind == "lokr" else [module] * 2, halves),
    ):
        with pytest.raises(FormatError, match="approximate"):
            attempt()


def test_parts_of_different_kinds_are_refused():
    with pytest.raises(FormatError, match="lokr, lora"):
        join([lora(), lokr(), lora()], THREE)


def test_full_differences_are_cut_and_joined_with_their_biases():
    whole = Module("full", {"diff": random(1, 9, 5), "diff_b": random(2, 9)})
    parts = split(whole, THREE)
    assert [tuple(m.parts["diff_b"].shape) for m in parts] == [(3,)] * 3
    back = join(parts, THREE)
    assert all(torch.equal(back.parts[k], v) for k, v in whole.parts.items())


def test_rotations_in_blocks_are_cut_and_joined_along_their_rows_and_others_refused():
    whole = Module("oft", {"oft_blocks": random(1, 6, 3, 3)})
    parts = split(whole, THREE)
    assert all(
        torch.equal(part.parts["oft_blocks"], whole.parts["oft_blocks"][2 * n : 2 * n + 2])
        for n, part in enumerate(parts)
    )
    assert torch.equal(join(parts, THREE).parts["oft_blocks"], whole.parts["oft_blocks"])
    base = random(2, 18, 5)
    apart = torch.cat([applied(rows, part) for rows, part in zip(base.split(6), parts)])
    torch.testing.assert_close(apart, applied(base, whole), rtol=1e-6, atol=1e-6)
    with pytest.raises(FormatError, match="4 output rows cannot be divided"):  # a block would lie over two layers
        split(Module("oft", {"oft_blocks": random(1, 4, 3, 3)}), THREE)
    with pytest.raises(
        FormatError,
        match="module of kind boft over a fused layer cannot be divided exactly; it depends on the base weight",
    ):
        split(Module("boft", {"oft_blocks": random(1, 2, 2, 4, 4)}), THREE)
    with pytest.raises(
        FormatError, match="boft modules have no exact form over the fused layer; it depends on the base weight"
    ):
        join([Module("boft", {"oft_blocks": random(1, 2, 2, 4, 4)})] * 3, THREE)


def test_a_glora_is_cut_by_its_rows_alone():
    whole = Module(
        "glora", {"a1": random(1, 5, 2), "a2": random(2, 2, 5), "b1": random(3, 6, 2), "b2": random(4, 2, 5)}, 1.0
    )
    base = random(5, 6, 5)
    parts = split(whole, THREE)
    apart = torch.cat([applied(rows, part) for rows, part in zip(base.split(2), parts)])
    torch.testing.assert_close(apart, applied(base, whole), rtol=1e-6, atol=1e-6)
    assert torch.equal(join(parts, THREE).parts["b1"], whole.parts["b1"])
    with pytest.raises(FormatError, match="glora modules have no exact form"):
        join([parts[0], parts[1].replaced(a1=random(9, 5, 2)), parts[2]], THREE)


def test_dora_magnitudes_of_outputs_go_with_their_rows_and_those_of_inputs_are_refused():
    parts = [lora(seed=n).replaced(dora=random(n, 6, 1)) for n in range(3)]
    out = join(parts, THREE)
    assert torch.equal(out.parts["dora"], torch.cat([p.parts["dora"] for p in parts]))
    assert all(torch.equal(now.parts["dora"], was.parts["dora"]) for now, was in zip(split(out, THREE), parts))
    with pytest.raises(FormatError, match="input columns"):
        split(lora(out=18).replaced(dora=torch.ones(1, 5)), THREE)
    for bad in (
        [parts[0], None, parts[2]],
        [parts[0], lora(), parts[2]],
        [p.replaced(dora=torch.ones(1, 5)) for p in parts],
    ):
        with pytest.raises(FormatError, match="DoRA"):
            join(bad, THREE)


# --- halves that change places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [lora(out=8, alpha=1.0), loha(out=8, alpha=1.0), Module("full", {"diff": random(1, 8, 5), "diff_b": random(2, 8)}),
                                    lora(out=8).replaced(dora=random(3, 8, 1))])  # fmt: skip
def test_swapping_exchanges_the_halves_of_the_rows_and_twice_is_nothing(module):
    out = swapped(module)
    assert torch.equal(dense(out), dense(module).roll(4, 0))
    for key in ("dora", "diff_b"):
        if key in module.parts:
            assert torch.equal(out.parts[key], module.parts[key].roll(4, 0))
    assert all(torch.equal(swapped(out).parts[k], v) for k, v in module.parts.items())


def test_swapping_by_hand():
    up = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert swapped(Module("lora", {"down": torch.ones(1, 2), "up": up})).parts["up"].flatten().tolist() == [
        3.0,
        4.0,
        1.0,
        2.0,
    ]


def test_swapping_leaves_magnitudes_of_inputs():
    module = lora(out=8).replaced(dora=random(3, 1, 5))
    assert torch.equal(swapped(module).parts["dora"], module.parts["dora"])


def test_swapping_a_lokr_is_refused_with_the_way_out():
    with pytest.raises(FormatError, match="approximate"):
        swapped(lokr())


def test_the_last_text_modulation_of_sd3_alone_changes_halves():
    row = FAMILIES["sd3"].table.find("transformer_blocks.23.norm1_context.linear").rows[0]
    assert swaps(row, lora(out=10, into=5))  # shift and scale alone
    assert not swaps(row, lora(out=30, into=5))  # six vectors: every other block
    image = FAMILIES["sd3"].table.find("transformer_blocks.23.norm1.linear").rows[0]
    assert not swaps(image, lora(out=10, into=5))


def test_modulations_are_reordered_on_the_way_to_native_names_and_back():
    last, other = lora(out=10, into=5, seed=1), lora(out=30, into=5, seed=2)
    modules = {"transformer.transformer_blocks.23.norm1_context.linear": last, "transformer.transformer_blocks.3.norm1_context.linear": other,
               "transformer.norm_out.linear": lora(out=10, into=5, seed=3)}  # fmt: skip
    file = write(Lora("sd3", modules), "comfyui")
    name = "diffusion_model.joint_blocks.{}.context_block.adaLN_modulation.1.lora_B.weight"
    assert torch.equal(file[name.format(23)], last.parts["up"].roll(5, 0))
    assert torch.equal(file[name.format(3)], other.parts["up"])
    assert torch.equal(
        file["diffusion_model.final_layer.adaLN_modulation.1.lora_B.weight"],
        modules["transformer.norm_out.linear"].parts["up"].roll(5, 0),
    )
    back = read(file, family="sd3").modules
    assert all(torch.equal(back[n].parts["up"], m.parts["up"]) for n, m in modules.items())


def test_all_three_parts_of_the_classic_wrong_conversion_by_hand():
    # q, k, v of rank 2, alpha 1: every number of each change is 2 * (n + 1)^2 / 2.
    modules = {
        f"transformer.transformer_blocks.0.attn.to_{x}": ones(2, 3, 2, 1.0, n + 1.0) for n, x in enumerate("qkv")
    }
    file = write(Lora("flux1", modules), "kohya")
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    assert set(file) == {f"{name}.{p}" for p in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert (file[f"{name}.alpha"].item(), file[f"{name}.lora_down.weight"].shape[0]) == (3.0, 6)
    whole = 0.5 * file[f"{name}.lora_up.weight"] @ file[f"{name}.lora_down.weight"]
    assert torch.equal(whole, torch.tensor([1.0, 1.0, 4.0, 4.0, 9.0, 9.0])[:, None].expand(6, 3))
