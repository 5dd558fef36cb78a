"""What the host's models take beside noise and text, by their class, and how their conditioning and text encoders are given it.

One table: where the host's own nodes (ReferenceLatent, InstructPixToPixConditioning, TextEncodeQwenImageEdit and its Plus, those of Boogu, Mage-Flow and
JoyImage) put the pictures that a model is shown. What is not in it takes no control pictures.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.utils
import torch

from ....lora_core.data.shown import Showing, Shown
from .base_model import appended_channels
from .first_frame import Behind, Vision, first_given

MANY = 16  # control pictures where the host sets no limit
_NUMBERED = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"
_INSTRUCTION = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, background), then explain how the user's text "
    "instruction should alter or modify the image. Generate a new image that meets the user's requirements while maintaining consistency with the original "
    "input where appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)  # what TextEncodeQwenImageEditPlus writes around a prompt: the model was trained with these very words


@dataclasses.dataclass(frozen=True)
class Sight:
    """How a text encoder sees control pictures.

    `side_px`: of a square as large as each; 0 for as it is. `longest`: its longer side has at most so many instead. `scaling`: by which filter of the host.
    `numbered`: each is announced in front of the caption, between the words of TextEncodeQwenImageEditPlus. `name` stands for all of it in what is kept.
    `limit`: how many it sees. `negative`: whether it sees them with the negative prompt of a sample too.
    """

    name: str
    side_px: int = 0
    longest: bool = False
    scaling: str = "area"
    numbered: bool = False
    limit: int = MANY
    negative: bool = True

    def scale(self, width: int, height: int) -> float:
        """Of a picture of that size in px."""
        if self.longest:
            return min(1.0, self.side_px / max(width, height))
        return math.sqrt(self.side_px**2 / (width * height)) if self.side_px else 1.0


EDIT, PLUS = Sight("edit", 1024, limit=1), Sight("plus", 384, numbered=True)  # the two ways of Qwen-Image-Edit
_BOOGU, _MAGE = Sight("boogu", 384, negative=False), Sight("mage", 384, longest=True, scaling="bicubic")
_AS_CUT = Sight("as cut")


@dataclasses.dataclass(frozen=True)
class Use:
    """`entry` of a conditioning that holds the latents: a list of them, or one that is joined to the noise's channels (`joined`).

    `method`: how the network places them, where it has to be told. `text`: how the text encoder sees the pictures too, where it does. `as_target`: they are
    of the target's size. `filled`: an inpainting model, whose one picture is the target without what a mask fills; the mask has an entry of its own.
    `usual`: whether its file says that it was made to be shown something. `behind`: what is behind the first frame of a clip, of a model that is shown it;
    `last`: whether it can be shown the last frame too; `vision`: what sees the frames for it, where it reads that.
    """

    entry: str
    limit: int = MANY
    joined: bool = False
    method: str = ""
    text: Sight | None = None
    as_target: bool = False
    filled: bool = False
    behind: Behind | None = None
    usual: bool = False
    last: bool = False
    vision: Vision | None = None

    def showing(self, needed: bool) -> Showing:
        if self.behind is not None:
            unseen = self.vision is not None and not self.vision.wired
            return Showing(0, needed, of_film=True, usual=self.usual, last=self.last, unseen=unseen)
        limit, as_target = (1, True) if self.joined else (self.limit, self.as_target)
        return Showing(limit, needed, as_target, self.text is not None, self.filled, usual=self.usual)

    @property
    def every_entry(self) -> set[str]:
        """The names of what a conditioning gets, that of the pictures' method apart."""
        return {self.entry, _MASK} if self.filled or self.behind is not None else {self.entry}

    def example(self, x_t: torch.Tensor) -> Shown:
        """Something to be shown beside latents (1, ...)."""
        if self.behind is not None:
            seen = () if self.vision is None or not self.vision.wired else (self.vision.example(x_t),)
            first = x_t * 0.5 if self.behind in (Behind.GREY, Behind.ZEROS) else x_t[:, :, :1] * 0.5
            clean = x_t[:, :, :1] if self.behind.in_place else None
            return Shown((first, first_given(x_t.shape[2], x_t[:, :1]), *seen), identity="self-test", clean=clean)
        mask = torch.ones(1, 1, 8 * x_t.shape[-2], 8 * x_t.shape[-1]) if self.filled else None
        return Shown((x_t * 0.5,), identity="self-test", mask=mask)

    def entries(self, shown: Shown, noise: torch.Tensor | None = None) -> dict[str, Any]:
        """What the conditioning of a sample gets beside its text. `noise`: latents (1, ...) that are trained; None for the host's sampler."""
        if not shown.latents:
            return {}
        if self.filled:
            return {self.entry: shown.latents[0], _MASK: shown.mask}
        if self.behind is not None:
            return self._of_frames(shown, noise)
        if self.joined:
            return {self.entry: shown.latents[0]}
        return {self.entry: list(shown.latents), **({"reference_latents_method": self.method} if self.method else {})}

    def _of_frames(self, shown: Shown, noise: torch.Tensor | None) -> dict[str, Any]:
        latents, mask, *seen = shown.latents
        vision = self.vision.entries(seen[0]) if self.vision is not None and seen else {}
        if self.behind is Behind.GUIDING:
            return {self.entry: 0}
        if self.behind is Behind.CLEAN:  # the sampler gives the mask itself
            return {**vision, **({} if noise is None else {self.entry: mask.to(noise).expand_as(noise)})}
        return {self.entry: latents.clone(), _MASK: mask, **vision}  # the host scales its latents in place


_MASK = "concat_mask"
_REFERENCE = Use("reference_latents")
_JOINED = Use("concat_latent_image", joined=True)
_FILLED = Use("concat_latent_image", joined=True, filled=True)
_BY_CLASS: Mapping[str, Use] = {  # of comfy.model_base, by its very class: what is derived from one may read less
    "Flux": _REFERENCE,
    "Flux2": _REFERENCE,
    "Omnigen2": _REFERENCE,
    "QwenImage": dataclasses.replace(_REFERENCE, limit=3, text=PLUS),
    "Krea2": dataclasses.replace(_REFERENCE, limit=3, method="index_timestep_zero", text=PLUS),
    "Boogu": dataclasses.replace(_REFERENCE, text=_BOOGU),
    "JoyImage": dataclasses.replace(_REFERENCE, limit=6, text=_AS_CUT),
    "LongCatImage": dataclasses.replace(_REFERENCE, limit=1, method="index", text=EDIT),
    "MageFlow": dataclasses.replace(_REFERENCE, text=_MAGE, as_target=True),
    "HiDream": _JOINED,
    "SD15_instructpix2pix": _JOINED,
    "SDXL_instructpix2pix": _JOINED,
}


def use_of(model: Any, file: Callable[[], str], vision_model: Any = None) -> Use | None:
    """How a model of the host (a BaseModel) is shown control pictures, or the first frames of clips; None for one that takes none.

    `file` gives the name of its file, the one thing that tells the first Qwen-Image-Edit, and whether a model that films from text and from pictures was
    made for the latter. `vision_model`: a CLIP VISION of the host, where one is wired.
    """
    name = type(model).__name__
    if (behind := behind_first_frame(model, file)) is not None:
        usual, entry = named_for_pictures(file), _ENTRIES.get(behind, "concat_latent_image")
        vision = Vision.read_by(model.diffusion_model, vision_model)
        joined, last = not behind.in_place, behind is Behind.GREY
        return Use(entry, joined=joined, behind=behind, usual=usual, last=last, vision=vision)
    use = _BY_CLASS.get(name)
    if use is not None and _OF_EDITS.search(file().lower()):
        use = dataclasses.replace(use, usual=True)
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
        return dataclasses.replace(_REFERENCE, limit=1, text=EDIT, usual=True)
    return use


# Whose text encoder usually sees the first frame too (TextEncodeHunyuanVideo_ImageToVideo).
TEXT_SEES_FRAMES = ("HunyuanVideo", "HunyuanVideoI2V")
_FROM_PICTURES = re.compile(r"(?<![a-z])i2v")  # in the name of a file; ti2v films from both
_OF_EDITS = re.compile(r"(?<![a-z])(edit|kontext|hidream_e1)")  # in the name of a file
_ENTRIES = {
    Behind.REPLACED: "time_dim_replace",
    Behind.CLEAN: "denoise_mask",
    Behind.GUIDING: "guiding_frame_index",
}  # of a conditioning
_BEHIND = {  # by the very class of comfy.model_base
    "HunyuanVideoI2V": Behind.NOTHING,
    "HunyuanVideo15": Behind.ZEROS,
    "Kandinsky5": Behind.REPLACED,
    "LTXV": Behind.CLEAN,
    "LTXAV": Behind.CLEAN,
    "WAN22": Behind.CLEAN,
}


def named_for_pictures(file: Callable[[], str]) -> bool:
    """Whether the name of a model's file says that it films from pictures."""
    return bool(_FROM_PICTURES.search(file().lower()))


def behind_first_frame(model: Any, file: Callable[[], str]) -> Behind | None:
    """Of a model that films from a first frame, alone or as well as from text; None for every other one."""
    name, channels = type(model).__name__, model.latent_format.latent_channels
    if name == "WAN21":
        return Behind.GREY if appended_channels(model) == channels + 4 else None
    if name == "WAN22" and appended_channels(model):
        return None
    if name == "HunyuanVideo15" and not appended_channels(model):
        return None
    if name == "HunyuanVideo":  # of the same shapes, whichever it films from
        return Behind.GUIDING if named_for_pictures(file) else None
    return _BEHIND.get(name)


def seen(pixels: Sequence[torch.Tensor], sight: Sight) -> list[torch.Tensor]:
    """Pictures (1, H, W, 3) uint8 as the text encoder sees them: float32 in [0, 1], each of the size that it is made for."""
    out = []
    for picture in pixels[: sight.limit]:
        channels_first = picture.float().movedim(-1, 1) / 255.0
        height, width = channels_first.shape[-2:]
        scale = sight.scale(width, height)
        sides = max(1, round(width * scale)), max(1, round(height * scale))
        as_is = scale == 1.0 and (sight.longest or not sight.side_px)
        scaled = (
            channels_first if as_is else comfy.utils.common_upscale(channels_first, *sides, sight.scaling, "disabled")
        )
        out.append(scaled.movedim(1, -1))
    return out


def tokenized(clip: Any, caption: str, pixels: Sequence[torch.Tensor], sight: Sight) -> Any:
    """A caption with the pictures it is about, as the host's node of that sight gives them to its tokenizer."""
    pictures = seen(pixels, sight)
    if not sight.numbered:
        return clip.tokenize(caption, images=pictures)
    numbers = "".join(_NUMBERED.format(n) for n in range(1, len(pictures) + 1))
    return clip.tokenize(numbers + caption, images=pictures, llama_template=_INSTRUCTION)
