"""A real WebUI in a data folder of its own, with the extension and a small checkpoint, for tests to talk to."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hub import made_hub

ROOT = Path(__file__).resolve().parents[2]
START_S, ANSWER_S = 420, 590
PROBE = Path(__file__).parent / "probe_extension"
NARROW = Path(__file__).parent / "narrow_extension"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A WebUI: where it lies unless the variable says otherwise, how it runs on a CPU, its small checkpoints."""

    name: str
    variable: str
    folder: str
    flags: tuple[str, ...]
    checkpoints: dict[str, str]

    @property
    def place(self) -> Path:
        return Path(os.environ.get(self.variable) or Path.home() / "webui" / self.folder)

    @property
    def python(self) -> Path:
        return self.place / "venv" / "bin" / "python"

    def missing(self) -> str:
        """Why this host cannot be started here; empty where it can."""
        if not (self.place / "launch.py").is_file():
            return f"no {self.name} at {self.place}; set {self.variable}"
        if not self.python.is_file():
            return f"{self.name} has no environment at {self.python}"
        small = [
            models_folder() / f"{name}.safetensors" for family, name in self.checkpoints.items() if family != "full"
        ]
        if self is not A1111 and not all(file.is_file() for file in small):
            return A1111.missing()  # with which they are made
        return made_hub(hub_folder(), tokenizers())


_CPU_FORGE = ("--always-cpu", "--all-in-fp32")
A1111 = Kind(
    "A1111",
    "WEBUI_DIR",
    "a1111",
    ("--no-half", "--use-cpu", "all"),
    {"sd1": "tiny", "sdxl": "tiny_sdxl", "full": "full_sd15"},
)
FORGE = Kind(
    "Forge",
    "FORGE_DIR",
    "forge",
    _CPU_FORGE,
    {"sd1": "tiny_sd15", "sdxl": "tiny_sdxl", "flux1": "tiny_flux", "full": "full_sd15"},
)
REFORGE = Kind(
    "reForge",
    "REFORGE_DIR",
    "reforge",
    _CPU_FORGE,
    {"sd1": "tiny_sd15", "sdxl": "tiny_sdxl_vae", "full": "full_sd15"},
)
CLASSIC = Kind(
    "Classic",
    "FORGE_CLASSIC_DIR",
    "classic",
    _CPU_FORGE,
    {"sd1": "tiny_sd15", "sdxl": "tiny_sdxl_vae", "full": "full_sd15"},
)
KINDS = {kind.name: kind for kind in (A1111, FORGE, REFORGE, CLASSIC)}


def models_folder() -> Path:
    """Where small checkpoints are kept between test runs; `make_models.py` writes those that are missing."""
    return Path(os.environ.get("WEBUI_MODELS") or Path.home() / "webui" / "models")


def hub_folder() -> Path:
    """A hub cache with the tokenizer and config of CLIP-L, which A1111 asks for; made where it is missing."""
    return Path(os.environ.get("WEBUI_HF_HOME") or Path.home() / "webui" / "hf")


def tokenizers() -> list[Path]:
    """Where CLIP-L's tokenizer may lie on this machine."""
    comfyui = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")
    forge = FORGE.place / "backend" / "huggingface" / "runwayml" / "stable-diffusion-v1-5" / "tokenizer"
    return [forge, REFORGE.place / "ldm_patched" / "modules" / "sd1_tokenizer", comfyui / "comfy" / "sd1_tokenizer"]


def bytecode_folder() -> Path:
    """Where the hosts' Python keeps what it has compiled: nothing is written into their folders, and each start but the first takes a third."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_loom" / "bytecode"


def environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COMFYUI_DIR")}
    offline = {
        "LOOM_MODELS": str(models_folder()),
        "HF_HOME": str(hub_folder()),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    return {
        **env,
        **offline,
        "OMP_NUM_THREADS": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONPYCACHEPREFIX": str(bytecode_folder()),
    }


def checkpoint(name: str) -> Path:
    """The small checkpoint of this name, made where it is missing. Its random weights are the same each time."""
    file, out = models_folder() / f"{name}.safetensors", str(models_folder())
    if not file.is_file():
        models_folder().mkdir(parents=True, exist_ok=True)
        here = Path(__file__).parent
        command = [str(A1111.python), str(here / "make_models.py"), str(A1111.place), out, name]
        if name == "tiny_flux":
            command = [str(FORGE.python), str(here / "make_flux.py"), str(FORGE.place), out]
        place = FORGE.place if name == "tiny_flux" else A1111.place
        subprocess.run(command, env=environment(), cwd=place, check=True, timeout=ANSWER_S)
    return file


def sdxl_configurations() -> Path:
    """Forge's own configurations of SDXL, as narrow as the small checkpoint."""
    second = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12}
    changes = {"text_encoder_2": {**second, "projection_dim": 512}, "vae": {"block_out_channels": [32, 64, 128, 128]}}
    return _configurations("tiny_sdxl", "stabilityai/stable-diffusion-xl-base-1.0", changes)


def sd2_configurations() -> Path:
    """Those of Stable Diffusion 2; the last layer of its text encoder is left out in them."""
    return _configurations(
        "tiny_sd2",
        "stabilityai/stable-diffusion-2-1",
        {"text_encoder": {"num_hidden_layers": 2, "projection_dim": 1024}},
    )


def refiner_configurations() -> Path:
    narrow = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 3}
    changes = {"text_encoder": {**narrow, "projection_dim": 1024}}
    return _configurations("tiny_refiner", "stabilityai/stable-diffusion-xl-refiner-1.0", changes)


def sd1_configurations() -> Path:
    """Those of Stable Diffusion 1, for the headless door."""
    return _configurations(
        "tiny_sd15", "runwayml/stable-diffusion-v1-5", {"unet": {"block_out_channels": [32, 64, 128, 128]}}
    )


def _configurations(name: str, model: str, changes: Mapping[str, Mapping[str, Any]]) -> Path:
    """A copy of what Forge has built in, with other values in the config.json of some parts."""
    folder = models_folder() / name
    if folder.is_dir():
        return folder
    shutil.copytree(FORGE.place / "backend" / "huggingface" / model, folder)
    for part, values in changes.items():
        file = folder / part / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


class Server:
    """One running host. `data` is its --data-dir: settings, models, extensions and what runs write."""

    def __init__(self, kind: Kind, data: Path, family: str = "sd1", flags: Sequence[str] = (), page: bool = False):
        self.kind, self.data, self.flags, self._page = kind, data, flags, page
        self._checkpoint = checkpoint(kind.checkpoints[family])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        """The data folder with the extension beside one that shadows our folders' names."""
        for made in (sdxl_configurations, sd2_configurations, refiner_configurations) if self.kind is FORGE else ():
            made()
        extensions, models = self.data / "extensions", self.data / "models" / "Stable-diffusion"
        models.mkdir(parents=True, exist_ok=True)
        extensions.mkdir(exist_ok=True)
        for name, folder in (
            ("aaa-hostile", PROBE.with_name("hostile_extension")),
            ("00-narrow", NARROW),
            ("zz-probe", PROBE),
        ):
            shutil.copytree(folder, extensions / name, dirs_exist_ok=True)
        ours = extensions / "ComfyUI-LoRA-Loom"
        if not ours.exists():
            ours.symlink_to(ROOT)
        for small in (self._checkpoint, checkpoint("tiny_sd15")):  # one to change to
            self._offer(small)
        settings = self.data / "config.json"
        if not settings.exists():
            settings.write_text(json.dumps({"show_progress_type": "Approx cheap", "live_previews_enable": True}))

    def _offer(self, checkpoint: Path) -> None:
        """Puts a checkpoint among the host's."""
        for file in (checkpoint, checkpoint.with_suffix(".yaml")):
            place = self.data / "models" / "Stable-diffusion" / file.name
            if file.is_file() and not place.exists():
                os.link(file, place)

    @contextlib.contextmanager
    def changed_to(self, name: str) -> Iterator[None]:
        """Inside, the host has this small checkpoint loaded, by its own option."""
        self.inside("first_checkpoint")
        self._offer(checkpoint(name))
        self.ask("/sdapi/v1/refresh-checkpoints", {})
        self.post("/sdapi/v1/options", {"sd_model_checkpoint": name})
        try:
            yield
        finally:
            self.post("/sdapi/v1/options", {"sd_model_checkpoint": self._checkpoint.stem})

    def start(self) -> None:
        self.prepare()
        chosen = self.data / "models" / "Stable-diffusion" / self._checkpoint.name
        command = [
            str(self.kind.python), "launch.py", "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check", "--no-download-sd-model",
            "--data-dir", str(self.data), "--ckpt", str(chosen), "--api", "--port", str(self.port), *self.kind.flags, *self.flags,
            *(() if self._page else ("--nowebui",)),
        ]  # fmt: skip
        log = open(self.data / "server.log", "ab")  # noqa: SIM115 - the process keeps it
        self._process = subprocess.Popen(command, cwd=self.kind.place, env=environment(), stdout=log, stderr=log)
        ended = time.monotonic() + START_S
        while time.monotonic() < ended:
            if self._process.poll() is not None:
                break
            try:
                if self.ask("/loom-probe/alive")[0] == 200:  # the page answers before its extensions have their routes
                    return
            except OSError:
                pass
            time.sleep(1)
        raise RuntimeError(f"{self.kind.name} did not start:\n{self.log()[-3000:]}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def kill(self) -> None:
        """As a machine that runs out of memory does: nothing of the host gets to tidy up. It can be started again."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        return (self.data / "server.log").read_text(encoding="utf-8", errors="replace")

    # ---- asking ------------------------------------------------------------------------------------------------------

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = ANSWER_S
    ) -> tuple[int, bytes]:
        """(status, body) of GET, or of POST where there is a body."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.address + path, data, sent)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path: str) -> Any:
        status, body = self.ask(path)
        assert status == 200, (status, body[:500])
        return json.loads(body)

    def post(self, path: str, body: Any) -> Any:
        status, answer = self.ask(path, {} if body is None else body)
        assert status == 200, (status, answer[:500])
        return json.loads(answer)

    def login(self, name: str, password: str) -> str:
        """The cookies that the host's page gives to who logs in there."""
        form = urllib.parse.urlencode({"username": name, "password": password}).encode()
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.address}/login", form, kind)) as answer:
            cookies = answer.headers.get_all("set-cookie") or []
        return "; ".join(cookie.partition(";")[0] for cookie in cookies)

    def inside(self, function: str, file: str = "proof.py", **arguments: Any) -> Any:
        """What a function of tests/webui/inside returns in the host's process."""
        job = {"file": str(Path(__file__).parent / "inside" / file), "function": function, "arguments": arguments}
        answer = self.post("/loom-probe/run", job)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def wait_for(self, *statuses: str, seconds: float = 300) -> dict[str, Any]:
        """The panel, once its run has one of these states."""
        ended = time.monotonic() + seconds
        panel: dict[str, Any] = {}
        while time.monotonic() < ended:
            panel = self.get("/lora-loom/v1/state")["panel"] or {}
            if panel.get("status") in statuses:
                return panel
            time.sleep(0.3)
        raise AssertionError(f"the run is {panel.get('status')}: {panel.get('error')} {panel.get('doing')}")

    def wait_until_step(self, step: int, seconds: float = 240) -> dict[str, Any]:
        """The panel, once its run has done this many steps."""
        ended = time.monotonic() + seconds
        panel: dict[str, Any] = {}
        while time.monotonic() < ended:
            panel = self.get("/lora-loom/v1/state")["panel"] or {}
            if panel.get("step", 0) >= step:
                return panel
            time.sleep(0.05)
        raise AssertionError(f"the run is at step {panel.get('step')}: {panel.get('error')} {panel.get('doing')}")


def running(kind: Kind, data: Path, **more: Any) -> Iterator[Server]:
    """A server for as long as the generator is open."""
    server = Server(kind, data, **more)
    try:
        server.start()
        yield server
    finally:
        server.stop()
