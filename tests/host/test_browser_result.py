"""Samples and results on ComfyUI's page, in a real browser and in both renderers. Needs what test_browser.py needs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from live_server import running
from test_browser import why_not

DRIVER = Path(__file__).parent / "browser" / "result.mjs"
RENDERERS = ("classic", "nodes2")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
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
def test_samples_are_looked_at_and_the_result_is_used(server, renderer):
    seen = driven(server, renderer, "run")
    name = f"result_{renderer}"
    assert f"{name}.safetensors" in seen["card"]
    assert "strength 1.0" in seen["card"]
    for told in ("Drawing samples 1/2", "Drawing samples 2/2", "Saving a checkpoint", "Writing the file"):
        assert any(text.startswith(told) for text in seen["doing"]), (told, seen["doing"])
    pictures, panel, _, card = seen["heights"]
    assert 2 * pictures >= panel - card
    assert (len(seen["opened"]["pictures"]), len(seen["opened"]["prompts"])) == (1, 2)
    assert "seed 1" in seen["opened"]["prompts"][0]
    assert "step=12&picture=0" in seen["opened"]["pictures"][0]
    assert "step=8&picture=1" in seen["walked"]["pictures"][0]
    assert ["step=0" in src for src in seen["wipe"]["pictures"]] == [False, True]
    assert ["step=0" in src for src in seen["beside"]["pictures"]] == [True, False]
    assert seen["closed"] is None
    assert seen["used"] == {
        "lora": f"{name}.safetensors", "model": "LoraLoomLoadToyModel", "text": "a zog on a white ground", "wired": True,
    }  # fmt: skip
    assert seen["steps_after_use"] == 12
    assert seen["longer"] == [name, 18, 18]
    assert (seen["after_program"], seen["fresh"]) == (name, None)
