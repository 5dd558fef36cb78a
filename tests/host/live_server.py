"""A real ComfyUI server with this checkout as its only custom node, spoken to over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
START_S, PROMPT_S, END_S = (
    300.0,
    900.0,
    60.0,
)  # only against hanging: on a machine four times slower, with a second server beside it


PORTS = range(20_000, 30_000)  # below the numbers that systems hand out by themselves, which may all be odd


def free_port() -> int:
    """A port nobody listens on; processes that test side by side each take theirs from numbers of their own, as a server needs seconds to take its port."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = PORTS[worker::count]
    for port in random.Random().sample(ports, len(ports)):
        with contextlib.suppress(OSError), socket.socket() as candidate:
            candidate.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port from {PORTS.start} to {PORTS.stop - 1}")


class Server:
    def __init__(self, base: Path):
        self.base = base
        (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "ComfyUI-LoRA-Loom_1.0").symlink_to(ROOT)  # a folder name with a hyphen and a dot
        for name in ("input", "output", "temp", "user", "models/checkpoints", "models/loras"):
            (base / name).mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.log = base / "server.log"
        self._command = [
            sys.executable,
            str(HOST / "main.py"),
            "--cpu",
            "--port",
            str(self.port),
            "--base-directory",
            str(base),
            "--database-url",
            f"sqlite:///{base}/user/comfy.db",
        ]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=HOST, stdout=open(self.log, "a"), stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, seconds: float = START_S) -> None:
        for _ in range(int(seconds * 5)):
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.2)
        raise RuntimeError("ComfyUI did not start:\n" + self.log.read_text()[-3000:])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(END_S)

    def kill(self) -> None:
        """Ends the server as a crash would."""
        self._process.kill()
        self._process.wait(END_S)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=END_S) as answer:
            return json.loads(answer.read())

    def post(
        self, path: str, body: Any, content_type: str = "application/json", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": content_type, **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=END_S) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text.startswith((b"{", b"[")) else None

    def queue(self, prompt: dict) -> str:
        """Its number. The host leaves out outputs that it refuses and runs the others: here none may be left out."""
        status, answer = self.post("/prompt", {"prompt": prompt})
        assert status == 200, answer
        assert not answer["node_errors"], answer
        return answer["prompt_id"]

    def result(self, prompt_id: str, seconds: float = PROMPT_S) -> dict:
        for _ in range(int(seconds * 10)):
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry["status"]["status_str"] in ("success", "error"):
                return entry
            time.sleep(0.1)
        raise TimeoutError(self.log.read_text()[-3000:])

    def execute(self, prompt: dict, seconds: float = PROMPT_S) -> dict:
        return self.result(self.queue(prompt), seconds)

    def error_of(self, entry: dict) -> str:
        return next(m[1]["exception_message"] for m in entry["status"]["messages"] if m[0] == "execution_error")

    def api_prompt(self, workflow: dict) -> dict:
        """A saved workflow as the frontend would queue it: widgets by position, links by slot."""
        links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
        prompt = {}
        for node in workflow["nodes"]:
            if node["type"] == "MarkdownNote":
                continue
            spec = self.get(f"/object_info/{node['type']}")[node["type"]]["input"]
            wired = {i["name"]: links[i["link"]] for i in node["inputs"]}
            inputs: dict[str, Any] = {name: list(source) for name, source in wired.items()}
            values = iter(node["widgets_values"])
            for name, kind in {**spec.get("required", {}), **spec.get("optional", {})}.items():
                is_widget = isinstance(kind[0], list) or kind[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
                if is_widget and name not in wired:
                    inputs[name] = next(
                        values, kind[1].get("default") if len(kind) > 1 else None
                    )  # an older workflow lacks the last ones
                    if name == "seed":
                        next(values, None)  # control after generate
            assert next(values, None) is None, f"{node['type']}: more values than widgets"
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
        return prompt


@contextlib.contextmanager
def running(base: Path) -> Iterator[Server]:
    server = Server(base)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


class Graph:
    """A prompt for the server; widgets that are not named keep their default."""

    def __init__(self, server):
        self.server, self.nodes = server, {}

    def add(self, kind: str, **inputs: Any) -> str:
        spec = self.server.get(f"/object_info/{kind}")[kind]["input"]
        values = {}
        for name, (type_, *options) in spec.get("required", {}).items():
            if isinstance(type_, list):
                values[name] = type_[0]
            elif type_ in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                values[name] = options[0].get("default", (options[0].get("options") or [None])[0])
        number = str(len(self.nodes) + 1)
        self.nodes[number] = {"class_type": kind, "inputs": {**values, **inputs}}
        return number

    def draw(self, model, clip, vae, text: str, name: str) -> None:
        positive, negative = (self.add("CLIPTextEncode", clip=clip, text=t) for t in (text, ""))
        latent = self.add("EmptyLatentImage", width=64, height=64, batch_size=1)
        sampled = self.add("KSampler", model=model, positive=[positive, 0], negative=[negative, 0], latent_image=[latent, 0], seed=3, steps=8, cfg=4.0,
                           sampler_name="euler", scheduler="simple", denoise=1.0)  # fmt: skip
        self.add("SaveImage", images=[self.add("VAEDecode", samples=[sampled, 0], vae=vae), 0], filename_prefix=name)

    def run(self) -> dict:
        entry = self.server.execute(self.nodes)
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry

    def fails(self) -> str:
        return self.server.error_of(self.server.execute(self.nodes))
