"""Breaks the code of each method as a real mistake would, and runs the test that the method's row names: every change must make that test fail.

`python tests/mutations.py` carries all changes of `mutation_rows.py` out, one after the other, on a copy of the repository; `--file`, `--only` and
`--part 2/4` choose some. The tests of a file are first run on the untouched copy: one that fails there proves nothing. Changes whose test needs ComfyUI
are run with its Python, where it is. A process with the libraries loaded is forked for each change, which saves most of the time; systems without `fork`
have none of this.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mutation_rows import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 240.0  # a test that takes so much longer than it should hangs by the change, which is noticed too
FAILED, NOTHING_RUN = 1, 5  # exit codes of pytest
LIBRARIES = (
    "torch",
    "safetensors.torch",
    "PIL.Image",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "transformers.models.clip.modeling_clip",
    "peft",
)
KILLED, HUNG, SURVIVED, RED, BROKEN = "killed", "hung", "survived", "red before", "could not run"
GOOD = (KILLED, HUNG)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a change did to its test."""

    mutation: Mutation
    outcome: str
    seconds: float

    def line(self) -> str:
        m = self.mutation
        return f"{self.outcome:12} {self.seconds:5.1f} s  {m.row}  |  {m.file}: {short(m.before)}  ->  {short(m.after)}  |  {m.test}"


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else f"{text[:67]}..."


def file_of(test: str) -> str:
    return test.split("::")[0]


def place_of(test: str, root: Path = ROOT) -> str:
    """The node id below the repository of a test as the READMEs name it: tests of the engine without `lora_core`."""
    file = file_of(test)
    below = "tests" if (root / "tests" / file).exists() else "tests/lora_core"
    return f"{below}/{test}"


def needs_host(mutation: Mutation) -> bool:
    return mutation.test.startswith("host/")


def problem(mutation: Mutation, root: Path = ROOT) -> str:
    """Why a change cannot be carried out on this code; empty when it can."""
    file, _, name = place_of(mutation.test, root).partition("::")
    text = (root / mutation.file).read_text(encoding="utf-8") if (root / mutation.file).is_file() else ""
    if text.count(mutation.before) != 1:
        return f"{mutation.file} has {text.count(mutation.before)} times: {mutation.before}"
    if mutation.before == mutation.after:
        return f"{mutation.file}: the change is none: {mutation.before}"
    there = (root / file).read_text(encoding="utf-8") if (root / file).is_file() else ""
    if not re.search(rf"^def {re.escape(name.partition('[')[0])}\(", there, re.MULTILINE):
        return f"there is no test {mutation.test}"
    return ""


# ---- a copy to break ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def copied(root: Path) -> Iterator[Path]:
    """A copy of the repository's files in a folder `lora_loom`, so that programs which tests start find the package beside it."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        place = Path(folder) / "lora_loom"
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / name, place / name)
        yield place


@contextlib.contextmanager
def changed(place: Path, mutation: Mutation) -> Iterator[None]:
    file = place / mutation.file
    before = file.read_bytes()
    file.write_bytes(before.decode("utf-8").replace(mutation.before, mutation.after).encode("utf-8"))
    try:
        yield
    finally:
        file.write_bytes(before)


# ---- a test of the copy in a process of its own ----------------------------------------------------------------------------------


class Outcomes:
    """Plugin of pytest that writes down how each test ended: node id -> passed, failed or skipped."""

    def __init__(self, file: Path) -> None:
        self.file, self.ended = file, dict[str, str]()

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed or report.when == "call" or report.skipped:
            self.ended[report.nodeid] = "failed" if self.ended.get(report.nodeid) == "failed" else report.outcome
            self.keep()

    def pytest_sessionfinish(self) -> None:
        self.keep()

    def keep(self) -> None:
        """At once: a test that hangs costs those before it nothing."""
        whole = self.file.with_suffix(".part")
        whole.write_text(json.dumps(self.ended), encoding="utf-8")
        whole.replace(self.file)


def load_libraries(names: Sequence[str] = LIBRARIES) -> None:
    """What every test imports, once. Nothing of the package itself: each process reads that from the copy, as it is then."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("pytest", *names):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def run_tests(place: Path, tests: Sequence[str], limit_s: float, first_only: bool = True) -> tuple[int, dict[str, str]]:
    """(exit code of pytest, or -1 where it hung; how each test ended)."""
    report, log = place.parent / "outcomes.json", place.parent / "output.txt"
    report.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _be_pytest(place, [*(["-x"] if first_only else []), *tests], report, log)
    _group(child)
    code = _waited(child, limit_s)
    return code, json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}


def _be_pytest(place: Path, arguments: Sequence[str], report: Path, log: Path) -> None:
    """The rest of a forked process; does not come back."""
    code = -2
    try:
        _group(0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(place)
        ours = {str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p}
        sys.path[:] = [p for p in sys.path if p and str(Path(p).resolve()) not in {*ours, str(ROOT / "tests")}]
        os.environ["PYTHONPATH"] = str(place.parent)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a cache of bytecode cannot tell two changes within a second apart
        sys.dont_write_bytecode = True
        import pytest

        files = ["--rootdir", str(place), "--basetemp", str(place.parent / "tmp")]
        quiet = ["-q", "-p", "no:cacheprovider", "--tb=short", *files]
        code = int(pytest.main([*quiet, *arguments], plugins=[Outcomes(report)]))
    finally:
        os._exit(code & 0xFF)


def _group(process: int) -> None:
    """Makes a process (0: this one) the head of a group, so that what it starts can be ended with it. Said by parent and child: either may come first."""
    with contextlib.suppress(OSError):
        os.setpgid(process, process)


def _waited(child: int, limit_s: float) -> int:
    """The exit code of a process; -1 for one that was ended after the limit."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for end in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            end(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


# ---- verdicts ----------------------------------------------------------------------------------------------------------------


def green(test: str, ended: dict[str, str]) -> bool:
    """Whether a test, all its rows together, has passed: at least one, and none failed."""
    rows = [outcome for name, outcome in ended.items() if name == test or name.startswith((f"{test}[", f"{test}::"))]
    return "passed" in rows and "failed" not in rows


def judged(place: Path, mutations: Sequence[Mutation]) -> Iterator[Verdict]:
    """Carries the changes out on the copy at `place`, one after the other. The tests of a file are looked at untouched when the first of them is needed."""
    able = [m for m in mutations if not problem(m, place)]
    waiting: dict[str, set[str]] = {}
    for test in {place_of(m.test, place) for m in able}:
        waiting.setdefault(file_of(test), set()).add(test)
    ended: dict[str, str] = {}
    for mutation in mutations:
        test = place_of(mutation.test, place)
        if mutation in able and (tests := waiting.pop(file_of(test), None)):
            ended |= run_tests(place, sorted(tests), LIMIT_S * len(tests), first_only=False)[1]
        began = time.monotonic()
        if mutation not in able:
            outcome = BROKEN
        elif not green(test, ended):
            outcome = RED
        else:
            with changed(place, mutation):
                code, rows = run_tests(place, [test], LIMIT_S)
            outcome = _outcome(code, rows)
        yield Verdict(mutation, outcome, time.monotonic() - began)


def _outcome(code: int, ended: dict[str, str]) -> str:
    if code == -1:
        return HUNG
    if code == 0:
        return SURVIVED
    return KILLED if code == FAILED and "failed" in ended.values() else BROKEN


def in_host(mutations: Sequence[Mutation]) -> list[Verdict] | str:
    """The verdicts of ComfyUI's own Python on tests that need it, or why there are none."""
    checkout = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
    python = Path(os.environ.get("COMFYUI_PYTHON", "~/comfy/venv/bin/python")).expanduser()
    if not (checkout / "main.py").is_file() or not python.is_file():
        return f"they need a ComfyUI checkout at {checkout} and its Python at {python}"
    with tempfile.TemporaryDirectory() as folder:
        chosen, out = Path(folder) / "chosen.json", Path(folder) / "verdicts.json"
        chosen.write_text(json.dumps([MUTATIONS.index(m) for m in mutations]), encoding="utf-8")
        command = [str(python), __file__, "--chosen", str(chosen), "--json", str(out)]
        subprocess.run(command, env={**os.environ, "COMFYUI_DIR": str(checkout)}, stdout=subprocess.DEVNULL)
        if not out.is_file():
            return "its process ended early"
        return [Verdict(MUTATIONS[n], outcome, seconds) for n, outcome, seconds in json.loads(out.read_text("utf-8"))]


def chosen_by(options: argparse.Namespace) -> list[Mutation]:
    if options.chosen:
        return [MUTATIONS[n] for n in json.loads(Path(options.chosen).read_text(encoding="utf-8"))]
    part, _, of = options.part.partition("/")
    chosen = [m for m in MUTATIONS if not options.file or m.file == options.file]
    chosen = [m for m in chosen if options.only in f"{m.row} {m.file} {m.test} {m.before}"]
    return chosen[int(part) - 1 :: int(of)]


def told(verdicts: Sequence[Verdict], not_run: Sequence[Mutation], why: str, seconds: float) -> int:
    """Says what came out, and gives the exit code."""
    killed = sum(v.outcome in GOOD for v in verdicts)
    bad = [v for v in verdicts if v.outcome not in GOOD]
    print(f"{killed} of {len(verdicts)} changes were noticed by the named test, in {seconds:.0f} s.")
    if not_run:
        print(f"{len(not_run)} changes were not carried out: {why}.")
    if bad:
        print("To mend:", *(v.line() for v in bad), sep="\n")
    return 1 if bad else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", default="", help="only changes of this file")
    parser.add_argument("--only", default="", help="only changes in whose row, file, test or text this stands")
    parser.add_argument("--part", default="1/1", help="only this part of the changes, such as 2/4")
    parser.add_argument("--no-host", action="store_true", help="without those whose test needs ComfyUI")
    parser.add_argument("--json", default="", help=argparse.SUPPRESS)
    parser.add_argument("--chosen", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not hasattr(os, "fork"):
        print("This needs a system that can fork.")
        return 2
    began, mutations = time.monotonic(), chosen_by(options)
    here = mutations if options.chosen else [m for m in mutations if not needs_host(m)]
    hosted = [m for m in mutations if m not in here and not options.no_host]
    verdicts: list[Verdict] = []
    load_libraries()
    with copied(ROOT) as place:
        for verdict in judged(place, here):
            verdicts.append(verdict)
            print(verdict.line(), flush=True)
    answer = in_host(hosted) if hosted else []
    if not isinstance(answer, str):
        verdicts += answer
        print(*(v.line() for v in answer), sep="\n", end="\n" if answer else "")
    if options.json:
        rows = [(MUTATIONS.index(v.mutation), v.outcome, v.seconds) for v in verdicts]
        Path(options.json).write_text(json.dumps(rows), encoding="utf-8")
    not_run, why = (hosted, answer) if isinstance(answer, str) else ([], "")
    return told(verdicts, not_run, why, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
