"""What a network keeps from one call to the next is of the weights it was made with: no step, no sample and no picture of the host may find ours."""

import architectures
import comfy.sample
import pytest
import torch
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.config import Recompute, SampleConfig
from test_gradients import loss_and_gradients, make_adapters, make_batch, opened

KEEPING = "HiDream O1"  # the keys and values of the prompt


@pytest.fixture
def lent():
    """A model that keeps something, with adapters on it."""
    with torch.inference_mode(False):
        backend, batch = opened(KEEPING, architectures.build(KEEPING)), make_batch(KEEPING)
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, Recompute.NONE, tuple(batch.latents.shape)):
            yield backend, adapters, batch
        assert backend.model.network._kv_cache_entries == []


def moved(adapters):
    with torch.no_grad():
        for p in adapters.parameters():
            p.mul_(1.5)


def test_a_second_step_is_of_the_weights_as_they_are_then(lent):
    backend, adapters, batch = lent
    before, _ = loss_and_gradients(backend, adapters, batch)
    moved(adapters)
    loss, gradients = loss_and_gradients(backend, adapters, batch)
    other = opened(KEEPING, architectures.build(KEEPING))
    layers, fresh = make_adapters(other)
    moved(fresh)
    with other.training(layers, fresh, Recompute.NONE, tuple(batch.latents.shape)):
        wanted_loss, wanted = loss_and_gradients(other, fresh, batch)
    assert loss == wanted_loss != before
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)


def test_a_sample_is_of_the_weights_as_they_are_then_and_leaves_nothing(lent):
    backend, adapters, batch = lent
    job = SampleJob("a cat", 64, 64, SampleConfig(steps=2, cfg=1.0, sampler="euler", scheduler="simple"))
    latent = torch.zeros(1, *batch.latents.shape[1:])

    def drawn():
        with backend.lending.sampling(), torch.inference_mode():
            return backend.sampled(job, latent, comfy.sample.prepare_noise(latent, 1)).clone()

    first = drawn()
    assert torch.equal(first, drawn())
    moved(adapters)
    second = drawn()
    assert not torch.equal(first, second)
    assert backend.model.network._kv_cache_entries == []
    backend.model.network.clear_kv_cache()
    assert torch.equal(second, drawn())
