"""The model families: one row each, with the table of its layers, its text encoders and what the world calls it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..patterns import Table
from . import text, transformers
from .unet import unet_rows

UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder of a family: ComfyUI's name for it, its Kohya prefix without `_`, its component in a diffusers pipeline."""

    name: str
    kohya: str
    component: str


@dataclasses.dataclass(frozen=True)
class Family:
    """One base model family.

    `universal`: the one form that ComfyUI and diffusers both read (see `writers.py`). `native_kohya`: Kohya names are built from native
    paths, not from diffusers ones. `context`: width of the text that cross-attention reads (UNets). `hidden`: widths of published models.
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

    def encoder(self, name: str) -> Encoder | None:
        return next((e for e in self.encoders if e.name == name), None)


def _unet(
    name: str, title: str, table: Table, encoders: tuple[Encoder, ...], context: int, native_kohya: bool = False
) -> Family:
    return Family(name, title, "unet", table, encoders, "kohya", native_kohya, context)


_SD1 = Table(unet_rows(4, (0, 1, 2), conv_proj=True))
_SD2 = Table(unet_rows(4, (0, 1, 2)))
_REFINER = Table(unet_rows(4, (1, 2), pooled=True, depth=10))
_TE = (Encoder("clip_l", "lora_te", "text_encoder"),)
_TE_SDXL = (Encoder("clip_l", "lora_te1", "text_encoder"), Encoder("clip_g", "lora_te2", "text_encoder_2"))
_TE_SD3 = (*_TE_SDXL, Encoder("t5xxl", "lora_te3", "text_encoder_3"))
_TE_FLUX = (Encoder("clip_l", "lora_te1", "text_encoder"), Encoder("t5xxl", "lora_te3", "text_encoder_2"))

_ALL = (
    _unet("sd1", "Stable Diffusion 1.x", _SD1, _TE, 768),
    _unet("sd2", "Stable Diffusion 2.x", _SD2, (Encoder("clip_h", "lora_te", "text_encoder"),), 1024),
    _unet("sdxl", "Stable Diffusion XL", Table(unet_rows(3, (1, 2), pooled=True, depth=10)), _TE_SDXL, 2048, native_kohya=True),
    _unet("sdxl-refiner", "Stable Diffusion XL refiner", _REFINER, (Encoder("clip_g", "lora_te", "text_encoder_2"),), 1280, True),
    _unet("toy", "LoRA Loom's bundled toy model", Table(unet_rows(2, (0, 1), layers=1, conv_proj=True)), _TE, 64),
    Family("flux1", "Flux.1", "transformer", Table(transformers.FLUX1, transformers.FLUX1_ALIASES), _TE_FLUX, hidden=(3072,)),
    Family("chroma", "Chroma", "transformer", Table(transformers.CHROMA), (Encoder("t5xxl", "lora_te1", "text_encoder"),), hidden=(3072,)),
    Family("sd3", "Stable Diffusion 3 and 3.5", "transformer", Table(transformers.SD3), _TE_SD3, hidden=(1536, 2432)),
    Family("flux2", "Flux.2", "transformer", Table(transformers.FLUX2), universal="comfyui", hidden=(6144, 4096, 3072)),
    Family("z-image", "Z-Image", "transformer", Table(transformers.Z_IMAGE), hidden=(3840,)),
    Family("lumina2", "Lumina Image 2", "transformer", Table(transformers.LUMINA2), universal="comfyui", hidden=(2304,)),
    Family("qwen-image", "Qwen-Image", "transformer", Table(transformers.QWEN), hidden=(3072,)),
    Family("wan", "Wan 2.1 and 2.2", "transformer", Table(transformers.WAN), universal="comfyui", hidden=(1536, 5120, 3072)),
)  # fmt: skip
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}


def known_family(base: str) -> str:
    """The key of FAMILIES for what a run calls its base model (sd2-v is sd2 with another objective); UNKNOWN without a table."""
    base = "sd2" if base == "sd2-v" else base
    return base if base in FAMILIES else UNKNOWN


__all__ = ["FAMILIES", "UNKNOWN", "Encoder", "Family", "known_family", "text"]
