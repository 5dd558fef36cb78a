"""ComfyUI needs nothing but this folder: a LoRA and an embedding are trained without the packages that only the terminal asks for."""

from __future__ import annotations

import pytest
from live_server import running
from safetensors.torch import load_file
from test_http import toy_prompt

ONLY_OF_THE_TERMINAL = ("accelerate", "datasets", "diffusers", "peft")
WITHOUT = f"""
import importlib.machinery

find = importlib.machinery.PathFinder.find_spec.__func__


def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] in {ONLY_OF_THE_TERMINAL} else find(cls, name, path, target)


importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A server whose Python has none of them."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "sitecustomize.py").write_text(WITHOUT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    with running(tmp_path / "base") as server:
        yield server


def test_a_lora_is_trained_and_used_with_what_comfyui_brings(bare):
    prompt = toy_prompt(bare, name="bare", steps=4, sample_every=2)
    entry = bare.execute(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert load_file(bare.base / "output" / "loras" / "bare.safetensors")
