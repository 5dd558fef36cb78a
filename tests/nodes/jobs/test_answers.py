"""What pages are told of the samples of a run: which there are, what they were drawn from, and each picture alone."""

from __future__ import annotations

import io
import json

import pytest
from lora_loom.lora_core.config import as_dict, parse
from lora_loom.lora_core.pictures.plots import grid
from lora_loom.nodes.jobs import answers
from lora_loom.nodes.jobs.requests import Refused
from PIL import Image

COLOURS = ("red", "blue", "green")


@pytest.fixture
def root(tmp_path):
    """A run called `cat` with two sheets of three pictures."""
    folder = tmp_path / "cat"
    (folder / "samples").mkdir(parents=True)
    config = parse({"samples": {"prompt": "a zog --d 7\na dog\na bird", "cfg": 4.0}, "data": {"resolution": 320}})
    (folder / "config.json").write_text(json.dumps(as_dict(config)))
    for name in ("before", "step-20"):
        sheet = grid([Image.new("RGB", (200, 100), colour) for colour in COLOURS], columns=3, cell_px=200)
        sheet.save(folder / "samples" / f"{name}.png")
    return tmp_path


def test_samples_are_listed_with_prompt_seed_and_size_of_each_picture(root):
    told = answers.samples_of(root, "cat")
    assert [step for step, _ in told["samples"]] == [0, 20]
    assert (told["run"], told["pictures"]) == ("cat", 3)
    assert [(p["prompt"], p["seed"], p["cfg"], p["width"]) for p in told["prompts"]] == [
        ("a zog", 7, 4.0, 320), ("a dog", 1, 4.0, 320), ("a bird", 1, 4.0, 320),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(3))
def test_each_picture_of_a_sheet_is_given_alone_and_as_large_as_it_is(root, number):
    picture = Image.open(io.BytesIO(answers.sample_cell_jpeg(root, "cat", 20, number)))
    assert picture.size == (200, 200)
    wanted = Image.new("RGB", (1, 1), COLOURS[number]).getpixel((0, 0))
    assert max(abs(a - b) for a, b in zip(picture.getpixel((100, 100)), wanted, strict=True)) < 8


def test_what_is_not_there_is_refused(root):
    for run, step, number in [("cat", 20, 3), ("cat", 30, 0), ("dog", 20, 0), ("..", 0, 0), ("cat", 20, -1)]:
        with pytest.raises(Refused):
            answers.sample_cell_jpeg(root, run, step, number)
    with pytest.raises(Refused):
        answers.samples_of(root, "../cat")


def test_a_run_without_samples_has_none(root):
    (root / "dog").mkdir()
    (root / "dog" / "config.json").write_text(json.dumps(as_dict(parse({}))))
    told = answers.samples_of(root, "dog")
    assert (told["samples"], told["pictures"], len(told["prompts"])) == ([], 0, 1)
