"""A VAE of its own in place of the base model's, such as one that stands half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..messages.blame import blamed
from ..messages.errors import LoomError
from .whole import read_whole, require_none

CONFIG = "config.json"
FIELD = "base_vae"
_OF_A_CHECKPOINT = ("first_stage_model.", "vae.")  # where a whole checkpoint keeps its VAE


def other_vae(place: Path, model_vae: Any) -> Any:
    """The VAE at `place` as a module like `own`, fp32: a folder in diffusers layout, one with such a folder `vae`, or a .safetensors file of either naming.

    A file holds no scale of its latents and takes that of `own`. Raises LoomError when it is none that can stand in.
    """
    with blamed("base_vae.unreadable", FIELD, file=place.name, kind=type(model_vae).__name__):
        vae = _of_file(place, model_vae) if place.is_file() else _of_folder(place, model_vae)
    if _shape(vae) != _shape(model_vae):
        (channels, factor), (own_channels, own_factor) = _shape(vae), _shape(model_vae)
        raise LoomError(
            "base_vae.other_shape",
            field=FIELD,
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
        raise LoomError("base_vae.missing", field=FIELD, place=place)
    return read_whole(type(model_vae), folder, torch.float32, FIELD)


def _of_file(place: Path, model_vae: Any) -> Any:
    if place.suffix != ".safetensors":
        raise LoomError("base_vae.missing", field=FIELD, place=place)
    state = load_file(place)
    for prefix in _OF_A_CHECKPOINT:
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if any(key.startswith("encoder.down.") for key in state):
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        state = convert_ldm_vae_checkpoint(state, model_vae.config)
    vae = type(model_vae).from_config(model_vae.config)
    expected = vae.state_dict().keys()
    if len(expected & state.keys()) > len(expected) / 2:
        require_none(expected - state.keys(), place, FIELD)
    vae.load_state_dict({name: state[name].reshape(value.shape) for name, value in vae.state_dict().items()})
    return vae.float()
