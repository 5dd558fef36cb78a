"""The facts of a file and the difference of two, against dense float64 changes."""

import json
import math

import pytest
import torch
from lora_cases import dense, kohya, loha, lokr, lora, random
from lora_loom.convert import FormatError, Lora, Module, read
from lora_loom.convert.embedding import Embedding
from lora_loom.convert.families import FAMILIES
from lora_loom.convert.loaders import FORMS, PROGRAMS, cell_of, loaders, measured
from lora_loom.convert.report import difference, embedding_lines, inspect, triggers
from lora_loom.lora_core.messages.message import Message

A = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
B = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "unet.up_blocks.1.resnets.0.conv1"
MID = "unet.mid_block.resnets.0.time_emb_proj"
TEXT = "clip_l.text_model.encoder.layers.0.mlp.fc1"
MODULES = {
    A: lora(12, 10, rank=4, alpha=2.0, seed=1), B: lora(12, 10, rank=4, alpha=1.0, seed=2), CONV: lora(8, 6, rank=2, kernel=(3, 3), seed=3),
    MID: loha(12, 10, rank=2, alpha=1.0), TEXT: Module("full", {"diff": random(5, 12, 10)}),
}  # fmt: skip


def a_lora(modules=None, family="sd1", source="kohya", **more) -> Lora:
    return Lora(family, dict(MODULES if modules is None else modules), source=source, **more)


def norm(*modules: Module) -> float:
    return math.sqrt(sum(float(dense(m).square().sum()) for m in modules))


# --- inspecting ---------------------------------------------------------------------------------------------------------------------------


def test_the_facts_are_counted():
    report = inspect(a_lora(metadata={"a": "b"}))
    assert (report.family, report.form, report.modules, report.metadata) == ("sd1", "kohya", 5, {"a": "b"})
    assert report.kinds == {"lora": 3, "loha": 1, "full": 1}
    assert report.ranks == {4: 2, 2: 2, 0: 1}
    assert report.alphas == {2.0: 2, 1.0: 2}  # an alpha that is missing is the rank
    assert report.problems == ()


def test_every_block_tells_its_modules_ranks_and_the_norm_of_its_change():
    blocks = {b.name: b for b in inspect(a_lora()).blocks}
    assert list(blocks) == ["BASE", "IN04", "MID", "OUT03"]
    for name, members in {"BASE": [TEXT], "IN04": [A, B], "MID": [MID], "OUT03": [CONV]}.items():
        assert blocks[name].modules == len(members)
        assert blocks[name].norm == pytest.approx(norm(*(MODULES[m] for m in members)), rel=1e-5)  # LoHa in float32
    assert blocks["IN04"].ranks == (4,)
    mixed = inspect(a_lora({A: lora(rank=4), B: lora(rank=2)})).blocks
    assert mixed[0].ranks == (2, 4)


def test_blocks_come_in_the_order_of_the_model():
    names = [
        "unet.up_blocks.3.resnets.0.conv1", "unet.conv_out", "unet.up_blocks.0.resnets.0.conv1", "unet.mid_block.resnets.0.conv1", "unet.conv_in",
        "unet.down_blocks.3.resnets.0.conv1", TEXT,
    ]  # fmt: skip
    assert [b.name for b in inspect(a_lora({n: lora() for n in names})).blocks] == [
        "BASE",
        "IN00",
        "IN10",
        "MID",
        "OUT00",
        "OUT09",
        "out",
    ]
    flux = [f"transformer.transformer_blocks.{n}.attn.to_q" for n in (10, 2, 0)]
    blocks = inspect(a_lora({n: lora() for n in flux}, "flux1", "diffusers")).blocks
    assert [b.name for b in blocks] == ["double_blocks.00", "double_blocks.02", "double_blocks.10"]


def test_the_norm_includes_alpha_and_its_sign_does_not_matter():
    for alpha in (0.5, -8.0, None):
        module = lora(12, 10, rank=4, alpha=alpha)
        assert inspect(a_lora({A: module})).blocks[0].norm == pytest.approx(norm(module), rel=1e-9)


def test_a_lora_of_zeros_is_called_one():
    zero = Module("lora", {"down": random(1, 2, 5), "up": torch.zeros(6, 2)})
    report = inspect(a_lora({A: zero, B: zero}, notes=[Message("something.else")]))
    assert report.problems[0] == Message("note.no_effect")
    assert report.problems[1] == Message("something.else")
    assert not any("changes nothing" in str(p) for p in inspect(a_lora({A: zero, B: lora()})).problems)


@pytest.mark.parametrize(
    "module",
    [Module("full", {"diff_b": torch.ones(12)}), Module("other", {"oft_blocks": random(1, 2, 4, 4)})],
    ids=["bias", "oft"],
)
def test_what_has_an_effect_that_is_no_norm_of_a_weight_is_not_said_to_change_nothing(module):
    assert not any("changes nothing" in str(p) for p in inspect(a_lora({A: module})).problems)


def lines_of(report):
    return [*map(str, report.messages()), *report.bars()]


def test_notes_of_the_reader_are_problems():
    doubt = Message("note.dora_inputs")
    assert inspect(a_lora(notes=[doubt])).problems == (doubt,)


def test_lines_say_the_same():
    report = inspect(a_lora(metadata={"modelspec.trigger_phrase": "zog, red hat"}, notes=[Message("note.hash")]))
    lines = lines_of(report)
    assert lines[0] == "base: Stable Diffusion 1.x"
    assert lines[1] == "spelling: kohya, 5 modules (3 lora, 1 loha, 1 full)"
    assert "2 (2x)" in lines[2]
    assert "4 (2x)" in lines[2]
    assert lines[2].endswith("alpha: 1, 2")
    assert "trigger words: zog, red hat" in lines
    assert not any(line.startswith("strength") for line in lines)
    assert any(line.startswith("note: The hash in the header") for line in lines)
    told = [program for line in lines for program in PROGRAMS if line.startswith(program + ": ")]
    (last,) = (line.removeprefix("not run: ").split(", ") for line in lines if line.startswith("not run: "))
    assert told
    assert sorted(told + last) == sorted(PROGRAMS)
    bars = {line.split()[0]: line for line in lines[-4:]}
    longest = max(report.blocks, key=lambda b: b.norm)
    for block in report.blocks:
        assert f"{block.modules} modules" in bars[block.name]
        assert bars[block.name].count("#") == round(30 * block.norm / longest.norm)
    assert all("\n" not in line for line in lines)


def test_a_strength_that_was_measured_has_a_line():
    assert "strength to start from: 0.8" in lines_of(inspect(a_lora(metadata={"ss_recommended_strength": "0.8"})))


def test_lines_of_plain_files():
    assert lines_of(inspect(a_lora({A: lora(rank=4)})))[2] == "rank: 4; alpha: 4"
    lines = lines_of(inspect(Lora("unknown", {"blocks.3.q": lora(rank=4)}, source="diffusers")))
    assert lines[0] == "base: unknown model"
    assert not any(line.startswith(PROGRAMS) for line in lines)
    assert lines_of(inspect(a_lora({A: Module("full", {"diff": torch.ones(2, 2)})})))[2].endswith("alpha: as rank")


def test_a_lora_of_zeros_has_lines_too():
    assert any(
        "changes nothing" in line
        for line in lines_of(inspect(a_lora({A: Module("lora", {"down": torch.ones(2, 5), "up": torch.zeros(6, 2)})})))
    )


# --- trigger words ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, ()), ({"modelspec.trigger_phrase": "zog"}, ("zog",)), ({"modelspec.trigger_phrase": " zog ,, red hat,"}, ("zog", "red hat")),
        ({"ss_trigger_words": "a, b"}, ("a", "b")), ({"modelspec.trigger_phrase": "zog", "ss_tag_frequency": '{"x": {"red": 9}}'}, ("zog",)),
        ({"modelspec.trigger_phrase": "", "ss_tag_frequency": '{"x": {"red": 9}}'}, ("red",)),
    ],
)  # fmt: skip
def test_trigger_words_come_from_the_phrase_in_the_header(metadata, words):
    assert triggers(metadata) == words


def test_without_a_phrase_the_commonest_tags_of_all_folders_are_meant():
    table = {"10_zog": {"zog": 5, "red": 3, " hat ": 4}, "2_zog": {"zog": 2, "red": 3}}
    assert triggers({"ss_tag_frequency": json.dumps(table)}) == ("zog", "red", "hat")
    many = {"x": {f"tag{n}": n for n in range(20)}}
    assert triggers({"ss_tag_frequency": json.dumps(many)}) == tuple(f"tag{n}" for n in range(19, 11, -1))
    assert triggers({"ss_tag_frequency": json.dumps(many)}, most=1) == ("tag19",)


MALFORMED = {
    "text": "no json", "empty": "", "list": "[1, 2]", "number": "3", "null": "null", "folder": '{"x": 3}', "tags": '{"x": ["a"]}',
    "count": '{"x": {"a": "many"}}',
    "nothing": '{"x": {"a": null}}', "nan": '{"x": {"a": NaN}}', "infinite": '{"x": {"a": Infinity}}', "deep": "[" * 100_000, "half": '{"x": {"a": 1',
}  # fmt: skip


@pytest.mark.parametrize("table", MALFORMED)
def test_a_tag_table_that_is_none_gives_no_words_and_no_error(table):
    assert triggers({"ss_tag_frequency": MALFORMED[table]}) == ()


# --- two files ----------------------------------------------------------------------------------------------------------------------------


def wanted(one: Module, two: Module) -> float:
    a, b = dense(one), dense(two)
    return float((a - b).norm() / max(a.norm(), b.norm()))


KINDS = {
    "lora": lora(12, 10, rank=3, alpha=1.5), "other factors": lora(12, 10, rank=2, alpha=-3.0, seed=9),
    "half": lora(12, 10, 3, 1.5, seed=4, dtype=torch.float16), "loha": loha(12, 10, rank=2, alpha=1.0), "lokr": lokr("full", "low", alpha=3.0),
    "full": Module("full", {"diff": random(3, 12, 10)}),
}  # fmt: skip


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_the_difference_of_two_modules_is_that_of_their_dense_changes(first, second):
    got = difference(a_lora({A: KINDS[first]}), a_lora({A: KINDS[second]}))
    assert set(got) == {A}
    assert got[A] == pytest.approx(wanted(KINDS[first], KINDS[second]), rel=1e-5, abs=1e-7)  # float32 changes


def test_convolutions_are_compared_in_plain_and_in_tucker_form():
    plain, tucker = lora(8, 6, 3, 2.0, (3, 3)), lora(8, 6, 3, 2.0, (3, 3), tucker=True, seed=4)
    assert difference(a_lora({CONV: plain}), a_lora({CONV: tucker}))[CONV] == pytest.approx(
        wanted(plain, tucker), rel=1e-5
    )


def test_a_loha_and_a_lora_over_one_convolution_are_compared():
    flat, conv = loha(8, 6, 2, 1.0, (3, 3)), lora(8, 6, 2, 1.0, (3, 3))
    a, b = dense(flat), dense(conv).flatten(1)
    one, two = (read(kohya("lora_unet_up_blocks_1_resnets_0_conv1", m), family="sd1") for m in (flat, conv))
    got = difference(one, two)[CONV]
    assert got == pytest.approx(float((a - b).norm() / max(a.norm(), b.norm())), rel=1e-5)


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("shape", [(12, 10), (640, 640)])
def test_the_difference_of_nearly_equal_loras_is_not_lost_to_rounding(apart, shape):
    one = lora(*shape, rank=4, alpha=2.0)
    two = one.replaced(up=one.parts["up"] + apart * random(77, shape[0], 4))
    got = difference(a_lora({A: one}), a_lora({A: two}))[A]
    # A change in float32 is itself only 6e-8 exact, a tenth of the smallest difference; the traces of squares alone would be lost at 1e-8 of a square.
    assert got == pytest.approx(wanted(one, two), rel=0.1)


def test_equal_loras_differ_by_nothing_however_they_are_written():
    one = a_lora()
    assert set(difference(one, a_lora()).values()) == {0.0}
    module = lora(12, 10, rank=2, alpha=4.0)
    doubled = Module(
        "lora", {"down": module.parts["down"] * 2, "up": module.parts["up"]}, 2.0
    )  # powers of two: no rounding
    assert difference(a_lora({A: module}), a_lora({A: doubled}))[A] < 1e-7
    assert difference(a_lora({A: module}), a_lora({A: Module("full", {"diff": dense(module).float()})}))[A] < 1e-6


def test_a_module_that_only_one_has_and_one_of_another_shape_differ_wholly():
    got = difference(
        a_lora({A: lora(12, 10), B: lora(12, 10)}), a_lora({A: lora(12, 11), CONV: lora(8, 6, kernel=(3, 3))})
    )
    assert got == {A: 1.0, B: 1.0, CONV: 1.0}


def test_two_modules_of_zeros_are_equal_and_one_of_them_differs_wholly():
    zero = Module("lora", {"down": random(1, 2, 10), "up": torch.zeros(12, 2)})
    assert difference(a_lora({A: zero}), a_lora({A: zero})) == {A: 0.0}
    assert difference(a_lora({A: zero}), a_lora({A: lora(12, 10)}))[A] == pytest.approx(1.0, rel=1e-6)
    assert difference(a_lora({A: lora(12, 10)}), a_lora({A: lora(12, 10).replaced(up=-lora(12, 10).parts["up"])}))[
        A
    ] == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(
    "module",
    [Module("full", {"diff_b": torch.ones(12)}), Module("other", {"oft_blocks": random(1, 2, 4, 4)})],
    ids=["bias", "oft"],
)
def test_a_file_with_modules_that_have_no_dense_change_can_be_compared_with_itself(module):
    one = a_lora({A: module, B: lora(12, 10)})
    assert set(difference(one, one).values()) == {0.0}


# --- who reads it -------------------------------------------------------------------------------------------------------------------------


def verdicts(lora):
    """Program -> its verdict in English."""
    return {program: str(verdict) for program, verdict in loaders(lora).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_spelling_of_every_family_has_a_verdict_for_every_program(family):
    layer = FAMILIES[family].table.rows[-1].diffusers.replace("*", "1")
    for form in FORMS:
        told = verdicts(a_lora({f"{FAMILIES[family].component}.{layer}": lora()}, family, form))
        assert list(told) == list(PROGRAMS)
        assert all(told.values())
        for program in PROGRAMS:
            ran = cell_of(program, family, form) is not None or (program, form) == ("PEFT", "peft")
            known = ran or family in measured()[program]["absent"] if program in measured() else ran
            assert (told[program] != "not run") == known, (program, form)


def test_nothing_is_said_of_spellings_and_families_nobody_tried():
    assert loaders(a_lora(family="unknown")) == {}
    assert loaders(a_lora(source="")) == {}


def test_a_kohya_file_of_mixed_alphas_warns_of_diffusers():
    mixed = a_lora({A: lora(alpha=1.0), B: lora(alpha=2.0)})
    assert "wrong strengths" in verdicts(mixed)["diffusers"]
    assert verdicts(mixed)["ComfyUI"] == verdicts(mixed)["A1111"] == "all"
    assert verdicts(a_lora({A: lora(alpha=1.0), B: lora(alpha=1.0)}))["diffusers"] == "all"
    assert (
        verdicts(a_lora({A: lora(alpha=1.0), TEXT: lora(alpha=2.0)}))["diffusers"] == "all"
    )  # each component has an alpha of its own
    assert "wrong" not in verdicts(a_lora({A: lora(alpha=1.0), B: lora(alpha=2.0)}, source="diffusers"))["diffusers"]
    assert (
        "wrong strengths" in verdicts(a_lora({A: lora(rank=2), B: lora(rank=4)}))["diffusers"]
    )  # a missing alpha is the rank


def test_a_file_that_was_read_warns_as_well():
    state = kohya("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", lora(8, 8, alpha=1.0))
    state |= kohya("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", lora(8, 768, alpha=2.0))
    assert any("diffusers: all, but at wrong strengths" in line for line in lines_of(inspect(read(state))))


@pytest.mark.parametrize("kind", ["loha", "lokr", "full"])
def test_a_file_of_another_kind_is_read_by_those_that_read_it_when_they_were_run(kind):
    told = verdicts(a_lora({A: KINDS[kind]}))
    assert told["sd-scripts"] == f"nothing ({kind} modules)"
    assert told["ComfyUI"] == told["A1111"] == "all"
    some = verdicts(a_lora({A: KINDS[kind], B: lora()}))
    assert some["sd-scripts"].startswith("1 of 2 layers, not ")


def flux(*blocks, text=0, source="diffusers"):
    """A Flux.1 LoRA over the outputs of these blocks, and of so many blocks of T5."""
    names = [f"transformer.transformer_blocks.{n}.attn.to_out.0" for n in blocks]
    names += [f"t5xxl.encoder.block.{n}.layer.0.SelfAttention.o" for n in range(text)]
    return a_lora({name: lora(8, 8) for name in names}, "flux1", source)


def test_forge_is_told_to_refuse_a_file_for_the_keys_it_does_not_know():
    assert verdicts(flux(0, 1, source="comfyui"))["Forge"] == "all"
    few = verdicts(flux(0, 1, text=6, source="comfyui"))["Forge"]
    assert few.startswith("2 of 8 layers, not t5xxl.")
    many = verdicts(flux(0, 1, text=7, source="comfyui"))["Forge"]
    assert many.endswith("more than 12 keys it does not know, and this one has 14")


def test_text_layers_of_one_block_count_together_where_a_program_reads_them_so():
    part = "text_model.encoder.layers.0.self_attn"
    whole = {f"clip_g.{part}.{n}_proj": lora(8, 8) for n in ("q", "k", "v", "out")}
    assert verdicts(a_lora(whole, "sdxl"))["A1111"] == "all"
    queries = {name: module for name, module in whole.items() if "q_proj" in name}
    assert verdicts(a_lora(queries, "sdxl"))["A1111"] == "nothing"
    assert verdicts(a_lora(queries, "sdxl"))["ComfyUI"] == "all"


def test_a_part_that_is_read_only_beside_others_is_told_not_to_be_read_alone():
    alone = {"clip_l.text_model.encoder.layers.0.mlp.fc1": lora(8, 8)}
    assert verdicts(a_lora(alone, "sd3"))["SD.Next"] == "nothing"
    beside = alone | {"clip_g.text_model.encoder.layers.0.mlp.fc1": lora(8, 8)}
    assert verdicts(a_lora(beside, "sd3"))["SD.Next"] == "all"


def test_a_program_that_stops_at_a_layer_is_told_to_read_nothing_of_a_file_that_has_it():
    good = {"transformer.blocks.0.attn1.to_q": lora(8, 8)}
    assert verdicts(a_lora(good, "wan"))["musubi-tuner"] == "all"
    bad = good | {
        "transformer.patch_embedding": Module(
            "lora", {"down": random(1, 2, 4, 1, 2, 2), "up": random(2, 8, 2, 1, 1, 1)}
        )
    }
    assert verdicts(a_lora(bad, "wan"))["musubi-tuner"] == "nothing: it stops at transformer.patch_embedding"


def test_onetrainer_takes_one_rank_a_file():
    assert verdicts(a_lora({A: lora(rank=2), B: lora(rank=2)}))["OneTrainer"] == "all"
    assert "one rank for the whole file" in verdicts(a_lora({A: lora(rank=2), B: lora(rank=4)}))["OneTrainer"]


# --- embeddings ---------------------------------------------------------------------------------------------------------------------------


def test_an_embedding_tells_its_vectors_norms_and_how_prompts_call_it():
    vectors = {"clip_l": torch.tensor([[3.0, 4.0], [6.0, 8.0]]), "clip_g": torch.ones(2, 4)}
    lines = [str(line) for line in embedding_lines(Embedding(vectors, "<zog>", 70, ("something",)), "my_zog")]
    assert lines[0] == "embedding: Stable Diffusion XL"
    assert "clip_l: 2 vectors of width 2, norms 5 to 10" in lines
    assert "clip_g: 2 vectors of width 4, norms 2 to 2" in lines
    assert {
        "token in the file: <zog>",
        "trained for 70 steps",
        "prompts: A1111 my_zog, ComfyUI embedding:my_zog",
        "note: something",
    } <= set(lines)


def test_a_bare_embedding_says_no_more_than_it_knows():
    lines = embedding_lines(Embedding({"clip_l": torch.ones(1, 768)}), "zog")
    assert len(lines) == 3
    with pytest.raises(FormatError):
        read({"emb_params": torch.ones(1, 768)})
