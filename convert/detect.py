"""Which model a LoRA is for: by the names of its layers, then by shapes that only some models have, then by what the header says."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from ..lora_core.messages.message import Message
from . import keys
from .families import FAMILIES, TOYS, UNKNOWN, Family, text
from .lora import FAMILY, OTHER, Module
from .patterns import Found, split_numbers


@dataclasses.dataclass(frozen=True)
class _Fit:
    """How well a family explains the denoiser layers of a file."""

    matched: int  # layers whose names it has
    against: int  # shapes, kernels and block numbers that it cannot have
    agrees: int  # shapes that only this kind of model has
    hidden: int  # widths of its published models, minus others
    declared: bool  # by the header
    full: int  # kinds of blocks of which the file has the last one of the published models
    complete: bool  # whether it has what no LoRA of the family lacks

    def explains(self, layers: int, any_width: bool) -> bool:
        """Whether the family has nearly all names, all shapes, and a width it was published in or the header's word for it."""
        names = self.complete and self.matched >= NEARLY_ALL * layers
        return names and not self.against and (self.hidden >= 0 or self.declared or any_width)

    @property
    def order(self) -> tuple[int, int, int, bool, int]:
        return self.matched, self.agrees, self.hidden, self.declared, self.full


NEARLY_ALL = 0.9  # layers of another model mostly have a name that the family lacks among any ten


def split_prefix(name: str) -> tuple[str, int | str | None]:
    """(name without its prefix, text encoder slot 1 to 3 or ComfyUI's encoder name; None for the denoiser)."""
    if host := keys.HOST_TEXT.match(name):
        return name[host.end() :], host[1]
    for prefix, slot in keys.TEXT_SLOTS:
        if name.startswith(prefix):
            return name[len(prefix) :], slot
    for prefix in keys.DENOISERS:
        if name.startswith(prefix):
            return name[len(prefix) :], None
    return name, None


def detect(
    modules: Mapping[str, Module], metadata: Mapping[str, str], any_width: bool = False
) -> tuple[str, Message | None]:
    """(family, doubt): the family whose layers these are by all their names and shapes, told from its likes by shapes, then by the header.

    `doubt` is what the user should know. `any_width`: also models of other widths than the published, for whole checkpoints.
    """
    denoiser = {rest: m for name, m in modules.items() for rest, slot in [split_prefix(name)] if slot is None}
    texts = {name: m for name, m in modules.items() if split_prefix(name)[1] is not None}
    denoiser = {name: module for name, module in denoiser.items() if module.kind != OTHER}
    if not denoiser:
        return _from_text(texts, metadata) if texts else (UNKNOWN, Message.of("note.unknown_family"))
    declared = declared_family(metadata)
    forms = _by_form(denoiser)
    fits = {name: _fit(family, forms, declared) for name, family in FAMILIES.items()}
    able = {name: fit for name, fit in fits.items() if fit.explains(len(denoiser), any_width)}
    if not able:
        return UNKNOWN, _unlike(fits, len(denoiser))
    best = max(able, key=lambda n: able[n].order)  # the first of equals: FAMILIES is in order of use
    if able[best].hidden < 0:
        return best, Message.of("note.declared_size", family=FAMILIES[best].title)
    rivals = [n for n in able if n not in (best, *TOYS) and able[n] == able[best]]
    if rivals:
        return best, Message.of("note.rivals", families=[best, *rivals], family=best, option=FAMILY)
    return best, None


def _unlike(fits: Mapping[str, _Fit], layers: int) -> Message:
    """Why no family is told: the nearest one, and what of it does not fit."""
    near = max(fits, key=lambda n: (fits[n].matched, -fits[n].against))
    fit, title = fits[near], FAMILIES[near].title
    if not fit.matched:
        return Message.of("note.unknown_family")
    if fit.matched < NEARLY_ALL * layers or fit.against:
        return Message.of("note.other_model", family=title)
    return Message.of("note.other_size", family=title, option=FAMILY)


Numbered = tuple[tuple[str, ...], Module]  # a layer's block numbers, and what the file has for it
Forms = Mapping[str, list[Numbered]]


def _by_form(denoiser: Mapping[str, Module]) -> Forms:
    """Name without its numbers -> the layers called so. Each name is taken apart once, and a family asked only for the forms that it has."""
    forms: dict[str, list[Numbered]] = {}
    for name, module in denoiser.items():
        form, numbers = split_numbers(name)
        forms.setdefault(form, []).append((numbers, module))
    return forms


def _known(family: Family, forms: Forms) -> Iterator[tuple[Found | None, Module]]:
    """The layers whose names the family may have, each with what its table says."""
    for form, layers in forms.items():
        if family.table.has(form):
            yield from ((family.table.find_form(form, numbers), module) for numbers, module in layers)


def _fit(family: Family, forms: Forms, declared: str) -> _Fit:
    matched = against = agrees = hidden = 0
    complete = False
    blocks: dict[tuple[str, int], int] = {}  # (kind of block, how many there are) -> the last in the file
    for layer, module in _known(family, forms):
        if layer is None:
            continue
        matched += 1
        row = layer.rows[0]
        complete = complete or family.needs in row.diffusers
        if row.limit:
            kind, number = (row.diffusers.partition(".")[0], row.limit), int(layer.numbers[0])
            blocks[kind] = max(number, blocks.get(kind, 0))
            against += number >= row.limit
        shape = module.shape
        if len(shape) < 2 or row.kernel is None:
            continue
        against += math.prod(shape[2:]) > 1 and shape[2:] != row.kernel
        if family.context and row.diffusers.endswith(("attn2.to_k", "attn2.to_v")):
            agrees += shape[1] == family.context
            against += shape[1] != family.context
        if row.kernel == (1, 1) and row.diffusers.endswith(("proj_in", "proj_out")) and family.context:
            agrees += len(shape) > 2
        if row.ratio:
            expected = row.ratio if layer.native else row.ratio * row.shares[row.part] / sum(row.shares)
            fitting = math.isclose(shape[0] / shape[1], expected, rel_tol=0.02)
            agrees += fitting
            against += not fitting
        if family.hidden and (row.ratio == 1 or len(row.shares) > 1):  # what reads the model's own channels
            hidden += 1 if shape[1] in family.hidden else -1
    full = sum(last + 1 == count for (_, count), last in blocks.items())
    return _Fit(matched, against, agrees, hidden, declared == family.name, full, complete)


_SIGNS = (
    ("hunyuan_video", "hunyuanvideo"), ("hunyuan-video", "hunyuanvideo"), ("hunyuanvideo", "hunyuanvideo"),
    ("ltx-2", "ltxav"), ("ltx2", "ltxav"), ("ltxav", "ltxav"), ("ltx", "ltxv"), ("hidream", "hidream"),
    ("anima", "anima"), ("cosmos", "cosmospredict2"), ("kandinsky5", "kandinsky5"), ("kandinsky-5", "kandinsky5"),
    ("auraflow", "auraflow"), ("pixart", "pixart"), ("omnigen2", "omnigen2"), ("krea2", "krea2"), ("krea-2", "krea2"),
    ("ideogram4", "ideogram4"), ("ideogram-4", "ideogram4"), ("ernie", "ernieimage"), ("longcat", "longcatimage"),
)  # fmt: skip


def declared_family(metadata: Mapping[str, str]) -> str:
    """The family the header names in kohya's or the ModelSpec's words; "" when it names none we know."""
    version, architecture = (
        metadata.get("ss_base_model_version", "").lower(),
        metadata.get("modelspec.architecture", "").lower(),
    )
    text_ = f"{version} {architecture}"
    if metadata.get("ss_v2") == "True" or "stable-diffusion-v2" in text_ or re.search(r"\bsd_v2", text_):
        return "sd2"
    signs = (
        ("sdxl", "sdxl"),
        ("xl-v1", "sdxl"),
        ("sd_v1", "sd1"),
        ("stable-diffusion-v1", "sd1"),
        ("stable-diffusion-3", "sd3"),
        ("chroma", "chroma"),
        *_SIGNS,
        ("flux2", "flux2"),
        ("flux.2", "flux2"),
        ("flux-2", "flux2"),
        ("flux", "flux1"),
        ("lumina", "lumina2"),
        ("qwen", "qwen-image"),
        ("wan", "wan"),
        ("zimage", "z-image"),
        ("z-image", "z-image"),
        ("z_image", "z-image"),
    )
    return next((family for sign, family in signs if sign in text_), "")


def _from_text(texts: Mapping[str, Module], metadata: Mapping[str, str]) -> tuple[str, Message | None]:
    """The family of a file that only holds text encoder layers."""
    slots = {split_prefix(name)[1] for name in texts}
    declared = declared_family(metadata)
    if declared:
        return declared, None
    if any("SelfAttention" in name or "DenseReluDense" in name for name in texts) and not slots & {"clip_g"}:
        if all("SelfAttention" in name or "DenseReluDense" in name for name in texts):
            return "flux1", Message.of("note.only_t5", option=FAMILY)
        clip_g = any(split_prefix(name)[1] == 2 and "text_model" in name for name in texts)
        return ("sd3" if clip_g else "flux1"), None
    if 2 in slots or "clip_g" in slots:
        return ("sd3" if "t5xxl" in slots else "sdxl"), None
    width = next((m.shape[1] for name, m in texts.items() if "q_proj" in name and m.shape), 768)
    if width == text.WIDTHS["clip_h"]:
        return "sd2", None
    return "sd1", Message.of("note.only_clip_l", option=FAMILY)
