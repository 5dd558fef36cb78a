"""What a headless base model reads beside noise and text, by the configs and shapes of its network, never by a file's name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ..matching.scales import SCALE
from ..messages.errors import LoomError
from ..messages.message import Message

_SD_KINDS = {
    9: ("kind_of_model.inpainting_model", "input.mask_and_the_masked_picture"), 8: ("kind_of_model.instruct_pix2pix_model", "input.picture_to_edit"),
    7: ("kind_of_model.upscaler", "input.small_picture"), 5: ("kind_of_model.depth_model", "input.depth_map"),
}  # fmt: skip
_FLUX_KINDS = {
    384: ("kind_of_model.fill_inpainting_model", "input.mask_and_the_masked_picture"),
    128: ("kind_of_model.control_model_such_as_canny_or_depth", "input.control_picture"),
}
_ENDS = (
    ("input_blocks.0.0.weight", "out.2.weight"),
    ("img_in.weight", "final_layer.linear.weight"),
)  # first and last layer of a single file's network
_PREFIXES = ("", "diffusion_model.", "model.diffusion_model.")


def scaled_keys(names: Iterable[str]) -> list[str]:
    """The keys of scales, without which the weights beside them are other numbers."""
    return [name for name in names if SCALE.fullmatch(name)]


def require_unscaled(what: str, names: Iterable[str]) -> None:
    """Refuses weights that are quantised with scales of their own, which diffusers would leave out. Raises LoomError."""
    scales = scaled_keys(names)
    if scales:
        raise LoomError("base.scaled", field="base", file=what, key=scales[0])


def require_plain_network(config: Mapping[str, Any], latent_channels: int) -> None:
    """Refuses a network in diffusers layout that reads more than noise and text. `config`: its config.json. Raises LoomError."""
    channels = int(config.get("in_channels", latent_channels))
    if channels not in (
        latent_channels,
        4 * latent_channels,
    ):  # the latter: patches of 2 x 2, as Flux and Qwen-Image read them
        raise _refused(*_kind(channels))
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise _refused("kind_of_model.class_labels", "input.image_embedding_or_a_noise_level")
    if config.get("encoder_hid_dim_type") or config.get("addition_embed_type") not in (None, "text", "text_time"):
        raise _refused("kind_of_model.reads_image_embedding", "input.image_embedding")


def require_plain_file(names: Collection[str], shape_of: Callable[[str], list[int]]) -> None:
    """The same for a single file, whose network reads more channels than it writes. `shape_of(name)` reads no weights. Raises LoomError."""
    for prefix, (first, last) in itertools.product(_PREFIXES, _ENDS):
        if prefix + first in names and prefix + last in names:
            channels, written = shape_of(prefix + first)[1], shape_of(prefix + last)[0]
            if channels > written:
                raise _refused(*_kind(channels))


def _kind(channels: int) -> tuple[str | Message, str]:
    """(what a model with so many input channels is, what it needs), as codes of messages."""
    known: Mapping[int, tuple[str | Message, str]] = {**_SD_KINDS, **_FLUX_KINDS}
    return known.get(channels, (Message.of("kind_of_model.channels", count=channels), "input.for_channels"))


def _refused(model: str | Message, needs: str) -> LoomError:
    kind = model if isinstance(model, Message) else Message.of(model)
    return LoomError("base.further_input", field="base", model=kind, needs=Message.of(needs))
