"""Which model a LoRA is for: by the names of its layers, then by shapes that only some models have, then by what the header says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from ..lora_core.messages.message import Message
from . import keys
from .families import FAMILIES, UNKNOWN, Family, text
from .lora import FAMILY, Module


class _Score(NamedTuple):
    """How well a family explains a file; compared field by field."""

    matched: int  # layers whose names it has
    agrees: int  # shapes that only this kind of model has, minus those it cannot have
    hidden: int  # widths of its published models, minus others
    declared: bool  # by the header


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


def detect(modules: Mapping[str, Module], metadata: Mapping[str, str]) -> tuple[str, Message | None]:
    """(family, doubt): the family whose layers the names are, told from its likes by shapes, then by the header. `doubt` is what the user should know."""
    denoiser = {rest: m for name, m in modules.items() for rest, slot in [split_prefix(name)] if slot is None}
    texts = {name: m for name, m in modules.items() if split_prefix(name)[1] is not None}
    if not denoiser:
        return _from_text(texts, metadata)
    declared = declared_family(metadata)
    scores = {}
    for family in FAMILIES.values():
        score = _score(family, denoiser, declared)
        if score.matched:
            scores[family.name] = score
    if not scores:
        return UNKNOWN, Message.of("note.unknown_family")
    best = max(scores, key=lambda n: scores[n])  # the first of equals: FAMILIES is in order of use
    matched, agrees, hidden, _ = scores[best]
    if agrees < 0 or 2 * matched < len(denoiser):
        return UNKNOWN, Message.of("note.other_model", family=FAMILIES[best].title)
    if hidden < 0:
        return best, Message.of("note.other_size", family=FAMILIES[best].title, option=FAMILY)
    rivals = [n for n in scores if n not in (best, "toy") and scores[n] == scores[best]]
    if rivals:
        return best, Message.of("note.rivals", families=[best, *rivals], family=best, option=FAMILY)
    return best, None


def _score(family: Family, denoiser: Mapping[str, Module], declared: str) -> _Score:
    matched = agrees = hidden = 0
    for name, module in denoiser.items():
        found = family.table.find(name)
        if found is None:
            continue
        matched += 1
        shape = module.shape
        if len(shape) < 2:
            continue
        row = found.rows[0]
        if row.limit and int(found.numbers[0]) >= row.limit:
            agrees -= len(denoiser)
        if family.context and row.diffusers.endswith(("attn2.to_k", "attn2.to_v")):
            agrees += 1 if shape[1] == family.context else -len(denoiser)
        if row.kernel == (1, 1) and row.diffusers.endswith(("proj_in", "proj_out")) and family.context:
            agrees += len(shape) > 2
        if row.ratio:
            expected = row.ratio if found.native else row.ratio * row.shares[row.part] / sum(row.shares)
            agrees += 1 if math.isclose(shape[0] / shape[1], expected, rel_tol=0.02) else -1
        if shape[0] == shape[1] and (row.ratio == 1 or (len(row.shares) > 1 and not found.native)):
            hidden += 1 if shape[0] in family.hidden else -1
    return _Score(matched, agrees, hidden, declared == family.name)


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
