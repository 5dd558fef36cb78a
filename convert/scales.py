"""Quantised weights in a checkpoint: numbers that mean something only together with scales or code books stored beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..lora_core.messages.message import Message

# Ends of keys: ComfyUI's scaled fp8, old and new, MXFP8 and NVFP4, ModelOpt's AWQ, fp8 with blocks, bitsandbytes 4 and 8 bit, quanto, GPTQ/AWQ, SVDQuant
_SCALE = re.compile(
    r"(?:(?P<layer>.*)\.)?(?:scale_weight|scale_input|scaled_fp8|weight_scales?(?:_2|_inv)?|input_scale|output_scale|pre_quant_scale|comfy_quant|"
    r"weight_s_rel|weight_s_channel|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*|_data|_scale|_shift)|SCB|weight_format|"
    r"qweight|qzeros|wscales)"
)


def scaled_layers(keys: Iterable[str]) -> dict[str, list[str]]:
    """Layer -> the keys of its scales; a mark for a whole model stands under the model's prefix."""
    out: dict[str, list[str]] = {}
    for key in keys:
        match = _SCALE.fullmatch(key)
        if match:
            out.setdefault(match["layer"] or "", []).append(key)
    return out


def warning(keys: Iterable[str]) -> Message:
    """What to tell about a checkpoint with such keys."""
    return Message.of("checkpoint.scaled", key=next(iter(keys)))
