"""Loads this checkout as the package `lora_loom`, whatever its folder is called, and offers the toy model and small runs to every test."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

import pytest

ROOT, PACKAGE = Path(__file__).resolve().parents[1], "lora_loom"
if PACKAGE not in sys.modules:
    spec = importlib.util.spec_from_file_location(PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)
sys.path[:] = [p for p in sys.path if p and Path(p).resolve() != ROOT]  # our nodes/ must not shadow the host's nodes.py

import torch  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def toy_backend():
    """The bundled toy model on the CPU; tests must hand it back as they found it."""
    from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
    from lora_loom.lora_core.toy.model import MODEL

    return DiffusersBackend(MODEL, device="cpu")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of four captioned 32 px pictures with several tags each, one of them wide, so two buckets occur."""
    from lora_loom.lora_core.toy import shapes as world

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

    base = {
        "name": "toy_test", "base": "toy", "steps": 4, "batch_size": 2, "seed": 7,
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
