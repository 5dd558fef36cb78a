"""How hard each picture is over a run, which ones stay hard and which ones are memorised."""

import json
import random

import numpy as np
import pytest
from lora_loom.lora_core.runs.measured import COLUMNS, THUMBNAIL_PX, measured, thumbnails
from lora_loom.lora_core.training.difficulty import Course, Seen
from PIL import Image

ON = {"every": 2, "share": 0.25, "levels": 2}


def names(folder):
    return [picture["name"] for picture in measured(folder)["pictures"]["pictures"]]


def test_the_probes_are_kept_by_picture_at_no_cost(toy_config, run_toy, tmp_path):
    result = run_toy(toy_config(validation=ON), tmp_path)
    found = measured(tmp_path)["pictures"]
    assert [picture["held_out"] for picture in found["pictures"]] == [True, False]
    assert [row["step"] for row in found["rows"]] == [0, 2, 4]
    held, trained = zip(*(row["losses"] for row in found["rows"]), strict=True)
    assert held[0] + trained[0] == pytest.approx(2, abs=0.01)  # each level counts alike: divided by the middle of both
    assert len(set(held)) == 3
    assert result.facts["best_step"] in (0, 2, 4)


def test_all_training_pictures_are_measured_where_wanted(toy_config, run_toy, tmp_path):
    plain = run_toy(toy_config(validation=ON), tmp_path / "plain")
    every = run_toy(toy_config(validation={**ON, "each_picture": True}), tmp_path / "every")
    assert sorted(names(tmp_path / "every")) == ["0.png", "1.png", "2.png", "3.png"]
    assert names(tmp_path / "every")[:2] == names(tmp_path / "plain")
    assert every.facts["validation"] == plain.facts["validation"]


def test_the_pictures_lie_small_in_the_run_folder_in_their_order(toy_config, run_toy, tmp_path, pictures):
    run_toy(toy_config(validation={**ON, "each_picture": True}), tmp_path)
    (tmp_path / "sheet.jpg").write_bytes(thumbnails(tmp_path))
    sheet = Image.open(tmp_path / "sheet.jpg").convert("RGB")
    assert sheet.size == (COLUMNS * THUMBNAIL_PX, THUMBNAIL_PX)
    for place, name in enumerate(names(tmp_path)):
        picture = Image.open(pictures / name).convert("RGB")
        left = place * THUMBNAIL_PX + (THUMBNAIL_PX - picture.width) // 2
        top = (THUMBNAIL_PX - picture.height) // 2
        cut = sheet.crop((left, top, left + picture.width, top + picture.height))
        assert np.abs(np.asarray(cut, float) - np.asarray(picture, float)).mean() < 12


def course(lines, held=0, sets=None):
    """A course of pictures p0, p1, ...: a line of losses each, of one level; the first `held` are held out."""
    sets = sets or [0] * len(lines)
    found = Course([Seen(f"p{n}", n < held, of_set) for n, of_set in enumerate(sets)])
    for step, values in enumerate(zip(*lines, strict=True)):
        found.add(50 * step, [[value] for value in values])
    return found


def usual(count, seed=0, level=1.0):
    """Pictures that are learnt: each of a difficulty of its own, a third easier after each measure."""
    rng = random.Random(seed)
    return [[level * base * 0.7**n for n in range(6)] for base in (rng.uniform(0.8, 1.25) for _ in range(count))]


def test_a_picture_that_stays_far_harder_than_the_others_is_named():
    found = course([*usual(9), [2.5, 2.6, 2.4, 2.5, 2.4, 2.5]])
    assert found.hard() == [9]
    (said,) = found.messages()
    assert str(said).startswith("1 picture stays hard throughout: p9. The loss on it is up to ")


# Of a run of 300 steps on the toy: sixteen rings, of which 05 was replaced by noise. Whether it was held out, and its losses every 50 steps.
OF_A_RUN = {
    "00": (False, [1.57, 0.659, 0.459, 0.49, 0.399, 0.39, 0.375]),
    "01": (False, [2.4, 0.777, 0.54, 0.566, 0.434, 0.413, 0.396]),
    "02": (True, [2.66, 0.971, 0.656, 0.724, 0.672, 0.62, 0.614]),
    "03": (False, [2.78, 0.908, 0.54, 0.545, 0.474, 0.445, 0.431]),
    "04": (False, [2.4, 0.921, 0.605, 0.667, 0.581, 0.513, 0.51]),
    "05": (False, [1.78, 1.25, 1.12, 0.946, 0.858, 0.801, 0.787]),
    "06": (False, [2.0, 0.822, 0.514, 0.551, 0.472, 0.447, 0.432]),
    "07": (False, [1.5, 0.593, 0.441, 0.448, 0.384, 0.326, 0.344]),
    "08": (False, [1.77, 0.657, 0.416, 0.499, 0.395, 0.324, 0.324]),
    "09": (True, [2.2, 0.91, 0.761, 0.644, 0.607, 0.62, 0.623]),
    "10": (True, [1.37, 0.525, 0.449, 0.394, 0.384, 0.382, 0.358]),
    "11": (False, [1.91, 0.776, 0.62, 0.57, 0.476, 0.474, 0.478]),
    "12": (True, [1.86, 0.811, 0.765, 0.632, 0.653, 0.633, 0.62]),
    "13": (False, [1.85, 0.749, 0.541, 0.557, 0.507, 0.456, 0.447]),
    "14": (False, [2.15, 0.822, 0.635, 0.654, 0.58, 0.54, 0.533]),
    "15": (False, [2.42, 0.787, 0.593, 0.539, 0.478, 0.413, 0.408]),
}  # fmt: skip


def test_in_a_run_as_it_was_the_picture_of_noise_is_named_and_no_other():
    found = Course([Seen(name, held) for name, (held, _) in OF_A_RUN.items()], [1.0])
    found.rows = [
        (50 * n, list(row)) for n, row in enumerate(zip(*(line for _, line in OF_A_RUN.values()), strict=True))
    ]
    assert [found.pictures[n].name for n in found.hard()] == ["05"]
    found.pictures = [Seen(p.name, p.held_out) for p in found.pictures if p.name != "05"]
    at = list(OF_A_RUN).index("05")
    found.rows = [(step, [*row[:at], *row[at + 1 :]]) for step, row in found.rows]
    assert found.hard() == []


@pytest.mark.parametrize("lines", [
    usual(10),
    [*usual(9), [3.0, 2.5, 2.0, 1.5, 1.0, 0.17]],  # hard for long, learnt at last
    [*usual(9), [1.0, 0.7, 0.49, 0.34, 0.24, 2.0]],  # an outlier once
    [*usual(9), [1.4 * 0.7**n for n in range(6)]],  # somewhat harder, as some picture always is
    [line[:4] for line in [*usual(9), [2.5] * 4]],  # too few measures to say what stays
    [[base] * 6 for base in (0.3, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0, 2.6, 3.0)],  # a set in which pictures differ widely
    [*usual(6), [2.5] * 6],  # too few to say what is usual
])  # fmt: skip
def test_pictures_as_they_always_differ_are_not(lines):
    assert course(lines).hard() == []


def test_a_set_that_is_harder_than_another_is_no_outlier_but_a_picture_of_it_may_be():
    lines = [*usual(8), *usual(8, 1, 6.0)]
    assert course(lines, sets=[0] * 8 + [1] * 8).hard() == []
    lines[8] = [20.0] * 6
    assert course(lines, sets=[0] * 8 + [1] * 8).hard() == [8]


def test_validation_pictures_that_trained_ones_leave_behind_are_no_outliers():
    lines = [[1.0, *[0.9] * 5]] * 3 + [[0.5**n for n in range(6)]] * 8
    assert course(lines, held=3).hard() == []


FALLING, RISING = [1.0, 0.6, 0.4, 0.2], [1.0, 0.8, 0.9, 1.1]


def test_pictures_learnt_by_heart_while_validation_gets_worse_are_named_the_most_fallen_first():
    found = course([RISING, RISING, [1.0, 0.7, 0.7, 0.69], FALLING, [1.0, 0.6, 0.5, 0.4]], held=2)
    learnt = found.memorised()
    assert (learnt.pictures, learnt.since, learnt.of) == ([3, 4], 50, 3)
    assert learnt.rise == pytest.approx(3 / 8)
    assert learnt.fall == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert "Learnt by heart: p3, p4 (2 of 3 measured training pictures). Since step 50" in str(found.messages()[-1])


@pytest.mark.parametrize("held", [
    [[1.0, 0.8, 0.7, 0.6]] * 3,  # validation gets better
    [[1.0, 0.8, 0.81, 0.82]] * 3,  # hardly worse
    [[1.0, 0.8, 0.8, 1.6], [1.0, 0.8, 0.8, 0.75], [1.0, 0.8, 0.8, 0.7]],  # one picture of three says so
])  # fmt: skip
def test_what_is_learnt_while_validation_is_not_surely_worse_is_not(held):
    assert course([*held, FALLING, FALLING], held=3).memorised() is None


def test_without_validation_pictures_nothing_is_called_memorised():
    assert course([FALLING, FALLING]).memorised() is None
    assert course([RISING, RISING], held=1).memorised() is None  # nor where no trained picture falls


def test_a_course_comes_back_from_a_checkpoint_as_it_was():
    found = course(usual(4), held=1)
    assert Course.from_json(json.loads(json.dumps(found.as_json()))) == found


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"pictures": 3}', '{"pictures": [], "rows": []}', '{"pictures": [{"name": 3}], "rows": [{"step": 0, "losses": [null]}]}',
    '{"pictures": [{"name": "a"}], "rows": [{"step": -1, "losses": [1.0]}, 3, {"losses": [1.0]}]}',
    '{"pictures": [{"name": "a"}], "rows": [{"step": 0, "losses": [1.0, 2.0]}]}', '{"words": ["a"], "rows": [{"step": 0, "losses": [[1.0]]}]}',
    '{"words": 3}', '{"words": ["a"], "held_out": 4, "rows": 7}',
])  # fmt: skip
def test_damaged_files_say_nothing(text, tmp_path):
    for name in ("pictures.json", "concepts.json", "thumbnails.jpg"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = measured(tmp_path)
    assert (found["pictures"], found["concepts"], thumbnails(tmp_path)) == (None, None, b"")


def test_marks_that_fit_no_picture_are_left_out(tmp_path):
    rows = [{"step": 0, "losses": [1.0]}]
    value = {"pictures": [{"name": "a"}], "rows": rows, "hard": [0, 4, "x"], "memorised": {}}
    (tmp_path / "pictures.json").write_text(json.dumps(value), encoding="utf-8")
    found = measured(tmp_path)["pictures"]
    assert (found["hard"], found["memorised"]) == ([0], [])
    table = [{"step": 3, "losses": [[1, 2, 3], [1, 2, 3]], "bleeds": [["a", "b"], ["a", "c"], 3]}]
    (tmp_path / "concepts.json").write_text(json.dumps({"words": ["a", "b"], "rows": table}), encoding="utf-8")
    assert measured(tmp_path)["concepts"]["rows"][0]["bleeds"] == [["a", "b"]]
