"""The table of model families is this host's: its classes, the rows of the tests, and what is refused with which sentence."""

from __future__ import annotations

import json

import architectures
import comfy.supported_models
import comfyui_version
import pytest
import torch
from live_server import ROOT
from lora_loom.lora_core.config import ObjectiveConfig, Recompute
from lora_loom.lora_core.messages.errors import LoomError
from test_gradients import make_adapters, make_batch, opened

TABLE = json.loads((ROOT / "tests" / "reference" / "families.json").read_text(encoding="utf-8"))
SAME = TABLE["host"] == comfyui_version.__version__
REFUSED = [name for name, row in TABLE["rows"].items() if not row["trains"]]


@pytest.mark.skipif(not SAME, reason="the table was measured on another version of ComfyUI")
def test_the_table_has_the_classes_of_this_host():
    assert [cls.__name__ for cls in comfy.supported_models.models] == TABLE["classes"]


def test_the_table_has_every_row_of_the_tests():
    rows = {name: row[0] for table in architectures.TABLES for name, row in table.items()}
    assert {name: row["class"] for name, row in TABLE["rows"].items()} == rows
    assert all(TABLE["rows"][name]["trains"] for name in architectures.TRAINED)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_with_that_sentence(name):
    with pytest.raises(LoomError) as told:
        begun(name)
    assert told.value.message.code == TABLE["rows"][name]["why"]["code"]


def begun(name: str) -> None:
    """A training of everything in it, up to the first step."""
    with torch.inference_mode(False):
        backend = opened(name, architectures.build(name))
        backend.objective(ObjectiveConfig())
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, Recompute.NONE, tuple(make_batch(name).latents.shape)):
            pass
