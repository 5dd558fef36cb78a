import random
import time

import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.captions import (
    MAX_CAPTIONS,
    Caption,
    captions_in,
    editor,
    read_caption,
    tidy,
    vary,
    with_trigger,
)
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image


def varied(text, rng, **options):
    return vary([Caption(text)], rng, DataConfig(**options))


@pytest.mark.parametrize(
    "encoded",
    [
        "a café, 猫".encode(), "a café, 猫".encode("utf-8-sig"), "a café, 猫".encode("utf-16"), b"\xfe\xff" + "a café, 猫".encode("utf-16-be"),
        "a café,\r\n 猫\n\n".encode(),
    ],
    ids=["utf-8", "utf-8 with mark", "utf-16 little", "utf-16 big", "line breaks"],
)  # fmt: skip
def test_a_caption_is_read_in_every_encoding_editors_write(encoded, tmp_path):
    (tmp_path / "x.txt").write_bytes(encoded)
    assert read_caption(tmp_path / "x.txt") == "a café, 猫"


def test_bytes_that_are_no_utf_8_are_windows_1252(tmp_path):
    (tmp_path / "x.txt").write_bytes("a café – “zog”".encode("cp1252"))
    assert read_caption(tmp_path / "x.txt") == "a café – “zog”"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n \t\r\n",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xff\xfea",
        b"\x81\x8d\xff",
        bytes(range(256)),
        b"\xff\xfe\x00\xd8",
    ],
)
def test_no_bytes_whatsoever_make_reading_fail(content, tmp_path):
    (tmp_path / "x.txt").write_bytes(content)
    caption = read_caption(tmp_path / "x.txt")
    assert caption == caption.strip()
    assert not {"\n", "\r", "\0"} & set(caption)


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("a dog", "zog", "zog, a dog"), ("", "zog", "zog"), ("a dog", "", "a dog"), ("", "", ""),
        ("a zog, red", "zog", "a zog, red"), ("a ZOG", "zog", "a ZOG"), ("zogs, red", "zog", "zog, zogs, red"), ("a zog's hat", "zog", "a zog's hat"),
        ("my_zog", "zog", "zog, my_zog"), ("the vish style", "vish style", "the vish style"), ("a c++ x", "c++", "a c++ x"), ("a (zog)", "(zog)", "a (zog)"),
        ("猫の絵", "猫", "猫, 猫の絵"),
    ],
)  # fmt: skip
def test_the_trigger_is_put_in_front_unless_it_stands_there_as_a_word(caption, trigger, expected):
    assert with_trigger(caption, trigger) == expected


def test_shuffling_keeps_every_tag_and_the_first_ones_in_place():
    rng, seen = random.Random(0), set()
    for _ in range(200):
        tags = varied("zog, a, b,, c , d", rng, shuffle_tags=True, keep_tokens=2).split(", ")
        assert tags[:2] == ["zog", "a"]
        assert sorted(tags[2:]) == ["b", "c", "d"]
        seen.add(tuple(tags[2:]))
    assert len(seen) == 6  # all orders of three tags; 200 draws miss one with probability 6 * (5/6)^200 < 1e-15


def test_dropout_empties_the_asked_share_of_captions():
    rng = random.Random(0)
    share = sum(varied("a, b", rng, caption_dropout=0.3) == "" for _ in range(5000)) / 5000
    assert share == pytest.approx(0.3, abs=0.033)  # five deviations of 5000 coin flips
    assert varied("a", rng, caption_dropout=1.0) == ""


def test_a_caption_without_options_is_left_as_it_is():
    assert varied("b,a ,  c", random.Random(0)) == "b,a ,  c"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle_tags": True},
        {"keep_tokens": 0, "caption_dropout": 0.5},
        {"caption_dropout": 1.0},
        {"tag_dropout": 0.5},
        {"wildcards": True},
    ],
    ids=str,
)
def test_options_do_not_shift_the_randomness_of_what_comes_after(options):
    rng, plain = random.Random(4), random.Random(4)
    vary([Caption("a, {b|c}, c, d"), Caption("e")], rng, DataConfig(**options))
    vary([Caption("x")], plain, DataConfig())
    assert rng.getstate() == plain.getstate()


def test_one_of_several_captions_is_drawn_as_often_as_its_weight_says():
    captions, rng = [Caption("a"), Caption("b", 3.0), Caption("never", 0.0)], random.Random(0)
    drawn = [vary(captions, rng, DataConfig()) for _ in range(8000)]
    assert drawn.count("b") / 8000 == pytest.approx(0.75, abs=0.025)  # five deviations of 8000 draws
    assert drawn.count("never") == 0


def test_lines_are_one_caption_or_alternatives_with_weights():
    assert captions_in("a dog,\n sitting", "joined") == (Caption("a dog, sitting"),)
    assert captions_in("a dog\n\n0.5:: a brown dog \n", "alternatives") == (
        Caption("a dog"),
        Caption("a brown dog", 0.5),
    )
    assert captions_in("\n \n", "alternatives") == ()


def test_wildcards_are_choices_and_off_they_are_text():
    rng, text = random.Random(0), "a {red|2::blue|{dark|light} green} cat"
    assert varied(text, rng) == text
    drawn = [varied(text, rng, wildcards=True) for _ in range(8000)]
    shares = {colour: drawn.count(f"a {colour} cat") / 8000 for colour in ("red", "blue", "dark green", "light green")}
    assert shares == pytest.approx({"red": 0.25, "blue": 0.5, "dark green": 0.125, "light green": 0.125}, abs=0.028)


def test_tag_dropout_spares_the_kept_ones_and_takes_the_asked_share_of_the_rest():
    rng = random.Random(0)
    left = [varied("zog, a, b, c, d", rng, tag_dropout=0.25).split(", ") for _ in range(4000)]
    assert all(tags[0] == "zog" for tags in left)
    assert sum(len(tags) - 1 for tags in left) / 16_000 == pytest.approx(
        0.75, abs=0.017
    )  # five deviations of 16000 coin flips
    assert all(tags == [t for t in ["zog", "a", "b", "c", "d"] if t in tags] for tags in left)  # in their order


def test_the_edits_of_a_set_come_in_their_order():
    edit = editor(
        DataConfig(
            replace="dog => cat\n/(\\d+)girls?/ => \\1 girls\n(x) => y",
            prefix="photo of ",
            suffix=", best",
            trigger="zog",
        )
    )
    assert edit(Caption("a dog, 2girls (x)", 0.5)) == Caption("zog, photo of a cat, 2 girls y, best", 0.5)
    assert edit(Caption("")) == Caption("zog")


@pytest.mark.parametrize("rule", ["no arrow", "=> b", "/(/ => b", "/a/ => \\9"])
def test_a_rule_that_is_none_is_one_sentence(rule):
    with pytest.raises(LoomError, match="data.replace: "):
        editor(DataConfig(replace=rule))


def test_a_rule_that_re_searches_for_ages_is_answered_at_once_and_replaces_as_re_does():
    edit = editor(DataConfig(replace=r"/(\w+,? ?)+!/ => gone" + "\n" + r"/((\w+), )+(\w+)$/ => \3 and \2"))
    began = time.process_time()
    assert edit(Caption("a " * 200)).text == ("a " * 200).strip()
    assert edit(Caption("one, two, three")).text == "three and two"
    assert edit(Caption("one, two!")).text == "gone"
    assert time.process_time() - began < 10  # seconds
    with pytest.raises(LoomError, match="data.replace: .* is not a valid regular expression"):
        editor(DataConfig(replace=r"/((a+)+)!/ => \7"))


def test_more_captions_than_anyone_chooses_from_leave_the_picture_out_with_the_number(tmp_path):
    for name, lines in (("all", MAX_CAPTIONS + 1), ("some", MAX_CAPTIONS)):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("x\n" * lines)
    config = DataConfig(folder=str(tmp_path), resolution=32, bucket_step_px=16, caption_lines="alternatives")
    dataset = scan(config)
    assert [picture.name for picture in dataset.pictures] == ["some.png"]
    assert [str(reason) for _, reason in dataset.skipped] == [
        "it has 10001 captions to choose from; at most 10000 are allowed"
    ]


def test_a_caption_of_controls_is_spaces():
    assert tidy("a\x00b\x1f c\ud800d\ufeffe\x85f\xa0g") == "a b c d e f g"
