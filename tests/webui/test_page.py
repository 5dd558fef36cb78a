"""The tab in a real browser, in both gradios. Needs node, chromium ($CHROMIUM) and playwright-core ($PLAYWRIGHT_CORE)."""

import json
import time
from pathlib import Path

import pytest
from in_browser import seen_by, shots_in, why_not
from live_webui import Server
from lora_loom.nodes.page.fields import sections
from PIL import Image, ImageDraw

DRIVER = Path(__file__).parent / "browser" / "tab.mjs"
ROUTE = "/lora-loom/v1"
PICTURES = 28


@pytest.fixture(scope="module")
def page(kind, tmp_path_factory):
    """The host with its page, which may serve everything below its data folder."""
    data = tmp_path_factory.mktemp(f"page_{kind.folder}")
    server = Server(kind, data, flags=("--gradio-allowed-path", str(data)), page=True)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def drawn(folder):
    """28 pictures and their captions."""
    folder.mkdir()
    for n in range(PICTURES):
        image = Image.new("RGB", (96, 96), (9 * n % 256, 200 - 6 * n, 120))
        ImageDraw.Draw(image).ellipse((8 + n, 20, 60 + n, 72), fill=(250 - 8 * n, 30 + 7 * n, 40))
        image.save(folder / f"{n:02}.png")
        (folder / f"{n:02}.txt").write_text(f"a disc, number {n}")
    return folder


@pytest.fixture(scope="module")
def seen(page):
    """What a person's round through the tab showed: pictures dropped, looked at, captioned, trained, stopped, the prompt sent to txt2img."""
    if reason := why_not():
        pytest.skip(reason)
    folder = drawn(page.data / "dropped")
    return seen_by(DRIVER, page.address, shots_in(page.data) / page.kind.name, *sorted(folder.iterdir()), seconds=580)


def test_dropped_pictures_are_trained_shown_stopped_and_sent_to_txt2img(seen):
    assert seen["plan"].startswith(f"{PICTURES} pictures, {PICTURES} with captions; 40 steps")
    assert len(seen["sections"]) == 1 + len(sections(asks_base=False)), "all settings, and each section below them"
    assert (seen["cards"], seen["caption"]) == (PICTURES, "a caption of the page")
    assert f"{PICTURES} pictures" in seen["sheet"]
    assert "rank (Adapter) = 8" in seen["imported"]
    assert "from_the_page_universal.safetensors" in seen["converted"]
    assert "from_the_page" in seen["runs"]
    assert seen["charts"] == 1
    assert seen["tick"] == [True, "auto"], "a page that draws ticks its own way hides ours"
    assert seen["samples"] >= 2
    assert seen["said"] == 0, "that the run starts soon is said no more when it is over"
    assert seen["prompt"] == "sks, <lora:from_the_page:1>"


def test_the_prompt_of_the_result_draws_with_the_lora(page, seen):
    asked = {"prompt": seen["prompt"], "steps": 2, "width": 64, "height": 64, "seed": 1}
    assert page.post("/sdapi/v1/txt2img", asked)["images"]


def test_the_page_serves_nothing_of_runs_and_dropped_pictures(page, seen):
    assert seen["result"]
    files = [file for file in (page.data / "lora_loom").rglob("*") if file.is_file()]
    assert len(files) > 10
    for file in files[:: max(1, len(files) // 8)]:
        assert page.ask(f"/file={file}")[0] == 403, file
    assert page.ask(f"/file={page.data / 'config.json'}")[0] == 200, "the test could not fail"


def test_a_run_goes_on_through_reload_ui(page, seen):
    assert seen["result"]
    folder = page.inside("pictures")
    settings = {"name": "reloaded", "data.folder": folder, "data.trigger": "sks", "data.resolution": 64, "steps": 60}
    settings |= {"data.bucket_step_px": 16, "batch_size": 1, "samples.every": 0}
    page.post(f"{ROUTE}/start", {"settings": settings, "preset": "quick test"})
    page.wait_for("training")
    page.inside("reload_page")
    deadline = time.monotonic() + 240
    panel = {}
    while time.monotonic() < deadline and panel.get("status") not in ("finished", "stopped", "failed"):
        time.sleep(1)
        try:
            panel = json.loads(page.ask(f"{ROUTE}/state", timeout=10)[1]).get("panel") or {}
        except (OSError, ValueError):  # the page is being made anew
            continue
    assert (panel.get("run"), panel.get("status"), panel.get("step")) == ("reloaded", "finished", 60), panel
