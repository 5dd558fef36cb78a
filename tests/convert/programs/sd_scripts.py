"""sd-scripts: the networks modules' own reader, as its inference and its training with --dim_from_weights call it, on its own model classes."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path

import torch
import transformers
from loom_harness import Tree, change_by, clip, folder, randomised, stand_in, t5
from loom_small_models import ENCODERS, FLUX, HOST, projects

TITLE, FOLDER = "sd-scripts", "sd-scripts"
FAMILIES = ("sd1", "sd2", "sdxl", "flux1", "chroma", "sd3", "lumina2", "anima")
HOME = folder(FOLDER)

sys.path[:0] = [str(HOME)]
for absent in ("cv2", "imagesize", "toml"):
    stand_in(absent)
logging.disable(logging.WARNING)
transformers.CLIPFeatureExtractor = transformers.CLIPImageProcessor  # its name until version 5

from library import anima_models, flux_models, lumina_models, original_unet, sd3_models, sdxl_original_unet  # noqa: E402
from networks import lora, lora_anima, lora_flux, lora_lumina, lora_sd3  # noqa: E402

NETWORKS = {"flux1": lora_flux, "chroma": lora_flux, "sd3": lora_sd3, "lumina2": lora_lumina, "anima": lora_anima}
# The widths of the published UNets, and of Anima's adapter, are constants of these modules.
original_unet.BLOCK_OUT_CHANNELS = (32, 64, 128, 128)
original_unet.TIMESTEP_INPUT_DIM, original_unet.TIME_EMBED_DIM = 32, 128
sdxl_original_unet.MODEL_CHANNELS, sdxl_original_unet.TIME_EMBED_DIM = 32, 128
sdxl_original_unet.ADM_IN_CHANNELS, sdxl_original_unet.CONTEXT_DIM = 40, 24
ADAPTER = anima_models.LLMAdapter
anima_models.LLMAdapter = lambda **_: ADAPTER(16, 24, 24, num_layers=2, num_heads=2, self_attn=True)


LISTED_IN = "its scripts and models"


def models() -> list[str]:
    return [
        "sd15",
        "sd2",
        *(path.stem for path in (*HOME.glob("*_train_network*.py"), *HOME.glob("library/*_models.py"))),
    ]


def denoiser(family: str) -> torch.nn.Module:
    if family in ("sd1", "sd2"):
        return original_unet.UNet2DConditionModel(
            sample_size=8, cross_attention_dim=24, use_linear_projection=family == "sd2", attention_head_dim=8 if family == "sd1" else [2, 4, 8, 8]
        )  # fmt: skip
    if family == "sdxl":
        return sdxl_original_unet.SdxlUNet2DConditionModel()
    if family == "flux1":
        return flux_models.Flux(flux_models.FluxParams(**{**FLUX, "in_channels": 64}, guidance_embed=True))
    if family == "chroma":
        from library import chroma_models

        return chroma_models.Chroma(
            chroma_models.ChromaParams(
                in_channels=64, context_in_dim=24, hidden_size=32, mlp_ratio=4.0, num_heads=2, depth=19, depth_single_blocks=38, axes_dim=[4, 4, 8],
                theta=10000, qkv_bias=True, guidance_embed=True, approximator_in_dim=64, approximator_depth=5, approximator_hidden_size=48, _use_compiled=False,
            )
        )  # fmt: skip
    if family == "sd3":
        return sd3_models.MMDiT(
            input_size=None, pos_embed_max_size=4, patch_size=2, in_channels=16, depth=3, num_patches=16, adm_in_channels=40, context_embedder_in_features=48,
            context_embedder_out_features=192,
        )  # fmt: skip
    if family == "anima":
        return anima_models.Anima(
            **{k: v for k, v in HOST["anima"][1].items() if k != "image_model"}, use_llm_adapter=True
        )
    return lumina_models.NextDiT(
        patch_size=2, in_channels=16, dim=96, n_layers=4, n_refiner_layers=2, n_heads=6, n_kv_heads=2, multiple_of=8, cap_feat_dim=24, axes_dims=[4, 4, 8],
        axes_lens=[64, 64, 64], qk_norm=True,
    )  # fmt: skip


def tree(family: str) -> Tree:
    model = randomised(denoiser(family))
    encoders = []
    out = Tree(family, types.SimpleNamespace(model=model, encoders=encoders))
    out.add_denoiser(model)
    for encoder, layers in ENCODERS.get(family, {}).items():
        projection = projects(family, encoder)
        encoders.append(t5(16, layers) if encoder == "t5xxl" else clip(16, layers, projection))
        out.add_text(encoder, encoders[-1])
    if family in ("lumina2", "anima"):
        encoders.append(torch.nn.Module())  # Gemma or Qwen, of which we write nothing
    if family == "chroma":
        encoders.insert(0, None)  # the reader counts the encoders of Flux.1
    return out


def load(tree: Tree, path: Path) -> None:
    reader = NETWORKS.get(tree.family, lora)
    encoders = tree.host.encoders
    if reader is lora and len(encoders) == 1:
        encoders = encoders[0]
    network, state = reader.create_network_from_weights(
        1.0, str(path), None, encoders, tree.host.model, for_inference=True
    )
    network.merge_to(encoders, tree.host.model, state, torch.float32, "cpu")


def write(tree: Tree, path: Path, form: str) -> dict[str, torch.Tensor]:
    """A file of its own training: its default layers, rank 4, alpha 2, random weights."""
    writer = NETWORKS.get(tree.family, lora)
    encoders = tree.host.encoders
    if writer is lora and len(encoders) == 1:
        encoders = encoders[0]
    network = writer.create_network(1.0, 4, 2.0, None, encoders, tree.host.model)
    network.apply_to(
        encoders, tree.host.model, apply_text_encoder=tree.family not in ("lumina2", "anima"), apply_unet=True
    )
    randomised(network)
    network.save_weights(str(path), torch.float32, {})
    for part in (tree.host.model, *filter(None, tree.host.encoders)):
        for layer in part.modules():  # the layers get their own forward back
            vars(layer).pop("forward", None)
    return change_by(sys.modules[__name__], tree, path)


EMBEDDINGS = ("sd1", "sd2", "sdxl")


def embedding(family: str, path: Path) -> dict[str, torch.Tensor]:
    """What its training continues from (--weights)."""
    if family == "sdxl":
        import sdxl_train_textual_inversion as script

        taken = script.SdxlTextualInversionTrainer().load_weights(str(path))
    else:
        import train_textual_inversion as script

        taken = script.TextualInversionTrainer().load_weights(str(path))
    return {name: vectors for name, vectors in zip(ENCODERS[family], taken) if vectors is not None}
