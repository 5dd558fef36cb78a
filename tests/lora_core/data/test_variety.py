"""What trainers are advised to look for in pictures of one subject."""

import numpy as np
import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.lint import look
from lora_loom.lora_core.data.variety import border, largest_alike
from PIL import Image

OURS = ("lint.far", "lint.far_mask", "lint.others")


def picture(seed, background=None, size=96):
    """Noise, on a plain ground where one is given."""
    rng = np.random.default_rng(seed)
    inside = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    if background is None:
        return inside
    image = Image.new("RGB", (size, size), background)
    image.paste(inside.resize((size // 2, size // 2)), (size // 4, size // 4))
    return image


def report(root, captions, trigger="zog", background=None, masks="none", mask=None):
    for n, caption in enumerate(captions):
        picture(n, background).save(root / f"{n}.png")
        (root / f"{n}.txt").write_text(caption)
        if mask is not None:
            mask.save(root / f"{n}.mask.png")
    data = DataConfig(folder=str(root), trigger=trigger, resolution=96, bucket_step_px=32, masks=masks)
    return look(scan(data), None, lambda n, of: None)


def general(found):
    """What is said of the set, but that faces were not looked for, where the package for it is absent (test_looks.py)."""
    return {m.code: m.values for m in found.general if m.code != "lint.faces_not_looked_for"}


def notes(found):
    return {m.code: name for name, told in found.notes.items() for m in told if m.code in OURS}


PLAIN = [
    "zog woman in a hall",
    "zog woman reads",
    "a zog woman by a car",
    "zog woman, laughing",
    "a zog woman and a tree",
]


def test_a_varied_set_has_nothing_to_say(tmp_path):
    found = report(tmp_path, PLAIN)
    assert general(found) == {}
    assert notes(found) == {}


@pytest.mark.parametrize("words", ["with two friends", "in a crowd", "and 2girls", "beside three men", "in a group"])
def test_other_people_in_a_caption_are_told_where_the_subject_is_a_person(words, tmp_path):
    found = report(tmp_path, [*PLAIN, f"zog woman {words}"])
    assert notes(found) == {"lint.others": "5.png"}


def test_other_people_are_no_fault_of_a_style_or_a_thing(tmp_path):
    assert notes(report(tmp_path, ["zog pot on a table, people behind"] + [f"zog pot {n}" for n in range(5)])) == {}


@pytest.mark.parametrize("words", ["far away", "in the distance", "a wide shot of zog", "seen from afar"])
def test_a_subject_far_away_is_told_from_its_caption(words, tmp_path):
    assert notes(report(tmp_path, [*PLAIN, f"zog woman, {words}"])) == {"lint.far": "5.png"}


def test_a_subject_far_away_is_told_from_its_mask(tmp_path):
    mask = Image.new("L", (96, 96), 0)
    mask.paste(255, (40, 40, 58, 58))
    found = report(tmp_path, PLAIN[:1], masks="file", mask=mask)
    assert [m.values["share"] for m in found.notes["0.png"] if m.code in OURS] == ["3.52 %"]
    mask.paste(255, (20, 20, 70, 70))
    assert "lint.far_mask" not in notes(report(tmp_path, PLAIN[:1], masks="file", mask=mask))


def test_close_pictures_want_whole_figures_beside_them_and_the_other_way_round(tmp_path):
    close = [f"zog woman, close-up, number {n}" for n in range(6)]
    whole = [f"zog woman, full body, number {n}" for n in range(6)]
    for name, captions, said in (
        ("a", close, {"lint.no_whole_figure"}),
        ("b", whole, {"lint.no_close_up"}),
        ("c", [*close, *whole[:2]], set()),
    ):
        (tmp_path / name).mkdir()
        codes = general(report(tmp_path / name, captions)).keys()
        assert codes & {"lint.no_whole_figure", "lint.no_close_up"} == said


def test_clothes_and_places_that_many_captions_name_are_told(tmp_path):
    captions = [
        "zog woman in a red dress",
        "zog woman wearing a red dress",
        "her red dress, zog woman",
        "zog woman, studio",
        "a zog woman",
        "zog woman in a hat",
    ]
    values = general(report(tmp_path, captions))["lint.repeated"]
    assert values["things"] == ("red dress (3)",)
    assert general(report(tmp_path, captions, trigger="")) == {}


def test_a_background_that_repeats_is_told_and_a_different_one_is_not(tmp_path):
    assert general(report(tmp_path, PLAIN, background=(250, 250, 250)))["lint.same_background"] == {
        "count": 5,
        "all": 5,
    }
    few = tmp_path / "few"
    few.mkdir()
    assert "lint.same_background" not in general(report(few, PLAIN[:4], background=(250, 250, 250)))
    assert "lint.same_background" not in general(report(tmp_path, PLAIN))


def test_borders_are_the_outermost_pixels():
    tiny = np.zeros((16, 16, 3), np.float32)
    tiny[1:-1, 1:-1] = 200
    assert border(tiny).shape == (60 * 3,)
    assert border(tiny).max() == 0
    assert largest_alike([np.zeros(180), np.full(180, 9.0), np.full(180, 100.0)]) == 2
    assert largest_alike([]) == 0
