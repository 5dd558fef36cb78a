"""Values that a stranger's workflow, job file or picture folder may hold, and a watch over what taking them costs.

`python hostile.py settings SHARE SEED` gives every text setting of a job such values, `python hostile.py folders SHARE SEED` reads hostile picture folders.
Prints what cost too much, or failed otherwise than in a sentence, as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import resource
import signal
import sys
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_loom.lora_core.messages.errors import Problem

CPU_S, FIXED_BYTES, TIMES = 2.0, 256 << 20, 3  # the promise: 2 s of the processor, 256 MB and three times what came in
STOP_S = 30  # of the processor: then it hangs
REFERENCE_S = 0.05  # of the processor that the promise speaks of, for the work of `slowness`
MEGA = 1_000_000

TEXTS = {
    "long word": "a" * MEGA,
    "many words": "ab, " * (MEGA // 4),
    "many lines": "x\n" * (MEGA // 4),
    "only line breaks": "\n" * MEGA,
    "many settings": "layer = 1\n" * 20_000,
    "open brackets": "(" * 50_000,
    "nested brackets": "(" * 20_000 + "a" + ")" * 20_000,
    "open braces": "{a|" * 50_000,
    "nested braces": "{a|" * 5_000 + "b" + "}" * 5_000,
    "braces that multiply": "{a|b}" * 2_000,
    "square brackets": "[" * 50_000,
    "pattern without end": r"(\w+\.?)+!",
    "pattern without end, twice": r"^(a+)+$|(a|aa)+$|(.*)*x",
    "pattern that counts": r"(a{1,30000}){1,30000}",
    "patterns by lines": "(a*)*b\n" * 2_000,
    "pattern of stars": ".*" * 5_000 + "x",
    "class without end": "[a-" * 10_000,
    "zero bytes": "\0" * 1000,
    "controls": "".join(map(chr, range(32))) * 100,
    "right to left": "\u202egnp.\u2066evil\u2069" * 100,
    "half characters": "\ud800\udfff" * 100,
    "combining marks": "e" + "\u0301" * 100_000,
    "smileys": "\U0001f9d1\u200d\U0001f9b0" * 20_000,
    "path up": "../" * 1000 + "etc/passwd",
    "path of a device": "/dev/zero",
    "path of a process": "/proc/self/mem",
    "Windows path": "\\\\?\\C:\\con\\..\\nul:stream",
    "not a number": "nan",
    "infinite": "inf, -inf, 1e999",
    "digits": "9" * 5000,
    "numbers": "999999999999 " * 20_000,
    "billion": "10" + "0" * 8,
    "equals": "=" * 50_000,
    "colons": ":" * 50_000,
    "weights": "(a:1e308)" * 5_000,
    "format": "{0.__class__.__mro__}%s%n{name!r:>999999999}" * 10,
    "shell": "$(touch /tmp/x)`id`;&&|",
    "markup": "<script>" * 5_000,
    "JSON": "[" * 20_000 + "]" * 20_000,
    "wildcards": "__*__" * 5_000,
    "lora words": "<lora:x:1>" * 10_000,
    "prompt options": " --n x --w 99999999 --h 9999999" * 3_000,
    "escapes": "\\" * 50_000,
}
OTHERS: list[Any] = [
    float("nan"), float("inf"), -float("inf"), 10**9, -(10**9), 10**400, 1e308, True, None, [], {}, [[[]]] * 1000, {"a": {"b": {}}}, b"x", "nan", "1e9",
]  # fmt: skip


class TooLong(BaseException):
    """The processor's time is up."""


@dataclasses.dataclass
class Watch:
    """Lets things be done one after the other, and keeps what was wrong with them."""

    wrong: list[str] = dataclasses.field(default_factory=list)
    count: int = 0
    taken: int = 0  # without being refused

    def does(self, what: str, act: Callable[[], object], came_in: int = 0, usual_s: float = 0.0) -> float:
        """Runs `act`; it may end well or in a message, at the cost of `usual_s` and what is promised. Returns its processor seconds."""
        self.count += 1
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before, peak = _cpu_s(), _peak_bytes()
        try:
            with _bounded():
                act()
                self.taken += 1
        except Problem:
            pass
        except TooLong:
            self.wrong.append(f"{what}: not done after {STOP_S} s")
        except Exception as error:  # noqa: BLE001 - what this looks for
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.wrong.append(
                f"{what}: {type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {error}"[:300]
            )
        spent = _cpu_s() - before
        if too_long(spent, usual_s):
            self.wrong.append(f"{what}: {spent:.1f} s of the processor")
        if _peak_bytes() - peak > FIXED_BYTES + TIMES * came_in:
            self.wrong.append(f"{what}: {(_peak_bytes() - peak) >> 20} MB more")
        return spent


def too_long(spent_s: float, usual_s: float = 0.0) -> bool:
    """Whether something cost more than `usual_s` and what is promised, on this processor at this moment."""
    return spent_s > CPU_S + usual_s and spent_s > (CPU_S + usual_s) * slowness()


def slowness() -> float:
    """How many times as long as the reference this processor takes for plain Python work; it has others to serve, or is an older one."""
    began = _cpu_s()
    words = [f"{n}, {n * n}" for n in range(100_000)]
    sum(len(word.split(", ")) for word in words)
    return max(1.0, (_cpu_s() - began) / REFERENCE_S)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_bytes() -> int:
    """The most memory so far, since the last look where the system lets that be asked: what the parent had counts into the general figure."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, STOP_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fields(cls: type, above: str = "") -> Iterator[tuple[str, type]]:
    """(path, type) of every setting below a config."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from fields(kind, f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}", kind


def nested(path: str, value: Any, rest: dict[str, Any]) -> dict[str, Any]:
    """`rest` with a value at a path."""
    out = json.loads(json.dumps(rest))
    *above, last = path.split(".")
    place = out
    for part in above:
        place = place.setdefault(part, {})
    place[last] = value
    return out


def settings(share: float, seed: int) -> Watch:
    """Every text setting with every text, of which `share` are drawn; every setting with values of other kinds."""
    from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
    from lora_loom.lora_core.config import TrainConfig, parse
    from lora_loom.lora_core.data.folder import open_sets
    from lora_loom.lora_core.training.assemble import assembled
    from lora_loom.lora_core.training.job import Job
    from PIL import Image
    from shapes import MODEL

    watch, rng = Watch(), random.Random(seed)
    with tempfile.TemporaryDirectory() as temp:
        place = Path(temp)
        (place / "pictures").mkdir()
        for n in range(2):
            Image.new("RGB", (32, 32), (n * 90, 50, 20)).save(place / "pictures" / f"{n}.png")
            (place / "pictures" / f"{n}.txt").write_text("zog, red, circle")
        usual = {
            "steps": 1, "data": {"folder": str(place / "pictures"), "resolution": 32, "bucket_step_px": 16, "trigger": "zog"}, "adapter": {"rank": 1},
            "samples": {"every": 1, "prompt": "zog"}, "validation": {"every": 0},
            "prior": {"count": 1, "steps": 1, "prompt": "circle"},
        }  # fmt: skip
        backend = DiffusersBackend(MODEL, device="cpu")

        def prepare(values: dict[str, Any]) -> None:
            config = parse(values)
            with assembled(Job(config, backend, open_sets(config), place)):
                pass

        usual_s = max(watch.does("as it is", lambda: prepare(usual)) for _ in range(3))
        for path, kind in fields(TrainConfig):
            if kind is str:
                for name, text in TEXTS.items():
                    if rng.random() < share:
                        values = nested(path, text, usual)
                        watch.does(f"{path} = {name}", lambda values=values: prepare(values), len(text), 2 * usual_s)
            for value in OTHERS:
                values = {**nested(path, None, usual)}
                _put(values, path, value)
                watch.does(f"{path} = {value!r:.40}", lambda values=values: parse(values))
    return watch


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for part in above:
        values = values[part]
    values[last] = value


CAPTIONS = {**TEXTS, "ten million characters": "ab, " * (10 * MEGA // 4)}
TABLES = {
    "metadata.jsonl": [
        '{"file_name": "0.png", "text": ' + "[" * 100_000,
        '{"file_name": "0.png", "text": "' + "a" * (5 * MEGA) + '"}',
        '{"file_name": "0.png", "text": ' + "9" * 5000 + "}",
        '{"file_name": "' + "../" * 10_000 + '0.png", "text": "x"}\n' * 2,
        '{"file_name": "0.png", "text": "x"}\n' * 50_000,
        '{"a": 1}\n' * 100_000,
        "\0" * MEGA,
        '{"file_name": ["0.png"], "text": {"a": 1}}',
        '{"file_name": "0.png", "text": NaN}',
    ],
    "metadata.csv": [
        "file_name,text\n0.png," + '"' * MEGA,
        "file_name,text" + ",x" * 200_000 + "\n0.png,a",
        "file_name,text\n" + "0.png,x\n" * 50_000,
        "file_name,text\n0.png," + "a" * (5 * MEGA),
        "\0" * 1000,
        '"' + "\n" * MEGA,
        "file_name;text\n0.png;x",
    ],
    "0.json": ["[" * 100_000, '{"tags": "' + "x, " * MEGA + '"}', '{"tags": {"a": [[1]]}}', '{"caption": 1e999}'],
    "metadata.json": ["[" * 100_000, '{"0.png": {"caption": ' + "{" * 50_000, '{"0.png": 3}', "[]", '{"a": "' + "x" * (5 * MEGA) + '"}'],
    "captions.json": ["[" * 100_000, '{"0.png": "' + "x" * (5 * MEGA) + '"}', "3"],
}  # fmt: skip


def folders(share: float, seed: int) -> Watch:
    """Captions and tables of a folder that nobody vouches for, of which `share` are drawn."""
    from lora_loom.lora_core.config import DataConfig
    from lora_loom.lora_core.data.captions import vary
    from lora_loom.lora_core.data.folder import scan
    from PIL import Image

    watch, rng = Watch(), random.Random(seed)
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        Image.new("RGB", (32, 32), (90, 50, 20)).save(folder / "0.png")

        def read(**more: Any) -> None:
            config = DataConfig(folder=str(folder), resolution=32, bucket_step_px=16, trigger="zog", **more)
            for picture in scan(config).pictures:
                for draw in range(3):
                    vary(picture.captions, random.Random(draw), picture.data)

        for name, text in CAPTIONS.items():
            if rng.random() >= share:
                continue
            data = text.encode("utf-8", "surrogatepass")
            (folder / "0.txt").write_bytes(data)
            for more in (
                {},
                {"wildcards": True, "shuffle_tags": True, "tag_dropout": 0.3, "caption_lines": "alternatives"},
            ):
                watch.does(f"caption of {name} {sorted(more)}", lambda more=more: read(**more), len(data))
        (folder / "0.txt").unlink(missing_ok=True)
        for name, contents in TABLES.items():
            for n, text in enumerate(contents):
                if rng.random() >= share:
                    continue
                (folder / name).write_text(text)
                watch.does(f"{name} {n}", read, len(text))
                (folder / name).unlink()
    return watch


if __name__ == "__main__":
    result = {"settings": settings, "folders": folders}[sys.argv[1]](float(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({"wrong": result.wrong, "count": result.count, "taken": result.taken}))
