"""No value in a widget of a node, typed or by wire, and no request to a route of ours can hold or exhaust a real server, or is answered by a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import socket
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from live_server import Server, running
from lora_loom.convert.files.disk import save
from PIL import Image
from toy_layers import toy_lora

sys.path.insert(0, str(Path(__file__).parents[1]))
from hostile import FIXED_BYTES, TEXTS, TIMES, too_long

needs_posix = pytest.mark.skipif(os.name == "nt", reason="processor time and memory of the server are read below /proc")
STOP_S = 20  # of the processor: then what runs is cancelled
END_S = 300  # of the clock, for a machine that does much else
LONGEST = 1500  # characters of a sentence
NOT_HERE = re.compile(
    "on the Hub|needs the package datasets|wire the other expert of the two"
)  # what a machine may lack, whatever the values
KINDS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NAMES = {
    "nothing": "", "a space": " ", "a dot": ".", "up": "..", "up and away": "../../escaped", "absolute": "/tmp/escaped", "a drive": "C:\\escaped",
    "a stream": "a:b", "a backslash": "..\\..\\escaped", "reserved": "con", "reserved with an ending": "NUL.safetensors", "an option": "-rf", "a percent": "%",
    "a date": "%date:yyyy-MM-dd%", "a place": "{name}", "a format": "%s%n%d", "a zero byte": "a\0b", "a line break": "a\nb",
    "from right to left": "a\u202egpj.exe",
    "half a character": "a\ud800", "invisible": "\u200b", "a home": "~/escaped", "a variable": "$HOME", "a range": "{1..1000000000}", "a wildcard": "__*__",
    "an embedding": "embedding:../../escaped", "a lora": "<lora:../../escaped:1>", "120 letters": "a" * 120, "dots": "." * 100, "a link": "file:///etc/passwd",
    "a pickle": "x.ckpt", "temporary": ".loom-tmp-1-x",
}  # fmt: skip
STRINGS = {**TEXTS, **NAMES}
NUMBERS: dict[str, Any] = {
    "not a number": float("nan"), "infinite": float("inf"), "minus infinite": float("-inf"), "1e308": 1e308, "-1e308": -1e308, "tiny": 5e-324,
    "minus one": -1, "nought": 0, "10^18": 10**18, "-10^18": -(10**18), "5000 digits": "9" * 5000, "word": "x", "nothing": None, "object": {"a": 1},
    "list in a wrapper": {"__value__": [1, 2, 3]}, "empty list": [], "long list": [1] * 1000, "deep list": json.loads("[" * 50 + "]" * 50),
}  # fmt: skip
WIRED: dict[str, list[Any]] = {
    "INT": [10**18, -(10**18), 2**63 - 1, -1, 0, 2**31],
    "FLOAT": [float("nan"), 1e18, -1e18, 5e-324, -0.0, 1e-30, -1.0],
}
OPERATIVE = {"PrimitiveInt": "INT", "PrimitiveFloat": "FLOAT", "PrimitiveString": "STRING"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One value in one widget. `wired`: the kind of node it comes from by a wire, "" when it is typed; `beyond`: more than the widget allows."""

    node: str
    widget: str
    label: str
    value: Any
    wired: str = ""
    beyond: bool = True

    def __str__(self) -> str:
        return f"{self.node}.{self.widget} = {self.label}{' by wire' if self.wired else ''}"


def inputs_of(spec: dict) -> dict[str, list]:
    return {**spec["input"].get("required", {}), **spec["input"].get("optional", {})}


def kind_of(entry: list) -> str:
    return "COMBO" if isinstance(entry[0], list) else entry[0]


def widgets_of(spec: dict) -> dict[str, tuple[str, dict]]:
    """Widget -> (kind, what the schema says of it); what is a wire alone is left out."""
    found = {name: (kind_of(entry), entry[1] if len(entry) > 1 else {}) for name, entry in inputs_of(spec).items()}
    return {name: (kind, more) for name, (kind, more) in found.items() if kind in KINDS and not more.get("forceInput")}


def all_cases(info: dict[str, dict]) -> list[Case]:
    out = []
    for node, spec in sorted(info.items()):
        for widget, (kind, more) in widgets_of(spec).items():
            out += [Case(node, widget, label, value) for label, value in NUMBERS.items()]
            if kind in WIRED:
                out += [Case(node, widget, f"{value}", value, f"Primitive{kind.title()}") for value in WIRED[kind]]
                out += [Case(node, widget, end, more[end], "", False) for end in ("min", "max")]
            elif kind == "STRING":
                out += [Case(node, widget, label, text) for label, text in STRINGS.items()]
                out += [
                    Case(node, widget, label, value, "PrimitiveInt")
                    for label, value in (("a number", 7), ("10^18", 10**18))
                ]
            elif kind == "COMBO":
                out += [Case(node, widget, label, text, "PrimitiveString") for label, text in NAMES.items()]
                out += [
                    Case(node, widget, label, text)
                    for label, text in NAMES.items()
                    if label in ("up and away", "nothing")
                ]
            else:
                out += [Case(node, widget, "x", "x", "PrimitiveString")]
    return out


# --- what is wired into a node ------------------------------------------------------------------------------------------------------------

SOURCES: dict[str, tuple[str, list]] = {  # kind of wire -> (where it comes from, its output)
    "MODEL": ("toy", 0), "CLIP": ("toy", 1), "VAE": ("toy", 2), "LORALOOM_DATASET": ("set", 0), "LORALOOM_EMBEDDING": ("embedding", 0),
    "LORA_MODEL": ("lora", 3), "IMAGE": ("image", 0), "LATENT": ("latent", 0), "CONDITIONING": ("text", 0), "MASK": ("mask", 0),
}  # fmt: skip
SHARED: dict[str, dict] = {
    "toy": {"class_type": "LoraLoomLoadToyModel", "inputs": {}},
    "set": {"class_type": "LoraLoomLoadFolder", "inputs": {"folder": "two"}},
    "embedding": {"class_type": "LoraLoomConvertEmbedding", "inputs": {"file": "pair.safetensors", "name": "pair_again"}},
    "lora": {"class_type": "LoraLoomInspect", "inputs": {"file": "one.safetensors"}},
    "image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "text": {"class_type": "CLIPTextEncode", "inputs": {"text": "zog", "clip": ["toy", 1]}},
    "mask": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64}},
}  # fmt: skip
QUICK: dict[str, Any] = {
    "steps": 1,
    "test_steps": 10,
    "resolution": 64,
    "bucket_step_px": 16,
    "sample_every": 0,
    "batch_size": 1,
    "rank": 1,
    "count": 1,
    "cell_px": 192,
    "sampler_steps": 2,
}
QUICK |= {"width": 64, "height": 64, "vectors": 1}
FILES = {
    "file": "one.safetensors",
    "file_1": "one.safetensors",
    "file_2": "two.safetensors",
    "folder": "two",
    "run": "base_run",
}
FILES |= {
    "base": "checkpoints/small.safetensors",
    "tuned": "checkpoints/tuned.safetensors",
    "checkpoint": "checkpoints/small.safetensors",
}
USUAL: dict[str, dict] = {  # what nodes ask for that their widgets leave empty
    "LoraLoomImportSettings": {
        "text": "accelerate launch train_network.py --network_module networks.lora --max_train_steps 10 --network_dim 4"
    },
    "LoraLoomLoadHubDataset": {"name": "owner/name"},
    "LoraLoomPivotalSettings": {"tokens": "zog"},
    "LoraLoomPriorSettings": {"prompt": "a circle"},
    "LoraLoomCompareCheckpoints": {"prompts": "zog"},
    "LoraLoomTrainSlider": {"target": "a circle", "positive": "a red circle"},
}
CONSUMERS = {  # kind of wire -> (a node whose output is shown, its input)
    "LORALOOM_DATASET": ("LoraLoomCheckDataset", "dataset"), "LORALOOM_SETTINGS": ("LoraLoomTrainLora", "settings"),
}  # fmt: skip


class Prompts:
    """Makes a prompt of a case: the node with everything it needs, what its value comes from, and a node that uses what it gives."""

    def __init__(self, server: Server):
        self.info = server.get("/object_info")
        self.ours = {kind: spec for kind, spec in self.info.items() if kind.startswith("LoraLoom")}

    def inputs(self, kind: str) -> dict[str, Any]:
        """Every widget at its default or what is quick, every wire that is needed."""
        out: dict[str, Any] = {}
        optional = self.info[kind]["input"].get("optional", {})
        for name, entry in inputs_of(self.info[kind]).items():
            sort, more = kind_of(entry), entry[1] if len(entry) > 1 else {}
            options = entry[0] if isinstance(entry[0], list) else more.get("options") or []
            if sort not in KINDS:
                if name not in optional and sort != "*":
                    out[name] = list(SOURCES[sort.split(",")[0]])
            elif FILES.get(name) in options:
                out[name] = FILES[name]
            elif sort == "COMBO":
                out[name] = more.get("default", options[0] if options else "")
            elif not more.get("forceInput"):
                out[name] = QUICK[name] if name in QUICK and kind.startswith("LoraLoom") else more.get("default")
        return {**out, **USUAL.get(kind, {})}

    def prompt(self, kind: str, **values: Any) -> dict[str, dict]:
        nodes: dict[str, dict] = {"node": {"class_type": kind, "inputs": {**self.inputs(kind), **values}}}
        if not self.info[kind]["output_node"]:
            output = self.info[kind]["output"][0]
            consumer, place = CONSUMERS.get(output, ("PreviewAny", "source"))
            nodes["consumer"] = {"class_type": consumer, "inputs": {**self.inputs(consumer), place: ["node", 0]}}
            if consumer == "LoraLoomTrainLora":
                nodes["consumer"]["inputs"]["name"] = "by_settings"
        for _ in range(3):  # sources have sources
            named = {value[0] for node in nodes.values() for value in node["inputs"].values() if is_wire(value)}
            for name in named & SHARED.keys() - nodes.keys():
                source = SHARED[name]
                nodes[name] = {**source, "inputs": {**self.inputs(source["class_type"]), **source["inputs"]}}
        return nodes

    def of(self, case: Case) -> dict[str, dict]:
        if not case.wired:
            return self.prompt(case.node, **{case.widget: case.value})
        nodes = self.prompt(case.node, **{case.widget: ["value", 0]})
        nodes["value"] = {"class_type": case.wired, "inputs": {"value": case.value}}
        if (
            OPERATIVE[case.wired] != widgets_of(self.info[case.node])[case.widget][0]
        ):  # a wire of no kind lets everything through
            nodes["switch"] = {
                "class_type": "ComfySwitchNode",
                "inputs": {"switch": True, "on_true": ["value", 0], "on_false": ["value", 0]},
            }
            nodes["node"]["inputs"][case.widget] = ["switch", 0]
        return nodes


def is_wire(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


# --- what a server is watched for -----------------------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """Processor seconds of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@dataclasses.dataclass
class Run:
    """What became of a prompt: `refused` by the host or a node in these words, and what it cost."""

    refused: str
    kind: str
    spent_s: float
    more_bytes: int
    cancelled: bool


class Watch:
    """Queues prompts one after the other, and keeps what was wrong with them."""

    def __init__(self, server: Server):
        self.server, self.wrong, self.refused, self.taken = server, [], 0, 0
        self.prompts = Prompts(server)
        self.usual: dict[str, Run] = {}

    def runs(self, prompt: dict, stop_s: float = STOP_S) -> Run:
        pid = self.server.pid
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        before, peak, cancelled = cpu_s(pid), peak_bytes(pid), False
        last = ["consumer" if "consumer" in prompt else "node"]
        status, answer = self.server.post("/prompt", {"prompt": prompt, "partial_execution_targets": last})
        words, kind = "", ""
        if status != 200:
            words, kind = told_by_host(answer), "host"
        else:
            number, began = answer["prompt_id"], time.monotonic()
            while True:
                entry = self.server.get(f"/history/{number}").get(number)
                if entry and entry["status"]["status_str"] in ("success", "error"):
                    break
                if not cancelled and cpu_s(pid) - before > stop_s:
                    cancelled = True
                    self.server.post("/interrupt", {})
                if cpu_s(pid) - before > stop_s + 15 or time.monotonic() - began > END_S:
                    raise TimeoutError(f"not ended by Cancel: {prompt}"[:2000])
                time.sleep(0.02)
            errors = [m[1] for m in entry["status"]["messages"] if m[0] == "execution_error"]
            if errors:
                words, kind = errors[0]["exception_message"].strip(), errors[0]["exception_type"]
        return Run(words, kind, cpu_s(pid) - before, peak_bytes(pid) - peak, cancelled)

    def usually(self, node: str) -> Run:
        """What the node costs with values nobody means ill with; the second time, for what is made once."""
        if node not in self.usual:
            self.server.post("/free", {"free_memory": True})  # what its sources cost is part of what is usual
            first = self.runs(self.prompts.prompt(node))
            assert not first.refused or NOT_HERE.search(first.refused), (node, first)
            again = {
                name: f"{value}_{len(self.usual)}"
                for name, value in self.prompts.inputs(node).items()
                if name in ("name", "trigger")
            }
            self.usual[node] = max(first, self.runs(self.prompts.prompt(node, **again)), key=lambda run: run.spent_s)
        return self.usual[node]

    def does(self, case: Case) -> None:
        usual = self.usually(case.node)
        try:
            run = self.runs(self.prompts.of(case))
        except (TimeoutError, OSError) as error:
            self.wrong.append(f"{case}: {error}"[:600])
            self.server.kill()
            self.server.start()
            self.server.wait_ready()
            return
        self.refused, self.taken = self.refused + bool(run.refused), self.taken + (not run.refused)
        if problem := sentence_problem(run):
            self.wrong.append(f"{case}: {problem}")
        trains = "MODEL" in map(kind_of, inputs_of(self.prompts.info[case.node]).values()) and not case.beyond
        if trains:  # the work that was asked for
            return
        came_in = len(str(case.value))
        if run.cancelled or too_long(run.spent_s, 2 * usual.spent_s):
            self.wrong.append(
                f"{case}: {run.spent_s:.1f} s of the processor, usually {usual.spent_s:.1f}; {run.refused[:100]}"
            )
        if run.more_bytes > FIXED_BYTES + TIMES * came_in + max(0, usual.more_bytes):
            self.wrong.append(f"{case}: {run.more_bytes >> 20} MB more")


def told_by_host(answer: Any) -> str:
    """What the host says of a prompt that it does not take."""
    errors = [error for node in (answer.get("node_errors") or {}).values() for error in node["errors"]]
    return "; ".join(f"{error['type']}: {error['message']}" for error in errors) or answer["error"]["message"]


def sentence_problem(run: Run) -> str:
    """What is wrong with what the user is told; "" when nothing is."""
    words = run.refused
    if not words:
        return ""
    if run.kind == "host":
        return words if "exception" in words.lower() else ""
    if not run.kind.endswith(("LoomError", "ConfigError", "FormatError")):
        return f"{run.kind}: {words}"[:300]
    if "\n" in words or "Traceback" in words or len(words) > LONGEST:
        return f"no sentence: {len(words)} characters, {words[:200]!r}"
    return ""


# --- the server and its files -----------------------------------------------------------------------------------------------------------------


LAYERS = ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"]


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


def a_checkpoint(shift: float) -> dict[str, torch.Tensor]:
    block = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0"
    return {
        f"{block}.attn1.to_q.weight": rand(128, 128).half() + shift * rand(128, 1) @ rand(1, 128), f"{block}.attn2.to_k.weight": rand(64, 768).half(),
        f"{block}.attn2.to_out.0.weight": rand(64, 64).half(), "model.diffusion_model.out.2.bias": rand(4),
        "first_stage_model.decoder.conv_in.weight": rand(8, 4, 3, 3).half(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def watch(tmp_path_factory) -> Iterator[Watch]:
    base = tmp_path_factory.mktemp("hostile") / "base"
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # of the server
    with running(base) as server:
        pictures = base / "input" / "two"
        pictures.mkdir(parents=True)
        for n in range(2):
            Image.new("RGB", (64, 64), (n * 90, 50, 20)).save(pictures / f"{n}.png")
            (pictures / f"{n}.txt").write_text("zog, red, circle")
        save(base / "models" / "loras" / "one.safetensors", toy_lora(LAYERS, 4))
        save(base / "models" / "loras" / "two.safetensors", toy_lora(LAYERS, 2))
        (base / "models" / "embeddings").mkdir(parents=True, exist_ok=True)
        save(base / "models" / "embeddings" / "pair.safetensors", {"clip_l": rand(2, 768), "clip_g": rand(2, 1280)})
        save(base / "models" / "checkpoints" / "small.safetensors", a_checkpoint(0.0))
        save(base / "models" / "checkpoints" / "tuned.safetensors", a_checkpoint(1.0))
        SHARED["embedding"]["inputs"]["file"] = "pair.safetensors"
        watched = Watch(server)
        first = watched.runs(watched.prompts.prompt("LoraLoomTrainLora", name="base_run"), 60)
        assert not first.refused, first
        watched.prompts = Prompts(server)  # the run can be chosen now
        yield watched


def outside(base: Path) -> set[Path]:
    """What lies where nobody of ours may write."""
    ours = {
        base / "output",
        base / "temp",
        base / "user",
        base / "server.log",
        base / "models" / "embeddings",
        base / "models" / "loras",
    }
    found = {path for path in base.rglob("*") if not any(path.is_relative_to(place) for place in ours)}
    return found | {
        path
        for path in (base.parent / "escaped", Path("/tmp/escaped"), Path("/tmp/x"), Path.home() / "escaped")
        if path.exists()
    }


PARTS = 24  # of all cases, a few minutes each


@needs_posix
@pytest.mark.parametrize("part", [
    pytest.param(0, id="some"),
    *(pytest.param(n, id=f"{n} of {PARTS}", marks=[pytest.mark.slow, pytest.mark.release]) for n in range(1, PARTS + 1)),
])  # fmt: skip
def test_no_value_of_a_widget_holds_or_exhausts_the_server_or_ends_in_a_traceback(watch, part):
    cases = all_cases(watch.prompts.ours)
    assert len(cases) > 8000
    cases = random.Random(os.environ.get("LOOM_SEED", "1")).sample(cases, len(cases))
    chosen = cases[part - 1 :: PARTS] if part else cases[:25]
    before = outside(watch.server.base)
    watch.wrong, watch.refused, watch.taken = [], 0, 0
    for case in chosen:
        watch.does(case)
    print(watch.refused, "refused,", watch.taken, "taken")
    assert watch.wrong == []
    assert outside(watch.server.base) == before
    assert watch.refused
    assert watch.taken


# --- routes -------------------------------------------------------------------------------------------------------------------------------------

WEB = Path(__file__).parents[2] / "nodes" / "host" / "web"
LARGE = 5_000_000
HUGE = b'{"id": "' + b"a" * LARGE + b'"}'


def routes_of_ours() -> list[tuple[str, str]]:
    """(method, path) of every route that is registered when the host loads us."""
    import asyncio

    import server as host_server
    from aiohttp import web
    from lora_loom.nodes.extension import LoraLoomExtension

    table = web.RouteTableDef()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_server.PromptServer, "instance", type("Host", (), {"routes": table})(), raising=False)
        asyncio.run(LoraLoomExtension().on_load())
    return sorted((route.method, route.path) for route in table)


def names_asked() -> tuple[list[str], list[str]]:
    """(fields of bodies, names in queries) that the routes read."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in WEB.glob("*.py"))
    queries = {*re.findall(r'query\.get\("(\w+)"', text), *re.findall(r'_(?:text|number)\(request, "(\w+)"', text)}
    return sorted(set(re.findall(r'\.get\("(\w+)"', text)) - queries | {"session", "id"}), sorted(queries)


VALUES: list[Any] = [
    *NAMES.values(), None, True, 0, -1, 1.5, 10**18, "9" * 5000, [], {}, [[]] * 1000, {"a": {"b": []}}, "a" * 3000, ["a", "b"], {"a": ["b", "c"]}, {"a": "b"},
    {"\ud800": ["\ud800", "\ud800"]}, {"../../escaped": ["", "x"]}, {"a": ["", "x" * 40_000]}, {"a": True}, ["\0"],
    "base_run/..", "base_run\n", "BASE_RUN", "best",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Request:
    """One request; `body` None: without. `stays_open`: less is sent than is announced."""

    method: str
    path: str
    body: bytes | None = None
    kind: str = "application/json"

    def __str__(self) -> str:
        return (
            f"{self.method} {self.path[:120]} {self.kind} {(self.body or b'')[:80]!r} ({len(self.body or b'')} bytes)"
        )


def hostile_requests(routes: list[tuple[str, str]], session: str) -> list[Request]:
    fields, queries = names_asked()
    out = []
    for method, pattern in routes:
        for path in {
            pattern,
            *(
                pattern.replace("{language}", urllib.parse.quote(name, safe=""))
                for name in ("../en", "%00", "x" * 5000, "en\n")
            ),
        }:
            out += [
                Request(other, path) for other in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE")
            ]
        if method == "GET":
            texts = [str(value).encode("utf-8", "surrogatepass") for value in VALUES]
            out += [
                Request("GET", f"{pattern}?{name}={urllib.parse.quote(text, safe='')[:6000]}")
                for name in queries
                for text in texts
            ]
            out += [
                Request(
                    "GET",
                    f"{pattern}?session={session}&id=base_run&run=base_run&step={step}&size={step}&node=1&after={step}",
                )
                for step in ("-1", "1e9", "٣", "9" * 12)
            ]
            continue
        bodies = [json.dumps({"session": session, name: value}).encode() for name in fields for value in VALUES]
        if not pattern.endswith("delete"):
            bodies += [json.dumps({"id": "base_run", "save": value}).encode() for value in VALUES if value != "best"]
        bodies += [
            b"",
            b"\0",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"id":' * 50_000,
            b'{"id": 1e999}',
            b'{"id": NaN}',
            b'{"id": ' + b"9" * 5000 + b"}",
            b'{"node": "\\ud800"}',
        ]
        bodies += [
            HUGE,
            b'{"captions": {' + b",".join(b'"%d": ["a", "b"]' % n for n in range(30_000)) + b"}}",
        ]
        out += [Request("POST", pattern, body) for body in bodies]
        out += [
            Request("POST", pattern, b'{"node": "1"}', kind)
            for kind in (
                "",
                "text/plain",
                "multipart/form-data; boundary=x",
                "application/json\0",
                "application/json; charset=utf-7",
            )
        ]
    return out


def answered(server: Server, request: Request) -> tuple[int, bytes]:
    """(status, body); status 0 where the server closed the connection."""
    head = f"{request.method} {request.path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n"
    body = request.body or b""
    if request.body is not None:
        head += f"Content-Type: {request.kind}\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 60) as wire:
        with contextlib.suppress(OSError):  # a refusal may come before all is sent
            wire.sendall(head.encode("latin-1", "replace") + b"\r\n" + body)
        data = bytearray()
        with contextlib.suppress(OSError):
            while part := wire.recv(65536):
                data += part
    first, _, rest = bytes(data).partition(b"\r\n")
    return (int(first.split()[1]) if first.startswith(b"HTTP/") else 0), rest.partition(b"\r\n\r\n")[2]


def answer_problem(request: Request, status: int, body: bytes) -> str:
    if status >= 500 or (status == 0 and len(request.body or b"") < LARGE):
        return f"{status} {body[:300]!r}"
    if status in (400, 403, 404, 409, 413) and body.startswith(b"{"):
        text = json.loads(body)["error"]["text"]
        if "\n" in text or "Traceback" in text or len(text) > LONGEST:
            return f"no sentence: {text[:300]!r}"
    return ""


@needs_posix
@pytest.mark.parametrize("count", [pytest.param(120, id="some"), pytest.param(0, id="all", marks=pytest.mark.slow)])
def test_no_request_to_a_route_holds_the_server_writes_elsewhere_or_is_answered_by_a_traceback(watch, count):
    server, wrong, answers = watch.server, [], set()
    routes = routes_of_ours()
    assert len(routes) >= 17
    opened = server.execute(watch.prompts.prompt("LoraLoomDatasetEditor"))["outputs"]["node"]
    requests = hostile_requests(routes, opened["loom_dataset"][0])
    before, pictures = (
        outside(server.base),
        {p: p.read_bytes() for p in (server.base / "input").rglob("*") if p.is_file()},
    )
    rng = random.Random(os.environ.get("LOOM_SEED", "1"))
    for request in rng.sample(requests, count or len(requests)):
        spent, peak = cpu_s(server.pid), peak_bytes(server.pid)
        status, body = answered(server, request)
        answers.add(status)
        if problem := answer_problem(request, status, body):
            wrong.append(f"{request}: {problem}")
        if too_long(cpu_s(server.pid) - spent):
            wrong.append(f"{request}: {cpu_s(server.pid) - spent:.1f} s of the processor")
        if peak_bytes(server.pid) - peak > FIXED_BYTES + TIMES * len(request.body or b""):
            wrong.append(f"{request}: {(peak_bytes(server.pid) - peak) >> 20} MB more")
    print(len(requests), "requests,", sorted(answers))
    assert wrong == []
    assert {200, 400, 404} <= answers
    assert outside(server.base) == before
    assert {p: p.read_bytes() for p in (server.base / "input").rglob("*") if p.is_file()} == pictures
    assert (server.base / "output" / "lora_loom" / "base_run" / "config.json").is_file()
