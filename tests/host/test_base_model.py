"""What a base model is: the guidance it is trained at, against what the host's own sampler gives it."""

from __future__ import annotations

import architectures
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import Fit
from lora_loom.nodes.host.backend import HostBackend
from stand_ins import NoVae, RandomClip

SQUARE = Fit((64, 64), (64, 64), (0, 0), (64, 64))
CAPTION = "a red cat"


def opened(name: str) -> HostBackend:
    patcher = architectures.build(name)
    return HostBackend(patcher, RandomClip(name), NoVae(patcher))


def batch_of(name: str) -> Batch:
    latents = torch.randn(1, *architectures.row_of(name)[2], generator=torch.Generator().manual_seed(5))
    return Batch(latents, [CAPTION], [SQUARE], ["one.png"], torch.ones(1))


def trained_conditioning(backend: HostBackend, batch: Batch) -> dict:
    """What the network is given in a training step."""
    [(_, conds)] = backend._conditioning(batch, batch.latents)
    return conds


def sampled_conditioning(backend: HostBackend, batch: Batch) -> dict:
    """What the host's own sampler gives the model for the same caption and an empty latent."""
    with torch.inference_mode():
        conds = comfy.sampler_helpers.convert_cond(backend._text(CAPTION))
        noise = batch.latents
        conds = comfy.samplers.encode_model_conds(
            backend._model.extra_conds, conds, noise, backend.device, "positive", latent_image=torch.zeros_like(noise), denoise_mask=None, seed=0
        )
        return {key: value.process_cond(batch_size=1, area=None, device=backend.device).cond for key, value in conds[0]["model_conds"].items()}


@pytest.mark.parametrize("name", ["Chroma", "Chroma Radiance"])
def test_a_model_that_embeds_no_guidance_is_trained_at_the_guidance_it_is_sampled_with(name):
    backend, batch = opened(name), batch_of(name)
    trained, sampled = trained_conditioning(backend, batch)["guidance"], sampled_conditioning(backend, batch)["guidance"]
    assert trained.tolist() == sampled.tolist() == [0.0]


@pytest.mark.parametrize("name", ["Flux", "Flux2", "HunyuanVideo"])
def test_a_guidance_distilled_model_is_trained_at_guidance_1(name):
    backend, batch = opened(name), batch_of(name)
    assert trained_conditioning(backend, batch)["guidance"].tolist() == [1.0]


@pytest.mark.parametrize("name", ["Flux schnell", "Flux2 Klein"])
def test_what_a_model_without_guidance_is_given_is_what_it_is_sampled_with(name):
    backend, batch = opened(name), batch_of(name)
    assert trained_conditioning(backend, batch)["guidance"].tolist() == sampled_conditioning(backend, batch)["guidance"].tolist()
