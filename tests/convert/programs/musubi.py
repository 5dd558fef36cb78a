"""musubi-tuner: a LoRA merged while the model is read, as its scripts that draw pictures and videos do (Flux.1 Kontext: after it), on its own classes."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path

import torch
from loom_harness import FLUX, Tree, folder, randomised
from safetensors.torch import load_file, save_file

TITLE, FOLDER = "musubi-tuner", "musubi-tuner"
FAMILIES = ("flux1", "flux2", "z-image", "qwen-image", "wan")
HOME = folder(FOLDER)
sys.path[:0] = [str(HOME / "src")]
logging.disable(logging.WARNING)
torch.cuda.current_device = lambda: 0  # a default argument of a text encoder's class asks for it while it is imported

from musubi_tuner.networks import lora_flux, lora_flux_2, lora_qwen_image, lora_wan, lora_zimage  # noqa: E402
from musubi_tuner.utils.lora_utils import load_safetensors_with_lora_and_fp8  # noqa: E402

NETWORKS = {
    "flux1": lora_flux,
    "flux2": lora_flux_2,
    "z-image": lora_zimage,
    "qwen-image": lora_qwen_image,
    "wan": lora_wan,
}


def denoiser(family: str) -> torch.nn.Module:
    if family == "flux1":
        from musubi_tuner.flux import flux_models

        return flux_models.Flux(flux_models.FluxParams(**{**FLUX, "in_channels": 64}, guidance_embed=True))
    if family == "flux2":
        from musubi_tuner.flux_2 import flux2_models

        return flux2_models.Flux2(
            flux2_models.Flux2Params(
                in_channels=64, context_in_dim=24, hidden_size=32, num_heads=2, depth=8, depth_single_blocks=48, axes_dim=[4, 4, 4, 4], mlp_ratio=3.0
            )
        )  # fmt: skip
    if family == "z-image":
        from musubi_tuner.zimage import zimage_model

        return zimage_model.ZImageTransformer2DModel(
            in_channels=16, dim=48, n_layers=4, n_refiner_layers=2, n_heads=3, n_kv_heads=3, cap_feat_dim=24, axes_dims=[4, 4, 8], axes_lens=[64, 64, 64]
        )  # fmt: skip
    if family == "qwen-image":
        from musubi_tuner.qwen_image import qwen_image_model

        return qwen_image_model.QwenImageTransformer2DModel(
            in_channels=64, num_layers=4, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 4, 8), attn_mode="torch"
        )  # fmt: skip
    from musubi_tuner.wan.modules import model

    return model.WanModel(
        model_type="i2v", dim=32, in_dim=36, ffn_dim=64, freq_dim=16, text_dim=24, out_dim=16, num_heads=2, num_layers=4, attn_mode="torch"
    )  # fmt: skip


def tree(family: str) -> Tree:
    model = randomised(denoiser(family))
    out = Tree(family, types.SimpleNamespace(model=model))
    out.add_denoiser(model)
    return out


def load(tree: Tree, path: Path) -> None:
    if tree.family == "flux1":
        return merged(tree, path)
    model, base = tree.host.model, path.with_name("base.safetensors")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, str(base))
    state = load_safetensors_with_lora_and_fp8(str(base), [load_file(str(path))], [1.0], False, torch.device("cpu"))
    model.load_state_dict(state)
    return None


def merged(tree: Tree, path: Path) -> None:
    """As its training continues a LoRA (--dim_from_weights), and its Kontext script draws with one."""
    state = load_file(str(path))
    network = NETWORKS[tree.family].create_arch_network_from_weights(
        1.0, state, unet=tree.host.model, for_inference=True
    )
    network.merge_to(None, tree.host.model, state, torch.float32, torch.device("cpu"))


def write(tree: Tree, path: Path) -> None:
    """A file of its own training: its default layers, rank 4, alpha 2, random weights."""
    model = tree.host.model
    network = NETWORKS[tree.family].create_arch_network(1.0, 4, 2.0, None, [], model)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    randomised(network)
    network.save_weights(str(path), torch.float32, {})
    for layer in model.modules():  # the layers get their own forward back
        vars(layer).pop("forward", None)


trains = merged
