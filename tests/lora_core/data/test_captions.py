import random

import pytest
from lora_loom.lora_core.data.captions import read_caption, vary, with_trigger


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


@pytest.mark.parametrize("content", [b"", b"\n \t\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff\xfea", b"\x81\x8d\xff", bytes(range(256)), b"\xff\xfe\x00\xd8"])
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
        tags = vary("zog, a, b,, c , d", rng, True, 2, 0.0).split(", ")
        assert tags[:2] == ["zog", "a"]
        assert sorted(tags[2:]) == ["b", "c", "d"]
        seen.add(tuple(tags[2:]))
    assert len(seen) == 6  # all orders of three tags; 200 draws miss one with probability 6 * (5/6)^200 < 1e-15


def test_dropout_empties_the_asked_share_of_captions():
    rng = random.Random(0)
    share = sum(vary("a, b", rng, False, 1, 0.3) == "" for _ in range(5000)) / 5000
    assert share == pytest.approx(0.3, abs=0.033)  # five deviations of 5000 coin flips
    assert vary("a", rng, False, 1, 1.0) == ""


def test_a_caption_without_options_is_left_as_it_is():
    assert vary("b,a ,  c", random.Random(0), False, 1, 0.0) == "b,a ,  c"


@pytest.mark.parametrize("options", [(False, 1, 0.0), (True, 1, 0.0), (True, 0, 0.5), (False, 3, 1.0)])
def test_options_do_not_shift_the_randomness_of_what_comes_after(options):
    rng = random.Random(4)
    vary("a, b, c, d", rng, *options)
    plain = random.Random(4)
    plain.random(), plain.getrandbits(64)
    assert rng.getstate() == plain.getstate()
