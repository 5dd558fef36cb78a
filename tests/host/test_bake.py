"""A LoRA baked into a full-size single-file checkpoint, against the weights the host has after its own LoRA loader."""

from __future__ import annotations

import comfy.lora
import comfy.sd
import comfy.utils
import pytest
import torch
from lora_loom.convert import read, write
from lora_loom.convert.files.checkpoints import bake, checkpoint, family_of, layers_of
from lora_loom.convert.lora import Lora, Module
from test_sd15 import write_checkpoint

pytestmark = pytest.mark.slow
STRENGTH = 0.8


def lora_over(path) -> Lora:
    """Rank 2 over a part of the layers of a checkpoint, text encoder included."""
    rng, modules = torch.Generator().manual_seed(3), {}
    with checkpoint(path) as (layout, _, _):
        for n, (key, layer) in enumerate(sorted(layers_of(layout, family_of(layout)).items())):
            shape = layout[key][1]
            if n % 5 or len(shape) < 2:
                continue
            down, up = (
                torch.randn(2, *shape[1:], generator=rng) * 0.1,
                torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=rng) * 0.1,
            )
            modules[layer.names()[0]] = Module("lora", {"down": down, "up": up}, 1.0)
    return Lora("sd1", modules)


def patched(path, state: dict) -> dict[str, torch.Tensor]:
    """The weights of MODEL and CLIP as the host loads them, with its own patches for `state` applied in float32."""
    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False)
    if state:
        model, clip = comfy.sd.load_lora_for_models(model, clip, state, STRENGTH, STRENGTH)
    out = {}
    for patcher, prefix in ((model, ""), (clip.patcher, "clip:")):
        for key, value in comfy.utils.state_dict_prefix_replace(patcher.model.state_dict(), {}).items():
            patches = patcher.patches.get(key)
            out[prefix + key] = (
                comfy.lora.calculate_weight(patches, value.float(), key).to(value.dtype) if patches else value
            )
    return out


def test_the_host_loads_the_baked_checkpoint_with_the_weights_its_lora_loader_gives(tmp_path):
    source, target = tmp_path / "base.safetensors", tmp_path / "baked.safetensors"
    with torch.inference_mode(False):
        write_checkpoint(source)
        lora = lora_over(source)
        counts = bake(source, target, [(lora, STRENGTH)])
    assert counts.changed == len(lora.modules) > 60
    with torch.inference_mode():
        baked, wanted, plain = patched(target, {}), patched(source, write(lora)), patched(source, {})
    assert baked.keys() == wanted.keys()
    changed = 0
    for key, value in wanted.items():
        if "text_projection" in key or "logit_scale" in key:
            continue  # not in an SD1 checkpoint: the host leaves there whatever was in memory
        # Both add in float32. The baked file is rounded to fp16 once (half a unit is 2^-11 of the value), the host's weights may be too; subnormals: 2^-25.
        torch.testing.assert_close(baked[key].float(), value.float(), rtol=2**-10, atol=2**-24)
        changed += not torch.equal(plain[key], value)
    assert changed == len(lora.modules)


def test_what_was_baked_is_read_back_as_the_same_family(tmp_path):
    source = tmp_path / "base.safetensors"
    with torch.inference_mode(False):
        write_checkpoint(source)
        with checkpoint(source) as (layout, _, _):
            assert family_of(layout).name == "sd1"
            assert len(layers_of(layout, family_of(layout))) >= 282 + 72
        assert read(write(lora_over(source))).family == "sd1"
