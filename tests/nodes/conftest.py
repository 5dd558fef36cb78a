"""Our nodes without ComfyUI."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.fixture(scope="module")
def nodes(root):
    """`nodes("widgets")`: a module of our nodes, imported with the host stood in for."""
    sys.path.insert(0, str(root / "tests" / "reference"))
    schemas = importlib.import_module("schemas")
    schemas.load_package()
    with schemas.without_host():
        yield lambda name: importlib.import_module(f"lora_loom.nodes.{name}")
    sys.path.remove(str(root / "tests" / "reference"))
