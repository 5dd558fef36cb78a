"""Wrong partners and damaged weights are named before a step is made; SDXL learns the true size and crop; quantised layers are trained through."""

from __future__ import annotations

import json

import architectures
import comfy.ops
import pytest
import runs
import torch
from lora_loom.lora_core.borrowing.frozen import can_freeze, frozen
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import fit
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.host.engine.backend import HostBackend
from lora_loom.nodes.host.engine.layers import LAYERS
from stand_ins import NoVae, RandomClip
from test_gradients import make_adapters


class WideClip(RandomClip):
    """Text of a width no tiny model reads."""

    def encode_from_tokens_scheduled(self, text):
        return [[torch.randn(1, 6, 96), {"pooled_output": torch.randn(1, 24)}]]


@pytest.mark.parametrize("name", ["SD15", "SD3", "QwenImage", "Flux"])
def test_a_clip_of_another_model_is_refused_before_the_first_step(name):
    patcher = architectures.build(name)
    with torch.inference_mode(False):
        backend = HostBackend(patcher, WideClip(name), NoVae(patcher))
        layers, adapters = make_adapters(backend)
        with (
            pytest.raises(LoomError, match="wire the CLIP that belongs to this model"),
            backend.training(layers, adapters),
        ):
            pass
    assert all("forward" not in vars(m) for m in patcher.model.modules())


def test_damaged_base_weights_are_named_and_nothing_is_written(toy, tmp_path):
    weight = toy[0].model.diffusion_model.middle_block[1].proj_in.weight
    with torch.inference_mode():
        before = weight[0, 0, 0, 0].clone()
        weight[0, 0, 0, 0] = float("nan")
    try:
        with pytest.raises(
            LoomError, match=r"weight middle_block\.1\.proj_in\.weight is not finite.*Step 1 was not made"
        ):
            runs.run(toy, tmp_path / "run")
    finally:
        with torch.inference_mode():
            weight[0, 0, 0, 0] = before
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_sdxl_is_told_each_pictures_size_and_crop():
    patcher = architectures.build("SDXL")
    with torch.inference_mode(False):
        backend = HostBackend(patcher, RandomClip("SDXL"), NoVae(patcher))
        how = fit(700, 500, 256, 64)
        noise = torch.zeros(1, 4, 8, 8)
        batch = Batch(noise, ["a red cat"], [how], ["1.png"], torch.ones(1))
        [(_, told)] = backend.conditioning.of(batch, noise)
    pooled = backend.texts.text("a red cat")[0][1]["pooled_output"]
    numbers = (
        500,
        700,
        how.crop[1],
        how.crop[0],
        how.bucket[1],
        how.bucket[0],
    )  # height before width, as SDXL was trained
    embedded = torch.cat([patcher.model.embedder(torch.tensor([float(n)])) for n in numbers]).flatten()[None]
    assert how.crop != (0, 0)
    assert torch.equal(told["y"], torch.cat([pooled, embedded], 1))


def test_a_quantised_layer_gives_the_gradient_of_its_dequantised_weight():
    """The host's own fp8 layout, as it loads it from a quantised checkpoint."""
    weight, scale = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), torch.tensor(0.02)
    stored = (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    marker = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    with torch.inference_mode():
        layer = comfy.ops.mixed_precision_ops({}, torch.float32).Linear(
            32, 16, bias=False, device="cpu", dtype=torch.float32
        )
        layer.load_state_dict({"weight": stored, "weight_scale": scale, "comfy_quant": marker}, strict=False)
    assert hasattr(layer.weight, "_qdata")
    with torch.inference_mode(False):
        assert can_freeze(layer, LAYERS)
        x = torch.randn(4, 32, requires_grad=True)
        out = frozen(layer, LAYERS)(x)
        probe = torch.randn(4, 16)
        (grad,) = torch.autograd.grad((out * probe).sum(), x)
    exact = stored.float() * scale
    assert torch.allclose(grad, probe @ exact, atol=1e-5)  # one fp32 matrix product
    with torch.inference_mode():
        assert torch.equal(out, layer(x))  # the forward is the host's own, which quantises the input as well
