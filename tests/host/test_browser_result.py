"""Samples and results on ComfyUI's page, in a real browser and in both renderers. Needs what test_browser.py needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_browser import seen_by, shots_in, why_not
from live_server import running

DRIVER = Path(__file__).parent / "browser" / "result.mjs"
RENDERERS = ("classic", "nodes2")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


def driven(server, renderer: str, scenario: str) -> dict:
    """What the browser saw. Screenshots go to $SHOTS, else beside the server's files."""
    address, shots = f"http://127.0.0.1:{server.port}", shots_in(server.base / "shots")
    return seen_by(DRIVER, address, shots, renderer, scenario, seconds=560)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_samples_are_looked_at_and_the_result_is_used(server, renderer):
    seen = driven(server, renderer, "run")
    name = f"result_{renderer}"
    assert f"{name}.safetensors" in seen["card"]
    assert "strength 1.0" in seen["card"]
    for told in ("Generating samples 1/2", "Generating samples 2/2", "Saving at step", "Writing the file"):
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


@pytest.mark.parametrize("renderer", RENDERERS)
def test_what_a_failed_run_left_is_in_no_list_unless_it_is_kept(server, renderer):
    seen = driven(server, renderer, "failed")
    assert "Keep anyway" in seen["card"]
    assert "learning_rate" in seen["error"] or "optimizer.lr" in seen["error"]
    assert seen["before"] == [False, False]
    assert seen["after"] == [True, True]
    assert not seen["reloaded"]  # it is kept already: the card does not ask again
    (light, names), (dark, _) = seen["light"], seen["dark"]
    assert (light, dark) == ("#0b5cb8", "#6db5ff")
    assert names >= 2  # each line is named at its end
