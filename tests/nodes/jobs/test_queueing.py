"""The queue of a host in rows: its order, who trains in it, and how long each takes."""

from __future__ import annotations

import pytest
from lora_loom.nodes.jobs.queueing import FRESH_S, Queueing

TRAIN = {"class_type": "LoraLoomTrainLora", "inputs": {"name": "cat", "model": ["1", 0]}}
LOADER = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}}
SAVE = {"class_type": "SaveLora", "inputs": {"lora": ["2", 1]}}
DRAW = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
TRAINS = ("LoraLoomTrainLora",)
PLAN = {"rows": [{"path": "steps", "value": 500, "source": "you"}], "cost": {"seconds": 60.0}}


class FakePanel:
    run, step, steps = "cat_2", 12, 400

    def __init__(self, left):
        self.left = left

    def heart(self):
        return {"left_s": self.left}


def item(number, prompt, outputs, name="p"):
    return (number, f"{name}{number}", prompt, {}, outputs)


GRAPH = {"1": LOADER, "2": TRAIN, "3": SAVE, "4": DRAW}


@pytest.fixture
def asked():
    return []


def rows(asked, running=(), waiting=(), panel=None, clock=lambda: 0.0):
    return Queueing(lambda prompt, node: asked.append(node) or PLAN, lambda node: panel, TRAINS, clock).rows(
        running, waiting
    )


def test_what_waits_stands_in_the_order_it_is_run_in(asked):
    waiting = [item(3, GRAPH, ["3"]), item(1, GRAPH, ["3"]), item(2, {"1": LOADER, "4": DRAW}, ["4"])]
    assert [(row["id"], row["name"], row["steps"], row["seconds"]) for row in rows(asked, (), waiting)] == [
        ("p1", "cat", 500, 60.0), ("p2", "", None, None), ("p3", "cat", 500, 60.0),
    ]  # fmt: skip


def test_what_runs_comes_first_with_its_own_step_and_time(asked):
    now, later = rows(asked, [item(9, GRAPH, ["3"])], [item(1, GRAPH, ["3"])], FakePanel(33.0))
    assert (now["running"], now["name"], now["step"], now["steps"], now["seconds"]) == (True, "cat_2", 12, 400, 33.0)
    assert (later["running"], later["step"], later["seconds"]) == (False, None, 60.0)
    (now,) = rows(asked, [item(9, GRAPH, ["3"])], (), FakePanel(None))
    assert now["seconds"] == 60.0  # what an earlier run took, until its own steps are measured


def test_a_training_that_the_outputs_do_not_need_is_not_run(asked):
    """As when only the sheet of a dataset is asked for: the page sends the whole graph along."""
    (row,) = rows(asked, (), [item(1, GRAPH, ["4"])])
    assert (row["name"], asked) == ("", [])


def test_every_output_is_followed_to_what_it_needs(asked):
    (row,) = rows(asked, (), [item(1, GRAPH, ["3", "4"])])
    assert (row["name"], asked) == ("cat", ["2"])


def test_a_plan_is_made_once_for_a_while(asked):
    now = [0.0]
    queueing = Queueing(lambda prompt, node: asked.append(node) or PLAN, lambda node: None, TRAINS, lambda: now[0])
    for _ in range(3):
        queueing.rows((), [item(1, GRAPH, ["3"])])
    assert asked == ["2"]
    now[0] = FRESH_S + 1
    queueing.rows((), [item(1, GRAPH, ["3"])])
    assert asked == ["2", "2"]


@pytest.mark.parametrize(
    "prompt", [{}, {"2": None}, {"2": {"class_type": "LoraLoomTrainLora"}}, {"3": {"inputs": {"x": ["3", 0]}}}]
)
def test_a_graph_that_is_none_is_other_work(asked, prompt):
    (row,) = rows(asked, (), [item(1, prompt, ["3", "9"])])
    assert row["name"] == ""
