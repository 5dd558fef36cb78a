"""Which layers get an adapter: presets as patterns over module paths, for UNets and transformers of both naming worlds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..algebra.kind import BIASES, NORMS, Kind
from ..algebra.kinds import KINDS
from ..algebra.walk import has_bias, is_norm, weight_shape
from ..config import AdapterConfig, TextEncoderConfig
from ..matching.regex import Pattern
from ..messages.errors import LoomError
from ..messages.message import Message

_ATTENTION = r"(^|\.)(\w*attn\d*|\w*attention|attn\d*_\w+)\."
# Kandinsky's attention blocks, which take the image embedding as added keys.
_ADDED = r"(^|\.)attentions\.\d+\.(to_[qkv]|to_out|add_[kv]_proj)"
_CROSS = r"(^|\.)(attn2|cross_attn|cross_attention|crossattn)\."
_SINGLE_STREAM = (
    r"(^|\.)single_(transformer_)?blocks\.\d+\.(linear[12]|attn\.|proj_)"  # attention and MLP share these layers
)
_OUTSIDE_BLOCKS = r"(^|\.)(time_embed|label_emb|add_embedding|time_embedding|input_blocks\.0\.0|conv_in|conv_out|out\.\d|final_layer|\w*_embedder)(\.|$)"
_NUMBERED = r"(^|\.)\w*\.\d+\.|^\w+\.\d+\."

PRESETS = {
    "attention": lambda path, dims: (
        dims == 2 and bool(re.search(_ATTENTION, path) or re.search(_ADDED, path) or re.search(_SINGLE_STREAM, path))
    ),
    "cross-attention": lambda path, dims: dims == 2 and bool(re.search(_CROSS, path)),
    "linear": lambda path, dims: dims == 2 and _inside_blocks(path),
    "conv": lambda path, dims: _inside_blocks(path),
    "regex": lambda path, dims: True,
}


def _inside_blocks(path: str) -> bool:
    return bool(re.search(_NUMBERED, path)) and not re.search(_OUTSIDE_BLOCKS, path)


def carries(layer: Any, kind: Kind) -> bool:
    """Whether a layer has what the kind is trained on."""
    if (kind.trains == NORMS) != is_norm(layer):
        return False
    plain = getattr(layer, "groups", 1) == 1 and getattr(layer, "padding_mode", "zeros") == "zeros"
    return plain and (kind.trains != BIASES or has_bias(layer))


def choose_targets(layers: Mapping[str, nn.Module], config: AdapterConfig) -> list[str]:
    """Paths of `layers` the config selects, sorted. Raises LoomError when none is left or a pattern is no regular expression.

    A kind that is trained on norms takes those of all blocks, whichever preset is chosen.
    """
    if config.targets == "regex" and not config.include:
        raise LoomError("adapter.include.needed", field="adapter.include")
    include, exclude = _pattern("include", config.include), _pattern("exclude", config.exclude)
    kind = KINDS[config.algorithm]
    preset = PRESETS["conv" if kind.trains == NORMS and config.targets != "regex" else config.targets]
    able = {path: layer for path, layer in layers.items() if carries(layer, kind)}
    chosen = []
    for path, layer in able.items():
        if (
            preset(path, len(weight_shape(layer)))
            and (not include or include.search(path))
            and not (exclude and exclude.search(path))
        ):
            chosen.append(path)
    if not chosen:
        example = next(iter(able), "none")
        raise LoomError(
            "adapter.targets.none",
            field="adapter.targets",
            targets=repr(config.targets),
            include=repr(config.include),
            exclude=repr(config.exclude),
            layers=len(able),
            example=example,
        )
    return sorted(chosen)


_TEXT_ATTENTION = r"\.((self_attn|SelfAttention)\.)?(q_proj|k_proj|v_proj|o_proj|out_proj|q|k|v|o)$"
_TEXT_MLP = r"\.(fc1|fc2|wi_0|wi_1|wi|wo|gate_proj|up_proj|down_proj)$"


def choose_text_targets(
    layers: Mapping[str, nn.Module], config: TextEncoderConfig, algorithm: str = "lora"
) -> list[str]:
    """Paths `<encoder>.<path>` of the text encoders' `layers` the config selects, sorted. Raises LoomError when none is left."""
    try:
        encoders = Pattern(config.encoders or ".", _costly("text_encoder.encoders", config.encoders))
    except re.error as error:
        raise LoomError(
            "text_encoder.pattern", field="text_encoder.encoders", encoders=repr(config.encoders), reason=error
        ) from error
    if KINDS[algorithm].trains == NORMS:
        raise LoomError("text_encoder.norms", field="text_encoder.train", algorithm=algorithm)
    pattern = _TEXT_ATTENTION if config.targets == "attention" else f"{_TEXT_ATTENTION}|{_TEXT_MLP}"
    able = [p for p, layer in layers.items() if carries(layer, KINDS[algorithm])]
    inside = [p for p in able if encoders.search(p.split(".", 1)[0]) and "text_projection" not in p]
    chosen = [p for p in inside if re.search(pattern, p)]
    if not chosen:
        names = sorted({p.split(".", 1)[0] for p in layers})
        if not names:
            raise LoomError("text_encoder.untrainable", field="text_encoder.train")
        if not config.encoders:
            raise LoomError("text_encoder.none_fits", field="text_encoder.train", known=names)
        raise LoomError(
            "text_encoder.none_chosen", field="text_encoder.train", encoders=repr(config.encoders), known=names
        )
    return sorted(chosen)


def _pattern(field: str, text: str) -> Pattern | None:
    try:
        return Pattern(text, _costly(f"adapter.{field}", text)) if text else None
    except re.error as error:
        raise LoomError("adapter.pattern", field=f"adapter.{field}", pattern=repr(text), reason=error) from error


def _costly(field: str, text: str) -> Callable[[Message], LoomError]:
    return lambda why: LoomError("pattern.costly", field=field, pattern=repr(text), reason=why)
