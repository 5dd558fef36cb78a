"""Graphs opened in a real browser, in both renderers: what is in sight at first, and what older workflows queue. Needs what test_browser.py needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_browser import seen_by, shots_in, why_not
from live_server import ROOT, running
from test_browser_drop import photos

DRIVER = Path(__file__).parent / "browser" / "graphs.mjs"
AMOUNTS = {  # where 0 is as much as it says
    "caption_dropout", "dropout", "input_perturbation", "logit_mean", "min_timestep", "noise_offset", "seed", "tag_dropout", "timestep_bias",
    "warmup_steps", "weight_decay",
}  # fmt: skip
RENDERERS = ("classic", "nodes2")
OLD = sorted((ROOT / "tests" / "data" / "0.1.0" / "workflows").glob("*.json"))
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


def driven(server, renderer: str, scenario: str, *files: Path) -> dict:
    """What the browser saw. Screenshots go to $SHOTS, else beside the server's files."""
    address, shots = f"http://127.0.0.1:{server.port}", shots_in(server.base / "shots")
    return seen_by(DRIVER, address, shots, renderer, scenario, *files)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_few_widgets_are_in_sight_at_first(server, renderer):
    seen = driven(server, renderer, "sight")
    print(seen)
    assert "name" in seen["LoraLoomTrainLora"]
    assert len(seen["LoraLoomTrainLora"]) <= 10
    assert len(seen["LoraLoomTrainEmbedding"]) <= 10
    assert 2 <= len(seen["LoraLoomLoadFolder"]) <= 4
    assert {"loss", "noise_offset", "min_snr_gamma", "timesteps"} <= set(seen["LoraLoomLossNoiseSettings"])
    assert {zero.partition(".")[2] for zero in seen["zeros"]} <= AMOUNTS


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_workflow_of_0_1_0_queues_the_values_it_was_saved_with(server, renderer):
    seen = driven(server, renderer, "old", *OLD)
    for path in OLD:
        queued, prompt = seen[path.stem]["prompt"], server.api_prompt(json.loads(path.read_text(encoding="utf-8")))
        for node, entry in prompt.items():
            ours = {name: value for name, value in entry["inputs"].items() if not isinstance(value, list)}
            assert ours.items() <= queued[node]["inputs"].items(), (path.stem, node)
    assert seen["style_lora"]["shown"] == ["noise_offset"]
    assert seen["first_lora_toy"]["shown"] == []


TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("renderer", RENDERERS)
def test_no_node_of_a_template_lies_over_another(server, renderer):
    seen = driven(server, renderer, "templates", *TEMPLATES)
    for path in TEMPLATES:
        assert seen[path.stem]["overlaps"] == [], path.stem
        assert seen[path.stem]["nodes"] >= 3


def test_in_app_mode_dropped_files_become_a_lora(server, tmp_path):
    """The app template on the toy model, in few steps: nobody has to choose either."""
    (path,) = [path for path in TEMPLATES if path.stem.startswith("1 ")]
    flow = json.loads(path.read_text(encoding="utf-8"))
    base = next(node for node in flow["nodes"] if node["type"] == "CheckpointLoaderSimple")
    base |= {"type": "LoraLoomLoadToyModel", "widgets_values": []}
    for output in base["outputs"]:
        output["name"] = output["name"].lower()
    for node in flow["nodes"]:
        few = {"LoraLoomTrainLora": {2: 3}, "EmptyLatentImage": {0: 64, 1: 64}, "KSampler": {2: 2}}.get(
            node["type"], {}
        )
        for place, value in few.items():
            node["widgets_values"][place] = value
    shown = flow["extra"]["linearData"]
    shown["inputs"] = [row for row in shown["inputs"] if row[0] != base["id"]]
    (tmp_path / "app.json").write_text(json.dumps(flow))
    seen = driven(server, "nodes2", "app", tmp_path / "app.json", photos(tmp_path / "phone", 9))
    assert seen["folder"].startswith("pictures ")
    assert len(seen["files"]) == 1
    assert seen["clicks"] + 2 <= 4  # choosing a checkpoint takes two
    assert seen["typed"] <= 2
