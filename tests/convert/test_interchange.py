"""A file written by a run, read by diffusers with its own loader."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lora_loom.lora_core.adapters import attach
from lora_loom.lora_core.training.build import make_adapters
from safetensors import safe_open
from safetensors.torch import load_file


@pytest.mark.parametrize("targets", ["attention", "conv"])
def test_diffusers_loads_the_kohya_file_and_predicts_what_the_trained_model_predicts(
    targets, toy_config, run_toy, toy_backend, tmp_path
):
    config = toy_config(steps=6, adapter={"alpha": 2.0, "targets": targets}, optimizer={"lr": 1e-2})
    result = run_toy(config, tmp_path)
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 8, 8, 8, generator=rng), torch.tensor([10, 700]), torch.randn(2, 77, 64, generator=rng)

    unet = copy.deepcopy(toy_backend.unet)
    state, alphas = StableDiffusionPipeline.lora_state_dict(load_file(result.file))
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    layers, adapters = make_adapters(config, toy_backend)
    adapters.load_state_dict(
        {k.removesuffix(".weight"): v for k, v in result.tensors.items() if not k.endswith(".alpha")}
    )
    with torch.no_grad():
        plain = toy_backend.unet(*inputs).sample
        with attach(layers, adapters):
            ours = toy_backend.unet(*inputs).sample
        theirs = unet(*inputs).sample
    # The scale is multiplied in at another place: float32 rounding through some fifty layers, on outputs of order 1.
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert (ours - plain).abs().max() > 0.05  # far more than the tolerance: the file does something


def test_the_header_of_the_file_is_what_the_run_returned(toy_config, run_toy, tmp_path):
    result = run_toy(toy_config(), tmp_path)
    with safe_open(result.file, "pt") as file:
        assert file.metadata() == result.metadata
        assert set(file.keys()) == set(result.tensors)
    assert result.metadata["ss_base_model_version"] == "sd_v1"
    assert result.metadata["ss_steps"] == "4"
