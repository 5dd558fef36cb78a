"""The preset auto through a real server: what it decides is told in the panel, kept with the run, and taken over when the run goes on."""

from __future__ import annotations

import json

import pytest
from live_server import Graph, running
from lora_loom.convert.files.disk import header
from lora_loom.convert.metadata import recommended_strength
from PIL import Image


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("auto")
    folder = base / "input" / "twelve"
    folder.mkdir(parents=True)
    for n in range(12):
        Image.new("RGB", (32, 32), (20 * n, 255 - 20 * n, 90)).save(folder / f"{n}.png")
    with running(base) as live:
        live.root = base
        yield live


def train(server, name, **widgets):
    """(run folder, the panel of its node) of a short run with the preset auto."""
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    data = graph.add("LoraLoomLoadFolder", folder="twelve", trigger="zog")
    wires = {"model": [base, 0], "clip": [base, 1], "vae": [base, 2], "dataset": [data, 0]}
    few = {"steps": 6, "rank": 2, "resolution": 32, "sample_every": 0}
    node = graph.add("LoraLoomTrainLora", **wires, name=name, preset="auto", **{**few, **widgets})
    graph.add("LoraLoomSaveLora", lora=[node, 2], name=f"{name}_saved")
    graph.run()
    return server.root / "output" / "lora_loom" / name


def test_auto_decides_tells_keeps_and_is_used_at_the_strength_it_found(server):
    folder = train(server, "measured")
    config = json.loads((folder / "config.json").read_text())
    assert (config["auto"], config["auto_keeps"], config["steps"]) == (True, "steps", 6)
    assert config["validation"]["every"] == 10
    assert config["optimizer"]["lr"] > 0
    codes = [choice["code"] for choice in json.loads((folder / "choices.json").read_text())]
    assert codes == [f"auto.{code}" for code in ("yours", "watched", "turn", "best", "fits", "rate", "strength")]
    panel = json.loads((folder / "panel.json").read_text())
    assert [m["code"] for m in panel["messages"] if m.get("code", "").startswith("auto.")] == codes
    strength = json.loads((folder / "strength.json").read_text())["strength"]
    assert panel["result"]["strength"] == strength
    assert f"<lora:measured:{strength:g}>" in panel["result"]["a1111"]
    listed = next(server.root.glob("output/**/loras/measured.safetensors"))
    assert recommended_strength(header(listed)[1]) == strength
    assert json.loads(listed.with_suffix(".json").read_text())["preferred weight"] == strength
    longer = train(server, "measured", steps=9, resume="continue last")
    after = json.loads((longer / "config.json").read_text())
    assert (longer, after["steps"]) == (folder, 9)
    assert after["optimizer"] == config["optimizer"]
    assert after["validation"] == config["validation"]
    assert [choice["code"] for choice in json.loads((folder / "choices.json").read_text())] == codes
