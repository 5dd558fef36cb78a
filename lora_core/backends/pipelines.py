"""What the class of a pipeline, by which model_index.json names a model, says of it: which of the trained ones has its networks, or why none has."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..messages.errors import LoomError
from ..messages.message import Message

# Pipelines that draw in another way with the networks of a plain one. Where their network reads more channels than
# noise, it is refused by these.
_WAYS = (
    "Img2Img|Inpaint(?:ing)?|PAG|ControlNet|Union|XS|Adapter|SAG|Panorama|AttendAndExcite|DiffEdit|ModelEditing|Paradigms|Pix2PixZero"
    "|GLIGENText"  # never without Image
)
_SAME = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (rf"StableDiffusionXL(?:{_WAYS})*Pipeline", "StableDiffusionXLPipeline"),
        (rf"(?:StableDiffusion|LatentConsistencyModel)(?:{_WAYS})*Pipeline", "StableDiffusionPipeline"),
        (
            r"SemanticStableDiffusionPipeline|StableDiffusionPipelineSafe|CycleDiffusionPipeline|TextToVideoZeroPipeline",
            "StableDiffusionPipeline",
        ),
        (r"TextToVideoZeroSDXLPipeline", "StableDiffusionXLPipeline"),
        (rf"StableDiffusion3(?:{_WAYS})*Pipeline", "StableDiffusion3Pipeline"),
        (rf"Flux(?:{_WAYS}|Control|Fill)*Pipeline", "FluxPipeline"),
        (rf"ZImage(?:{_WAYS})*Pipeline", "ZImagePipeline"),
        (rf"QwenImage(?:{_WAYS})*Pipeline", "QwenImagePipeline"),
    )
)

# A part of the name -> what such a model is and what it needs beside noise and text, as codes of messages. The first
# that fits counts.
_NEEDS = (
    (r"Upscale|SuperResolution|Upsample|Refiner", "kind_of_model.upscaler", "input.small_picture"),
    (r"Layered", "kind_of_model.qwen_image_layered", "input.picture_to_take_apart"),
    (r"InstructPix2Pix|Edit|Kontext|VisualCloze", "kind_of_model.editing_model", "input.picture_to_edit"),
    (r"Depth2Img", "kind_of_model.depth_model", "input.depth_map"),
    (r"ImageVariation|UnCLIP|Redux|BlipDiffusion|PaintByExample|Emb2Emb|GLIGENTextImage|DualGuided",
     "kind_of_model.reads_image_embedding", "input.image_embedding"),
    (r"VACE|Vace", "kind_of_model.vace_model", "input.control_frames_and_a_mask"),
    (r"WanAnimate", "kind_of_model.animate_model", "input.pose_video_and_a_face_video"),
    (r"ImageToVideo|Image2Video|I2V|VideoToWorld|StableVideo|PIAPipeline|ConsisID", "kind_of_model.image_to_video_model", "input.first_frame"),
    (r"Inpaint|Fill", "kind_of_model.inpainting_model", "input.mask_and_the_masked_picture"),
    (r"Control|Adapter|Transfer", "kind_of_model.control_model", "input.control_picture"),
)  # fmt: skip

# How the names of families begin that are trained in ComfyUI.
_IN_COMFYUI = (
    "AceStep", "Anima", "AuraFlow", "Chroma", "Cosmos", "ErnieImage", "Flux2", "HiDream", "HunyuanDiT", "HunyuanImage",
    "HunyuanVideo", "Ideogram4", "Kandinsky5", "Krea2", "LTX", "LongCatImage", "Lumina2", "OvisImage", "PixArt",
    "StableCascade", "Wan", "ZImageOmni",
)  # fmt: skip


def plain_name(name: str) -> str:
    """The pipeline that draws from text alone with the networks of the one called `name`; `name` itself where there is no such other."""
    return next((plain for pattern, plain in _SAME if pattern.fullmatch(name)), name)


def refusal(name: str, file: str, allowed: Sequence[str]) -> LoomError:
    """What to say of a model whose pipeline is not among `allowed`. `file`: how the user knows it."""
    for pattern, model, needs in _NEEDS:
        if re.search(pattern, name):
            values = {"model": Message.of(model), "needs": Message.of(needs)}
            return LoomError("base.kind_further", field="base", file=file, kind=name, **values)
    code = "base.kind" if name.startswith(_IN_COMFYUI) else "base.kind_untrained"
    return LoomError(code, field="base", file=file, kind=name, allowed=", ".join(allowed))
