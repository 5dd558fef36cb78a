import json

import pytest
import torch
from lora_loom.lora_core.data.dataset import Dataset, Picture
from lora_loom.lora_core.events import Control, Listener, Measure
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.validation import History, split
from PIL import Image
from slow_rows import mostly_slow

ON = {"every": 2, "share": 0.25, "levels": 2}


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def best_files(folder):
    return sorted(p.name for p in (folder / "checkpoints").glob("best-*"))


class StopAt(Listener):
    def __init__(self, step):
        self.control, self.step = Control(), step

    def on_step(self, report):
        if report.step == self.step:
            self.control.stop_and_keep()


def dataset(n):
    return Dataset(None, tuple(Picture(None, f"{k}.png", 64, 64) for k in range(n)), (), ())


@pytest.mark.parametrize(("n", "share", "held"), [(10, 0.1, 1), (10, 0.25, 2), (3, 0.1, 1), (100, 0.1, 10)])
def test_a_share_of_the_pictures_is_held_out_the_same_ones_every_time(n, share, held, toy_config):
    config = toy_config(validation={"every": 1, "share": share})
    train, out = split(dataset(n), config)
    assert len(out.pictures) == held
    assert sorted([*train.pictures, *out.pictures], key=lambda p: p.name) == sorted(
        dataset(n).pictures, key=lambda p: p.name
    )
    assert split(dataset(n), config) == (train, out)


def test_one_picture_alone_cannot_be_held_out(toy_config, tmp_path):
    found = Dataset(tmp_path / "cats", dataset(1).pictures, (), ())
    with pytest.raises(LoomError, match="one picture cannot be used for training and validation at once; cats has 1"):
        split(found, toy_config(validation={"every": 1}))


def test_off_nothing_is_held_out_and_the_run_is_the_same(toy_config, run_toy, tmp_path):
    found = dataset(5)
    assert split(found, toy_config()) == (found, None)
    assert not (run_toy(toy_config(), tmp_path).folder / "validation.png").exists()


def test_validation_does_not_change_what_is_trained(toy_config, run_toy, tmp_path, pictures):
    """With pictures of its own to look at, the run with validation is bit for bit the one without."""
    plain = run_toy(toy_config(data={"flip": True, "caption_dropout": 0.3}), tmp_path / "plain")
    watched = run_toy(
        toy_config(data={"flip": True, "caption_dropout": 0.3}, validation={**ON, "folder": str(pictures)}),
        tmp_path / "watched",
    )
    assert watched.losses == plain.losses
    assert all(torch.equal(watched.tensors[k], plain.tensors[k]) for k in plain.tensors)


def test_measures_are_taken_before_during_and_after_and_repeat_exactly(toy_config, run_toy, tmp_path):
    first, second = (run_toy(toy_config(steps=5, validation=ON), tmp_path / n) for n in ("a", "b"))
    assert [m[0] for m in first.facts["validation"]] == [0, 2, 4, 5]
    assert first.facts["validation"] == second.facts["validation"]
    assert {m[0]: m[1] for m in first.facts["validation"]}[4] == rows(tmp_path / "a")[3]["held_out"]
    assert Image.open(tmp_path / "a" / "validation.png").size == (720, 360)


def test_both_sets_meet_the_same_levels_and_noise(toy_config, run_toy, tmp_path):
    """The same pictures on both sides: the two curves must be one."""
    same, again = tmp_path / "same", tmp_path / "again"
    for folder, name in ((same, "picture"), (again, "other")):
        folder.mkdir()
        for n in range(2):
            Image.new("RGB", (32, 32), (90 * n, 20, 200)).save(folder / f"{name} {n}.png")
    config = toy_config(data={"folder": str(same), "trigger": "zog"}, validation={**ON, "folder": str(again)})
    for _, held_out, trained, _ in run_toy(config, tmp_path / "run").facts["validation"]:
        assert held_out == trained


CONTINUED = [
    {}, {"ema_decay": 0.9}, {"optimizer": {"name": "schedule_free", "lr": 1e-3}}, {"method": "pivotal", "text_encoder": {"train": True}},
]  # fmt: skip


@pytest.mark.parametrize("changes", mostly_slow(CONTINUED, (CONTINUED[1], CONTINUED[3]).__contains__))
def test_a_run_continued_anywhere_has_the_same_measures_and_the_same_end(changes, toy_config, run_toy, tmp_path):
    config = toy_config(steps=6, validation={**ON, "restore_best": True}, **changes)
    whole = run_toy(config, tmp_path / "whole")
    stopper = StopAt(3)
    run_toy(config, tmp_path / "parts", stopper, control=stopper.control)
    parts = run_toy(config, tmp_path / "parts", resume=True)
    assert parts.facts["validation"] == whole.facts["validation"]
    assert parts.losses == whole.losses
    assert all(torch.equal(parts.tensors[k], whole.tensors[k]) for k in whole.tensors)


def test_the_best_weights_are_the_result_where_wanted(toy_config, run_toy, tmp_path, monkeypatch):
    """A made-up course of the held-out loss with its lowest point after step 2: the result then is what a run of two steps gives."""
    from lora_loom.lora_core.training import validation

    course = {0: 1.0, 1: 0.8, 2: 0.5, 3: 0.7, 4: 0.9}
    monkeypatch.setattr(
        validation.Probes, "measure", lambda self, backend, objective, step: Measure(step, course[step], 0.1)
    )
    watch = {"every": 1, "share": 0.25}
    best = run_toy(toy_config(validation={**watch, "restore_best": True}), tmp_path / "best")
    last = run_toy(toy_config(validation=watch), tmp_path / "last")
    two = run_toy(toy_config(steps=2, validation=watch), tmp_path / "two")
    assert best.facts["best_step"] == last.facts["best_step"] == 2
    assert all(torch.equal(best.tensors[k], two.tensors[k]) for k in two.tensors)
    assert not all(torch.equal(last.tensors[k], two.tensors[k]) for k in two.tensors)
    assert best_files(tmp_path / "best") == ["best-00000001.safetensors", "best-00000002.safetensors"]


def test_a_run_that_was_never_better_than_before_gives_what_it_trained_and_says_so(
    toy_config, run_toy, tmp_path, monkeypatch
):
    from lora_loom.lora_core.training import validation

    class Heard(StopAt):
        def on_warning(self, message):
            told.append(message.code)

    monkeypatch.setattr(
        validation.Probes, "measure", lambda self, backend, objective, step: Measure(step, 1.0 + step, 0.1)
    )
    results = {}
    for name, best, every, stop in (("best", True, 1, 4), ("last", False, 1, 4), ("unmeasured", True, 4, 2)):
        told, config = [], toy_config(validation={"every": every, "share": 0.25, "restore_best": best})
        heard = Heard(stop)
        results[name] = run_toy(config, tmp_path / name, heard, control=heard.control)
        assert ("result.none_better" in told) is (name == "best")
    best, last, unmeasured = results.values()
    assert all(torch.equal(best.tensors[k], last.tensors[k]) for k in last.tensors)
    for result in (best, unmeasured):
        assert any(value.any() for name, value in result.tensors.items() if "lora_up" in name or "lora_B" in name)


def test_a_lora_to_start_from_that_no_step_made_better_is_the_best(
    toy_config, toy_backend, run_toy, tmp_path, monkeypatch
):
    from lora_loom.lora_core.data.folder import open_sets
    from lora_loom.lora_core.runs import saves
    from lora_loom.lora_core.training import validation
    from lora_loom.lora_core.training.job import Job
    from lora_loom.lora_core.training.trainer import train

    part = {"include": "mid_block", "targets": "attention"}
    run_toy(toy_config(adapter=part), tmp_path / "first")
    weights = saves.weights(tmp_path / "first", saves.all_saves(tmp_path / "first")[-1])
    start = {}
    for key, value in weights.items():
        name, _, leaf = key.rpartition(".")
        start.setdefault(name, {})[leaf] = value
    monkeypatch.setattr(
        validation.Probes, "measure", lambda self, backend, objective, step: Measure(step, 1.0 + step, 0.1)
    )
    config = toy_config(adapter=part, validation={"every": 1, "share": 0.25, "restore_best": True})
    job = Job(config, toy_backend, open_sets(config), tmp_path, start=start)
    result = train(job, tmp_path / "second", lambda state, facts: {"second": (dict(state), {})})
    trained = {key: value for key, value in weights.items() if not key.endswith(".alpha")}
    assert all(torch.equal(result.tensors[key], value) for key, value in trained.items())


@pytest.mark.parametrize(("patience", "ended"), [(0, 8), (1, 3), (2, 4), (6, 8)])
def test_a_run_ends_when_it_has_not_been_better_for_long_enough(
    patience, ended, toy_config, run_toy, tmp_path, monkeypatch
):
    from lora_loom.lora_core.training import validation

    monkeypatch.setattr(
        validation.Probes, "measure", lambda self, backend, objective, step: Measure(step, abs(step - 2) + 1.0, 0.1)
    )
    result = run_toy(toy_config(steps=8, validation={"every": 1, "patience": patience}), tmp_path)
    assert result.step == ended
    assert result.outcome == ("finished" if ended == 8 else "stopped early")


def test_a_held_out_loss_that_is_not_finite_ends_the_run_and_keeps_the_work(toy_config, run_toy, tmp_path, monkeypatch):
    from lora_loom.lora_core.training import validation

    monkeypatch.setattr(
        validation.Probes,
        "measure",
        lambda self, backend, objective, step: Measure(step, float("nan") if step else 1.0, 0.1),
    )
    with pytest.raises(LoomError, match="Step 2: the loss on validation pictures is nan"):
        run_toy(toy_config(validation={"every": 2}), tmp_path)
    assert (tmp_path / "toy_test.safetensors").is_file()


def test_history_knows_its_best_and_how_long_ago_it_was():
    history = History([Measure(0, 3.0, 1), Measure(5, 1.0, 1), Measure(10, 1.0, 1), Measure(15, 2.0, 1)])
    assert (history.best.step, history.since_best()) == (5, 2)
    assert History().best is None
    assert History.from_list(history.as_list()) == history


def test_patience_without_validation_is_refused(toy_config):
    for setting in ({"patience": 3}, {"restore_best": True}):
        with pytest.raises(LoomError, match="validation.every: is 0"):
            split(dataset(5), toy_config(validation=setting))


def test_pictures_of_a_folder_are_measured_with_the_token_too(toy_config, run_toy, pictures, tmp_path):
    config = toy_config(
        method="embedding",
        embedding={"tokens": "TOK"},
        optimizer={"lr": 0.05},
        validation={**ON, "folder": str(pictures)},
    )
    measures = run_toy(config, tmp_path).facts["validation"]
    assert len({m[1] for m in measures}) == len(
        measures
    )  # the word is in their captions, so its training moves the loss
