"""A vision-language model of ComfyUI's own code, Qwen3-VL's, so small that a test can write with it. As a custom node of a server it is *Tiny VLM*."""

from __future__ import annotations

import functools

import torch

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "depth": 2, "deepstack_visual_indexes": [0]}


def tiny_vlm():
    """A CLIP of the host with random weights, the same each time."""
    import comfy.sd
    from comfy.text_encoders import qwen3vl

    qwen3vl.QWEN3VL_CONFIGS["tiny"] = functools.partial(qwen3vl.Qwen3VL_4BConfig, **SIZES)
    qwen3vl.QWEN3VL_VISION["tiny"] = VISION

    class Target:
        params: dict = {}
        clip = qwen3vl.te(model_type="tiny")
        tokenizer = qwen3vl.tokenizer(model_type="tiny")

    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = comfy.sd.CLIP(Target, parameters=1)
        for name, parameter in clip.cond_stage_model.named_parameters():
            with torch.no_grad():
                is_norm = "norm" in name and name.endswith("weight")
                parameter.copy_(torch.ones(parameter.shape) if is_norm else torch.randn(parameter.shape) * 0.1)
    return clip


class TinyVlm:
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        return (tiny_vlm(),)


NODE_CLASS_MAPPINGS = {"TinyVlm": TinyVlm}
