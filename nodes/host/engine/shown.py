"""What the host's models take beside noise and text, by their class, and how their conditioning and text encoders are given it.

One table: where the host's own nodes (ReferenceLatent, TextEncodeQwenImageEdit and its Plus, InstructPixToPixConditioning) put the pictures that a model is
shown. What is not in it takes no control pictures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.utils
import torch

from ....lora_core.data.shown import Showing, Shown
from .base_model import appended_channels
from .first_frame import Behind, first_given

MANY = 16  # control pictures where the host sets no limit
EDIT, PLUS = "edit", "plus"  # the two ways in which the text encoder of Qwen-Image-Edit sees pictures
SIDES_PX = {EDIT: 1024, PLUS: 384}  # of a square as large as what it sees
_NUMBERED = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"
_INSTRUCTION = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, background), then explain how the user's text "
    "instruction should alter or modify the image. Generate a new image that meets the user's requirements while maintaining consistency with the original "
    "input where appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)  # what TextEncodeQwenImageEditPlus writes around a prompt: the model was trained with these very words


@dataclasses.dataclass(frozen=True)
class Use:
    """`entry` of a conditioning that holds the latents: a list of them, or one that is joined to the noise's channels (`joined`).

    `method`: how the network places them, where it has to be told. `text`: EDIT or PLUS where the text encoder sees the pictures too. `filled`: an inpainting
    model, whose one picture is the target without what a mask fills; the mask has an entry of its own.
    `behind`: what is behind the first frame of a clip, of a model that is shown it.
    """

    entry: str
    limit: int = MANY
    joined: bool = False
    method: str = ""
    text: str = ""
    filled: bool = False
    behind: Behind | None = None

    def showing(self, needed: bool) -> Showing:
        if self.behind is not None:
            return Showing(0, needed, of_film=True)
        return Showing(1 if self.joined else self.limit, needed, self.joined, bool(self.text), self.filled)

    @property
    def every_entry(self) -> set[str]:
        """The names of what a conditioning gets, that of the pictures' method apart."""
        return {self.entry, _MASK} if self.filled or self.behind is not None else {self.entry}

    def example(self, x_t: torch.Tensor) -> Shown:
        """Something to be shown beside latents (1, ...)."""
        if self.behind is not None:
            return Shown((x_t * 0.5, first_given(x_t.shape[2], x_t[:, :1])), identity="self-test")
        mask = torch.ones(1, 1, 8 * x_t.shape[-2], 8 * x_t.shape[-1]) if self.filled else None
        return Shown((x_t * 0.5,), identity="self-test", mask=mask)

    def entries(self, shown: Shown) -> dict[str, Any]:
        """What the conditioning of a sample gets beside its text."""
        if not shown.latents:
            return {}
        if self.filled:
            return {self.entry: shown.latents[0], _MASK: shown.mask}
        if self.behind is not None:
            latents, mask = shown.latents
            return {self.entry: latents.clone(), _MASK: mask}  # the host scales its latents in place
        if self.joined:
            return {self.entry: shown.latents[0]}
        return {self.entry: list(shown.latents), **({"reference_latents_method": self.method} if self.method else {})}


_MASK = "concat_mask"
_REFERENCE = Use("reference_latents")
_JOINED = Use("concat_latent_image", joined=True)
_FILLED = Use("concat_latent_image", joined=True, filled=True)
_BY_CLASS: Mapping[str, Use] = {  # of comfy.model_base, by its very class: what is derived from one may read less
    "Flux": _REFERENCE,
    "Flux2": _REFERENCE,
    "Omnigen2": _REFERENCE,
    "QwenImage": dataclasses.replace(_REFERENCE, limit=3, text=PLUS),
    "Krea2": dataclasses.replace(_REFERENCE, method="index_timestep_zero"),
    "HiDream": _JOINED,
    "SD15_instructpix2pix": _JOINED,
    "SDXL_instructpix2pix": _JOINED,
}


def use_of(model: Any, file: Callable[[], str]) -> Use | None:
    """How a model of the host (a BaseModel) is shown control pictures; None for one that takes none.

    `file` gives the name of its file, the one thing that tells the first Qwen-Image-Edit.
    """
    name = type(model).__name__
    if (behind := behind_first_frame(model)) is not None:
        return Use("concat_latent_image", joined=True, behind=behind)
    use = _BY_CLASS.get(name)
    if name == "Flux" and (appended := appended_channels(model)):
        return _JOINED if appended == model.latent_format.latent_channels else _FILLED
    if name in ("BaseModel", "SDXL") and "mask" in model.concat_keys:
        channels = (
            model.latent_format.latent_channels
        )  # the host takes depth models of five channels for inpainting ones
        return _FILLED if model.model_config.unet_config["in_channels"] == 2 * channels + 1 else None
    if name == "QwenImage" and model.model_config.unet_config.get("use_additional_t_cond"):
        return None
    if name == "QwenImage" and "edit" in file().lower() and not any(year in file() for year in ("2509", "2511")):
        return dataclasses.replace(_REFERENCE, limit=1, text=EDIT)
    return use


def behind_first_frame(model: Any) -> Behind | None:
    """Of an image-to-video model that joins the first frame to its noise; None for every other one."""
    name, form = type(model).__name__, model.latent_format
    if name == "HunyuanVideoI2V":
        return Behind.NOTHING
    if name == "WAN21" and appended_channels(model) == form.latent_channels + 4:
        return Behind.GREY
    return None


def seen(pixels: Sequence[torch.Tensor], way: str) -> list[torch.Tensor]:
    """Pictures (1, H, W, 3) uint8 as the text encoder sees them: float32 in [0, 1], of one area each."""
    out = []
    for picture in pixels:
        channels_first = picture.float().movedim(-1, 1) / 255.0
        height, width = channels_first.shape[-2:]
        scale = math.sqrt(SIDES_PX[way] ** 2 / (width * height))
        scaled = comfy.utils.common_upscale(
            channels_first, round(width * scale), round(height * scale), "area", "disabled"
        )
        out.append(scaled.movedim(1, -1))
    return out


def tokenized(clip: Any, caption: str, pixels: Sequence[torch.Tensor], way: str) -> Any:
    """A caption with the pictures it is about, as the host's node of that way gives them to its tokenizer."""
    pictures = seen(pixels, way)
    if way == EDIT:
        return clip.tokenize(caption, images=pictures[:1])
    numbers = "".join(_NUMBERED.format(n) for n in range(1, len(pictures) + 1))
    return clip.tokenize(numbers + caption, images=pictures, llama_template=_INSTRUCTION)
