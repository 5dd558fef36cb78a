"""Loads this checkout as the package `lora_loom`, whatever its folder is called, and offers the toy model and small runs to every test."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name: str, file: Path, **more):
    """The file as a module of that name, without its folder among the places where modules are looked for."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file, **more)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


# One thread for a test process and for those it starts; two processes use both cores. With two threads, on two busy cores, tests that take 12 seconds of
# processor time with one were stopped unfinished after 54 (2026-11-28, AMD EPYC): threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
load("lora_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
share = load("share_of_tests", ROOT / "tests" / "share_of_tests.py")
oldest = load("since", ROOT / "tests" / "since.py")
load("in_browser", ROOT / "tests" / "in_browser.py")
load("recorder", ROOT / "tests" / "recorder.py")
load("slow_rows", ROOT / "tests" / "slow_rows.py")
load("film_files", ROOT / "tests" / "film_files.py")
load("shapes", ROOT / "tests" / "shapes" / "__init__.py", submodule_search_locations=[str(ROOT / "tests" / "shapes")])
load("power_cut", ROOT / "tests" / "power_cut.py")
load("full_disk", ROOT / "tests" / "full_disk.py")
load("mutation_rows", ROOT / "tests" / "mutation_rows.py")
load("mutations", ROOT / "tests" / "mutations.py")
sys.path[:] = [p for p in sys.path if p and Path(p).resolve() != ROOT]  # our nodes/ must not shadow the host's nodes.py

import torch  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(1)
os.fsync = (
    lambda file: None
)  # no test cuts the power: those of durability record the calls, whatever is behind them, and programs they start have their own


def pytest_addoption(parser):
    share.options(parser)
    oldest.options(parser)


def pytest_configure(config):
    take_signals()
    if config.getoption("--oldest"):
        config.pluginmanager.register(oldest.Oldest(), "oldest packages")


def take_signals() -> None:
    """Takes back signals that whoever started the tests has ignored, as shells do for jobs in the background: a run of ours leaves ignored ones ignored."""
    usual = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    for name, handler in usual.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_sessionstart(session):
    share.announce(session.config)


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config, items):
    share.choose(config, items)


def pytest_collection_finish(session):
    """What the imports made stays until the end: the collector need not look at a million objects of them again and again (a fifth of the suite's time)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def merged(first: dict, second: dict) -> dict:
    """`first` with the nested values of `second` put over it."""
    out = dict(first)
    for key, value in second.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def export(state, facts):
    """The exporter of a headless run, as the terminal door builds it."""
    from lora_loom.convert import products

    return products(state, facts["config"]["name"], "sd1", facts)


HANG_S = 300.0  # only against hanging: what takes this long on the slowest machine takes forever on all of them; speed is measured in benchmarks/


@contextlib.contextmanager
def not_hanging():
    """Fails what takes longer than HANG_S seconds, by interrupting it where the system can."""

    def late(*_):
        raise AssertionError(f"not done after {HANG_S:.0f} s")

    alarm = hasattr(signal, "setitimer")
    if alarm:
        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
    began = time.monotonic()
    try:
        yield
    finally:
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < HANG_S


@pytest.fixture(scope="session")
def hang_guard():
    """`with hang_guard():` around work that a fault could make endless."""
    return not_hanging


_opened: list[
    Counter
] = []  # the counter of the call that is being counted, if any; an audit hook cannot be taken away again
READING = "LoRA Loom looks at pictures"  # the thread of a dataset editor


def _note_opened(event, arguments):
    if event == "open" and _opened and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _opened[0][os.path.basename(os.fsdecode(arguments[0]))] += 1


@pytest.fixture(scope="session")
def counted():
    """`counted(function)` -> (its result, how often each file was opened by name, calls of functions): work, on whatever processor.

    What an earlier test still reads in a thread of its own is waited for.
    """
    sys.addaudithook(_note_opened)

    def run(function):
        calls, files = 0, Counter()

        def note(frame, event, argument):
            nonlocal calls
            calls += event in ("call", "c_call")

        for thread in threading.enumerate():
            if thread.name == READING:
                thread.join(HANG_S)
        _opened.append(files)
        sys.setprofile(note)
        try:
            result = function()
        finally:
            sys.setprofile(None)
            _opened.clear()
        return result, files, calls

    return run


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def toy_backend():
    """The toy model that knows shapes, on the CPU; tests must hand it back as they found it."""
    from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
    from shapes import MODEL

    return DiffusersBackend(MODEL, device="cpu")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of four captioned 32 px pictures with several tags each, one of them wide, so two buckets occur."""
    from shapes import world

    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(5)
    for n in range(4):
        scene = world.random_scene(rng)
        world.draw(scene).resize((48 if n == 3 else 32, 32), Image.Resampling.BOX).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"zog, {scene.color}, {scene.shape}, {scene.ground} ground", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def toy_config(pictures):
    """`toy_config(steps=5, data={"flip": True})` -> a small TrainConfig for the toy model; what is not named keeps a fast default."""
    from lora_loom.lora_core.config import parse
    from shapes import BASE

    base = {
        "name": "toy_test", "base": BASE, "steps": 4, "batch_size": 2, "seed": 7,
        "data": {"folder": str(pictures), "resolution": 32, "bucket_step_px": 16},
        "adapter": {"rank": 4}, "optimizer": {"lr": 1e-3}, "save": {"every": 1000}, "samples": {"every": 0},
    }  # fmt: skip
    return lambda **changes: parse(merged(base, changes))


@pytest.fixture
def run_toy(toy_backend):
    """`run_toy(config, folder, listener, resume=...)` trains on the toy model as the terminal door does and returns the Result."""
    from lora_loom.lora_core.data.folder import open_sets
    from lora_loom.lora_core.events import Control, Listener
    from lora_loom.lora_core.training.job import Job
    from lora_loom.lora_core.training.trainer import train

    def run(config, folder, listener=None, *, control=None, resume=False, backend=toy_backend):
        job = Job(config, backend, open_sets(config), folder.parent, listener or Listener(), control or Control())
        return train(job, folder, export, resume)

    return run
