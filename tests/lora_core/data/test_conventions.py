"""What other trainers write beside and into pictures and captions is understood as they mean it, or told."""

import random

import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.captions import Caption, editor, vary
from lora_loom.lora_core.data.folder import scan
from PIL import Image


def put(root, *names, caption=None):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def scanned(root, **settings):
    return scan(DataConfig(folder=str(root), resolution=64, bucket_step_px=32, **settings))


def names(dataset):
    return [p.name for p in dataset.pictures]


def codes(dataset):
    return {m.code: m for m in dataset.warnings}


MASKS = {
    "a.mask.png": "ours", "a-masklabel.png": "OneTrainer", "a_mask.png": "common", "a-mask.PNG": "common", "mask/a.png": "folders",
    "masks/a.webp": "common", "_masks/a.png": "common",
}  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
def test_masks_of_other_trainers_are_masks(mask, tmp_path):
    put(tmp_path, "a.png", caption="zog")
    put(tmp_path, mask)
    trained = scanned(tmp_path, masks="file")
    assert [(p.name, p.mask) for p in trained.pictures] == [("a.png", tmp_path / mask)]
    idle = scanned(tmp_path)
    assert names(idle) == ["a.png"]
    assert codes(idle)["data.masks_unused"].values == {"count": 1, "names": (mask,)}


@pytest.mark.parametrize("name", ["a.mask.png", "a-masklabel.png", "a-condlabel.png", "a_condlabel.png"])
def test_what_no_picture_is_called_is_trained_nowhere_though_its_own_picture_is_gone(name, tmp_path):
    put(tmp_path, "b.png", caption="zog")
    put(tmp_path, name, caption="zog")
    assert names(scanned(tmp_path)) == ["b.png"]


def test_masks_in_a_folder_beside_that_of_the_pictures_are_found(tmp_path):
    put(tmp_path, "img/sub/a.png", "mask/sub/a.png", "img/b.png", "masks/b.png")
    trained = scanned(tmp_path, masks="file")
    assert {p.name: p.mask and p.mask.relative_to(tmp_path).as_posix() for p in trained.pictures} == {
        "img/b.png": "masks/b.png",
        "img/sub/a.png": "mask/sub/a.png",
    }


def test_a_picture_that_is_called_mask_and_belongs_to_none_is_trained(tmp_path):
    put(tmp_path, "venetian_mask.png", "mask/other.png", "control/dial.png", "img_0.png")
    assert names(scanned(tmp_path)) == ["control/dial.png", "img_0.png", "mask/other.png", "venetian_mask.png"]


CONDITIONS = [
    "a-condlabel.png",
    "control/a.png",
    "control/a_0.png",
    "control_images/a_0001.jpg",
    "conditioning/a.png",
    "_controls/a.png",
    "cond/a.png",
]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_pictures_that_others_are_conditioned_on_are_told_and_not_trained(condition, tmp_path):
    put(tmp_path, "a.png", caption="zog")
    put(tmp_path, condition)
    dataset = scanned(tmp_path)
    assert names(dataset) == ["a.png"]
    assert codes(dataset)["data.conditions"].values["names"] == (condition,)


def test_conditioning_beside_the_folder_of_pictures_is_told(tmp_path):
    put(tmp_path, "target/a.png", "target/deep/b.png", "control/a.png", "control/deep/b_1.png")
    assert names(scanned(tmp_path)) == ["target/a.png", "target/deep/b.png"]


def test_numbered_pictures_without_a_caption_beside_a_captioned_one_are_its_layers(tmp_path):
    put(tmp_path, "a.png", "c_1.png", caption="zog")
    put(tmp_path, "a_0.png", "a_0001.png", "b.png", "b_0.png")
    dataset = scanned(tmp_path)
    assert names(dataset) == ["a.png", "b.png", "b_0.png", "c_1.png"]
    assert codes(dataset)["data.conditions"].values["count"] == 2
    assert "a_0.png" in names(scanned(tmp_path, captions="file name"))


def test_pictures_that_metadata_names_beside_its_own_are_not_trained(tmp_path):
    put(tmp_path, "a.png", "edge.png", "hf.png", "kept.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "zog", "control_path": "edge.png", "conditioning_file_name": "hf.png"}\n'
        '{"file_name": "kept.png", "text": "zag", "control_path": "a.png"}\n'
    )
    dataset = scanned(tmp_path)
    assert names(dataset) == ["a.png", "kept.png"]
    assert codes(dataset)["data.conditions"].values["names"] == ("edge.png", "hf.png")


def edited(text, **settings):
    return editor(DataConfig(**settings))(Caption(text))


@pytest.mark.parametrize("text", ["[trigger] on a hill", "[name] on a hill", "[Trigger] on a hill"])
def test_the_placeholder_of_ai_toolkit_becomes_the_trigger(text, tmp_path):
    assert edited(text, trigger="zog").text == "zog on a hill"
    put(tmp_path, "a.png", caption=text)
    assert "data.no_trigger" not in codes(scanned(tmp_path, trigger="zog"))
    assert codes(scanned(tmp_path))["data.placeholder"].values["names"] == ("a.png",)


def drawn(text, count=60, **settings):
    config = DataConfig(**settings)
    caption = editor(config)(Caption(text))
    return {vary([caption], random.Random(n), config) for n in range(count)}


def test_parts_around_the_separator_of_kohya_stay_in_place_while_those_inside_are_shuffled():
    text = "zog, 1girl ||| a, b, c ||| best quality, last"
    assert edited(text).text == "zog, 1girl, a, b, c, best quality, last"
    assert drawn(text) == {"zog, 1girl, a, b, c, best quality, last"}
    shuffled = drawn(text, shuffle_tags=True, keep_tokens=0)
    assert len(shuffled) == 6
    assert all(t.startswith("zog, 1girl, ") and t.endswith(", best quality, last") for t in shuffled)
    assert len(drawn("zog ||| a, b", shuffle_tags=True, keep_tokens=9)) == 2
    assert all(t.startswith("new, zog, ") for t in drawn("zog ||| a, b", shuffle_tags=True, trigger="new"))
    assert min(drawn(text, tag_dropout=1.0)) == "zog, 1girl, best quality, last"


def test_parts_joined_by_the_second_separator_stay_together():
    text = "zog, red;;;hat, blue;;;coat"
    assert edited(text).text == "zog, red, hat, blue, coat"
    assert drawn(text, shuffle_tags=True) == {"zog, red, hat, blue, coat", "zog, blue, coat, red, hat"}


def test_wildcards_inside_of_separators_are_drawn():
    assert drawn("{x|y}, z ||| a", wildcards=True) == {"x, z, a", "y, z, a"}


SPEECH = {
    "data.lora_tags": "zog <lora:add_detail:0.8>", "data.wildcards_off": "a {red|blue} cat", "data.wildcard_files": "a __colour__ cat",
    "data.prompt_options": "a cat --w 512 --n blurry", "data.emphasis": "a (cat:1.2)",
}  # fmt: skip


@pytest.mark.parametrize("code", SPEECH)
def test_words_of_other_programs_in_captions_are_told(code, tmp_path):
    put(tmp_path, "a.png", caption=SPEECH[code])
    put(tmp_path, "b.png", caption="a cat - plain, (red) {x}")
    assert {c: m.values["names"] for c, m in codes(scanned(tmp_path)).items() if c in SPEECH} == {code: ("a.png",)}


def test_choices_in_braces_are_not_told_where_they_are_drawn(tmp_path):
    put(tmp_path, "a.png", caption=SPEECH["data.wildcards_off"])
    assert "data.wildcards_off" not in codes(scanned(tmp_path, wildcards=True))


def test_several_lines_are_one_caption_or_alternatives_or_the_first_and_the_first_way_is_told(tmp_path):
    put(tmp_path, "a.png", caption="a cat\nanother, cat")
    put(tmp_path, "tags.png", caption="cat\nhat\nmat")
    assert scanned(tmp_path).pictures[0].caption == "a cat another, cat"
    assert codes(scanned(tmp_path))["data.several_lines"].values["names"] == ("a.png",)
    first = scanned(tmp_path, caption_lines="first")
    assert [c.text for c in first.pictures[0].captions] == ["a cat"]
    assert "data.several_lines" not in codes(first)
    assert [c.text for c in scanned(tmp_path, caption_lines="alternatives").pictures[0].captions] == [
        "a cat",
        "another, cat",
    ]
