import pytest
import torch
from lora_loom.convert.families import guess_base


@pytest.mark.parametrize(("width", "base"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (64, "sd1"), (1234, "unknown")])
@pytest.mark.parametrize("key", ["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", "unet.mid.attn2.to_k.lora_A.weight"])
def test_the_width_of_cross_attention_keys_names_the_base(width, base, key):
    state = {"lora_unet_other.lora_down.weight": torch.zeros(4, 320), key: torch.zeros(4, width)}
    assert guess_base(state) == base


def test_block_names_tell_flux_and_sdxl_without_cross_attention():
    flux = {f"diffusion_model.{kind}_blocks.0.x.lora_A.weight": torch.zeros(4, 8) for kind in ("double", "single")}
    assert guess_base(flux) == "flux1"
    assert guess_base({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.zeros(4, 8)}) == "sdxl"


@pytest.mark.parametrize("key", ["lora_unet_x.lora_down.weight", "diffusion_model.double_blocks.0.x.lora_A.weight"])
def test_anything_else_is_unknown(key):
    assert guess_base({key: torch.zeros(4, 8)}) == "unknown"
    assert guess_base({}) == "unknown"
