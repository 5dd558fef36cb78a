"""The preset auto: what it chooses and why, what a job's own values keep it from, and that a choice is made once."""

import dataclasses
import json

import pytest
import torch
from full_disk import NoRoomFor
from lora_loom.convert.metadata import recommended_strength
from lora_loom.lora_core.config import BY_AUTO, as_dict, parse
from lora_loom.lora_core.config.reading import from_values
from lora_loom.lora_core.events import Control, Listener, Measure
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training import auto, lr_range, trainer
from PIL import Image
from slow_rows import mostly_slow

KEEPS = ", ".join(name for name in BY_AUTO if name != "steps")


class Heard(Listener):
    def __init__(self, stop=0):
        self.notes, self.doing, self.control, self.stop, self.started = [], [], Control(), stop, 0
        self.warnings = []

    def on_warning(self, message):
        self.warnings.append(message.code)

    def on_note(self, message):
        self.notes.append(message)

    def on_progress(self, what, done, total):
        self.doing.append(what)

    def on_start(self, first_step, steps, facts):
        self.started += 1

    def on_step(self, report):
        if report.step == self.stop:
            self.control.stop_and_keep()

    def told(self):
        return [note.code for note in self.notes if note.code.startswith("auto.")]

    def of(self, code):
        return next(note.values for note in self.notes if note.code == code)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Twelve pictures, enough to hold two of them out."""
    folder = tmp_path_factory.mktemp("many")
    for n in range(12):
        picture = Image.new("RGB", (32, 32), (20 * n, 255 - 20 * n, 90))
        picture.paste((255, 255, 255), (8, 8, 8 + n, 20))
        picture.save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text("a zog")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """A short test of rates, and short runs."""
    monkeypatch.setattr(auto, "RATES", lr_range.Trial(1e-4, 1e-1, 8, 2))
    monkeypatch.setattr(auto, "longest", lambda pictures: 8)
    monkeypatch.setattr(auto, "unwatched", lambda pictures: 5)
    monkeypatch.setattr(auto, "SHORTEST", 2)


@pytest.fixture
def asked(toy_config, many):
    """A job that leaves everything to auto; a changed setting is given by hand."""

    def config(folder=many, **changes):
        plain = toy_config(
            data={"folder": str(folder)}, auto=True, validation={"levels": 2}, **{"optimizer": {}, **changes}
        )
        loose = dataclasses.replace(plain.optimizer, lr=changes.get("optimizer", {}).get("lr", 0.0))
        return dataclasses.replace(plain, optimizer=loose)

    return config


def test_everything_left_open_is_chosen_told_and_kept(asked, run_toy, quick, tmp_path):
    heard = Heard()
    result = run_toy(asked(), tmp_path, heard)
    codes = ["at_most", "watched", "turn", "best", "fits", "rate", "strength"]
    assert heard.told() == [f"auto.{code}" for code in codes]
    config = result.facts["config"]
    assert (config["steps"], heard.of("auto.at_most")["steps"]) == (8, 8)
    assert (heard.of("auto.watched")["held"], heard.of("auto.watched")["every"]) == (2, 2)
    assert {name: config["validation"][name] for name in ("every", "patience", "restore_best", "calibrate")} == {
        "every": 2,
        "patience": 5,
        "restore_best": True,
        "calibrate": True,
    }
    assert 1e-4 < config["optimizer"]["lr"] < 1e-1
    assert heard.of("auto.rate")["rate"] == f"{config['optimizer']['lr']:.1e}"
    assert recommended_strength(result.metadata) == result.facts["calibration"]["strength"]
    kept = json.loads((tmp_path / "choices.json").read_text())
    assert [choice["code"] for choice in kept] == heard.told()
    assert parse(json.loads((tmp_path / "config.json").read_text())) == parse(config)
    assert heard.started == 1
    assert "progress.finding_rate" in heard.doing


def test_the_run_is_bit_for_bit_the_one_with_the_same_values_given(asked, run_toy, quick, tmp_path):
    found = run_toy(asked(), tmp_path / "auto")
    given = parse({**found.facts["config"], "auto": False})
    same = run_toy(given, tmp_path / "given")
    assert same.losses == found.losses
    assert same.facts["validation"] == found.facts["validation"]
    assert same.facts["calibration"] == found.facts["calibration"]
    assert all(torch.equal(same.tensors[k], found.tensors[k]) for k in found.tensors)


def test_a_run_that_goes_on_takes_its_choices_and_makes_none_anew(asked, run_toy, quick, tmp_path, monkeypatch):
    whole = run_toy(asked(), tmp_path / "whole")
    heard = Heard(stop=3)
    run_toy(asked(), tmp_path / "parts", heard, control=heard.control)
    monkeypatch.setattr(trainer, "chosen", lambda job: pytest.fail("chosen again"))
    monkeypatch.setattr(auto, "longest", lambda pictures: 99)
    choices = (tmp_path / "parts" / "choices.json").read_bytes()
    again = Heard()
    parts = run_toy(asked(), tmp_path / "parts", again, resume=True)
    assert again.told() == []
    assert parts.losses == whole.losses
    assert parts.facts["validation"] == whole.facts["validation"]
    assert all(torch.equal(parts.tensors[k], whole.tensors[k]) for k in whole.tensors)
    assert (tmp_path / "parts" / "choices.json").read_bytes() == choices


BY_HAND = [
    ("optimizer.lr", {"optimizer": {"lr": 3e-3}}, "auto.rate"),
    ("steps", {"steps": 3}, "auto.at_most"),
    ("validation.calibrate", {}, "auto.strength"),
    ("memory", {}, "auto.fits"),
    ("validation.every", {}, "auto.watched"),
]


@pytest.mark.parametrize(("keeps", "changes", "silent"), mostly_slow(BY_HAND, lambda row: row[0] == "optimizer.lr"))
def test_a_value_given_by_hand_wins_and_is_told_as_yours(keeps, changes, silent, asked, run_toy, quick, tmp_path):
    heard = Heard()
    result = run_toy(asked(auto_keeps=keeps, **changes), tmp_path, heard)
    assert heard.told()[0] == "auto.yours"
    assert silent not in heard.told()
    value = result.facts["config"]
    for part in keeps.split("."):
        value = value[part]
    wanted = {
        "optimizer.lr": 3e-3,
        "steps": 3,
        "validation.calibrate": False,
        "memory": "as set",
        "validation.every": 0,
    }
    assert value == wanted[keeps]


def test_a_patience_given_by_hand_is_the_one_that_is_told(asked, run_toy, quick, tmp_path):
    heard, watch = Heard(), {"levels": 2, "patience": 3}
    given = {"auto_keeps": "validation.patience, optimizer.lr", "optimizer": {"lr": 1e-3}}
    config = dataclasses.replace(asked(**given), validation=parse({"validation": watch}).validation)
    result = run_toy(config, tmp_path, heard)
    validation = result.facts["config"]["validation"]
    assert (validation["patience"], validation["every"], validation["restore_best"]) == (3, 2, True)
    assert (heard.of("auto.turn")["patience"], heard.of("auto.turn")["steps"]) == (3, 6)


def test_too_few_pictures_are_all_trained_for_a_length_of_their_own(asked, run_toy, quick, pictures, tmp_path):
    heard = Heard()
    result = run_toy(asked(pictures), tmp_path, heard)
    assert heard.told() == ["auto.length", "auto.not_watched", "auto.fits", "auto.rate", "auto.strength"]
    assert (result.step, result.facts["validation"]) == (5, [])
    assert result.facts["calibration"]["held_out"] is False


def test_the_rate_of_one_picture_alone_is_found_on_that_picture(asked, run_toy, quick, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", (32, 32), (200, 40, 40)).save(folder / "a.png")
    (folder / "a.txt").write_text("a zog")
    heard = Heard()
    run_toy(asked(folder), tmp_path / "run", heard)
    assert {"auto.rate", "auto.not_watched"} <= {*heard.told()}


def test_a_rate_that_is_nowhere_to_be_found_is_the_usual_one(asked, run_toy, quick, tmp_path, monkeypatch):
    def none(job, trial):
        raise LoomError("learning_rate.none_found", field="learning_rate")

    monkeypatch.setattr(auto, "lr_range", none)
    heard = Heard()
    result = run_toy(asked(), tmp_path, heard)
    assert result.facts["config"]["optimizer"]["lr"] == 1e-4
    assert heard.of("auto.no_rate")["rate"] == "0.0001"


def test_what_finds_its_rate_itself_is_not_tested(asked, run_toy, quick, tmp_path):
    pytest.importorskip("prodigyopt")
    heard = Heard()
    run_toy(asked(optimizer={"name": "prodigy"}), tmp_path, heard)
    assert "auto.own_rate" in heard.told()
    assert "progress.finding_rate" not in heard.doing


def test_a_kind_without_strengths_is_told_to_have_none(asked, run_toy, quick, tmp_path):
    heard = Heard()
    result = run_toy(asked(adapter={"algorithm": "dora"}), tmp_path, heard)
    assert "auto.no_strength" in heard.told()
    assert result.facts["calibration"] is None


def test_what_memory_has_no_room_for_is_split_and_told(asked, run_toy, quick, tmp_path, monkeypatch):
    from lora_loom.lora_core import compat
    from lora_loom.lora_core.training import fitting

    real = fitting.measure

    def small(material):
        if material.config.batch_size > 1:
            raise compat.OutOfMemoryError
        return real(material)

    monkeypatch.setattr(fitting, "measure", small)
    heard = Heard()
    result = run_toy(asked(), tmp_path, heard)
    assert "auto.made_to_fit" in heard.told()
    assert (result.facts["config"]["batch_size"], result.facts["config"]["grad_accum"]) == (1, 2)


def test_a_stop_while_the_rate_is_sought_leaves_nothing(asked, run_toy, quick, tmp_path):
    heard = Heard()
    heard.control.stop_and_keep()
    with pytest.raises(LoomError) as caught:
        run_toy(asked(), tmp_path / "run", heard, control=heard.control)
    assert caught.value.message.code == "run.stopped_first"
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_job_file_keeps_what_it_gives_itself(tmp_path):
    job = {
        "recipe": "auto", "steps": 700, "checkpointing": True,
        "optimizer": {"lr": 2e-4, "name": "adamw"}, "validation": {"patience": 3, "levels": 2},
    }  # fmt: skip
    config = from_values(job, tmp_path)
    assert auto.kept(config) == {"steps", "optimizer.lr", "validation.patience"}
    assert config.memory_keeps == "checkpointing"
    assert auto.kept(from_values({"auto": True, "epochs": 3, "optimizer": {"lr": 0.0}}, tmp_path)) == {"epochs"}
    assert from_values({"steps": 700}, tmp_path).auto_keeps == ""


def test_what_a_run_has_stored_is_taken_but_for_what_is_given_now():
    then = parse({"auto": True, "steps": 40, "optimizer": {"lr": 3e-4}, "validation": {"every": 7, "patience": 5}})
    now = parse({"auto": True})
    assert as_dict(auto.as_stored(now, then)) == as_dict(then)
    longer = auto.as_stored(parse({"auto": True, "auto_keeps": "steps", "steps": 80}), then)
    assert (longer.steps, longer.optimizer.lr, longer.validation.every) == (80, 3e-4, 7)
    other = auto.as_stored(parse({"auto": True, "auto_keeps": "optimizer.lr", "optimizer": {"lr": 1e-3}}), then)
    assert (other.steps, other.optimizer.lr) == (40, 1e-3)  # and refused by what compares the two


@pytest.mark.parametrize(("pictures", "most", "plain"), [(1, 600, 500), (10, 1500, 1000), (100, 4000, 3000)])
def test_the_length_follows_the_number_of_pictures(pictures, most, plain):
    assert (auto.longest(pictures), auto.unwatched(pictures)) == (most, plain)


def test_what_auto_does_not_go_with_is_refused():
    slider = {"target": "cat", "positive": "old cat"}
    with pytest.raises(LoomError, match="auto: does not go with a slider"):
        parse({"method": "slider", "slider": slider, "auto": True})
    with pytest.raises(LoomError, match="auto: does not go with two experts"):
        parse({"switch_every": 4, "auto": True})


def course(monkeypatch, losses):
    """A made-up course of the loss on validation pictures."""
    from lora_loom.lora_core.training import validation

    def measure(self, backend, objective, step):
        return Measure(step, losses(step), losses(step), 0.1)

    monkeypatch.setattr(validation.Probes, "measure", measure)


def test_a_run_ends_at_the_turn_and_keeps_the_best(asked, run_toy, quick, tmp_path, monkeypatch):
    course(monkeypatch, lambda step: 1.0 + abs(step - 2))
    monkeypatch.setattr(auto, "PATIENCE", 2)
    heard = Heard()
    given = asked(auto_keeps="optimizer.lr", optimizer={"lr": 1e-3})
    result = run_toy(given, tmp_path, heard)
    assert (result.outcome, result.step, result.facts["best_step"]) == ("stopped early", 6, 2)
    assert "result.best" in [note.code for note in heard.notes]


@pytest.mark.parametrize(
    ("keeps", "step", "code"),
    [
        ("", 5, "auto.unjudged"),
        (", validation.patience", 2, "auto.unjudged"),
        (", validation.restore_best", 5, "result.none_better"),
    ],
)
def test_pictures_that_no_step_makes_better_judge_nothing(
    keeps, step, code, asked, run_toy, quick, tmp_path, monkeypatch
):
    """The end is then that of a run without validation, the result what was trained, and nothing is said of the rate that auto has found itself."""
    course(monkeypatch, lambda step: 1.0 + step)
    monkeypatch.setattr(auto, "PATIENCE", 2)
    monkeypatch.setattr(auto, "SHORTEST", 1)
    heard = Heard()
    config = asked(auto_keeps=f"optimizer.lr{keeps}", optimizer={"lr": 1e-3})
    by_hand = {"patience": 2} if "patience" in keeps else {}
    by_hand |= {"restore_best": True} if "restore_best" in keeps else {}
    config = dataclasses.replace(config, validation=dataclasses.replace(config.validation, **by_hand))
    result = run_toy(config, tmp_path, heard)
    assert result.step == step
    ups = [value for name, value in result.tensors.items() if "lora_up" in name or "lora_B" in name]
    assert any(value.any() for value in ups)
    assert {"auto.unjudged", "result.none_better"} & {*heard.warnings} == {code}
    assert ("advice.never_better" in heard.warnings) is (code == "result.none_better")
    assert result.facts["calibration"] is None  # such pictures cannot tell a strength either


@pytest.mark.parametrize(
    "name", ["choices.json", *(pytest.param(f"strength.{end}", marks=pytest.mark.slow) for end in ("json", "png"))]
)
def test_a_full_disk_for_what_auto_found_is_told_and_the_run_goes_on(name, asked, quick, run_toy, tmp_path):
    heard = Heard()
    with NoRoomFor(name):
        result = run_toy(asked(), tmp_path, heard)
    assert result.outcome == "finished"
    assert not (result.folder / name).exists()
    assert heard.warnings.count("extra.failed") == 1
