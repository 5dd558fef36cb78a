"""The tab in a real browser, in both gradios. Needs node, chromium ($CHROMIUM) and playwright-core ($PLAYWRIGHT_CORE)."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from live_webui import Server
from PIL import Image, ImageDraw

DRIVER = Path(__file__).parent / "browser" / "tab.mjs"
ROUTE = "/lora-loom/v1"
PICTURES = 28


def why_not():
    if not shutil.which("node"):
        return "node is not installed"
    if not Path(os.environ.get("CHROMIUM", "/usr/bin/chromium")).exists():
        return "chromium is not installed; set CHROMIUM"
    asked = ["node", "-e", "require(process.env.PLAYWRIGHT_CORE || 'playwright-core')"]
    found = subprocess.run(asked, cwd=DRIVER.parent, capture_output=True, check=False)
    return "" if found.returncode == 0 else "playwright-core is not installed; set PLAYWRIGHT_CORE to its folder"


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
    shots = Path(os.environ.get("SHOTS", page.data)) / page.kind.name
    shots.mkdir(parents=True, exist_ok=True)
    files = [str(file) for file in sorted(folder.iterdir())]
    command = ["node", str(DRIVER), page.address, str(shots), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_dropped_pictures_are_trained_shown_stopped_and_sent_to_txt2img(seen):
    assert "failed" not in seen, seen
    assert seen["problems"] == []
    assert seen["plan"].startswith(f"{PICTURES} pictures, {PICTURES} with captions; 40 steps")
    assert len(seen["sections"]) == 14
    assert (seen["cards"], seen["caption"]) == (PICTURES, "a caption of the page")
    assert f"{PICTURES} pictures" in seen["sheet"]
    assert "adapter.rank = 8" in seen["imported"]
    assert "from_the_page_universal.safetensors" in seen["converted"]
    assert "from_the_page" in seen["runs"]
    assert seen["charts"] == 1
    assert seen["samples"] >= 2
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
