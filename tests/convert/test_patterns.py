"""The two-way rename tables, on small tables made up here."""

import pytest
from lora_loom.convert.patterns import Row, Table, fill, fused

TABLE = Table(
    [
        *fused("block.*.to_q", "block.*.to_k", "block.*.to_v", native="deep.*.qkv"),
        Row("block.*.out.0", "deep.*.proj"),
        Row("up.0.resnets.1.conv", "output.1.0.conv"),
        Row("up.1.resnets.0.conv", "output.3.0.conv"),
        Row("same.*.fc", "same.*.fc"),
        Row("a.*.b.*.c", "x.*.y.*.z"),
    ]
)


@pytest.mark.parametrize("name", ["block.12.out.0", "block_12_out_0", "deep.12.proj", "deep_12_proj"])
def test_one_layer_is_found_by_either_name_dotted_or_flat(name):
    found = TABLE.find(name)
    assert [r.diffusers for r in found.rows] == ["block.*.out.0"]
    assert found.numbers == ("12",)
    assert found.native is name.startswith("deep")
    assert found.diffusers(found.rows[0]) == "block.12.out.0"


def test_a_fused_layer_gives_its_parts_in_the_order_of_its_rows():
    found = TABLE.find("deep.3.qkv")
    assert [found.diffusers(r) for r in found.rows] == ["block.3.to_q", "block.3.to_k", "block.3.to_v"]
    assert [r.part for r in found.rows] == [0, 1, 2]
    alone = TABLE.find("block.3.to_k")
    assert [r.part for r in alone.rows] == [1]


def test_fixed_numbers_in_a_pattern_must_be_those_numbers():
    assert TABLE.find("output_3_0_conv").rows[0].diffusers == "up.1.resnets.0.conv"
    assert TABLE.find("up.0.resnets.1.conv").rows[0].native == "output.1.0.conv"
    for name in ("output_2_0_conv", "output_1_1_conv", "block.1.out.1"):
        assert TABLE.find(name) is None


def test_several_numbers_keep_their_order():
    found = TABLE.find("x_4_y_17_z")
    assert found.diffusers(found.rows[0]) == "a.4.b.17.c"


def test_a_name_that_both_spellings_share_counts_as_diffusers():
    assert TABLE.find("same.2.fc").native is False


@pytest.mark.parametrize(
    "name",
    [
        "",
        "block",
        "block.x.out.0",
        "block.1.out",
        "1.block.1.out.0",
        "block.1.out.0.more",
        "deep.1.2.proj",
        "block..out.0",
    ],
)
def test_other_names_are_not_found(name):
    assert TABLE.find(name) is None


def test_stars_are_filled_from_left_to_right():
    assert fill("a.*.b.*.c", ["1", "20"]) == "a.1.b.20.c"
    assert fill("plain", []) == "plain"
