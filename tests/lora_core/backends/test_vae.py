import shutil

import pytest
import tiny_unet
import torch
from diffusers import AutoencoderKL
from lora_loom.lora_core.backends.opening import open_backend
from lora_loom.lora_core.config import TrainConfig
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.jobs.headless import open_base
from safetensors.torch import save_file
from shapes import BASE, MODEL

PIXELS = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A folder with another VAE of the toy's shape, whose weights and scale are its own."""
    folder = tmp_path_factory.mktemp("vae")
    vae = AutoencoderKL.from_pretrained(MODEL / "vae")
    with torch.no_grad():
        for p in vae.encoder.parameters():
            p.mul_(1.1)
    vae.register_to_config(scaling_factor=0.5)
    vae.save_pretrained(folder)
    return folder


def with_vae(place):
    return open_base(TrainConfig(base=BASE, base_vae=str(place)), "cpu")


def test_pictures_go_through_the_other_vae_with_its_own_scale(other, toy_backend):
    backend, vae = with_vae(other), AutoencoderKL.from_pretrained(other)
    expected = vae.encode(PIXELS.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean * 0.5
    torch.testing.assert_close(backend.encode_picture(PIXELS), expected)
    assert backend.picture_fingerprint() != toy_backend.picture_fingerprint()
    assert backend.fingerprint() == toy_backend.fingerprint()


@pytest.mark.parametrize("naming", ["diffusers", "checkpoint"])
def test_a_single_file_is_read_by_either_naming_and_takes_the_scale_of_the_base(other, toy_backend, tmp_path, naming):
    vae = AutoencoderKL.from_pretrained(other)
    state = vae.state_dict()
    if naming == "checkpoint":
        state = {f"first_stage_model.{k}": v for k, v in tiny_unet.vae_checkpoint(state).items()} | {
            "model.x": torch.zeros(1)
        }
    save_file(state, tmp_path / "vae.safetensors")
    expected = vae.encode(PIXELS.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean * toy_backend.vae.config.scaling_factor
    torch.testing.assert_close(with_vae(tmp_path / "vae.safetensors").encode_picture(PIXELS), expected)


def test_what_cannot_stand_in_is_refused_with_the_reason(tmp_path):
    with pytest.raises(LoomError, match="base_vae: .*nowhere is not a VAE; give a folder in diffusers layout"):
        with_vae(tmp_path / "nowhere")
    save_file({"x": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(LoomError, match="base_vae: lora.safetensors cannot replace the base model's AutoencoderKL"):
        with_vae(tmp_path / "lora.safetensors")
    AutoencoderKL(latent_channels=16, block_out_channels=(8, 8), norm_num_groups=4,
                  down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2).save_pretrained(tmp_path / "wide")  # fmt: skip
    with pytest.raises(LoomError, match="base_vae: wide makes 16 channels"):
        with_vae(tmp_path / "wide")
    own = AutoencoderKL.from_pretrained(MODEL / "vae").config
    levels = len(own.block_out_channels) + 1
    deep = AutoencoderKL(latent_channels=own.latent_channels, block_out_channels=(8,) * levels, norm_num_groups=4,
                         down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels)  # fmt: skip
    deep.save_pretrained(tmp_path / "deep")
    with pytest.raises(
        LoomError, match=f"base_vae: deep makes {own.latent_channels} channels at 1/{2 ** (levels - 1)}"
    ):
        with_vae(tmp_path / "deep")
    (tmp_path / "model").mkdir()
    shutil.copytree(MODEL / "vae", tmp_path / "model" / "vae")
    assert (
        with_vae(tmp_path / "model").vae.config.latent_channels
        == open_backend(BASE, device="cpu").vae.config.latent_channels
    )
