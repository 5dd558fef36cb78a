"""The toy is one model in two worlds: ComfyUI's classes and diffusers' modules draw the same pictures."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
from lora_loom.lora_core.config import ObjectiveConfig, SampleConfig
from lora_loom.lora_core.toy import learn_text, networks
from lora_loom.nodes.host.access import toy as loader
from lora_loom.nodes.host.engine.backend import HostBackend
from shapes import MODEL


@pytest.fixture
def both(toy):
    with torch.inference_mode(False):
        yield HostBackend(*toy), DiffusersBackend(MODEL)


@pytest.mark.parametrize("prompt", ["a red circle on a white ground", "a green cross on a black ground", "a zog"])
def test_same_seed_and_prompt_give_the_same_picture(both, prompt):
    job = SampleJob(prompt, 64, 64, SampleConfig(seed=3, cfg=4.0))
    host, headless = (np.asarray(b.sample(job)[0], int) for b in both)
    assert (
        np.abs(host - headless).max() <= 2
    )  # of 255: fp32 sums in another order, through 20 sampler steps and the rounding to 8 bits


def test_layers_have_the_same_names_and_pictures_the_same_latents(both):
    host, headless = both
    ours, theirs = ({b.file_name(p) for p in b.layers()} for b in (host, headless))
    assert theirs - ours == {"lora_unet_conv_norm_out"}  # a norm that ComfyUI's key map has no name for
    assert ours <= theirs
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        host.encode_picture(pixels), headless.encode_picture(pixels), atol=1e-5
    )  # fp32 rounding in the VAE


def test_both_draw_the_same_noise_levels_and_targets(both):
    objectives = [b.objective(ObjectiveConfig()) for b in both]
    sigmas = [o.draw_sigma(64, torch.Generator().manual_seed(1)) for o in objectives]
    assert torch.allclose(sigmas[0], sigmas[1], rtol=1e-5)  # the host keeps its table in fp32
    x0, noise = torch.randn(64, 8, 4, 4), torch.randn(64, 8, 4, 4)
    a, b = (o.target(x0, noise, sigmas[0]) for o in objectives)
    assert torch.allclose(a, b, atol=1e-6)  # (x0 - A) / B in fp64 against the formula


def test_the_spread_of_latents_is_the_vaes_own_in_the_models_units(toy):
    """Mean and deviation against diffusers' own distribution of the same VAE; the user's VAE keeps its forward."""
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4))
    headless = DiffusersBackend(MODEL, device="cpu")
    with torch.inference_mode():
        host = HostBackend(*toy)
        mean, spread = host.encode_spread(pixels)
        form = toy[2].first_stage_model.regularization
        assert "forward" not in vars(form)
    expected = headless.encode_spread(pixels)
    assert torch.allclose(mean, expected[0], atol=1e-5)
    assert torch.allclose(spread, expected[1], rtol=1e-3, atol=1e-6)  # a difference of two latents in float32
    assert (spread > 0).all()


@pytest.fixture(scope="module")
def emoji_folder(tmp_path_factory):
    """The emoji model with random weights, as its own export writes it: three levels, attention at one of them and in the middle."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("emoji")
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    shutil.copytree(MODEL / "tokenizer", folder / "tokenizer")
    parts = {**learn_text.new_text_networks(tokenizer), "vae": networks.new_vae()}
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    networks.new_schedule().save_pretrained(folder / "scheduler")
    return folder


def test_levels_widths_and_heads_are_read_from_the_folder(emoji_folder):
    with torch.inference_mode():
        host = HostBackend(*loader.load(emoji_folder))
    headless = DiffusersBackend(emoji_folder)
    job = SampleJob("a dog face", 128, 128, SampleConfig(seed=3, cfg=4.0, steps=4))
    with torch.inference_mode(False):
        pictures = [np.asarray(backend.sample(job)[0], int) for backend in (host, headless)]
    assert pictures[0].shape == (128, 128, 3)
    assert np.ptp(pictures[0]) > 20
    assert np.abs(pictures[0] - pictures[1]).max() <= 2  # of 255, as above
