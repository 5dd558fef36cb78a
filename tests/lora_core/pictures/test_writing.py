"""Every script of captions and prompts is drawn as it is written: no empty box, on no sheet and no plot."""

from __future__ import annotations

import numpy as np
import pytest
from lora_loom.lora_core.pictures import plots, writing
from lora_loom.lora_core.training.sampling import sheet
from PIL import Image, ImageDraw, features

SCRIPTS = {
    "accents": "naïve café, Łódź, Žižkov, tiếng Việt, ñandú, ğüş",
    "greek": "Γειά σου Κόσμε",
    "cyrillic": "Привет, їжак",
    "chinese": "一只可爱的猫坐在窗台上，龍鳳呈祥",
    "japanese": "かわいい猫の写真、カタカナ「漢字」",
    "korean": "귀여운 고양이 사진",
    "arabic": "صورة قطة جميلة",
    "hebrew": "חתול חמוד",
    "hindi": "एक प्यारी बिल्ली",
    "thai": "แมวน่ารักบนหน้าต่าง",
    "bengali": "একটি সুন্দর বিড়াল",
    "tamil": "அழகான பூனை",
    "emoji": "😀🐱👍❤🎨🧿",
    "signs": "★ → ✓ ∑ № … — “”",
}
NO_LETTER = "\uffff"


def ink(font, text):
    """What a font draws of a text, as numbers."""
    mask = font.getmask(text, anchor="ls")
    return np.array(mask, dtype=np.uint8).reshape(mask.size[::-1]), mask.size


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_letter_has_a_picture_of_its_own_in_a_font_that_comes_with_the_package(script, monkeypatch):
    monkeypatch.setattr(writing, "_system_fonts", lambda: ())
    writing._system_font.cache_clear()
    for path, run in writing.runs(SCRIPTS[script]):
        font = writing._loaded(path, 40)
        box, size = ink(font, NO_LETTER)
        for letter in run.strip():
            drawn, _ = ink(font, letter)
            same = drawn.shape == box.shape and np.array_equal(drawn, box)
            assert not (same and size[0]), f"{letter} (U+{ord(letter):04X}) in {path.name}"
            assert drawn.any() or letter == " ", f"{letter} (U+{ord(letter):04X}) in {path.name}"
    assert "U+" not in "".join(run for _, run in writing.runs(SCRIPTS[script]))
    writing._system_font.cache_clear()


def test_a_letter_that_no_font_has_is_written_as_its_number(monkeypatch):
    monkeypatch.setattr(writing, "_system_fonts", lambda: ())
    writing._system_font.cache_clear()
    assert "".join(run for _, run in writing.runs("a \ua98f b")) == "a U+A98F b"
    writing._system_font.cache_clear()


def test_a_letter_the_package_lacks_comes_from_a_font_of_the_system(monkeypatch, tmp_path):
    other = tmp_path / "system.ttf"
    other.write_bytes((writing._FOLDER / "thai.ttf").read_bytes())
    monkeypatch.setattr(writing, "_SHIPPED", ("latin",))
    monkeypatch.setattr(writing, "_system_fonts", lambda: (tmp_path / "none.ttf", other))
    writing._system_font.cache_clear()
    assert writing.runs("cat แมว") == [(writing._FOLDER / "latin.ttf", "cat "), (other, "แมว")]
    writing._system_font.cache_clear()


def test_a_line_that_begins_leftwards_is_laid_out_leftwards():
    runs = [run for _, run in writing.runs("صورة cat 12")]
    assert runs == ["cat 12", "صورة "]
    assert [run for _, run in writing.runs("cat صورة")] == ["cat ", "صورة"]
    assert [run for _, run in writing.runs("صورة cat قط")] == ["قط", " cat", "صورة "]


def test_without_raqm_a_leftward_run_is_turned_round(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    assert writing._laid_out("חתול") == "לותח"
    assert writing._laid_out("cat") == "cat"


@pytest.mark.parametrize("text", ["a\u202eb", "a\x00b", "a\u2066b\u2069", "a\ud800b"])
def test_marks_that_show_nothing_and_turn_nothing_are_left_out(text):
    assert "".join(run for _, run in writing.runs(text)) == "ab"


def test_a_cut_line_fits_and_says_that_it_is_cut():
    long = SCRIPTS["chinese"] * 3
    short = writing.cut(long, 12, 100)
    assert short.endswith("...")
    assert writing.length(short, 12) <= 100
    assert writing.cut("cat", 12, 100) == "cat"


@pytest.mark.parametrize("anchor", ["la", "ma", "ra"])
def test_a_line_stands_where_its_anchor_says(anchor):
    image = Image.new("L", (300, 40), 255)
    writing.write(ImageDraw.Draw(image), (150, 5), "HH 猫猫 HH", 0, 14, anchor)
    left, top, right, bottom = Image.eval(image, lambda value: 255 - value).getbbox()
    width = writing.length("HH 猫猫 HH", 14)
    before = {"la": 0, "ma": width / 2, "ra": width}[anchor]
    assert abs(left - (150 - before)) <= 3
    assert abs(right - (150 - before + width)) <= 3
    assert top >= 5
    assert bottom <= 5 + 20


def blank(text):
    return " " * len(text)


def drawings(text):
    """Every picture of ours that people's texts are drawn into."""
    small = Image.new("RGB", (64, 64), "white")
    yield "samples", sheet([(text, [small])], [text], [text])
    yield "grid", plots.grid([small], [text])
    yield "bars", plots.bars([(text, 1.0)], text)
    yield "curves", plots.curves({text: [(0, 1.0), (1, 2.0)]})


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_sheet_and_plot_draws_the_script(script):
    for (name, with_text), (_, without) in zip(drawings(SCRIPTS[script]), drawings(blank(SCRIPTS[script]))):
        assert not np.array_equal(np.array(with_text), np.array(without)), name
