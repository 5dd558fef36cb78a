import json
import math

import pytest
import torch
from lora_loom.convert.metadata import recommended_strength
from lora_loom.lora_core.events import Control, Listener, Measure
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training import calibration
from lora_loom.lora_core.training.calibration import STRENGTHS, Calibration
from PIL import Image

ON = {"every": 4, "share": 0.25, "levels": 2, "calibrate": True}
ALONE = {"levels": 2, "calibrate": True}  # without pictures held out


class Heard(Listener):
    def __init__(self):
        self.notes, self.progress = [], []

    def on_note(self, message):
        self.notes.append(message)

    def on_progress(self, what, done, total):
        self.progress.append((what, done, total))


def strength_of(notes):
    return next(note for note in notes if note.code.startswith("strength."))


def test_the_best_strength_is_that_of_the_lowest_loss_and_of_equal_ones_the_nearest_to_1():
    def best(*points):
        return Calibration(points, 1, True).best

    assert best((0.4, 3.0), (0.8, 1.0), (1.0, 2.0)) == 0.8
    assert best((0.4, 1.0), (0.9, 1.0), (1.0, 2.0), (1.4, 1.0)) == 0.9
    assert best((0.4, math.nan), (1.0, 2.0), (1.4, math.inf)) == 1.0
    assert best((0.4, math.nan), (1.0, math.nan)) == 1.0


def test_strengths_go_from_two_fifths_to_seven_fifths_and_hold_what_was_trained():
    assert (STRENGTHS[0], STRENGTHS[-1], len(STRENGTHS)) == (0.4, 1.4, 11)
    assert 1.0 in STRENGTHS


def test_the_measured_strength_is_in_header_folder_and_words(toy_config, run_toy, tmp_path):
    heard = Heard()
    result = run_toy(toy_config(validation=ON), tmp_path, heard)
    found = result.facts["calibration"]
    assert [strength for strength, _ in found["points"]] == list(STRENGTHS)
    losses = dict(found["points"])
    assert losses[found["strength"]] == min(losses.values())
    assert losses[1.0] == pytest.approx(result.facts["validation"][-1][1], rel=1e-6)  # what validation has measured
    assert len(set(losses.values())) > 1
    assert recommended_strength(result.metadata) == found["strength"]
    assert json.loads((tmp_path / "strength.json").read_text())["strength"] == found["strength"]
    assert Image.open(tmp_path / "strength.png").size == (720, 360)
    assert strength_of(heard.notes).code == "strength.found"
    assert strength_of(heard.notes).values["strength"] == f"{found['strength']:g}"
    assert [row[1:] for row in heard.progress if row[0] == "progress.calibrating"] == [(n, 11) for n in range(11)]


def test_without_pictures_held_out_training_pictures_are_measured_and_it_is_said(toy_config, run_toy, tmp_path):
    heard = Heard()
    result = run_toy(toy_config(validation=ALONE), tmp_path, heard)
    assert result.facts["calibration"]["held_out"] is False
    assert result.facts["validation"] == []
    assert strength_of(heard.notes).code == "strength.found_on_trained"


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}, {"text_encoder": {"train": True}}, {"method": "pivotal"}])
def test_calibration_changes_nothing_that_is_trained(changes, toy_config, run_toy, tmp_path):
    plain = run_toy(toy_config(**changes), tmp_path / "plain")
    told = run_toy(toy_config(validation=ALONE, **changes), tmp_path / "told")
    assert told.losses == plain.losses
    assert all(torch.equal(told.tensors[k], plain.tensors[k]) for k in plain.tensors)
    assert recommended_strength(plain.metadata) is None


def test_texts_are_encoded_anew_at_each_strength(toy_config, run_toy, tmp_path):
    """A LoRA of the text encoder alone, frozen at half: were its texts kept from one strength to the next, all losses would be one."""
    text = {"text_encoder": {"train": True, "lr": 1e-2, "stop": 0.5}, "optimizer": {"lr": 1e-12}}
    result = run_toy(toy_config(validation=ALONE, **text), tmp_path)
    assert len({loss for _, loss in result.facts["calibration"]["points"]}) == len(STRENGTHS)


def test_the_weights_that_are_written_are_those_that_are_measured(toy_config, run_toy, tmp_path, monkeypatch):
    """A made-up course of the held-out loss with its lowest point after step 2: what is measured then is what a run of two steps gives."""
    from lora_loom.lora_core.training import validation

    course = {0: 1.0, 1: 0.8, 2: 0.5, 3: 0.7, 4: 0.9}
    made_up = lambda self, backend, objective, step: Measure(step, course[step], 0.1)  # noqa: E731
    monkeypatch.setattr(validation.Probes, "measure", made_up)
    watch = {**ON, "every": 1}
    best = run_toy(toy_config(steps=4, validation={**watch, "restore_best": True}), tmp_path / "best")
    last = run_toy(toy_config(steps=4, validation=watch), tmp_path / "last")
    two = run_toy(toy_config(steps=2, validation=watch), tmp_path / "two")
    assert best.facts["calibration"] == two.facts["calibration"] != last.facts["calibration"]


class Leaves(Listener):
    """Cancels while strengths are measured."""

    def on_progress(self, what, done, total):
        if (what, done) == ("progress.calibrating", 3):
            raise KeyboardInterrupt


def test_a_run_cancelled_while_strengths_are_measured_keeps_its_result_without_one(toy_config, run_toy, tmp_path):
    plain = run_toy(toy_config(), tmp_path / "plain")
    with pytest.raises(KeyboardInterrupt):
        run_toy(toy_config(validation=ALONE), tmp_path / "left", Leaves())
    from lora_loom.convert.files.disk import load

    tensors, header = load(tmp_path / "left" / "toy_test.safetensors")
    assert all(torch.equal(tensors[k], plain.tensors[k]) for k in plain.tensors)
    assert recommended_strength(header) is None
    assert not (tmp_path / "left" / "strength.json").exists()
    again = run_toy(toy_config(validation=ALONE), tmp_path / "left", resume=True)
    assert recommended_strength(again.metadata) == again.facts["calibration"]["strength"]


class PausesAt(Listener):
    def __init__(self):
        self.control = Control()

    def on_step(self, report):
        self.control.pause()


def test_a_pause_measures_nothing(toy_config, run_toy, tmp_path):
    pauses = PausesAt()
    result = run_toy(toy_config(validation=ALONE), tmp_path, pauses, control=pauses.control)
    assert result.outcome == "paused"
    assert result.facts["calibration"] is None


def test_a_run_may_be_continued_with_or_without_it(toy_config, run_toy, tmp_path):
    run_toy(toy_config(steps=2), tmp_path)
    result = run_toy(toy_config(steps=4, validation={"calibrate": True}), tmp_path, resume=True)
    assert result.facts["calibration"]["strength"] in STRENGTHS


def test_what_has_no_strengths_is_refused_before_the_first_step(toy_config, run_toy, tmp_path):
    with pytest.raises(LoomError, match=r"validation.calibrate: an embedding has no strength"):
        toy_config(method="embedding", embedding={"tokens": "TOK"}, validation=ALONE)
    with pytest.raises(LoomError, match=r"validation.calibrate: DoRA has no strengths other than 0 and 1"):
        run_toy(toy_config(adapter={"algorithm": "dora"}, validation=ALONE), tmp_path)


@pytest.mark.parametrize("text", ["", "much", "0", "-1", "11", "nan", "inf"])
def test_a_header_that_recommends_nothing_sensible_recommends_nothing(text):
    assert recommended_strength({"ss_recommended_strength": text}) is None


def test_the_picture_marks_the_best_strength():
    points = [(strength, abs(strength - 0.7)) for strength in STRENGTHS]
    one, other = Calibration(points, 1, True), Calibration([(s, abs(s - 1.2)) for s in STRENGTHS], 1, True)
    assert (one.best, other.best) == (0.7, 1.2)
    assert one.drawn().tobytes() != other.drawn().tobytes()
    assert calibration.AS_TRAINED == 1.0
