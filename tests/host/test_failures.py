"""Whatever the host, a pack or a library fails with, at whichever stage: one sentence about the right input, with the library's words."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import pytest
import runs
import torch
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import LoomError, is_memory, message_of
from lora_loom.nodes.host.engine import model as model_module
from lora_loom.nodes.host.engine.backend import HostBackend
from lora_loom.nodes.host.engine.model import HostModel
from safetensors import SafetensorError


class PanicException(BaseException):
    """As pyo3 raises it for tokenizers: no Exception."""


ERRORS = {
    "OSError": (OSError(5, "Input/output error"), "Input/output error"),
    "RuntimeError": (RuntimeError("CUDA error: device-side assert\nCompile with TORCH_USE"), "CUDA error: device-side assert"),
    "KeyError": (KeyError("sample_sigmas"), "KeyError: 'sample_sigmas'"),
    "SafetensorError": (SafetensorError("Error while deserializing header"), "Error while deserializing header"),
    "PanicException": (PanicException("no entry found for key"), "no entry found for key"),
    "ImportError": (ImportError("cannot import name 'Thing'", name="bitsandbytes.nn"), "the package bitsandbytes is installed but"),
    "MemoryError": (MemoryError(), "not enough memory"),
    "OutOfMemoryError": (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory"),
}  # fmt: skip
STAGES = {  # what is done -> how its sentence begins
    "describing the model": "model: cannot be opened for training (",
    "encoding a picture": "vae: failed on a picture (",
    "encoding a caption": "clip: failed on a caption (",
    "loading the model": "model: cannot be opened for training (",
    "asking the network": "model: BaseModel failed on a test input",
    "a step": "step 2 failed on ",
    "updating the weights": "step 1 failed on ",
}


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def sabotage(stage, error, toy, patch):
    """What makes a run fail at this stage."""
    model, clip, vae = toy
    if stage == "describing the model":
        patch.setattr(model_module, "described", failing(error))
    elif stage == "encoding a picture":
        patch.setattr(vae, "encode", failing(error))
    elif stage == "encoding a caption":
        patch.setattr(type(clip), "tokenize", failing(error))
    elif stage == "loading the model":
        load = comfy.model_management.load_models_gpu

        def all_but_the_model(models, *args, **kwargs):
            return failing(error)() if models[0].model is model.model else load(models, *args, **kwargs)

        patch.setattr(comfy.model_management, "load_models_gpu", all_but_the_model)
    elif stage == "asking the network":
        patch.setattr(HostModel, "_apply", failing(error))
    elif stage == "updating the weights":
        patch.setattr(torch.optim.AdamW, "step", failing(error))
    else:
        predict, calls = HostBackend.predict, []

        def second(self, *args):
            calls.append(1)
            return predict(self, *args) if len(calls) < 2 else failing(error)()

        patch.setattr(HostBackend, "predict", second)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_something_ends_says_what_was_done_to_what(stage, name, toy, tmp_path, monkeypatch):
    error, words = ERRORS[name]
    sabotage(stage, error, toy, monkeypatch)
    with pytest.raises((LoomError, MemoryError, torch.OutOfMemoryError)) as caught:
        runs.run(toy, tmp_path / "run", steps=3)
    told = str(message_of(caught.value))
    assert words in told
    assert "\n" not in told
    if not is_memory(error) and name != "ImportError":
        assert told.startswith(STAGES[stage].replace("BaseModel", type(toy[0].model.diffusion_model).__name__))


@pytest.mark.parametrize("name", ["RuntimeError", "PanicException", "OutOfMemoryError"])
def test_a_sample_that_cannot_be_drawn_costs_the_sample_and_not_the_run(name, toy, tmp_path, monkeypatch):
    heard = []

    class Hears(Listener):
        def on_warning(self, message):
            heard.append(str(message))

    error, words = ERRORS[name]
    monkeypatch.setattr(comfy.sample, "sample", failing(error))
    samples = {"every": 1, "steps": 2}
    assert runs.run(toy, tmp_path / "run", Hears(), steps=2, samples=samples).outcome == "finished"
    assert any(words.lower() in line.lower() for line in heard)
