"""Which program reads which spelling of which family. The cells of ComfyUI, diffusers and PEFT are held to those programs' own loaders by the
tests; those of A1111, Forge and kohya's tools come from reading their loaders.
"""

from __future__ import annotations

from ..lora_core.algebra.kinds import trained_as
from .families import FAMILIES
from .lora import FormatError, Lora, Module, component
from .writers import write

PROGRAMS = ("ComfyUI", "A1111", "Forge", "kohya", "diffusers", "PEFT")
ALL, NONE, NO_MODEL, UNCHECKED = "all", "nothing", "nothing (does not run this model)", "not checked"
_OUTSIDE_ATTENTION = "only layers outside attention"
_INSIDE_BLOCKS = "only layers inside blocks"
_NOT_ENDS = "all but layers at the ends"
_WHOLE_BLOCKS = "only whole blocks, alone in the file"
_PEFT = (NONE, NONE, NONE, NONE, NONE, ALL)

# family -> spelling -> what each of PROGRAMS reads of it
_UNET: dict[str, tuple[str, ...]] = {
    "kohya": (ALL, ALL, ALL, _INSIDE_BLOCKS, ALL, NONE),
    "comfyui": (ALL, NONE, ALL, NONE, NONE, NONE),
    "diffusers": (_OUTSIDE_ATTENTION, NONE, _OUTSIDE_ATTENTION, NONE, ALL, NONE),
    "peft": _PEFT,
}


def _transformer(
    kohya: tuple[str, ...], comfyui: tuple[str, ...], diffusers: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Rows of a family A1111 does not run, from the cells of ComfyUI, Forge, kohya's tools and diffusers."""
    forms = {"kohya": kohya, "comfyui": comfyui, "diffusers": diffusers}
    return {form: (cells[0], NO_MODEL, *cells[1:], NONE) for form, cells in forms.items()} | {"peft": _PEFT}


READS: dict[str, dict[str, tuple[str, ...]]] = {
    "sd1": _UNET,
    "sd2": _UNET,
    "sdxl": _UNET,
    "flux1": _transformer((ALL, ALL, ALL, _INSIDE_BLOCKS), (ALL, ALL, NONE, NONE), (ALL, ALL, NONE, ALL)),
    "chroma": _transformer(
        (ALL, UNCHECKED, ALL, UNCHECKED), (ALL, UNCHECKED, NONE, NONE), (_INSIDE_BLOCKS, UNCHECKED, NONE, ALL)
    ),
    "sd3": _transformer((ALL, ALL, ALL, NONE), (ALL, ALL, NONE, NONE), (ALL, NONE, NONE, ALL)),
    "flux2": _transformer(
        (ALL, NO_MODEL, UNCHECKED, _INSIDE_BLOCKS),
        (ALL, NO_MODEL, NONE, _NOT_ENDS),
        (_INSIDE_BLOCKS, NO_MODEL, NONE, ALL),
    ),
    "z-image": _transformer(
        (ALL, NO_MODEL, NONE, _NOT_ENDS), (ALL, NO_MODEL, NONE, _OUTSIDE_ATTENTION), (ALL, NO_MODEL, NONE, ALL)
    ),
    "lumina2": _transformer(
        (ALL, NO_MODEL, ALL, NONE), (ALL, NO_MODEL, NONE, _WHOLE_BLOCKS), (NONE, NO_MODEL, NONE, ALL)
    ),
    "qwen-image": _transformer((ALL, NO_MODEL, UNCHECKED, ALL), (ALL, NO_MODEL, NONE, ALL), (ALL, NO_MODEL, NONE, ALL)),
    "wan": _transformer(
        (ALL, NO_MODEL, UNCHECKED, _WHOLE_BLOCKS),
        (ALL, NO_MODEL, NONE, "all but the patch embedding"),
        (NONE, NO_MODEL, NONE, ALL),
    ),
}


def loaders(lora: Lora) -> dict[str, str]:
    """Program -> what it reads of this file, as it is spelled; {} where that is not known."""
    cells = READS.get(lora.family, {}).get(lora.source)
    if cells is None or not _spelled_as_now(lora):
        return {}
    out = dict(zip(PROGRAMS, cells))
    for program in PROGRAMS:
        unread = sorted({m.kind for m in lora.modules.values() if not _reads(program, m)})
        if unread and not out[program].startswith(NONE):
            out[program] = f"{NONE} ({', '.join(unread)} modules)"
    if (
        lora.source == "kohya"
        and FAMILIES[lora.family].component == "unet"
        and out["diffusers"] == ALL
        and _mixed_alphas(lora)
    ):
        out["diffusers"] = "all, but at wrong strengths: it gives every layer the commonest alpha; convert the file"
    return out


def _reads(program: str, module: Module) -> bool:
    """Whether a program reads this kind of module at all."""
    kind = trained_as(module.parts) or module.algebra
    return kind is not None and (kind.read_by is None or program in kind.read_by)


def _spelled_as_now(lora: Lora) -> bool:
    """Whether the file's keys are among those this package writes in that spelling; of others the table says nothing."""
    if lora.source == "peft":
        return True
    try:
        return lora.keys <= write(lora, lora.source, one_alpha=False).keys()
    except FormatError:
        return False


def _mixed_alphas(lora: Lora) -> bool:
    alphas: dict[str, set[float]] = {}
    for name, module in lora.modules.items():
        alphas.setdefault(component(name), set()).add(module.scale * module.rank)
    return any(len(values) > 1 for values in alphas.values())
