"""Tiny video models with VAEs of the host's own classes, small and random, for films that a test writes."""

from __future__ import annotations

from typing import Any

import architectures
import comfy.ldm.cogvideo.vae
import comfy.ldm.lightricks.vae.causal_video_autoencoder
import comfy.ldm.models.autoencoder
import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.sd
import torch
from tiny_families import TextOfNumbers
from torch import nn

WAN_DIM = 8


def seeded(module: nn.Module) -> nn.Module:
    rng = torch.Generator().manual_seed(1)
    for p in module.parameters():
        with torch.no_grad():
            flat = p.numel() == len(p)  # a norm's factors, or biases
            scale = 0.05 if flat else 0.7 / max(1, p.numel() // len(p)) ** 0.5
            p.copy_((1.0 if flat else 0.0) + scale * torch.randn(p.shape, generator=rng))
    return module


def wan_vae() -> Any:
    """The host's VAE on weights of its own Wan 2.1 class with 8 channels instead of 96, found out by the host from their names and sizes."""
    with torch.inference_mode():
        network = comfy.ldm.wan.vae.WanVAE(
            dim=WAN_DIM, z_dim=16, temperal_downsample=[False, True, True], image_channels=3, conv_out_channels=3
        )
        return comfy.sd.VAE(sd=seeded(network).state_dict(), device=torch.device("cpu"), dtype=torch.float32)


def _with(network: nn.Module, channels: int, time: int, space: int) -> Any:
    """The host's VAE around another network of its own; how it counts is what its loader sets for that class."""
    vae = wan_vae()
    vae.first_stage_model = seeded(network).eval()
    vae.latent_channels = channels
    vae.upscale_ratio = (lambda a: max(0, a * time - (time - 1)), space, space)
    vae.downscale_ratio = (lambda a: max(0, (a + time - 1) // time), space, space)
    vae.upscale_index_formula = vae.downscale_index_formula = (time, space, space)
    vae.patcher = type(vae.patcher)(
        vae.first_stage_model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )
    return vae


def hunyuan_vae() -> Any:
    """HunyuanVideo's: 3-D convolutions, four frames in one."""
    with torch.inference_mode():
        config = {
            "double_z": True, "z_channels": 16, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1,
            "attn_resolutions": [], "dropout": 0.0, "conv3d": True, "time_compress": 4,
        }  # fmt: skip
        network = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=config, embed_dim=16)
        return _with(network, 16, 4, 8)


def hunyuan15_vae() -> Any:
    """HunyuanVideo 1.5's counting: four frames in one, 16 px."""
    with torch.inference_mode():
        config = {
            "double_z": True, "z_channels": 32, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1,
            "attn_resolutions": [], "dropout": 0.0, "conv3d": True, "time_compress": 4,
        }  # fmt: skip
        network = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=config, embed_dim=32)
        return _with(network, 32, 4, 16)


def wan22_vae() -> Any:
    """Of Wan 2.2 5B, narrow."""
    with torch.inference_mode():
        network = comfy.ldm.wan.vae2_2.WanVAE(
            dim=WAN_DIM, dec_dim=WAN_DIM, z_dim=48, temperal_downsample=[False, True, True]
        )
        return _with(network, 48, 4, 16)


def ltx_vae() -> Any:
    """LTX-Video's, of its coarsest blocks alone: eight frames in one, 32 px."""
    with torch.inference_mode():
        coarser = [["compress_all", 1]] * 3
        config = {
            "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128, "blocks": coarser, "norm_layer": "pixel_norm", "patch_size": 4,
            "latent_log_var": "uniform", "encoder_base_channels": 16, "decoder_base_channels": 16, "causal_decoder": False,
        }  # fmt: skip
        network = comfy.ldm.lightricks.vae.causal_video_autoencoder.VideoVAE(config=config)
        statistics = network.per_channel_statistics
        statistics.get_buffer("mean-of-means").zero_()
        statistics.get_buffer("std-of-means").fill_(1.0)
        return _with(network, 128, 8, 32)


VAES = {"Wan": wan_vae, "HunyuanVideo": hunyuan_vae, "Kandinsky 5": hunyuan_vae}


def loaded(name: str) -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE) of a family, as the host's loaders give them."""
    return architectures.build(name), TextOfNumbers(name), VAES[name]()
