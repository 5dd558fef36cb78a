"""What a person says of a run lies in a file of its own, within bounds, and moves nothing in the list."""

from __future__ import annotations

import json
import os

import pytest
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs import listing, remarks
from PIL import Image


def run(root, name="a"):
    folder = root / name
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": name, "steps": 9, "adapter": {"rank": 4}, "seed": 1}))
    rows = [{"step": n, "loss": 1 / n} for n in range(1, 101)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_title_a_note_and_a_star_are_kept_each_for_itself(tmp_path):
    folder = run(tmp_path)
    assert remarks.read(folder) == remarks.Remark()
    remarks.write(folder, {"title": "  The\n good one "})
    remarks.write(folder, {"note": "lower rate\n猫"})
    remarks.write(folder, {"star": True})
    assert remarks.read(folder) == remarks.Remark("The good one", "lower rate\n猫", True)
    (row,) = listing.listing(tmp_path)
    assert (row.id, row.title, row.note, row.star) == ("a", "The good one", "lower rate\n猫", True)


def test_a_remark_does_not_move_a_run_up_in_the_list(tmp_path):
    old, new = run(tmp_path, "old"), run(tmp_path, "new")
    for path in old.rglob("*"):
        os.utime(path, (1e9, 1e9))
    remarks.write(old, {"star": True})
    assert [row.id for row in listing.listing(tmp_path)] == [new.name, old.name]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "remark.unknown"), ({"colour": "red"}, "remark.unknown"), ({"title": "x" * 121}, "remark.text"), ({"note": "x" * 4001}, "remark.text"),
        ({"title": 1}, "remark.text"), ({"note": None}, "remark.text"), ({"star": 1}, "remark.star"), ({"star": "yes"}, "remark.star"),
    ],
)  # fmt: skip
def test_what_is_no_remark_is_refused_and_changes_nothing(tmp_path, changes, code):
    folder = run(tmp_path)
    remarks.write(folder, {"title": "kept"})
    with pytest.raises(LoomError) as error:
        remarks.write(folder, changes)
    assert error.value.message.code == code
    assert remarks.read(folder) == remarks.Remark("kept")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"title": 1, "note": [], "star": "x"}', b"null"])
def test_a_damaged_file_says_nothing(tmp_path, content):
    folder = run(tmp_path)
    (folder / remarks.FILE).write_bytes(content)
    assert remarks.read(folder) == remarks.Remark()


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    folder, outside = run(tmp_path), tmp_path / "outside.json"
    outside.write_text('{"title": "secret"}')
    (folder / remarks.FILE).symlink_to(outside)
    assert remarks.read(folder) == remarks.Remark()
    remarks.write(folder, {"title": "mine"})
    assert "secret" in outside.read_text()
    assert remarks.read(folder).title == "mine"


def test_a_run_without_pictures_has_a_course_in_small(tmp_path):
    folder = run(tmp_path)
    (row,) = listing.listing(tmp_path)
    assert 20 < len(row.spark) <= listing.SPARK_POINTS + 1
    assert row.spark[0] > row.spark[-1] > 0
    Image.new("RGB", (8, 8)).save(folder / "samples" / "step-4.png")
    (row,) = listing.listing(tmp_path)
    assert row.spark == ()


def test_settings_are_told_by_path(tmp_path):
    assert listing.settings(run(tmp_path)) == {"name": "a", "steps": 9, "adapter.rank": 4, "seed": 1}


def test_the_file_of_the_base_and_the_pace_are_read_of_the_runs_own_word(tmp_path):
    folder = run(tmp_path)
    assert (listing.read_run(folder).base_file, listing.pace(folder)) == ("", {})
    state = {"base_model": {"file": "v1-5.safetensors"}, "pace": {"seconds_per_step": 2.0, "peak_bytes": "x"}}
    (folder / "run.json").write_text(json.dumps(state))
    assert (listing.read_run(folder).base_file, listing.pace(folder)) == ("v1-5.safetensors", {"seconds_per_step": 2.0})
