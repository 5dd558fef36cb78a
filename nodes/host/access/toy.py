"""The toy model as MODEL, CLIP and VAE made of the host's own classes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch

from ....lora_core.messages.errors import LoomError


class _Times(int):
    """A channel multiplier that need not be whole: the host multiplies `model_channels` by it and needs a whole number back."""

    width: int

    @classmethod
    def of(cls, width: int) -> _Times:
        times = cls(1)
        times.width = width
        return times

    def __mul__(self, channels: int) -> int:
        return self.width

    __rmul__ = __mul__


class ToyConfig(comfy.supported_models.SD15):
    """SD1.5's class of model at toy size."""

    unet_extra_config: dict[str, Any] = {}  # heads are told with the rest
    loom_name = "toy"  # where others have the name of their file

    def inpaint_model(self) -> bool:
        return False


def load(folder: Path) -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE) from the toy's diffusers folders."""
    return _model(folder), _clip(folder), _vae(folder)


def _host_config(unet: Mapping[str, Any]) -> dict[str, Any]:
    """A UNet's config.json in the host's words; attention stands where its blocks are called CrossAttn, once in each."""
    widths, layers = unet["block_out_channels"], unet["layers_per_block"]
    down = [int(kind.startswith("CrossAttn")) for kind in unet["down_block_types"] for _ in range(layers)]
    up = [int(kind.startswith("CrossAttn")) for kind in unet["up_block_types"] for _ in range(layers + 1)]
    return {
        "use_checkpoint": False,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "adm_in_channels": None,
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "model_channels": widths[0],
        "num_res_blocks": [layers] * len(widths),
        "channel_mult": [_Times.of(width) for width in widths],
        "transformer_depth": down,
        "transformer_depth_output": up[::-1],  # the host takes them from the end
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": unet["use_linear_projection"],
        "context_dim": unet["cross_attention_dim"],
        "use_temporal_attention": False,
        "disable_self_attentions": None,
        "num_heads": unet["attention_head_dim"],  # diffusers' old name for how many heads there are
        "num_head_channels": -1,
    }


def _model(folder: Path) -> Any:
    unet = json.loads((folder / "unet" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    config = ToyConfig(_host_config(unet))
    config.latent_format = comfy.latent_formats.SD15(scale_factor=vae["scaling_factor"])
    config.latent_format.latent_channels = unet["in_channels"]
    config.latent_format.latent_rgb_factors = None
    config.latent_format.taesd_decoder_name = None
    config.set_inference_dtype(torch.float32, None)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    stored = comfy.utils.load_torch_file(str(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    state = {names[k]: v.float() for k, v in stored.items()}
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    model = config.get_model(state, "", device=offload)
    model.diffusion_model.load_state_dict(state, strict=True)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def _clip(folder: Path) -> Any:
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    vocab = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    special = {"start": vocab["<|startoftext|>"], "end": vocab["<|endoftext|>"], "pad": vocab["<|endoftext|>"]}

    class TextModel(comfy.clip_model.CLIPTextModel):
        def __init__(self, config_dict, dtype, device, operations):
            super().__init__(config_dict, dtype, device, operations)
            self.set_input_embeddings(
                operations.Embedding(len(vocab), config_dict["hidden_size"], dtype=dtype, device=device)
            )

    class ClipModel(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=dict(config),
                model_class=TextModel,
                special_tokens=special,
                return_projected_pooled=False,
                model_options={**(model_options or {}), "model_name": "clip_l"},
            )

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                str(folder / "tokenizer"),
                embedding_directory=embedding_directory,
                embedding_size=config["hidden_size"],
                embedding_key="clip_l",
            )

    target = comfy.supported_models_base.ClipTarget(
        lambda embedding_directory=None, tokenizer_data=None: comfy.sd1_clip.SD1Tokenizer(
            embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {}, tokenizer=Tokenizer
        ),
        lambda device="cpu", dtype=None, model_options=None: comfy.sd1_clip.SD1ClipModel(
            device=device, dtype=dtype, model_options=model_options or {}, clip_model=ClipModel
        ),
    )
    stored = comfy.utils.load_torch_file(str(folder / "text_encoder" / "model.safetensors"))
    state = {f"text_model.{k.removeprefix('text_model.')}": v.float() for k, v in stored.items()}
    state["text_projection.weight"] = torch.eye(config["hidden_size"])
    parameters = inspect.signature(comfy.sd.CLIP.__init__).parameters
    options = (
        {"disable_dynamic": True} if "disable_dynamic" in parameters else {}
    )  # newer hosts may stream weights; these few need not
    folders = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(target, embedding_directory=folders, model_options={"dtype": torch.float32}, **options)
    missing, unexpected = clip.load_sd(state)
    if unexpected or [key for key in missing if "logit_scale" not in key]:
        raise LoomError("toy.other_encoder", missing=len(missing), unknown=len(unexpected))
    return clip


def _vae(folder: Path) -> Any:
    config = json.loads((folder / "vae" / "config.json").read_text())
    widths = config["block_out_channels"]
    ddconfig = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [w // widths[0] for w in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    stored = comfy.utils.load_torch_file(str(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    vae = comfy.sd.VAE(
        sd=stored,
        config={"params": {"ddconfig": ddconfig, "embed_dim": config["latent_channels"]}},
        dtype=torch.float32,
    )
    vae.latent_channels = config["latent_channels"]
    return vae
