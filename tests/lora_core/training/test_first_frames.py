"""What is said of first frames, of missing control pictures and of system prompts before the first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.dataset import Caption, Picture
from lora_loom.lora_core.data.shown import Showing
from lora_loom.lora_core.training.assemble import (
    note_of_system_prompt,
    of_first_frames,
    of_missing_controls,
    of_open_frames,
)

BOTH, NAMED, ALONE = (
    Showing(0, needed, of_film=True, usual=usual) for needed, usual in ((False, False), (False, True), (True, False))
)
CLIP, STILL = (0, 1, 2, 3, 4), (0,)


def picture(first_frame: str = "auto", clip: tuple[int, ...] = CLIP) -> Picture:
    return Picture(Path("a.mp4"), "a.mp4", 64, 64, data=DataConfig(first_frame=first_frame), clips=(clip,))


def codes(messages) -> list[str]:
    return [message.code for message in messages]


@pytest.mark.parametrize(("given", "showing", "told"), [
    (picture("always"), None, ["data.first_frame.idle"]),
    (picture("half of the time"), Showing(1), ["data.first_frame.idle"]),
    (picture("always", STILL), None, []),
    (picture("always", STILL), BOTH, ["data.first_frame.no_clips"]),
    (picture("always"), BOTH, []),
    (picture("always"), Showing(0, of_film=True, unseen=True), ["vision.not_wired"]),
    (picture("never"), Showing(0, of_film=True, unseen=True), []),
    (picture("auto"), Showing(0, True, of_film=True, unseen=True), ["vision.not_wired"]),
])  # fmt: skip
def test_a_first_frame_that_has_no_effect_or_lacks_something_is_told(given, showing, told):
    assert codes(of_first_frames([given], showing)) == told


@pytest.mark.parametrize(("given", "showing", "told"), [
    (picture(), BOTH, ["data.first_frame.from_text"]), (picture(), NAMED, ["data.first_frame.by_name"]), (picture(), ALONE, []), (picture(), None, []),
    (picture("never"), BOTH, []), (picture(clip=STILL), BOTH, []),
])  # fmt: skip
def test_what_becomes_of_clips_where_the_set_leaves_it_open_is_told(given, showing, told):
    assert codes(of_open_frames([given], showing)) == told


@pytest.mark.parametrize(("showing", "controls", "told"), [
    (Showing(1, usual=True), (), True), (Showing(1, usual=True), (Path("before.png"),), False), (Showing(1), (), False), (None, (), False),
    (Showing(1, needed=True, usual=True), (), False), (NAMED, (), False),
])  # fmt: skip
def test_a_model_made_for_edits_says_that_it_has_no_picture_to_edit(showing, controls, told):
    pictures = [Picture(Path("a.png"), "a.png", 64, 64, controls=controls)]
    assert codes(of_missing_controls(pictures, showing)) == (["data.controls.of_edits"] if told else [])


@pytest.mark.parametrize(("family", "caption", "told"), [
    ("lumina2", "a cat", True), ("lumina2", "You are an assistant. <Prompt Start> a cat", False), ("z-image", "a cat", False),
])  # fmt: skip
def test_a_model_that_is_asked_with_a_system_prompt_says_so(family, caption, told):
    heard: list[str] = []
    pictures = (Picture(Path("a.png"), "a.png", 64, 64, captions=(Caption(caption),)),)
    listener = SimpleNamespace(on_note=lambda message: heard.append(message.code))
    note_of_system_prompt(
        SimpleNamespace(
            dataset=SimpleNamespace(pictures=pictures), backend=SimpleNamespace(family=family), listener=listener
        )
    )
    assert heard == (["caption.system_prompt"] if told else [])
