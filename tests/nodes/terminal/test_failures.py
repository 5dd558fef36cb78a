"""Whatever a library fails with, at whichever stage of a headless run: one sentence says what was done to what, with the library's words, and no traceback."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
import transformers
from lora_loom.__main__ import main
from lora_loom.lora_core.backends.clip_text import ClipText
from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
from lora_loom.lora_core.messages.blame import blamed
from lora_loom.lora_core.messages.errors import LoomError
from safetensors import SafetensorError


class PanicException(BaseException):
    """As pyo3 raises it for tokenizers and safetensors: no Exception."""


CPU_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)
ERRORS: dict[str, tuple[BaseException, str]] = {  # name -> (what is raised, words that have to be in the sentence)
    "OSError": (OSError(5, "Input/output error"), "Input/output error"),
    "RuntimeError": (RuntimeError("CUDA error: device-side assert\nCompile with TORCH_USE"), "RuntimeError: CUDA error: device-side assert"),
    "KeyError": (KeyError("time_embed.weight"), "KeyError: 'time_embed.weight'"),
    "SafetensorError": (SafetensorError("Error while deserializing header: invalid JSON"), "invalid JSON"),
    "PanicException": (PanicException("no entry found for key"), "no entry found for key"),
    "ImportError": (ImportError("cannot import name 'Thing'", name="diffusers.models"), "the package diffusers is installed but cannot be loaded"),
    "nameless ImportError": (ImportError("DLL load failed"), "DLL load failed"),
    "MemoryError": (MemoryError(), "not enough memory"),
    "CPU memory": (RuntimeError(CPU_MEMORY), "not enough memory"),
    "empty": (ValueError(""), "ValueError"),
    "long": (TypeError("x" * 5000), "x" * 100),
}  # fmt: skip
STAGES: dict[str, tuple[Any, str, str]] = {  # what is done -> (where it fails, what the sentence says that was done to)
    "reading the UNet": (diffusers.UNet2DConditionModel, "from_pretrained", "base: model/unet cannot be read"),
    "reading the VAE": (diffusers.AutoencoderKL, "from_pretrained", "base: model/vae cannot be read"),
    "reading the text encoder": (
        transformers.CLIPTextModel,
        "from_pretrained",
        "base: model/text_encoder cannot be read",
    ),
    "reading the tokenizer": (transformers.CLIPTokenizer, "from_pretrained", "base: model/tokenizer cannot be read"),
    "reading the scheduler": (diffusers.DDPMScheduler, "from_config", "base: model cannot be read"),
    "encoding a picture": (DiffusersBackend, "_encoded", "data.folder: the model's picture encoder failed on 0.png"),
    "encoding a caption": (
        ClipText,
        "encode",
        "base: the text encoders of sd1 failed on the caption 'zog, ",
    ),
    "making the optimizer": (torch.optim, "AdamW", "optimizer.name: the optimizer adamw cannot be created"),
    "asking the network": (diffusers.UNet2DConditionModel, "forward", "step 1 failed on "),
    "updating the weights": (torch.optim.AdamW, "step", "step 1 failed on "),
}
ROTATED = [(stage, name) for n, stage in enumerate(STAGES) for m, name in enumerate(ERRORS) if (n + m) % 6 == 0]
ALL = [pytest.param(s, e, marks=[] if (s, e) in ROTATED else pytest.mark.slow) for s in STAGES for e in ERRORS]


@pytest.fixture
def job(pictures, tmp_path):
    file = tmp_path / "job.toml"
    file.write_text(
        f'name = "fails"\nbase = "toy"\nsteps = 2\n[data]\nfolder = "{pictures}"\ntrigger = "zog"\nresolution = 32\nbucket_step_px = 8\n'
        '[adapter]\nrank = 2\n[cache]\ndisk = false\n[samples]\nevery = 0\n'
    )  # fmt: skip
    return [str(file), "--out", str(tmp_path / "runs")]


def failing(error: BaseException):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_a_run_that_a_library_ends_says_what_was_done_to_what_in_one_sentence(stage, name, job, monkeypatch, capsys):
    place, attribute, subject = STAGES[stage]
    error, words = ERRORS[name]
    monkeypatch.setattr(place, attribute, failing(error))
    assert main(["train", *job]) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    [sentence] = [line for line in told.splitlines() if line.startswith("lora-loom: ")]
    assert words in sentence
    assert len(sentence) < 500
    if "memory" not in words and "package" not in words and name != "nameless ImportError":
        assert sentence.startswith(f"lora-loom: {subject}")


def test_what_ended_a_run_stands_whole_in_its_log(job, monkeypatch, tmp_path):
    forward, calls = diffusers.UNet2DConditionModel.forward, []

    def second(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs) if len(calls) < 2 else failing(KeyError("down_blocks"))()

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", second)
    assert main(["train", *job]) == 1
    [log] = (tmp_path / "runs").glob("*/run.log")
    text = log.read_text()
    assert "step 2 failed on " in text
    assert "KeyError: 'down_blocks'" in text.splitlines()[-1]
    assert 'test_failures.py", line ' in text


def test_a_sample_that_cannot_be_drawn_costs_the_sample_and_not_the_run(job, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(DiffusersBackend, "sample", failing(RuntimeError("cuDNN error: CUDNN_STATUS_MAPPING_ERROR")))
    assert main(["train", *job, "--set", "samples.every=1"]) == 0
    [log] = (tmp_path / "runs").glob("*/run.log")
    assert (
        "A sample picture could not be generated (RuntimeError: cuDNN error: CUDNN_STATUS_MAPPING_ERROR)"
        in log.read_text()
    )
    assert "Traceback" not in capsys.readouterr().err


def test_what_nobody_foresaw_ends_with_a_sentence_below_its_traceback(monkeypatch, capsys, tmp_path):
    from lora_loom.nodes.terminal import recipes

    monkeypatch.setattr(recipes, "execute", failing(ZeroDivisionError("division by zero")))
    assert main(["recipes"]) == 1
    *lines, sentence = capsys.readouterr().err.splitlines()
    assert "Traceback" in lines[0]
    assert sentence.startswith(
        "lora-loom: lora-loom recipes ended with an unexpected error (ZeroDivisionError: division by zero)"
    )


class InterruptProcessingException(Exception):
    """As reForge's host cancels."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), InterruptProcessingException()])
def test_a_cancel_is_no_failure_of_a_library(error):
    with pytest.raises(type(error)), blamed("base.unreadable", "base", file="model"):
        raise error


def test_a_library_that_cannot_import_another_is_named_by_what_is_broken():
    def raised():
        try:
            raise ImportError("libtorch_cuda.so: cannot open shared object file", name="torchvision")
        except ImportError as error:
            raise RuntimeError("Failed to import diffusers.models.unets because of the following error") from error

    with (
        pytest.raises(LoomError, match="^the package torchvision is installed but cannot be loaded .*libtorch_cuda.so"),
        blamed("base.unreadable", "base", file="model"),
    ):
        raised()
