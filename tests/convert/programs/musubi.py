"""musubi-tuner: a LoRA merged while the model is read, as its scripts that draw pictures and videos do (Flux.1 Kontext: after it), on its own classes."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path

import torch
from loom_harness import Tree, change_by, folder, randomised
from loom_small_models import FLUX
from safetensors.torch import load_file, save_file

TITLE, FOLDER = "musubi-tuner", "musubi-tuner"
FAMILIES = ("flux1", "flux2", "z-image", "qwen-image", "wan", "hunyuanvideo", "kandinsky5", "krea2", "ideogram4")
HOME = folder(FOLDER)
sys.path[:0] = [str(HOME / "src")]
logging.disable(logging.WARNING)
torch.cuda.current_device = lambda: 0  # a default argument of a text encoder's class asks for it while it is imported

from musubi_tuner.networks import (  # noqa: E402
    lora,
    lora_flux,
    lora_flux_2,
    lora_ideogram4,
    lora_kandinsky,
    lora_krea2,
    lora_qwen_image,
    lora_wan,
    lora_zimage,
)
from musubi_tuner.utils.lora_utils import load_safetensors_with_lora_and_fp8  # noqa: E402

NETWORKS = {
    "flux1": lora_flux,
    "flux2": lora_flux_2,
    "z-image": lora_zimage,
    "qwen-image": lora_qwen_image,
    "wan": lora_wan,
    "hunyuanvideo": lora,
    "kandinsky5": lora_kandinsky,
    "krea2": lora_krea2,
    "ideogram4": lora_ideogram4,
}
MERGED = ("flux1", "hunyuanvideo", "kandinsky5", "ideogram4")  # whose scripts add a LoRA to the model that is read


LISTED_IN = "its scripts of training"


def models() -> list[str]:
    return [path.stem for path in (HOME / "src/musubi_tuner").glob("*train_network*.py")]


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
    if family in NEWER:
        return NEWER[family]()
    from musubi_tuner.wan.modules import model

    return model.WanModel(
        model_type="i2v", dim=32, in_dim=36, ffn_dim=64, freq_dim=16, text_dim=24, out_dim=16, num_heads=2, num_layers=4, attn_mode="torch"
    )  # fmt: skip


def hunyuan_video() -> torch.nn.Module:
    from musubi_tuner.hunyuan_model import models

    return models.HYVideoDiffusionTransformer(
        text_states_dim=24, text_states_dim_2=20, in_channels=16, out_channels=16, hidden_size=32, heads_num=2, mm_double_blocks_depth=3,
        mm_single_blocks_depth=3, rope_dim_list=[4, 4, 8], guidance_embed=True, attn_mode="torch",
    )  # fmt: skip


def kandinsky5() -> torch.nn.Module:
    from musubi_tuner.kandinsky5.models import dit

    return dit.DiffusionTransformer3D(
        in_visual_dim=16, out_visual_dim=16, in_text_dim=24, in_text_dim2=20, time_dim=16, model_dim=32, ff_dim=64, num_text_blocks=2,
        num_visual_blocks=3, axes_dims=(4, 6, 6),
    )  # fmt: skip


def krea2() -> torch.nn.Module:
    from musubi_tuner.krea2 import krea2_mmdit

    config = krea2_mmdit.SingleMMDiTConfig(
        features=64, tdim=32, txtdim=16, heads=2, multiplier=4, layers=3, patch=2, channels=16, kvheads=1, txtlayers=3, txtheads=2, txtkvheads=2
    )  # fmt: skip
    return krea2_mmdit.SingleStreamDiT(config)


def ideogram4() -> torch.nn.Module:
    from musubi_tuner.ideogram4 import ideogram4_model

    config = ideogram4_model.Ideogram4Config(
        emb_dim=64, num_layers=3, num_heads=2, intermediate_size=96, adanln_dim=32, llm_features_dim=48, mrope_section=(6, 5, 5)
    )  # fmt: skip
    return ideogram4_model.Ideogram4Transformer(config)


NEWER = {"hunyuanvideo": hunyuan_video, "kandinsky5": kandinsky5, "krea2": krea2, "ideogram4": ideogram4}


def tree(family: str) -> Tree:
    model = randomised(denoiser(family))
    out = Tree(family, types.SimpleNamespace(model=model))
    out.add_denoiser(model)
    return out


def load(tree: Tree, path: Path) -> None:
    if tree.family in MERGED:
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


def write(tree: Tree, path: Path, form: str) -> dict[str, torch.Tensor]:
    """A file of its own training: its default layers, rank 4, alpha 2, random weights."""
    model = tree.host.model
    network = NETWORKS[tree.family].create_arch_network(1.0, 4, 2.0, None, [], model)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    randomised(network)
    network.save_weights(str(path), torch.float32, {})
    for layer in model.modules():  # the layers get their own forward back
        vars(layer).pop("forward", None)
    return change_by(sys.modules[__name__], tree, path)


trains = merged
