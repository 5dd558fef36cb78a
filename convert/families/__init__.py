"""The model families: one row each, with the table of its layers, its text encoders and what the world calls it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from ..patterns import Table
from . import newer, text, transformers
from .unet import unet_rows

UNKNOWN = "unknown"
TOYS = ("emoji", "toy")  # our own, in layers and names small Stable Diffusions


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder of a family: ComfyUI's name for it, its Kohya prefix without `_`, its component in a diffusers pipeline; whether ComfyUI alone reads
    LoRA of it, and by its own name.
    """

    name: str
    kohya: str
    component: str
    host_name_only: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """One base model family.

    `universal`: the one form that ComfyUI and diffusers both read (see `writers.py`). `native_kohya`: Kohya names are built from native
    paths, not from diffusers ones. `context`: width of the text that cross-attention reads (UNets). `hidden`: widths of published models.
    `shared`: native path -> the name that ComfyUI and diffusers both read, where neither's own is. `needs`: a word that some layer's name has in
    every LoRA of the family, where all other names are those of other models too.
    """

    name: str
    title: str
    component: str
    table: Table
    encoders: tuple[Encoder, ...] = ()
    universal: str = "diffusers"
    native_kohya: bool = True
    context: int = 0
    hidden: tuple[int, ...] = ()
    shared: Callable[[str], str] | None = None
    needs: str = ""

    def encoder(self, name: str) -> Encoder | None:
        return next((e for e in self.encoders if e.name == name), None)


def _unet(
    name: str, title: str, table: Table, encoders: tuple[Encoder, ...], context: int, native_kohya: bool = False
) -> Family:
    return Family(name, title, "unet", table, encoders, "kohya", native_kohya, context)


def _dit(
    name: str,
    title: str,
    table: Table,
    hidden: tuple[int, ...],
    universal: str,
    encoders: tuple[Encoder, ...] = (),
    shared: Callable[[str], str] | None = None,
) -> Family:
    return Family(name, title, "transformer", table, encoders, universal, hidden=hidden, shared=shared)


_SD1 = Table(unet_rows(4, (0, 1, 2), conv_proj=True))
_SD2 = Table(unet_rows(4, (0, 1, 2)))
_REFINER = Table(unet_rows(4, (1, 2), pooled=True, depth=10))
_TE = (Encoder("clip_l", "lora_te", "text_encoder"),)
_TE_SDXL = (Encoder("clip_l", "lora_te1", "text_encoder"), Encoder("clip_g", "lora_te2", "text_encoder_2"))
_TE_SD3 = (*_TE_SDXL, Encoder("t5xxl", "lora_te3", "text_encoder_3"))
_TE_FLUX = (Encoder("clip_l", "lora_te1", "text_encoder"), Encoder("t5xxl", "lora_te3", "text_encoder_2"))

_TE_T5 = (Encoder("t5xxl", "lora_te1", "text_encoder"),)
_TE_CLIP_SECOND = (Encoder("clip_l", "lora_te1", "text_encoder_2", host_name_only=True),)

_ALL = (
    _unet("sd1", "Stable Diffusion 1.x", _SD1, _TE, 768),
    _unet("sd2", "Stable Diffusion 2.x", _SD2, (Encoder("clip_h", "lora_te", "text_encoder"),), 1024),
    _unet("sdxl", "Stable Diffusion XL", Table(unet_rows(3, (1, 2), pooled=True, depth=10)), _TE_SDXL, 2048, native_kohya=True),
    _unet("sdxl-refiner", "Stable Diffusion XL refiner", _REFINER, (Encoder("clip_g", "lora_te", "text_encoder_2"),), 1280, True),
    _unet("emoji", "LoRA Loom Toy", Table(unet_rows(3, (1,), layers=1, conv_proj=True)), _TE, 128),
    _unet("toy", "LoRA Loom Toy 0.1.0", Table(unet_rows(2, (0, 1), layers=1, conv_proj=True)), _TE, 64),
    Family("flux1", "Flux.1", "transformer", Table(transformers.FLUX1, transformers.FLUX1_ALIASES), _TE_FLUX, hidden=(3072,)),
    Family("chroma", "Chroma", "transformer", Table(transformers.CHROMA), _TE_T5, hidden=(3072,)),
    Family("sd3", "Stable Diffusion 3 and 3.5", "transformer", Table(transformers.SD3), _TE_SD3, hidden=(1536, 2432)),
    Family("flux2", "Flux.2", "transformer", Table(transformers.FLUX2), universal="comfyui", hidden=(6144, 4096, 3072)),
    Family("z-image", "Z-Image", "transformer", Table(transformers.Z_IMAGE), hidden=(3840,)),
    Family("lumina2", "Lumina Image 2", "transformer", Table(transformers.LUMINA2), universal="comfyui", hidden=(2304,)),
    Family("qwen-image", "Qwen-Image", "transformer", Table(transformers.QWEN), hidden=(3072,)),
    Family("wan", "Wan 2.1 and 2.2", "transformer", Table(transformers.WAN), universal="comfyui", hidden=(1536, 5120, 3072)),
    _dit("hunyuanvideo", "HunyuanVideo", Table(newer.HUNYUAN_VIDEO, newer.HUNYUAN_VIDEO_ALIASES), (3072,), "shared", _TE_CLIP_SECOND, newer.hunyuan_shared),
    Family("ltxv", "LTX-Video", "transformer", Table(newer.LTX_VIDEO), _TE_T5, "comfyui", hidden=(2048, 4096), needs="attn2"),
    Family("ltxav", "LTX-2", "transformer", Table(newer.LTX_2), universal="comfyui", hidden=(4096,), needs="attn2"),
    _dit("hidream", "HiDream-I1", Table(newer.HIDREAM), (2560,), "diffusers", _TE_SD3),
    _dit("anima", "Anima", Table(newer.ANIMA), (2048, 1024), "comfyui"),
    _dit("cosmospredict2", "Cosmos-Predict2", Table(newer.COSMOS_PREDICT2), (2048, 5120), "comfyui"),
    _dit("kandinsky5", "Kandinsky 5", Table(newer.KANDINSKY5), (1792, 2048, 2560, 4096), "diffusers", _TE_CLIP_SECOND),
    _dit("auraflow", "AuraFlow", Table(newer.AURA_FLOW), (3072,), "diffusers"),
    Family("pixart", "PixArt", "transformer", Table(newer.PIXART), _TE_T5, hidden=(1152,), needs="attn2"),
    _dit("omnigen2", "OmniGen2", Table(newer.OMNIGEN2), (2520,), "comfyui"),
    _dit("krea2", "Krea 2", Table(newer.KREA2, newer.KREA2_ALIASES), (6144, 2560), "diffusers"),
    _dit("ideogram4", "Ideogram 4", Table(newer.IDEOGRAM4), (4608,), "comfyui"),
    _dit("ernieimage", "ERNIE-Image", Table(newer.ERNIE_IMAGE), (4096, 3072), "diffusers"),
    _dit("longcatimage", "LongCat-Image", Table(newer.LONGCAT_IMAGE), (3072,), "diffusers"),
)  # fmt: skip
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}


def known_family(base: str) -> str:
    """The key of FAMILIES for what a run calls its base model (sd2-v is sd2 with another objective); UNKNOWN without a table."""
    base = _OTHER_NAMES.get(base, base)
    return base if base in FAMILIES else UNKNOWN


_OTHER_NAMES = {
    "sd2-v": "sd2",
    "sdxlrefiner": "sdxl-refiner",
    "sd15_instructpix2pix": "sd1",
    "kandinsky5image": "kandinsky5",
    "hunyuanvideoi2v": "hunyuanvideo",
    "hunyuanvideoskyreelsi2v": "hunyuanvideo",
}


__all__ = ["FAMILIES", "UNKNOWN", "Encoder", "Family", "known_family", "text"]
