"""What a headless base model reads beside noise and text, by the configs and shapes of its network, never by a file's name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..errors import LoomError

_SD_KINDS = {
    9: ("an inpainting model", "a mask and the masked picture"), 8: ("an instruct-pix2pix model", "the picture to edit"),
    7: ("an upscaler", "the small picture"), 5: ("a depth model", "a depth map"),
}  # fmt: skip
_FLUX_KINDS = {384: ("a fill (inpainting) model", "a mask and the masked picture"), 128: ("a control model (such as Canny or Depth)", "a control picture")}
_ENDS = (("input_blocks.0.0.weight", "out.2.weight"), ("img_in.weight", "final_layer.linear.weight"))  # first and last layer of a single file's network
_PREFIXES = ("", "diffusion_model.", "model.diffusion_model.")


def require_plain_network(config: Mapping[str, Any], latent_channels: int) -> None:
    """Refuses a network in diffusers layout that reads more than noise and text. `config`: its config.json. Raises LoomError."""
    channels = int(config.get("in_channels", latent_channels))
    if channels not in (latent_channels, 4 * latent_channels):  # the latter: patches of 2 x 2, as Flux and Qwen-Image read them
        raise _refused(*_kind(channels))
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise _refused("a model with class labels (such as unCLIP)", "an image embedding or a noise level")
    if config.get("encoder_hid_dim_type") or config.get("addition_embed_type") not in (None, "text", "text_time"):
        raise _refused("a model that reads an image embedding", "one")


def require_plain_file(names: Collection[str], shape_of: Callable[[str], list[int]]) -> None:
    """The same for a single file, whose network reads more channels than it writes. `shape_of(name)` reads no weights. Raises LoomError."""
    for prefix, (first, last) in itertools.product(_PREFIXES, _ENDS):
        if prefix + first in names and prefix + last in names:
            channels, written = shape_of(prefix + first)[1], shape_of(prefix + last)[0]
            if channels > written:
                raise _refused(*_kind(channels))



def _kind(channels: int) -> tuple[str, str]:
    """(what a model with so many input channels is, what it needs)."""
    return (_SD_KINDS | _FLUX_KINDS).get(channels, (f"a model with {channels} input channels", "what belongs into them"))


def _refused(model: str, needs: str) -> LoomError:
    return LoomError(f"base: this is {model} and needs {needs}, which a dataset cannot give it yet; give the text-to-image model it was made from.")
