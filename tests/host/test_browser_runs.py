"""The Runs tab on ComfyUI's page: cards, what a person says of a run, runs compared, used, and the queue. Needs what test_browser.py needs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from live_server import Graph, running
from test_browser import why_not

DRIVER = Path(__file__).parent / "browser" / "runs.mjs"
RENDERERS = ("classic", "nodes2")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


def training(server, name: str, **changes) -> Graph:
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    folder = graph.add("LoraLoomLoadFolder", folder="toy: object", trigger="zog")
    values = {
        "name": name, "steps": 12, "rank": 4, "learning_rate": 0.01, "targets": "cross-attention", "batch_size": 1, "sample_every": 4,
        "sample_cfg": 4.0, "sample_prompt": "a zog on a white ground\na red circle on a white ground", **changes,
    }  # fmt: skip
    wires = {"model": [base, 0], "clip": [base, 1], "vae": [base, 2], "dataset": [folder, 0]}
    graph.add("LoraLoomTrainLora", **wires, **values)
    return graph


@pytest.fixture
def server(tmp_path):
    with running(tmp_path / "base") as server:
        training(server, "one").run()
        training(server, "two", rank=16, learning_rate=0.001, sample_every=6).run()
        training(server, "bare", sample_every=0).run()
        state = server.base / "output" / "lora_loom" / "bare" / "run.json"
        said = json.loads(state.read_text(encoding="utf-8"))
        said["base_model"]["file"] = "flux_dev.safetensors"  # a model in parts, which no loader of checkpoints lists
        state.write_text(json.dumps(said), encoding="utf-8")
        yield server


def driven(server, renderer: str, scenario: str) -> dict:
    """What the browser saw. Screenshots go to $SHOTS, else beside the server's files."""
    shots = Path(os.environ.get("SHOTS", server.base / "shots"))
    shots.mkdir(exist_ok=True)
    command = ["node", str(DRIVER), f"http://127.0.0.1:{server.port}", str(shots), renderer, scenario]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, check=False)
    assert done.stdout, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert "failed" not in seen, seen["failed"]
    assert seen["problems"] == []
    print(renderer, scenario, seen)
    return seen


@pytest.mark.parametrize("renderer", RENDERERS)
def test_runs_are_named_compared_and_used(server, renderer):
    seen = driven(server, renderer, "tab")
    assert "toy · Stable Diffusion 1.x" in seen["cards"]["one"]
    assert seen["placeholder"] == 1
    assert seen["buttons"] == ["☆", "Use", "⋯"]
    assert seen["menu"] == ["Samples", "Resume", "Rename", "Note", "Copy trigger", "Copy path", "Delete", "Export"]
    assert [text.split() for text in seen["starred"]] == [["The", "good", "one", "★"]]
    assert json.loads((server.base / "output" / "lora_loom" / "one" / "remark.json").read_text(encoding="utf-8")) == {
        "title": "The good one", "note": "lower the rate next time", "star": True,
    }  # fmt: skip
    for setting in ("adapter rank\t4\t16", "optimizer lr\t0.01\t1e-3", "samples every\t4\t6"):
        first, *values = setting.split("\t")
        assert any(
            line.startswith(first) and set(values) <= set(line.split("\t")) for line in seen["table"].splitlines()
        ), setting
    assert not any("batch_size" in line for line in seen["table"].splitlines())
    assert len(seen["samples"]) == 4  # two prompts of two runs
    assert all("step=12" in query for query in seen["samples"])
    assert {query.split("step=")[1].split("&")[0] for query in seen["earlier"]} == {"8", "6"}
    assert seen["boxes"]["colours"] > 5
    assert min(seen["boxes"]["chart"]) >= 200
    assert min(seen["boxes"]["image"]) >= 200
    assert any("two" in label for label in seen["labels"])
    assert (seen["under"], seen["closed"]) == (1, 0)
    assert seen["used"] == {
        "lora": "two.safetensors",
        "model": "LoraLoomLoadToyModel",
        "text": "a zog on a white ground",
    }
    assert "load its base flux_dev.safetensors in this graph first" in seen["refused"]
    assert seen["added"] == 0  # no other base is taken in its place


def test_the_queue_stands_in_its_order_with_its_time(server):
    first = server.queue(training(server, "goes_on", steps=4000, sample_every=0).nodes)
    server.queue(training(server, "waits", steps=500, sample_every=0).nodes)
    try:
        seen = driven(server, "nodes2", "queue")
    finally:
        server.post("/queue", {"clear": True})
        server.post("/interrupt", {})
        server.result(first)
    now, then = (" ".join(row.split()) for row in seen["rows"])
    assert now.startswith("1 goes_on step ")
    assert "left" in now
    assert then.startswith("2 waits 500 steps · about ")
    assert "done in" in then
    assert seen["summary"].startswith("Queue: 2 · done in about ")
