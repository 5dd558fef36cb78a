"""Names of the scales and code books that lie beside quantised weights in a file."""

from __future__ import annotations

import re

# Ends of keys: ComfyUI's scaled fp8, old and new, MXFP8 and NVFP4, ModelOpt's AWQ, fp8 with blocks, bitsandbytes 4 and
# 8 bit, quanto, GPTQ/AWQ, SVDQuant
SCALE = re.compile(
    r"(?:(?P<layer>.*)\.)?(?:scale_weight|scale_input|scaled_fp8|weight_scales?(?:_2|_inv)?|input_scale|output_scale|pre_quant_scale|comfy_quant|"
    r"weight_s_rel|weight_s_channel|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*|_data|_scale|_shift)|SCB|weight_format|"
    r"qweight|qzeros|wscales)"
)
