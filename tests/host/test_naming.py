"""What layers of the SD family are called in files: as Kohya's programs have them, for every model of that family, and as the host reads them back."""

from __future__ import annotations

import architectures
import comfy.lora
import pytest
import torch
from lora_loom.convert.families import FAMILIES
from lora_loom.nodes.host.engine.naming import base_family, file_names, text_file_names


@pytest.mark.parametrize(
    ("name", "family", "first"),
    [
        ("SD15", "sd1", "lora_unet_down_blocks_0_"),
        ("SD15 ip2p", "sd1", "lora_unet_down_blocks_0_"),
        ("SDXL", "sdxl", "lora_unet_input_blocks_1_"),
        ("SDXL ip2p", "sdxl", "lora_unet_input_blocks_1_"),
        ("SDXL refiner", "sdxl-refiner", "lora_unet_input_blocks_1_"),
    ],
)
def test_layers_of_a_unet_have_kohyas_names_which_the_host_reads(name, family, first):
    model = architectures.build(name).model
    names = file_names(model)
    assert base_family(model) == family
    assert family in FAMILIES
    assert all(name.startswith("lora_unet_") for name in names.values())
    assert any(name.startswith(first) for name in names.values())
    keys = comfy.lora.model_lora_keys_unet(model, {})
    assert all(keys[name] == f"diffusion_model.{path}.weight" for path, name in names.items())


def test_the_refiners_text_encoder_has_kohyas_names_which_the_host_reads():
    class Clip:
        class cond_stage_model(torch.nn.Module):
            def state_dict(self):
                at = "clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
                return {at: torch.zeros(1)}

    clip = Clip()
    clip.cond_stage_model = Clip.cond_stage_model()
    assert text_file_names(clip, "sdxl-refiner") == {
        "clip_g.transformer.text_model.encoder.layers.0.mlp.fc1": "lora_te_text_model_encoder_layers_0_mlp_fc1"
    }
