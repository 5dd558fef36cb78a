"""A VAE of its own in place of the base model's, such as one that stands half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..messages.errors import LoomError
from .layout import LOCAL, variant_of

CONFIG = "config.json"
_OF_A_CHECKPOINT = ("first_stage_model.", "vae.")  # where a whole checkpoint keeps its VAE


def other_vae(place: Path, model_vae: Any) -> Any:
    """The VAE at `place` as a module like `own`, fp32: a folder in diffusers layout, one with such a folder `vae`, or a .safetensors file of either naming.

    A file holds no scale of its latents and takes that of `own`. Raises LoomError when it is none that can stand in.
    """
    try:
        vae = _of_file(place, model_vae) if place.is_file() else _of_folder(place, model_vae)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:160]
        kind = type(model_vae).__name__
        raise LoomError("base_vae.unreadable", field="base_vae", file=place.name, kind=kind, reason=reason) from error
    if _shape(vae) != _shape(model_vae):
        (channels, factor), (own_channels, own_factor) = _shape(vae), _shape(model_vae)
        raise LoomError(
            "base_vae.other_shape",
            field="base_vae",
            file=place.name,
            channels=channels,
            factor=factor,
            own_channels=own_channels,
            own_factor=own_factor,
        )
    return vae


def _shape(vae: Any) -> tuple[int, int]:
    """(channels of its latents, px of a picture on one side of a latent pixel)."""
    config = vae.config
    channels = config["z_dim"] if "z_dim" in config else config["latent_channels"]
    levels = config["block_out_channels"] if "block_out_channels" in config else config["dim_mult"]
    return int(channels), 2 ** (len(levels) - 1)


def _of_folder(place: Path, model_vae: Any) -> Any:
    folder = place if (place / CONFIG).is_file() else place / "vae"
    if not (folder / CONFIG).is_file():
        raise LoomError("base_vae.missing", field="base_vae", place=place)
    return type(model_vae).from_pretrained(folder, torch_dtype=torch.float32, **variant_of(folder), **LOCAL)


def _of_file(place: Path, model_vae: Any) -> Any:
    if place.suffix != ".safetensors":
        raise LoomError("base_vae.missing", field="base_vae", place=place)
    state = load_file(place)
    for prefix in _OF_A_CHECKPOINT:
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if any(key.startswith("encoder.down.") for key in state):
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        state = convert_ldm_vae_checkpoint(state, model_vae.config)
    vae = type(model_vae).from_config(model_vae.config)
    vae.load_state_dict({name: state[name].reshape(value.shape) for name, value in vae.state_dict().items()})
    return vae.float()
