"""What the page says a train node will do is what the node then does; what shows only when the graph runs is not guessed."""

from __future__ import annotations

import dataclasses
import json

import pytest
from lora_loom.lora_core.config import TrainConfig, as_dict
from lora_loom.lora_core.runs.estimates import estimate


def graph(**widgets):
    return {
        "1": {"class_type": "LoraLoomLoadToyModel", "inputs": {}},
        "2": {"class_type": "LoraLoomLoadFolder", "inputs": {"folder": "toy: object", "trigger": "zog", "loom_fold": None}},
        "3": {"class_type": "LoraLoomOptimizerSettings", "inputs": {"optimizer": "prodigy", "name": "prodigy"}},
        "4": {
            "class_type": "LoraLoomTrainLora",
            "inputs": {
                "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "dataset": ["2", 0], "name": "zog",
                "preset": "concept", **widgets,
            },
        },
    }  # fmt: skip


@pytest.fixture
def planned(nodes, tmp_path, monkeypatch):
    """(graph, node) -> what the page is told."""
    planning, extension = nodes("planning"), nodes("extension")
    monkeypatch.setattr(planning, "runs_root", lambda: tmp_path)
    return lambda prompt, node="4": planning.planned(prompt, node, extension.SETTINGS_BY_ID)


def rows(plan):
    return {row["path"]: (row["value"], row["source"]) for row in plan["rows"]}


def test_what_is_left_open_is_told_with_who_decides_it(planned):
    plan = planned(graph(rank=4))
    assert plan["problem"] is None
    assert plan["base"] == {"file": "toy", "family": "sd1"}
    assert rows(plan) == {
        "steps": (3000, "preset"), "adapter.rank": (4, "you"), "optimizer.lr": (1e-4, "preset"),
        "data.resolution": (64, "model"),
    }  # fmt: skip
    assert (plan["pictures"], plan["buckets"], plan["trigger"], plan["cost"]) == (32, [[64, 64, 32]], "zog", None)


def test_the_plan_is_the_job_the_node_makes(planned, nodes):
    train, planning = nodes("train_lora"), nodes("planning")
    sets = nodes("dataset").LoadFolder.sets("toy: object", "zog")
    defaults = {row.name: row.default for row in nodes("widgets").rows(train.INPUTS)}
    config, _ = train.config_from({**defaults, "preset": "style", "name": "zog"}, sets, planning._TOY)
    plan = rows(planned(graph(preset="style")))
    assert plan["steps"][0] == config.steps
    assert plan["adapter.rank"][0] == config.adapter.rank
    assert plan["optimizer.lr"][0] == config.optimizer.lr


def test_wired_settings_are_told_as_such(planned, nodes):
    prompt = graph()
    kind = nodes("extension").SETTINGS_BY_ID["LoraLoomOptimizerSettings"]
    widgets = {row.name: row.default for row in kind.ROWS}
    [name] = [row.name for row in kind.ROWS if row.path == "optimizer.name"]
    prompt["3"]["inputs"] = {**widgets, name: "prodigy"}
    prompt["4"]["inputs"]["settings"] = ["3", 0]
    assert rows(planned(prompt))["optimizer.lr"] == (1.0, "preset")


def test_a_job_that_would_be_refused_is_told_before_it_is_started(planned):
    plan = planned(graph(rank=999_999))
    assert plan["problem"]["field"] == "adapter.rank"
    assert "999999" in plan["problem"]["text"]


@pytest.mark.parametrize(
    "change",
    [
        {"model": ["9", 0]}, {"model": "x"}, {"dataset": ["1", 0]}, {"dataset": None}, {"model": ["4", 0]},
        {"dataset": [{}]}, {"settings": ["2", 0]}, {"model": []},
    ],
)  # fmt: skip
def test_what_shows_only_when_the_graph_runs_is_not_guessed(planned, change):
    assert planned(graph(**change)) == {}


@pytest.mark.parametrize("prompt", [{}, {"4": None}, {"4": {"class_type": 3, "inputs": {}}}, {"4": {"inputs": []}}])
def test_a_graph_that_is_none_plans_nothing(planned, prompt):
    assert planned(prompt) == {}


def test_a_wired_widget_is_unknown_until_the_graph_runs(planned):
    prompt = graph()
    prompt["2"]["inputs"]["trigger"] = ["1", 0]
    assert planned(prompt) == {}


def test_the_cost_is_that_of_the_newest_run_whose_steps_cost_the_same(planned, tmp_path):
    plan = planned(graph())
    config = TrainConfig(base="ComfyUI")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, resolution=64))
    for name, seconds, batch in (("old", 5.0, config.batch_size), ("other", 9.0, config.batch_size + 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(as_dict(dataclasses.replace(config, batch_size=batch))))
        pace = {"seconds_per_step": seconds, "peak_bytes": 1 << 30}
        (folder / "run.json").write_text(json.dumps({"base_model": {"family": "sd1"}, "pace": pace}))
    found = estimate(tmp_path, config, "sd1")
    assert (found.seconds_per_step, found.run) == (5.0, "old")
    assert estimate(tmp_path, config, "sdxl") is None
    assert plan["cost"] is None
    assert planned(graph())["cost"] == {"seconds": 15000.0, "bytes": 1 << 30, "run": "old"}


@pytest.mark.parametrize(
    "pace", [None, [], {"seconds_per_step": "x"}, {"seconds_per_step": -1, "peak_bytes": 1}, {"seconds_per_step": 1}]
)
def test_a_damaged_record_of_a_pace_tells_nothing(tmp_path, pace):
    config = TrainConfig(base="ComfyUI")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(as_dict(config)))
    (tmp_path / "run" / "run.json").write_text(json.dumps({"base_model": {"family": "sd1"}, "pace": pace}))
    assert estimate(tmp_path, config, "sd1") is None
