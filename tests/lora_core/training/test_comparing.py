"""Variants with several seeds: who differs from whom, what the seeds leave uncertain, and that nothing is trained twice."""

import dataclasses
import json
import math

import pytest
import shapes
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training import comparing
from lora_loom.lora_core.training.sweep import runs_of
from PIL import Image

VALUES = {
    "name": "rates",
    "base": shapes.BASE,
    "steps": 4,
    "seed": 5,
    "data": {"folder": shapes.set_folder("object"), "resolution": 64, "bucket_step_px": 8},
    "score": "style",
    "runs": [{"name": "low", "optimizer": {"lr": 1e-5}}, {"name": "high", "steps": 8, "optimizer": {"lr": 1e-2}}],
}


@pytest.fixture
def jobs(tmp_path):
    return runs_of(VALUES, tmp_path)


def test_each_seed_is_a_run_of_its_own_and_the_first_seed_of_all_comes_first(jobs):
    trials = comparing.trials(jobs, 3)
    assert [(t.variant, t.config.name, t.config.seed) for t in trials[:3]] == [
        ("rates_low", "rates_low_s0", 5),
        ("rates_high", "rates_high_s0", 5),
        ("rates_low", "rates_low_s1", 6),
    ]
    assert len({t.digest for t in trials}) == 6
    assert [t.config for t in comparing.trials(jobs, 1)] == jobs


def test_a_setting_that_is_new_makes_no_trial_a_new_one(jobs, monkeypatch):
    trial, before = comparing.trials(jobs, 1)[0], comparing.as_dict

    def with_a_new_one(config):
        values = before(config)
        return {
            **values,
            "new": 1,
            "data": {**values["data"], "new": "off"},
            "optimizer": {**values["optimizer"], "new": 0.5},
        }

    digest = trial.digest
    monkeypatch.setattr(comparing, "as_dict", with_a_new_one)
    assert trial.digest == digest
    others = [
        dataclasses.replace(trial.config, **changes) for changes in ({"steps": 7}, {"base": "other"}, {"seed": 6})
    ]
    moved = dataclasses.replace(trial.config, data=dataclasses.replace(trial.config.data, folder="elsewhere"))
    assert digest not in [comparing.Trial("", 0, config).digest for config in (*others, moved)]


def test_two_comparisons_in_one_folder_lose_nothing_of_each_other(jobs, tmp_path):
    one, other = comparing.Results(tmp_path / "rates-results"), comparing.Results(tmp_path / "rates-results")
    low, high = comparing.trials(jobs, 1)
    one.add(low, {"loss": 0.5}, [("a", Image.new("RGB", (8, 8)))], tmp_path / "low")
    other.add(high, {"loss": 0.25}, [], tmp_path / "high")
    assert [row["measures"] for row in comparing.rows_in(tmp_path / "rates-results")] == [{"loss": 0.5}, {"loss": 0.25}]


@pytest.mark.parametrize("seeds", [0, -1, 21])
def test_seeds_out_of_range_are_refused(jobs, seeds):
    with pytest.raises(LoomError, match="--seeds: .*1 to 20|--seeds: .*between 1 and 20"):
        comparing.trials(jobs, seeds)


def test_only_a_bundled_set_has_a_ruler(jobs):
    assert comparing.required_ruler(VALUES) == "style"
    assert comparing.required_ruler({}) == ""
    with pytest.raises(LoomError, match="score: .*'faces'"):
        comparing.required_ruler({"score": "faces"})


def test_the_interval_is_students():
    assert comparing.interval([0.5]) == (0.5, None)
    mean, half = comparing.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 * 1.0 / math.sqrt(3))  # s = 1, two degrees of freedom
    assert comparing.interval([0.4, 0.4, 0.4])[1] == 0.0


def test_what_differs_is_told_and_nothing_else(jobs):
    assert comparing.differences(jobs) == {
        "rates_low": {"steps": 4, "optimizer.lr": 1e-5},
        "rates_high": {"steps": 8, "optimizer.lr": 1e-2},
    }


def test_rows_are_kept_and_what_is_not_finite_is_not(jobs, tmp_path):
    trials, results = comparing.trials(jobs, 2), comparing.Results(tmp_path / "r")
    red = Image.new("RGB", (8, 8), "red")
    for n, trial in enumerate(trials[:3]):
        results.add(trial, {"loss": 0.5 + n, "bad": float("nan")}, [("a zog", red)], tmp_path / "run")
    again = comparing.Results(tmp_path / "r")
    assert [again.has(trial) for trial in trials] == [True, True, True, False]
    assert again.drawn(trials[0])[0][0] == "a zog"
    assert again.drawn(trials[0])[0][1].getpixel((4, 4)) == (255, 0, 0)
    assert again.drawn(trials[3]) == []
    assert again.of("rates_low", [t.digest for t in trials]) == [{"loss": 0.5}, {"loss": 2.5}]
    alone = comparing.trials(jobs, 1)
    assert again.has(alone[0])  # whatever it is called, and with however many seeds: it was trained
    other = comparing.trials(runs_of({**VALUES, "steps": 5}, tmp_path), 1)
    assert again.of("rates_low", [t.digest for t in other]) == []  # of another comparison


def test_the_table_has_means_intervals_and_empty_cells(jobs, tmp_path):
    trials, results = comparing.trials(jobs, 2), comparing.Results(tmp_path / "r")
    for trial, loss in zip(trials, (0.4, 0.2, 0.6)):
        results.add(trial, {"loss": loss}, [], tmp_path / "run")
    lines = comparing.table(jobs, results, [t.digest for t in trials]).splitlines()
    assert lines[0] == "| variant | steps | optimizer.lr | seeds | loss |"
    assert lines[1].count("---") == 5
    assert lines[2] == "| rates_low | 4 | 1e-05 | 2 | 0.5 ± 1.27 |"
    assert lines[3] == "| rates_high | 8 | 0.01 | 1 | 0.2 |"


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", '[{"measures": 3}]', "[" * 5000])
def test_a_results_file_that_is_none_is_begun_anew(jobs, tmp_path, content):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / comparing.ROWS).write_text(content)
    results = comparing.Results(tmp_path / "r")
    assert results.rows == []
    results.add(comparing.trials(jobs, 1)[0], {"loss": 1.0}, [], tmp_path / "run")
    assert len(json.loads((tmp_path / "r" / comparing.ROWS).read_text())) == 1


def test_what_a_comparison_beside_this_one_trained_is_taken_over_if_settings_seed_and_ruler_are_the_same(
    jobs, tmp_path
):
    trials, first = comparing.trials(jobs, 2), comparing.Results(tmp_path / "first-results")
    first.add(trials[0], {"loss": 0.5}, [("a zog", Image.new("RGB", (8, 8), "red"))], tmp_path / "run", "style")
    first.add(trials[1], {"loss": 0.7}, [], tmp_path / "run", "face")
    renamed = comparing.trials(runs_of({**VALUES, "name": "again"}, tmp_path), 2)
    second = comparing.Results(tmp_path / "second-results")
    assert second.borrow(renamed, "style") == 1
    assert [second.has(trial) for trial in renamed] == [True, False, False, False]  # the second has another ruler
    assert second.borrow(renamed, "style") == 0
    again = comparing.Results(tmp_path / "second-results")
    assert again.of("again_low", [t.digest for t in renamed]) == [{"loss": 0.5}]
    ((prompt, picture),) = again.drawn(renamed[0])
    assert prompt == "a zog"
    assert picture.getpixel((4, 4)) == (255, 0, 0)


def test_pictures_named_in_a_results_file_are_of_its_own_folder(jobs, tmp_path):
    trial, results = comparing.trials(jobs, 1)[0], comparing.Results(tmp_path / "r")
    results.add(trial, {"loss": 1.0}, [("a zog", Image.new("RGB", (8, 8)))], tmp_path / "run")
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    results.rows[0]["pictures"] = ["../outside.png"]
    assert results.drawn(trial) == []
