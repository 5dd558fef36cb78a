"""Says why the host tests did not run, where they cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def test_a_comfyui_checkout_is_here():
    host = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
    if not (host / "comfy").is_dir():
        pytest.skip("host tests need a ComfyUI checkout; set COMFYUI_DIR")
    pytest.importorskip("torchvision", reason="host tests need ComfyUI's own Python environment")
    assert (host / "nodes.py").is_file()
