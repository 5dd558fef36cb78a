"""What a base model of the host is, asked of the model itself, never of a file's name: whether it embeds guidance, and what it reads beside noise and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import comfy.model_base
import torch
from torch import nn

from ....lora_core.backends.base import TRAINING_GUIDANCE
from ....lora_core.messages.errors import LoomError


@dataclasses.dataclass(frozen=True)
class FurtherInput:
    """An input beside noise and text without which a model is asked something it was not made for.

    `entries`: those of the host's conditioning that give it. `plain`: what to train instead.
    """

    model: str
    needs: str
    entries: tuple[str, ...]
    plain: str = "the text-to-image model it was made from"

    def given_in(self, conditioning: Mapping[str, Any]) -> bool:
        return all(conditioning.get(entry) is not None for entry in self.entries)

    def error(self) -> LoomError:
        return LoomError(f"model: this is {self.model} and needs {self.needs}, which a dataset cannot give it yet; train {self.plain}.")


_VIDEO = "a text-to-video model of the same family"
_SHOWN, _MASKED = ("concat_latent_image",), ("concat_latent_image", "concat_mask")
_INPAINTING = ("a mask and the masked picture", _MASKED)

_BY_CLASS = {  # of comfy.model_base; older hosts lack some
    "IP2P": FurtherInput("an instruct-pix2pix model", "the picture to edit", _SHOWN),
    "HunyuanVideoI2V": FurtherInput("an image-to-video model", "a first frame", _MASKED, _VIDEO),
    "HunyuanVideoSkyreelsI2V": FurtherInput("an image-to-video model", "a first frame", _SHOWN, _VIDEO),
    "HunyuanVideo15_SR_Distilled": FurtherInput("an upscaler", "the small video", _SHOWN, _VIDEO),
    "HunyuanImage21Refiner": FurtherInput("a refiner", "the picture to refine", _SHOWN),
    "WAN21_Vace": FurtherInput("a VACE model", "control frames and a mask", ("vace_frames", "vace_mask"), _VIDEO),
    "WAN21_Camera": FurtherInput("a camera-control model", "a camera path", ("camera_conditions",), _VIDEO),
    "WAN21_HuMo": FurtherInput("a HuMo model", "sound and a reference picture", ("audio_embed", "reference_latents"), _VIDEO),
    "WAN22_S2V": FurtherInput("a speech-to-video model", "sound and a reference picture", ("audio_embed", "reference_latents"), _VIDEO),
    "WAN22_Animate": FurtherInput("an Animate model", "a pose video and a face video", ("pose_video_latent", "face_video_pixels"), _VIDEO),
    "WAN_Animate2": FurtherInput("an Animate model", "a pose video", ("pose_video_latent",), _VIDEO),
    "WAN21_SCAIL": FurtherInput("a SCAIL model", "a pose video and a reference picture", ("pose_video_latent", "reference_latents"), _VIDEO),
    "WAN22_WanDancer": FurtherInput("a dance model", "music", ("audio_embed",), _VIDEO),
    "SVD_img2vid": FurtherInput("an image-to-video model", "a first frame", _SHOWN, _VIDEO),
    "Stable_Zero123": FurtherInput("a novel-view model", "a picture of the object", _SHOWN),
    "SD_X4Upscaler": FurtherInput("an upscaler", "the small picture", ("concat_image",)),
    "SD21UNCLIP": FurtherInput("an unCLIP model", "a CLIP Vision output", ("unclip_conditioning",)),
    "StableCascade_B": FurtherInput("Stable Cascade's stage B", "the latent of stage C", ("stable_cascade_prior",), "stage C"),
    "SeedVR2": FurtherInput("an upscaler", "the small video", ("condition",), _VIDEO),
    "PiD": FurtherInput("a decoder of latents", "the latent to decode", ("lq_latent",)),
}

# What these concatenate is blank for text alone as well, so their plain form and the one for pictures are told apart by nothing.
_BLANK_FOR_TEXT = ("HunyuanVideo15", "Kandinsky5", "StableAudio3")


def further_input(model: Any) -> FurtherInput | None:
    """What a model of the host (a BaseModel) needs beside noise and text; None for one that text alone suffices.

    Kontext, Qwen-Image-Edit before 2511, HiDream-E1 and other edit models that read their picture as further tokens have the weights of their
    plain kin in every shape: nothing tells them apart, and they are trained as such.
    """
    for name, needed in _BY_CLASS.items():
        if _is(model, name):
            return needed
    unet_config = model.model_config.unet_config
    if unet_config.get("use_additional_t_cond"):
        return FurtherInput("Qwen-Image-Layered", "the picture to take apart", ("reference_latents",))
    if unet_config.get("image_model") == "qwen_image" and unet_config.get("default_ref_method") == "index_timestep_zero":
        return FurtherInput("Qwen-Image-Edit", "the picture to edit", ("reference_latents",))
    return None if any(_is(model, name) for name in _BLANK_FOR_TEXT) else _concatenated(model)


def _is(model: Any, name: str) -> bool:
    cls = getattr(comfy.model_base, name, None)
    return cls is not None and isinstance(model, cls)


def _concatenated(model: Any) -> FurtherInput | None:
    """By the channels the host appends to the noise where nothing but text is given."""
    channels = model.latent_format.latent_channels
    appended = _appended_channels(model)
    if not appended:
        return None
    if "mask" in model.concat_keys:
        return FurtherInput("an inpainting model", *_INPAINTING)
    if _is(model, "Flux"):
        if appended > channels:
            return FurtherInput("a fill (inpainting) model", *_INPAINTING)
        return FurtherInput("a control model (such as Canny or Depth)", "a control picture", _SHOWN)
    if "mask_inverted" in model.concat_keys:  # Cosmos: a mask of the frames that are given
        return FurtherInput("an image-to-video model", "first frames", ("concat_mask",), _VIDEO)
    if _is(model, "WAN21"):
        if appended % channels == 4:  # a mask for each of the four frames in a latent one
            return FurtherInput("an image-to-video model", "a first frame", _MASKED, _VIDEO)
        return FurtherInput("a control model", "a control video", _SHOWN, _VIDEO)
    return FurtherInput(f"a model with {appended} channels beside the noise", "what belongs into them", _SHOWN)


def _appended_channels(model: Any) -> int:
    form, network = model.latent_format, model.diffusion_model
    if type(network).__name__ == "UNetModel" and not model.concat_keys:
        return model.model_config.unet_config["in_channels"] - form.latent_channels
    noise = torch.zeros(1, form.latent_channels, *[1] * (form.latent_dimensions - 2), *[8] * min(2, form.latent_dimensions))
    with torch.inference_mode():
        blank = model.concat_cond(noise=noise, latent_image=noise, denoise_mask=None, device=noise.device, seed=0)
    return 0 if blank is None else blank.shape[1]


def training_guidance(model: Any) -> float | None:
    """The guidance a model is trained at; None where it embeds none: it is then trained at the host's default, as it is sampled (Chroma: 0)."""
    layer = getattr(model.diffusion_model, "guidance_in", None)
    embeds = (layer is not None and not isinstance(layer, nn.Identity)) or bool(model.model_config.unet_config.get("guidance_embed"))
    return TRAINING_GUIDANCE if embeds else None
