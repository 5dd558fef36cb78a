"""What the page says a train node will do is what the node then does; what shows only when the graph runs is not guessed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import pytest
from lora_loom.lora_core.config import TrainConfig, as_dict
from lora_loom.lora_core.runs.estimates import estimate
from PIL import Image


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
        "steps": (2400, "preset"), "adapter.rank": (4, "you"), "optimizer.lr": (1e-4, "preset"),
        "data.resolution": (128, "model"),
    }  # fmt: skip
    assert (plan["pictures"], plan["buckets"], plan["trigger"], plan["cost"]) == (24, [[128, 128, 24]], "zog", None)


def test_the_plan_is_the_job_the_node_makes(planned, nodes):
    train, planning = nodes("train_lora"), nodes("planning")
    sets = nodes("dataset").LoadFolder.sets("toy: object", "zog")
    defaults = {row.name: row.default for row in nodes("widgets").rows(train.INPUTS)}
    config, _ = train.config_from({**defaults, "preset": "style", "name": "zog"}, sets, planning._TOY)
    plan = rows(planned(graph(preset="style")))
    assert plan["steps"][0] == config.steps
    assert plan["adapter.rank"][0] == config.adapter.rank
    assert plan["optimizer.lr"][0] == config.optimizer.lr


def test_both_experts_are_planned_as_one_run_of_twice_the_steps(planned, nodes):
    both = {
        "model_high": ["1", 0],
        "model_low": ["5", 0],
        "clip": ["1", 1],
        "vae": ["1", 2],
        "dataset": ["2", 0],
        "name": "zog",
    }
    prompt = graph()
    prompt["5"] = {"class_type": "LoraLoomLoadToyModel", "inputs": {}}
    prompt["4"] = {"class_type": "LoraLoomTrainBothExperts", "inputs": both}
    plan, alone = planned(prompt), planned(graph())
    assert plan["problem"] is None
    assert rows(plan)["steps"] == (2 * rows(alone)["steps"][0], "preset")
    prompt["4"]["inputs"]["steps"] = 500
    assert rows(planned(prompt))["steps"] == (500, "you")
    assert "LoraLoomTrainBothExperts" in nodes("planning").TRAINS  # which the queue tells with its time, too


def test_wired_settings_are_told_as_such(planned, nodes):
    prompt = graph()
    kind = nodes("extension").SETTINGS_BY_ID["LoraLoomOptimizerSettings"]
    widgets = {row.name: row.default for row in kind.ROWS}
    [name] = [row.name for row in kind.ROWS if row.path == "optimizer.name"]
    prompt["3"]["inputs"] = {**widgets, name: "prodigy"}
    prompt["4"]["inputs"]["settings"] = ["3", 0]
    assert rows(planned(prompt))["optimizer.lr"] == (1.0, "preset")


def test_loss_and_noise_settings_reach_both_trainings_and_win_over_older_widgets(nodes):
    node = nodes("extension").SETTINGS_BY_ID["LoraLoomLossNoiseSettings"]
    widgets = {row.name: row.default for row in node.ROWS}
    chosen = {"loss": "huber", "weighting": "min_snr", "noise_offset": 0.05, "max_timestep": 875}
    settings = node.collected(None, {**widgets, **chosen})
    for module in (nodes("train_lora"), nodes("train_embedding")):
        sets = nodes("dataset").LoadFolder.sets("toy: object", "zog")
        own = {row.name: row.default for row in nodes("widgets").rows(module.INPUTS)}
        own |= {"name": "zog", "preset": "concept", **({"noise_offset": 0.1} if "noise_offset" in own else {})}
        config, _ = module.config_from(own, sets, nodes("planning")._TOY, settings)
        objective = config.objective
        assert (config.loss, objective.weighting, objective.noise_offset) == ("huber", "min_snr", 0.05)
        assert (objective.min_timestep, objective.max_timestep) == (0, 875)


def test_what_moved_to_a_settings_node_stays_where_older_workflows_have_it_and_is_not_shown(nodes):
    moved = {row.path for row in nodes("widgets").rows(nodes("train_lora").INPUTS) if row.moved}
    there = {row.path for row in nodes("extension").SETTINGS_BY_ID["LoraLoomLossNoiseSettings"].ROWS}
    assert len(moved) == 15
    assert moved < there
    for entry in nodes("train_lora").INPUTS:
        if getattr(entry, "path", "") in moved:
            assert entry.input().extra_dict == {"hidden": True}


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
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, resolution=128))
    for name, seconds, batch in (("old", 5.0, config.batch_size), ("other", 9.0, config.batch_size + 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(as_dict(dataclasses.replace(config, batch_size=batch))))
        pace = {
            "seconds_per_step": seconds,
            "peak_bytes": 1 << 30,
            "seconds": {"preparing": 7.0, "samples": 2.0, "saves": "x"},
        }
        (folder / "run.json").write_text(json.dumps({"base_model": {"family": "sd1"}, "pace": pace}))
    found = estimate(tmp_path, config, "sd1")
    assert (found.seconds_per_step, found.run, found.works) == (5.0, "old", {"preparing": 7.0, "samples": 2.0})
    assert estimate(tmp_path, config, "sdxl") is None
    assert plan["cost"] is None
    newer = tmp_path / "on fp8"
    shutil.copytree(tmp_path / "old", newer)
    said = json.loads((newer / "run.json").read_text())
    (newer / "run.json").write_text(
        json.dumps({"base_model": {"family": "sd1", "file": "fp8"}, "pace": {**said["pace"], "seconds_per_step": 2.0}})
    )
    assert [estimate(tmp_path, config, "sd1", file).run for file in ("", "fp8", "bf16")] == ["on fp8"] * 3
    (tmp_path / "old" / "run.json").write_text(
        json.dumps({"base_model": {"family": "sd1", "file": "bf16"}, "pace": said["pace"]})
    )
    os.utime(tmp_path / "old" / "run.json", (1, 1))
    assert [estimate(tmp_path, config, "sd1", file).run for file in ("", "fp8", "bf16")] == ["on fp8", "on fp8", "old"]
    shutil.rmtree(newer)
    samples = 2.0 * (2400 // 250 + 2)  # also at step 2400, and once without the LoRA
    assert planned(graph())["cost"] == {"seconds": 12000.0 + 7.0 + samples, "bytes": 1 << 30, "run": "old"}


@pytest.mark.parametrize(
    "pace", [None, [], {"seconds_per_step": "x"}, {"seconds_per_step": -1, "peak_bytes": 1}, {"seconds_per_step": 1}]
)
def test_a_damaged_record_of_a_pace_tells_nothing(tmp_path, pace):
    config = TrainConfig(base="ComfyUI")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(as_dict(config)))
    (tmp_path / "run" / "run.json").write_text(json.dumps({"base_model": {"family": "sd1"}, "pace": pace}))
    assert estimate(tmp_path, config, "sd1") is None


def test_a_folder_that_a_node_loaded_is_not_read_again_when_it_is_trained(nodes, counted, tmp_path, monkeypatch):
    train, dataset, planning = nodes("train_lora"), nodes("dataset"), nodes("planning")
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 64)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
        for file in (f"{name}.png", f"{name}.txt"):
            os.utime(folder / file, (1_000_000_000, 1_000_000_000))
    monkeypatch.setattr(dataset, "training_folder", lambda name: folder)
    monkeypatch.setattr(dataset, "ui", SimpleNamespace(PreviewImage=lambda sheet, cls: SimpleNamespace(as_dict=dict)))
    monkeypatch.setattr(dataset, "io", SimpleNamespace(NodeOutput=lambda *outputs, ui: outputs))
    loaded, *_ = dataset.with_pictures(dataset.LoadFolder, dataset.LoadFolder.sets("set", "zog"))
    defaults = {row.name: row.default for row in nodes("widgets").rows(train.INPUTS)}
    widgets = {**defaults, "preset": "style", "name": "zog"}
    (config, pictures), files, _ = counted(lambda: train.config_from(widgets, loaded, planning._TOY))
    assert [name for name in files if name.endswith((".png", ".txt"))] == []
    assert (config.data.resolution, [p.data.resolution for p in pictures.pictures]) == (128, [128, 128])


def test_a_choice_of_memory_says_before_the_run_what_it_decides(planned, nodes):
    plan = planned(graph(memory="12 GB"))
    assert plan["memory"]["code"] == "memory.unknown"  # nobody counted the toy
    assert "auto_fit" in plan["memory"]["values"]["settings"]
    assert planned(graph())["memory"] is None


def test_widgets_that_are_set_win_over_the_choice_of_memory(nodes):
    train, sets = nodes("train_lora"), nodes("dataset").LoadFolder.sets("toy: object", "zog")
    defaults = {row.name: row.default for row in nodes("widgets").rows(train.INPUTS)} | {
        "preset": "concept",
        "name": "z",
    }
    own = {**defaults, "memory": "8 GB", "checkpointing": True}
    config, _ = train.config_from(own, sets, nodes("planning")._TOY)
    assert config.memory_keeps == "checkpointing"
    wired = nodes("settings").SettingsSocket({"batch_size": 1, "grad_accum": 4})  # as Check Training hands them on
    config, _ = train.config_from({**defaults, "memory": "8 GB"}, sets, nodes("planning")._TOY, wired)
    assert config.memory_keeps == "batch_size, grad_accum"
    assert (config.batch_size, config.grad_accum) == (1, 4)


def test_auto_tells_that_it_measures_and_which_values_are_given_by_hand(planned, nodes):
    plan = planned(graph(preset="auto"))
    assert rows(plan) == {"steps": (3600, "preset"), "adapter.rank": (16, "preset"), "data.resolution": (128, "model")}
    assert plan["notes"][0]["code"] == "auto.will"
    assert rows(planned(graph(preset="auto", learning_rate=3e-4)))["optimizer.lr"] == (3e-4, "you")
    train, sets = nodes("train_lora"), nodes("dataset").LoadFolder.sets("toy: object", "zog")
    defaults = {row.name: row.default for row in nodes("widgets").rows(train.INPUTS)} | {"preset": "auto", "name": "z"}
    config, _ = train.config_from(defaults, sets, nodes("planning")._TOY)
    assert (config.auto, config.auto_keeps, config.schedule.name) == (True, "", "constant")
    wired = nodes("settings").SettingsSocket({"validation.patience": 0, "ema_decay": 0.9})
    config, _ = train.config_from({**defaults, "steps": 70, "learning_rate": 3e-4}, sets, nodes("planning")._TOY, wired)
    assert config.auto_keeps == "steps, validation.patience, optimizer.lr"
    config, _ = train.config_from({**defaults, "preset": "concept", "steps": 70}, sets, nodes("planning")._TOY, wired)
    assert (config.auto, config.auto_keeps) == (False, "")
