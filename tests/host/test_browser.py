"""The panel in a real browser against a real server, in both renderers. Needs node, chromium ($CHROMIUM) and playwright-core ($PLAYWRIGHT_CORE)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_browser import seen_by, shots_in, why_not
from live_server import running
from lora_loom.lora_core.messages.message import table
from safetensors.torch import load_file

DRIVER = Path(__file__).parent / "browser" / "panel.mjs"
LOCALES = Path(__file__).parents[2] / "js" / "locales"
RENDERERS = ("classic", "nodes2")


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


def driven(server, renderer: str, scenario: str, seconds: int = 420) -> dict:
    """What the browser saw. Screenshots go to $SHOTS, else beside the server's files."""
    address, shots = f"http://127.0.0.1:{server.port}", shots_in(server.base / "shots")
    return seen_by(DRIVER, address, shots, renderer, scenario, seconds=seconds)


def run_log(server, run: str) -> list[dict]:
    return [
        json.loads(line) for line in (server.base / "output" / "lora_loom" / run / "log.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_run_is_seen_steered_and_survives_a_reload(server, renderer, figure):
    seen = driven(server, renderer, "run")
    lines = run_log(server, seen["run"])
    figure(f"chart after the first step, {renderer}", seen["chart_at"] - lines[0]["time"])
    assert seen["chart_while"] == "training"
    assert seen["first_picture"] == "without"
    assert seen["second_tab"]
    assert not seen["workflow_has_panel"]
    assert (seen["gaps"], seen["gaps_after_pause"], seen["drawn_while_collapsed"]) == (0, 0, 0)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    longest = max(b["time"] - a["time"] for a, b in zip(lines, lines[1:], strict=False))
    print(f"last step {lines[-1]['time'] - seen['stop_clicked']:.2f} s after the click")
    assert lines[-1]["time"] - seen["stop_clicked"] <= longest + 1
    assert load_file(server.base / "output" / "loras" / f"{seen['run']}.safetensors")
    assert seen["listed"]
    assert any(f"{seen['run']}.safetensors" in toast and f"<lora:{seen['run']}:1>" in toast for toast in seen["toasts"])


@pytest.mark.parametrize("renderer", RENDERERS)
def test_what_a_run_will_do_is_said_before_it_is_started_and_what_it_cost_afterwards(server, renderer):
    seen = driven(server, renderer, "plan")
    assert "16\npreset" in seen["first"]
    assert "128\nmodel" in seen["first"]
    ran_before = (server.base / "output" / "lora_loom" / "plan_classic").is_dir() and renderer != "classic"
    costs = "as measured in plan_classic" if ran_before else "Time and memory are known after a first run"
    assert costs in seen["first"]
    assert seen["labels"]["rank"].endswith("(16)")
    if renderer == "classic":  # Nodes 2.0 folds by itself
        shown = {kind: names for kind, names in seen["visible"]}
        assert len(shown["LoraLoomTrainLora"]) <= 10
        assert len(shown["LoraLoomLoadFolder"]) <= 4
    assert "30\nyours" in seen["changed"]
    assert "(" not in seen["labels_changed"]["steps"]
    assert "adapter.rank" in seen["refused"] or "rank" in seen["refused"]
    assert seen["during"] == "none"
    assert f"measured in plan_{renderer}" in seen["measured"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_run_inside_a_subgraph_has_its_panel_too(server, renderer):
    seen = driven(server, renderer, "subgraph")
    assert ":" in seen["id"]
    assert seen["gaps"] == 0
    assert load_file(server.base / "output" / "loras" / f"{seen['run']}.safetensors")


@pytest.mark.parametrize("renderer", RENDERERS)
def test_cancel_keeps_what_was_trained(server, renderer):
    seen = driven(server, renderer, "cancel")
    assert seen["can_continue"]
    assert len(run_log(server, seen["run"])) == seen["step"]
    assert load_file(server.base / "output" / "loras" / f"{seen['run']}.safetensors")


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_sentence_of_five_errors_is_seen_and_its_field_marked(server, renderer):
    errors = driven(server, renderer, "errors")["errors"]
    assert {name: error["marked"] for name, error in errors.items()} == {
        "name": "name", "rank": "rank", "include": "targets", "exclude": "exclude", "resume": "resume",
    }  # fmt: skip
    assert all(error["visible"] and error["toast"] and error["outlined"] for error in errors.values())


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_page_speaks_the_readers_language(server, renderer):
    seen = driven(server, renderer, "words")
    for language in ("zh", "ko", "ja"):
        words, told = json.loads((LOCALES / f"{language}.json").read_text(encoding="utf-8")), seen[language]
        assert told["idle"].strip() == words["panel.idle"]
        assert all(
            words[f"panel.{key}"] in told["finished"]["text"] for key in ("finished", "smoothed", "rate", "saves")
        )
        assert any(
            words["panel.made"].replace("{files}", f"words_{renderer}_{language}.safetensors") in toast
            for toast in told["finished"]["toasts"]
        )
        assert told["error"].endswith(table(language)["adapter.rank.too_large"].rpartition("{limit}")[2])
        assert told["marked"] == "rank"
        assert all(
            words[f"runs.{key}"] in told["runs"]
            for key in ("refresh", "compare", "state_finished", "use", "resume", "rename", "export", "delete")
        )
        assert told["over"] == told["finished"]["over"] == []


@pytest.mark.parametrize("renderer", RENDERERS)
def test_settings_show_at_once(server, renderer):
    seen = driven(server, renderer, "settings")
    before, logarithmic, large, after = (seen[name] for name in ("before", "logarithmic", "large", "after"))
    assert logarithmic["drawn"] > before["drawn"]
    assert logarithmic["middle"] != before["middle"]  # another picture of the same rows
    assert (before["pictures"], large["pictures"], after["pictures"]) == ("350px", "460px", "350px")
    assert large["least"] - before["least"] == 460 - 350


@pytest.mark.parametrize("renderer", RENDERERS)
def test_twenty_thousand_points_and_an_hour_of_events(server, renderer):
    seen = driven(server, renderer, "load")
    assert seen["with_points"]["points"] >= 20_000
    plain = seen["without_points"]["fps"]  # what this machine draws of the page anyway
    assert seen["with_points"]["fps"] >= 0.6 * plain
    assert seen["with_points"]["chart_draw_ms"] < 1000 / plain  # less than one of its pictures
    assert seen["with_points"]["drawn"] > 0  # it was in sight and had news
    assert seen["readout"].count("·") >= 3
    assert seen["alt_wheel"] == {"chart_zoomed": True, "graph_scale": 1}
    assert seen["double_click_resets"]
    assert seen["drag_view"]
    assert seen["drag_view"][1] - seen["drag_view"][0] < 10_000
    assert seen["plain_wheel_scale"] < 1  # still the graph's
    hour = seen["memory_mb"][1:]
    assert max(hour) - min(hour) < 8
    assert 10_000 <= seen["rows_after_hour"] <= 30_000
