"""The grammar of adapter keys: every spelling of "which layer, which part of its adapter" in use, and the prefixes that say whose layer it is."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..lora_core.algebra.kinds import KINDS

_PARAMETERS = {(p.parameter, p.name) for kind in KINDS.values() for p in kind.parts if p.parameter != "weight"}
# Ending -> part of the module. The first match counts, so longer endings stand before shorter ones that end alike.
_ENDINGS = (
    ("lora_down", "down"), ("lora_up", "up"), ("lora_mid", "mid"), ("lora_A", "down"), ("lora_B", "up"),
    ("lora_linear_layer.down", "down"), ("lora_linear_layer.up", "up"), ("lora.down", "down"), ("lora.up", "up"),
    ("_lora.down", "down"), ("_lora.up", "up"),
    ("alpha", "alpha"), ("lora_magnitude_vector", "magnitude"), ("w_norm", "diff"), ("b_norm", "diff_b"),
    *sorted(_PARAMETERS, reverse=True),
    *((n, n) for n in ("set_weight", "reshape_weight", "bias", "scale", "oft_blocks", "oft_diag", "oft_R", "rescale")),
    *((n, n) for n in ("boft_R", "boft_s", "on_input", "a1", "a2", "b1", "b2", "bm")),
    ("A", "naive_a"), ("B", "naive_b"),
)  # fmt: skip
_PART = dict(_ENDINGS)
# PEFT's `lora_bias`: a bias of the upper factor, whose effect is a change of the layer's bias by scale * bias.
UP_BIAS = "up_bias"
_KEY = re.compile(
    r"(?P<name>.+?)(?:(?<=\w)(?P<old>_lora[12]?\.(?:down|up))|\.(?P<part>"
    + "|".join(re.escape(e) for e, _ in _ENDINGS if not e.startswith("_lora"))
    + r"))(?:\.(?!weight$|bias$)(?P<adapter>\w+))?(?P<value>\.weight|\.bias)?"
)

# XLabs' Flux files, whose adapters hang on attention processors: "_lora" is said of one stream or the other.
_XLABS = {
    "double_blocks qkv_lora1": "img_attn.qkv",
    "double_blocks qkv_lora2": "txt_attn.qkv",
    "double_blocks proj_lora1": "img_attn.proj",
    "double_blocks proj_lora2": "txt_attn.proj",
    "single_blocks qkv_lora": "linear1_qkv",
    "single_blocks proj_lora": "linear2",
}

# Old diffusers attention files: processor.to_out_lora is layer to_out.0, and a text encoder's self_attn.to_q_lora is
# layer self_attn.q_proj.
WRAPPERS = re.compile(r"(^|\.)(base_model\.model|_orig_mod|module|_fsdp_wrapped_module)(?=\.)")
DENOISERS = (
    "lora_unet__",
    "lora_unet_",
    "oft_unet_",
    "lora_transformer_",
    "lycoris_",
    "model.diffusion_model.",
    "diffusion_model.",
    "unet.",
    "transformer.",
)
TEXT_SLOTS = (
    ("lora_te1_", 1), ("lora_te2_", 2), ("lora_te3_", 3), ("lora_te_", 1), ("oft_te1_", 1), ("oft_te2_", 2),
    ("oft_te_", 1), ("text_encoder_3.", 3), ("text_encoder_2.", 2), ("text_encoder.", 1), ("text_encoder_1.", 1),
)  # fmt: skip
HOST_TEXT = re.compile(r"text_encoders\.(?:\w+\.)??(clip_l|clip_g|clip_h|t5xxl)\.(?:transformer\.)?")


def parse(key: str, others: Collection[str] = ()) -> tuple[str, str] | None:
    """(layer name without wrappers, part) of an adapter key; None when it has no ending we know.

    `.processor.` of old diffusers attention files is taken out, and their `to_out_lora` is layer `to_out.0`. `others`: the keys of the file,
    which tell a part called `weight` from a weight of a model.
    """
    if key.endswith(".weight") and (stem := key.removesuffix(".weight")) + ".on_input" in others:
        return unwrapped(stem), "weight"
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    name = unwrapped(match["name"])
    if match["value"] == ".bias":
        part = _PART.get(match["part"])
        return (name, UP_BIAS) if part == "up" else None
    if match["old"]:
        head, _, last = name.replace(".processor.", ".").rpartition(".")
        hook, _, side = match["old"].partition(".")
        if layer := _XLABS.get(f"{head.removeprefix('diffusion_model.').partition('.')[0]} {last}{hook}"):
            return f"{head}.{layer}", side
        if hook != "_lora":
            return None
        if head.endswith(".self_attn") and last.startswith("to_"):  # of a text encoder
            last = f"{last[3:]}_proj"
        elif last == "to_out":
            last = "to_out.0"
        return f"{head}.{last}", side
    return name.replace(".processor.", "."), _PART[match["part"]]


def ending(key: str) -> str:
    """What follows the layer's name in an adapter key, as it stands there; of a key that `parse` knows."""
    match = _KEY.fullmatch(key)
    assert match is not None
    return key[match.end("name") + 1 :]


def unwrapped(name: str) -> str:
    """The name without what PEFT, torch.compile and data-parallel wrappers put before it, wherever they did."""
    while (short := WRAPPERS.sub(r"\1", f"{name}.")[:-1].replace("..", ".").removeprefix(".")) != name:
        name = short
    return name


def form(key: str) -> str:
    """The spelling a key is written in, in the words of the program's targets."""
    if key.startswith(("lora_unet_", "lora_te", "lora_transformer_", "lycoris_", "oft_")):
        return "kohya"
    if "base_model.model." in key:
        return "peft"
    if key.startswith(("diffusion_model.", "text_encoders.")):
        return "comfyui"
    return "diffusers"
