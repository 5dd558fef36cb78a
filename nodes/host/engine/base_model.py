"""What a base model of the host is: its prediction, its guidance, what it reads beside noise and text, which of its layers training reaches.

All but names and marks of its file is asked of the loaded model itself.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import comfy.model_base
import torch
from torch import nn

from ....lora_core.backends.base import TRAINING_GUIDANCE
from ....lora_core.backends.base_model import EITHER, BaseModel, FurtherInput, Strength, Witness, predicts
from ....lora_core.backends.marks import Marks, marks_of_file
from ....lora_core.config import ObjectiveConfig
from ....lora_core.messages.message import Message
from .naming import base_family
from .objective import has_table, kind_of, sized_levels, time_shift, usual_shift

_VIDEO = "plain_model.text_to_video_model_of_the_same_family"
_SHOWN, _MASKED = ("concat_latent_image",), ("concat_latent_image", "concat_mask")
_INPAINTING = ("input.mask_and_the_masked_picture", _MASKED)

_BY_CLASS = {  # of comfy.model_base; older hosts lack some
    "IP2P": FurtherInput("kind_of_model.instruct_pix2pix_model", "input.picture_to_edit", _SHOWN),
    "HunyuanVideoI2V": FurtherInput("kind_of_model.image_to_video_model", "input.first_frame", _MASKED, _VIDEO),
    "HunyuanVideoSkyreelsI2V": FurtherInput("kind_of_model.image_to_video_model", "input.first_frame", _SHOWN, _VIDEO),
    "HunyuanVideo15_SR_Distilled": FurtherInput("kind_of_model.upscaler", "input.small_video", _SHOWN, _VIDEO),
    "HunyuanImage21Refiner": FurtherInput("kind_of_model.refiner", "input.picture_to_refine", _SHOWN),
    "WAN21_Vace": FurtherInput(
        "kind_of_model.vace_model", "input.control_frames_and_a_mask", ("vace_frames", "vace_mask"), _VIDEO
    ),
    "WAN21_Camera": FurtherInput(
        "kind_of_model.camera_control_model", "input.camera_path", ("camera_conditions",), _VIDEO
    ),
    "WAN21_HuMo": FurtherInput(
        "kind_of_model.humo_model", "input.sound_and_a_reference_picture", ("audio_embed", "reference_latents"), _VIDEO
    ),
    "WAN22_S2V": FurtherInput(
        "kind_of_model.speech_to_video_model",
        "input.sound_and_a_reference_picture",
        ("audio_embed", "reference_latents"),
        _VIDEO,
    ),
    "WAN22_Animate": FurtherInput(
        "kind_of_model.animate_model",
        "input.pose_video_and_a_face_video",
        ("pose_video_latent", "face_video_pixels"),
        _VIDEO,
    ),
    "WAN_Animate2": FurtherInput("kind_of_model.animate_model", "input.pose_video", ("pose_video_latent",), _VIDEO),
    "WAN21_SCAIL": FurtherInput(
        "kind_of_model.scail_model",
        "input.pose_video_and_a_reference_picture",
        ("pose_video_latent", "reference_latents"),
        _VIDEO,
    ),
    "WAN22_WanDancer": FurtherInput("kind_of_model.dance_model", "input.music", ("audio_embed",), _VIDEO),
    "SVD_img2vid": FurtherInput("kind_of_model.image_to_video_model", "input.first_frame", _SHOWN, _VIDEO),
    "Stable_Zero123": FurtherInput("kind_of_model.novel_view_model", "input.picture_of_the_object", _SHOWN),
    "SD_X4Upscaler": FurtherInput("kind_of_model.upscaler", "input.small_picture", ("concat_image",)),
    "SD21UNCLIP": FurtherInput("kind_of_model.unclip_model", "input.clip_vision_output", ("unclip_conditioning",)),
    "StableCascade_B": FurtherInput(
        "kind_of_model.stable_cascade_stage_b",
        "input.latent_of_stage_c",
        ("stable_cascade_prior",),
        "plain_model.stage_c",
    ),
    "SeedVR2": FurtherInput("kind_of_model.upscaler", "input.small_video", ("condition",), _VIDEO),
    "PiD": FurtherInput("kind_of_model.decoder_of_latents", "input.latent_to_decode", ("lq_latent",)),
}

REFINED, TOLERATED = (
    200,
    50,
)  # timesteps of 1000 that SDXL's refiner is sampled at; what may be trained above them unsaid

# What these concatenate is blank for text alone as well, so their plain form and the one for pictures are told apart by
# the name of the file alone.
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
        return FurtherInput("kind_of_model.qwen_image_layered", "input.picture_to_take_apart", ("reference_latents",))
    if (
        unet_config.get("image_model") == "qwen_image"
        and unet_config.get("default_ref_method") == "index_timestep_zero"
    ):
        return FurtherInput("kind_of_model.qwen_image_edit", "input.picture_to_edit", ("reference_latents",))
    return None if any(_is(model, name) for name in _BLANK_FOR_TEXT) else _concatenated(model)


# Their latents have a time axis because their VAE is one of films; they make single pictures.
_STILL = ("QwenImage", "Krea2", "JoyImage", "CosmosPredict2", "Anima", "HunyuanImage21", "HunyuanImage21Refiner")


def films(model: Any) -> bool:
    """Whether a model of the host (a BaseModel) makes clips."""
    if _is(model, "CosmosPredict2") and getattr(model, "image_to_video", False):
        return True
    return model.latent_format.latent_dimensions == 3 and not any(_is(model, name) for name in _STILL)


def reads_frame_rate(model: Any) -> bool:
    """Whether the host's workflows tell a model how many frames a second there are; Cosmos has an entry for it that none of them fills."""
    return any(_is(model, name) for name in ("LTXV", "LTXAV"))


def _is(model: Any, name: str) -> bool:
    cls = getattr(comfy.model_base, name, None)
    return cls is not None and isinstance(model, cls)


def _concatenated(model: Any) -> FurtherInput | None:
    """By the channels the host appends to the noise where nothing but text is given."""
    channels = model.latent_format.latent_channels
    appended = appended_channels(model)
    if not appended:
        return None
    if "mask" in model.concat_keys:
        return FurtherInput("kind_of_model.inpainting_model", *_INPAINTING)
    if _is(model, "Flux"):
        if appended > channels:
            return FurtherInput("kind_of_model.fill_inpainting_model", *_INPAINTING)
        return FurtherInput("kind_of_model.control_model_such_as_canny_or_depth", "input.control_picture", _SHOWN)
    if "mask_inverted" in model.concat_keys:  # Cosmos: a mask of the frames that are given
        return FurtherInput("kind_of_model.image_to_video_model", "input.first_frames", ("concat_mask",), _VIDEO)
    if _is(model, "WAN21"):
        if appended % channels == 4:  # a mask for each of the four frames in a latent one
            return FurtherInput("kind_of_model.image_to_video_model", "input.first_frame", _MASKED, _VIDEO)
        return FurtherInput("kind_of_model.control_model", "input.control_video", _SHOWN, _VIDEO)
    return FurtherInput("kind_of_model.channels_beside", "input.for_channels", _SHOWN, count=appended)


def appended_channels(model: Any) -> int:
    """How many channels the network reads behind those of the noise."""
    form, network = model.latent_format, model.diffusion_model
    if type(network).__name__ == "UNetModel" and not model.concat_keys:
        return model.model_config.unet_config["in_channels"] - form.latent_channels
    noise = torch.zeros(
        1, form.latent_channels, *[1] * (form.latent_dimensions - 2), *[8] * min(2, form.latent_dimensions)
    )
    with torch.inference_mode():
        blank = model.concat_cond(noise=noise, latent_image=noise, denoise_mask=None, device=noise.device, seed=0)
    return 0 if blank is None else blank.shape[1]


def training_guidance(model: Any) -> float | None:
    """The guidance a model is trained at; None where it embeds none: it is then trained at the host's default, as it is sampled (Chroma: 0)."""
    layer = getattr(model.diffusion_model, "guidance_in", None)
    embeds = (layer is not None and not isinstance(layer, nn.Identity)) or bool(
        model.model_config.unet_config.get("guidance_embed")
    )
    return TRAINING_GUIDANCE if embeds else None


# Of a diffusion model: what the host runs before it, when it encodes a text, or only where it is shown a picture that we do not show it.
_RUN_WITH_THE_TEXT = {
    "Anima": ("llm_adapter",),
    "HiDreamO1": ("visual",),
    "LTXAV": ("video_embeddings_connector", "audio_embeddings_connector"),
    "MiniMaxH3": ("condition_proj", "token_refiner"),
}


def reached(model: Any, path: str) -> bool:
    """Whether a training step runs through the layer at `path` of the diffusion model."""
    outside = [part for name, parts in _RUN_WITH_THE_TEXT.items() if _is(model, name) for part in parts]
    return path.split(".", 1)[0] not in outside


def _stored(network: nn.Module) -> str:
    """In a word, how most of its weights are kept: a type of numbers, or the layout of quantised ones."""
    sizes: Counter[str] = Counter()
    for p in network.parameters():
        layout = getattr(p, "_layout_cls", None) or getattr(p, "tensor_type", None)
        word = str(p.dtype).removeprefix("torch.") if layout is None else getattr(layout, "__name__", str(layout))
        sizes[word] += p.numel()
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _place(patcher: Any) -> str:
    """The file that the host's loader read the model from; empty where it does not say which."""
    _, arguments, *_ = getattr(patcher, "cached_patcher_init", None) or ((), ())
    return arguments[0] if arguments and isinstance(arguments[0], str) else ""


def _marks(patcher: Any) -> Marks:
    """What that file tells."""
    place = _place(patcher)
    return marks_of_file(Path(place)) if place else Marks()


def file_of(patcher: Any) -> str:
    """The name of that file; a model of ours without one says what it is called."""
    return Path(_place(patcher)).name or str(getattr(patcher.model.model_config, "loom_name", ""))


def _distilled(model: Any) -> Message | None:
    """By the class and the configuration of a model that was distilled for few steps."""
    config = model.model_config
    if type(config).__name__ == "FluxSchnell" and not config.unet_config.get("yak_mlp"):  # Ovis has the class as well
        return Message.of("base.sign.kind", kind="Flux schnell")
    if "distilled" in type(model).__name__.lower():
        return Message.of("base.sign.kind", kind=type(model).__name__)
    if config.unet_config.get("meanflow"):
        return Message.of("base.sign.setting", setting="meanflow")
    return None


def described(patcher: Any, sampling: Any, config: ObjectiveConfig) -> BaseModel:
    """What a MODEL is that samples by `sampling`. Raises LoomError for one that cannot be trained, or not as the job asks."""
    model, marks = patcher.model, _marks(patcher)
    kind = kind_of(sampling)
    loaded = Witness(Message.of("base.source.host"), kind, bool(getattr(sampling, "zsnr", False)), Strength.WEIGHTS)
    decided = predicts([loaded], config, "model", EITHER if has_table(sampling) else (kind,))
    others = [w for w in marks.witnesses if w.prediction != kind and config.prediction == "auto"]
    doubts = tuple(
        Message.of("model.other_prediction", field="model", kind=kind, other=w.prediction, source=w.source)
        for w in others[:1]
    )
    if _is(model, "SDXLRefiner") and config.max_timestep > REFINED + TOLERATED:
        doubts += (
            Message.of("model.refiner_range", field="objective.max_timestep", asked=config.max_timestep, high=REFINED),
        )
    if _is(model, "WAN21_CausalAR"):
        doubts += (Message.of("model.causal", field="model"),)
    return BaseModel(
        base_family(model),
        decided,
        patcher.get_model_object("latent_format").latent_channels,
        _stored(model.diffusion_model),
        training_guidance(model),
        time_shift(sampling, config, usual_shift(patcher)) if kind == "flow" else None,
        marks.expert,
        _distilled(model) or marks.distilled,
        further_input(model),
        doubts,
        "model",
        anime=marks.anime if base_family(model) == "sd1" else None,
        file=file_of(patcher),
        sized=sized_levels(patcher) is not None and not config.shift,
    )
