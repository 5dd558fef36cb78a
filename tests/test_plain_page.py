"""The panel in a page that is not ComfyUI's, in a real browser: the page's polling host, and the state that every host's panel has on the server.

Needs node, chromium ($CHROMIUM) and playwright-core ($PLAYWRIGHT_CORE).
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from in_browser import seen_by, shots_in, why_not
from lora_loom.lora_core.events import StepReport
from lora_loom.lora_core.messages.message import Message, table
from lora_loom.nodes.jobs.panel import PanelHost, PanelListener, Panels
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DRIVER = ROOT / "tests" / "js" / "browser" / "plain.mjs"
API = "/lora-loom/v1/"
TYPES = {".js": "text/javascript", ".json": "application/json", ".html": "text/html", ".png": "image/png"}


class Server:
    """What a second host answers, with the panel that all hosts share. /test/... moves its run on."""

    def __init__(self, root: Path):
        self.root, self.asked = root, []
        self.panels = Panels(PanelHost(lambda: root, lambda event: None, lambda: None))

    @property
    def panel(self):
        return self.panels.find("page", "")

    def begin(self) -> None:
        panel = self.panels.begin("page", kind="train", inputs={"sample_prompt": "a zog"})
        (self.root / "zog" / "samples").mkdir(parents=True)
        panel.run = "zog"
        self.listener = PanelListener(panel)
        self.listener.on_start(0, 100, {"layers": 4, "trained_values": 100_000, "pictures": 28})

    def step(self) -> None:
        for step in range(1, 41):
            self.listener.on_step(StepReport(step, 1 / step, 0.0, 0.5, 1e-4, []))
        sample = self.root / "zog" / "samples" / "step-40.png"
        Image.new("RGB", (96, 96), (200, 60, 40)).save(sample)
        self.listener.on_sample(40, [], sample)

    def stop(self) -> None:
        self.panel.result = {
            "files": ["zog.safetensors"],
            "trigger": "zog",
            "lora": True,
            "comfyui": "",
            "a1111": "<lora:zog:1>",
        }
        self.panel.changed(status="stopped", doing={})

    def answer(self, path: str, query: dict[str, str]) -> tuple[bytes, str]:
        """Body and type; KeyError for what is not there."""
        if path == "/":
            return (DRIVER.parent / "plain.html").read_bytes(), TYPES[".html"]
        if path.startswith("/files/js/"):
            file = ROOT / path.removeprefix("/files/")
            return file.read_bytes(), TYPES[file.suffix]
        if path == f"{API}panel":
            after = int(query["after"]) if self.panel and query["session"] == self.panel.session else 0
            return json.dumps({"panel": self.panel and self.panel.snapshot(after)}).encode(), TYPES[".json"]
        if path == f"{API}panel/sample":
            return (self.root / query["run"] / "samples" / f"step-{query['step']}.png").read_bytes(), TYPES[".png"]
        if path == f"{API}messages/ja":
            return json.dumps({"sentences": table("ja"), "names": {}}).encode(), TYPES[".json"]
        raise KeyError(path)

    def take(self, path: str, body: dict) -> None:
        self.asked.append((path, body))
        {"/test/begin": self.begin, "/test/step": self.step, f"{API}stop": self.stop}[path]()


@pytest.fixture
def served(tmp_path):
    state = Server(tmp_path)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlsplit(self.path)
            try:
                self.reply(
                    200,
                    *state.answer(url.path, {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}),
                )
            except (KeyError, OSError) as error:
                self.reply(204 if url.path == "/favicon.ico" else 404, str(error).encode(), "text/plain")

        def do_POST(self):
            length = int(self.headers.get("Content-Length") or 0)
            state.take(self.path, json.loads(self.rfile.read(length) or b"{}"))
            self.reply(200, b"{}", TYPES[".json"])

        def reply(self, status, body, kind):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(0 if status == 204 else len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(b"" if status == 204 else body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_a_plain_page_shows_a_run_stops_it_and_sends_its_prompt_on(served, tmp_path):
    state, address = served
    seen = seen_by(DRIVER, address, shots_in(tmp_path), seconds=120)
    words = json.loads((ROOT / "js" / "locales" / "ja.json").read_text(encoding="utf-8"))
    assert seen["idle"] == words["panel.idle@page"]
    assert seen["language"] == "ja"
    assert seen["buttons"] == [words[f"panel.{name}"] for name in ("stop", "save", "sample", "pause")]
    trained = Message.of("run.trains", layers=4, values="100,000", size="0.4 MB", pictures=28)
    assert seen["message"] == table("ja")["run.trains"].format(**trained.values)
    assert seen["ink"] != seen["darkInk"]
    assert state.asked[2] == (f"{API}stop", {"node": "page"})
    assert seen["result"] == seen["prompt"] == "a zog, <lora:zog:1>"
    assert any("zog.safetensors" in toast for toast in seen["toasts"])
    assert seen["toastsAfterReload"] == 0  # it did not see the run go on
    assert not [path for path in seen["requests"] if "scripts" in path or "comfyui" in path]
