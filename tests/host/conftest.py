"""Tests against a real ComfyUI checkout: $COMFYUI_DIR, else ~/comfy/ComfyUI. Run them with the host's own Python."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

HOST = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()


def why_not() -> str:
    if not (HOST / "comfy").is_dir():
        return f"no ComfyUI checkout at {HOST}; set COMFYUI_DIR"
    try:
        import torchvision  # noqa: F401 - the host needs it, our own environment does not have it
    except ImportError:
        return "this Python has no torchvision; run the host tests with ComfyUI's own environment"
    return ""


REASON = why_not()


def pytest_ignore_collect(collection_path, config):
    return (
        bool(REASON) and collection_path.name != "test_host_here.py" and collection_path.parent.name == "host" or None
    )


def pytest_configure(config):
    if REASON:
        return
    here = Path(__file__).parent
    sys.path[:0] = [str(HOST), str(here), str(here.parents[1] / "benchmarks")]
    before, sys.argv = sys.argv, ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401 - reads sys.argv once

    sys.argv = before
    if importlib.util.find_spec("diffusers") is None:  # only headless runs need it, and the host does not bring it
        import since

        config.pluginmanager.register(since.Oldest(), "without headless packages")


@pytest.fixture
def figure():
    """`figure("first step after the click", seconds)`: told, and kept in the file that $LOOM_FIGURES names, as benchmarks/answers.py does. No verdict."""

    def keep(what: str, seconds: float) -> None:
        print(f"{what}: {seconds:.3f} s")
        if place := os.environ.get("LOOM_FIGURES"):
            with open(place, "a", encoding="utf-8") as file:
                file.write(json.dumps({"what": what, "s": round(seconds, 3)}) + "\n")

    return keep


@pytest.fixture(scope="session")
def toy():
    """(MODEL, CLIP, VAE) of the toy, loaded as the executor would: inside inference mode."""
    import torch
    from lora_loom.nodes.host.access import toy as loader
    from shapes import MODEL

    with torch.inference_mode():
        return loader.load(MODEL)
