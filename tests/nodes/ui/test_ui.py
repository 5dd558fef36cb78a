"""`lora-loom ui` as a person has it: the program started, its page opened, a toy run trained through it from pictures to a file.

Needs gradio where this runs, or in the Python that $LOOM_UI_PYTHON names; the browser's part needs node, chromium ($CHROMIUM) and
playwright-core ($PLAYWRIGHT_CORE).
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import in_browser
import pytest
from lora_loom.__main__ import main
from lora_loom.nodes.page.fields import sections
from lora_loom.nodes.terminal.ui import PORT
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
DRIVER = ROOT / "tests" / "webui" / "browser" / "tab.mjs"
PYTHON = os.environ.get("LOOM_UI_PYTHON") or sys.executable
ROUTE, SECRET = "/lora-loom/v1", "a long password"
START_S, RUN_S = 600, 1200  # only against hanging
QUICK = {
    "base": "toy", "data.folder": "toy:object", "data.trigger": "zog", "data.resolution": 64, "adapter.rank": 2, "batch_size": 1, "samples.every": 5,
    "samples.steps": 2,
}  # fmt: skip

pytestmark = pytest.mark.slow


def why_not():
    asked = subprocess.run(
        [PYTHON, "-c", "import gradio, uvicorn, lora_loom; gradio.Blocks"],
        capture_output=True,
        cwd=ROOT.parent,
        check=False,
    )
    return "" if asked.returncode == 0 else f"{PYTHON} has no gradio; set LOOM_UI_PYTHON"


class Page:
    """A started `lora-loom ui`, or another program that serves the page: `command`. `without`: variables that are not handed on."""

    def __init__(self, place, password="", *more, command=(), without=()):
        self.place, self.password = place, password
        env = {key: value for key, value in os.environ.items() if key not in ("LORA_LOOM_PASSWORD", *without)}
        if password:
            env["LORA_LOOM_PASSWORD"] = password
        usual = ["-m", "lora_loom", "ui", "--out", str(place / "out"), "--port", "0", "--language", "en", *more]
        command = [PYTHON, *(command or usual)]
        self.log = open(place / "log.txt", "wb")  # noqa: SIM115 - the process keeps it
        self.process = subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("LoRA Loom: "), (line, (place / "log.txt").read_text())
        self.address = line.split()[-1].rstrip("/")
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                self.ask("/")
                return
            except OSError:
                time.sleep(0.2)

    def ask(self, path, body=None, headers=None):
        """(status, body) of GET, of POST where there is a body."""
        given = {"Authorization": f"Bearer {self.password}"} if self.password and headers is None else headers or {}
        kind = {"Content-Type": "application/json"} if body is None or isinstance(body, dict) else {}
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        try:
            request = urllib.request.Request(self.address + path, data, {**kind, **given})
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def post(self, path, body):
        status, answer = self.ask(ROUTE + path, body)
        assert status == 200, answer
        return json.loads(answer)

    def state(self):
        return json.loads(self.ask(f"{ROUTE}/state")[1])

    def start(self, name, **settings):
        body = {"settings": {**QUICK, "name": name, **settings}, "preset": "quick test"}
        return self.post("/start", body)

    def wait_for(self, *statuses):
        deadline = time.monotonic() + RUN_S
        panel = {}
        while time.monotonic() < deadline:
            panel = self.state()["panel"] or {}
            if panel.get("status") in statuses:
                return panel
            time.sleep(0.1)
        raise AssertionError(panel)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(RUN_S)
        self.log.close()
        return code


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    started = Page(tmp_path_factory.mktemp("ui"), SECRET, "--listen")
    yield started
    if started.process.poll() is None:
        started.end()


def test_everything_stands_behind_the_password(page):
    for path in ("/", "/config", "/docs", f"{ROUTE}/state", f"{ROUTE}/files/js/tab.js", "/gradio_api/info"):
        assert page.ask(path, headers={})[0] == 401, path
    assert page.ask(f"{ROUTE}/start", {"settings": QUICK}, headers={})[0] == 401
    assert page.ask("/")[0] == 200


def test_a_run_is_trained_from_pictures_that_were_sent_to_a_file_that_is_listed(page):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for n in range(3):
            picture = io.BytesIO()
            Image.new("RGB", (64, 64), (40 * n, 90, 200)).save(picture, "PNG")
            archive.writestr(f"set/{n}.png", picture.getvalue())
            archive.writestr(f"set/{n}.txt", "a wall")
    mark = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="set.zip"\r\n\r\n'
    body = mark + data.getvalue() + b"\r\n--edge--\r\n"
    given = {"Authorization": f"Bearer {SECRET}", "Content-Type": "multipart/form-data; boundary=edge"}
    status, answer = page.ask(f"{ROUTE}/upload", body, given)
    assert status == 200, answer
    page.start("sent", steps=10, **{"data.folder": json.loads(answer)["folder"]})
    panel = page.wait_for("finished", "failed")
    assert panel["status"] == "finished", panel["error"]
    assert panel["result"]["files"] == ["sent.safetensors"]
    assert [step for step, _ in panel["samples"]] == [0, 5, 10]
    assert len(panel["rows"]) == 10
    assert page.ask(f"{ROUTE}/panel/sample?run=sent&step=10")[1][:2] == b"\xff\xd8"
    assert (page.place / "out" / "loras" / "sent.safetensors").is_file()
    assert "sent.safetensors" in page.post("/inspect", {"files": "sent"})["report"]


def test_captions_are_edited_and_taken_back(page):
    folder = page.place / "own"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text("before")
    session = page.post("/dataset/open", {"folder": str(folder)})["session"]
    (picture,) = json.loads(page.ask(f"{ROUTE}/dataset?session={session}")[1])["pictures"]
    page.post("/dataset/edit", {"session": session, "captions": {picture["id"]: ["before", "after"]}})
    assert (folder / "a.txt").read_text() == "after"
    page.post("/dataset/undo", {"session": session})
    assert (folder / "a.txt").read_text() == "before"


def test_no_file_of_a_run_or_of_the_current_folder_is_served(page):
    for file in [*(page.place / "out").rglob("*.safetensors"), page.place / "log.txt"]:
        for prefix in ("/file=", "/gradio_api/file="):
            assert page.ask(f"{prefix}{file}")[0] in (403, 404), file
    for path in ("pyproject.toml", "js/../pyproject.toml", "nodes/ui/guard.py", "js"):
        assert page.ask(f"{ROUTE}/files/{path}")[0] == 404


def test_every_route_is_described_with_what_it_takes(page):
    paths = json.loads(page.ask("/openapi.json")[1])["paths"]
    ours = {path: methods for path, methods in paths.items() if path.startswith(ROUTE)}
    assert {
        f"{ROUTE}/{name}" for name in ("start", "stop", "convert", "merge", "resize", "extract", "bake")
    } <= ours.keys()
    convert = ours[f"{ROUTE}/convert"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert convert["properties"]["to"]["enum"][0] == "universal"
    assert convert["required"] == ["files"]
    names = {parameter["name"] for parameter in ours[f"{ROUTE}/panel/sample"]["get"]["parameters"]}
    assert names == {"run", "step", "size"}


def test_the_end_of_the_program_keeps_what_a_run_has_trained(page):
    page.start("cut", steps=5000, **{"samples.every": 0})
    page.wait_for("training")
    while page.state()["panel"]["step"] < 3:
        time.sleep(0.05)
    assert page.end() == 128 + signal.SIGTERM
    assert (page.place / "out" / "loras" / "cut.safetensors").is_file()
    assert list((page.place / "out" / "runs" / "cut" / "checkpoints").iterdir())


def test_a_space_starts_from_its_folder_alone_and_trains(tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if place.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"another program answers at port {PORT}, at which a Space has to be served")
    folder = tmp_path / "space"
    assert main(["ui", "--space", str(folder)]) == 0
    started = Page(folder, SECRET, command=["app.py"], without=("PYTHONPATH", "BASE_MODEL", "SPACE_HOST"))
    try:
        assert started.address == f"http://127.0.0.1:{PORT}"
        assert started.ask("/", headers={})[0] == 401
        assert b"LoRA Loom" in started.ask("/")[1]
        started.start("in_a_space", steps=5)
        panel = started.wait_for("finished", "failed")
        assert (panel["status"], panel["step"]) == ("finished", 5), panel["error"]
        assert (folder / "lora_loom_runs" / "loras" / "in_a_space.safetensors").is_file()
    finally:
        assert started.end() == 128 + signal.SIGTERM


def test_a_person_drops_pictures_trains_and_converts_in_a_browser(tmp_path):
    if reason := why_not() or in_browser.why_not():
        pytest.skip(reason)
    started = Page(tmp_path)
    try:
        pictures = sorted((ROOT / "lora_core" / "toy" / "sets" / "object").rglob("*.*"))
        seen = in_browser.seen_by(DRIVER, started.address, tmp_path, *pictures[-20:], seconds=500, ALONE="1")
    finally:
        started.end()
    assert (seen["cards"], seen["caption"]) == (10, "a caption of the page")
    assert len(seen["sections"]) == 1 + len(sections(asks_base=True)), "all settings, and each section below them"
    assert seen["charts"] == 1
    assert seen["tick"] == [True, "auto"], "a page that draws ticks its own way hides ours"
    assert seen["samples"] >= 2
    assert seen["said"] == 0, "that the run starts soon is said no more when it is over"
    assert seen["result"].startswith("from_the_page.safetensors")
    assert "rank (Adapter) = 8" in seen["imported"]
    assert "from_the_page_universal.safetensors" in seen["converted"]
    assert "from_the_page" in seen["runs"]
