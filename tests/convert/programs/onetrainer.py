"""OneTrainer: its own loaders and adapter modules, on diffusers' models. Kind, rank, alpha, layers, and whether q, k and v are one layer, are what its user
sets; they are set as the file has them.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import types
from pathlib import Path

import torch
from loom_diffusers_models import TEXT, denoiser, encoder
from loom_harness import Tree, folder, randomised
from safetensors.torch import load_file

TITLE, FOLDER = "OneTrainer", "onetrainer"
FAMILIES = ("sd1", "sd2", "sdxl", "flux1", "chroma", "sd3", "flux2", "z-image", "qwen-image")
HOME = folder(FOLDER)
sys.path[:0] = [str(HOME)]

from modules.module.LoRAModule import LoRAModule, LoRAModuleWrapper  # noqa: E402
from modules.util.config.TrainConfig import TrainConfig  # noqa: E402
from modules.util.enum.ModelType import ModelType, PeftType  # noqa: E402

# family -> (kind of model, its class, the module and class of its loader)
MODELS = {
    "sd1": ("STABLE_DIFFUSION_15", "StableDiffusionModel", "stableDiffusion.StableDiffusionLoRALoader", "StableDiffusionLoRALoader"),
    "sd2": ("STABLE_DIFFUSION_21", "StableDiffusionModel", "stableDiffusion.StableDiffusionLoRALoader", "StableDiffusionLoRALoader"),
    "sdxl": ("STABLE_DIFFUSION_XL_10_BASE", "StableDiffusionXLModel", "stableDiffusionXL.StableDiffusionXLLoRALoader", "StableDiffusionXLLoRALoader"),
    "flux1": ("FLUX_DEV_1", "FluxModel", "flux.FluxLoRALoader", "FluxLoRALoader"),
    "chroma": ("CHROMA_1", "ChromaModel", "chroma.ChromaLoRALoader", "ChromaLoRALoader"),
    "sd3": ("STABLE_DIFFUSION_3", "StableDiffusion3Model", "stableDiffusion3.StableDiffusion3LoRALoader", "StableDiffusion3LoRALoader"),
    "flux2": ("FLUX_2", "Flux2Model", "Flux2ModelLoader", "Flux2LoRALoader"), "z-image": ("Z_IMAGE", "ZImageModel", "ZImageModelLoader", "ZImageLoRALoader"),
    "qwen-image": ("QWEN", "QwenModel", "qwen.QwenLoRALoader", "QwenLoRALoader"),
}  # fmt: skip
CONVOLUTIONS_OF = (
    "lora",
)  # kinds whose change of a convolution can be told from the program's own product of the factors
ONE_ENCODER = ("sd1", "sd2", "chroma")


def tree(family: str) -> Tree:
    kind, cls, module, loader = MODELS[family]
    host = getattr(importlib.import_module(f"modules.model.{cls}"), cls)(ModelType[kind])
    out = Tree(
        family,
        types.SimpleNamespace(
            model=host, loader=getattr(importlib.import_module(f"modules.modelLoader.{module}"), loader)(), parts={}
        ),
    )
    prefix = "unet" if family.startswith("sd") and family != "sd3" else "transformer"
    parts = {prefix: randomised(denoiser(family))}
    setattr(host, prefix, parts[prefix])
    out.add_denoiser(parts[prefix])
    for number, (component, name) in enumerate(TEXT.get(family, {}).items(), start=1):
        parts[component] = encoder(family, name)
        setattr(host, "text_encoder" if family in ONE_ENCODER else f"text_encoder_{number}", parts[component])
        out.add_text(name, parts[component])
    if family == "qwen-image":
        host.text_encoder = torch.nn.Module()  # whose layers the loader asks for; we write none
    out.host.parts = parts
    return out


def config_for(state: dict[str, torch.Tensor]) -> TrainConfig:
    """What its user has to set for this file."""
    config = TrainConfig.default_values()
    config.train_device = "cpu"
    config.lora_rank = next(
        (v.shape[0] for k, v in state.items() if k.endswith(("lora_down.weight", "lora_A.weight", "hada_w1_b"))), 2
    )
    config.lora_alpha = next((float(v) for k, v in state.items() if k.endswith(".alpha")), float(config.lora_rank))
    config.lora_decompose = any(k.endswith(("dora_scale", "lora_magnitude_vector")) for k in state)
    config.lora_decompose_output_axis = any(k.endswith("dora_scale") and v.shape[0] > 1 for k, v in state.items())
    if any("hada_" in k for k in state):
        config.peft_type = PeftType.LOHA
    elif any("lokr_" in k for k in state):
        config.peft_type, config.lokr_dim = PeftType.LOKR, 2
        config.lokr_full_matrix = not any("lokr_w2_a" in k for k in state)
        config.lokr_decompose_factor = next(v.shape[0] for k, v in state.items() if k.endswith("lokr_w1"))
    elif any("oft_" in k for k in state):
        config.peft_type = PeftType.OFT_2
    return config


def load(tree: Tree, path: Path) -> dict[str, torch.Tensor]:
    host = tree.host
    names = types.SimpleNamespace(lora=str(path))
    host.loader.load(host.model, names)
    config = config_for(load_file(str(path)))
    state = host.model.lora_state_dict
    change: dict[str, torch.Tensor] = {}
    for prefix, part in host.parts.items():
        if any(key.startswith(f"{prefix}.") for key in state):
            change |= changes(tree, prefix, part, config, state)
    return change


def filtered(part: torch.nn.Module, prefix: str, state: dict, groups: list | None) -> list[str]:
    """The layer filter that chooses the layers of the file: the denoiser's setting of this program."""
    layers = {key.removeprefix(f"{prefix}.") for key in state if key.startswith(f"{prefix}.")}
    layers = {
        re.sub(r"\.(lora_down\.weight|lora_up\.weight|alpha|dora_scale|(hada|lokr|oft)_.*)$", "", layer)
        for layer in layers
    }
    for _, leaves, fused, _ in groups or []:
        for layer in [layer for layer in layers if layer.endswith(f".{fused}")]:
            layers |= {f"{layer.removesuffix(fused)}{leaf}" for leaf in leaves}
    known = [re.escape(name) for name, _ in part.named_modules() if name in layers]
    return [f"^({'|'.join(known)})$"]


def wrapped(tree: Tree, prefix: str, part: torch.nn.Module, config: TrainConfig, state: dict) -> LoRAModuleWrapper:
    """The program's adapters over a part of the model, with the file's weights; split ones, or fused ones where the file has them fused."""
    denoiser = prefix in ("unet", "transformer")
    groups = tree.host.model.fusion_groups() if denoiser else None
    config.layer_filter_regex = True
    filters = filtered(part, prefix, state, groups) if denoiser else None
    for fuse in (False, True):
        try:
            wrapper = LoRAModuleWrapper(part, prefix, config, filters, fusion_spec=groups, fuse=fuse)
            wrapper.load_state_dict(state)
        except RuntimeError as error:
            if fuse or "has fused qkv" not in str(error):
                raise
        else:
            return wrapper
    raise AssertionError("unreachable")


def changes(
    tree: Tree, prefix: str, part: torch.nn.Module, config: TrainConfig, state: dict
) -> dict[str, torch.Tensor]:
    """Label -> change of the weight of each layer that carries an adapter."""
    wrapper = wrapped(tree, prefix, part, config, state)
    wrapper.to(dtype=torch.float32)
    convolutions = {
        name: module
        for name, module in wrapper.lora_modules.items()
        if isinstance(module, LoRAModule) and name in dict(part.named_modules())
    }
    base = prefix if prefix in ("unet", "transformer") else dict(TEXT[tree.family])[prefix]
    try:
        wrapper.hook_to_module()
        out = {}
        with torch.no_grad():
            for name, layer in part.named_modules():
                label = f"{base}.{name}"
                if label not in tree.weights or layer.weight.ndim == 1:
                    continue
                if layer.weight.ndim == 2:
                    answer = layer.forward(torch.eye(layer.in_features))
                    out[label] = (answer if layer.bias is None else answer - layer.bias).T - layer.weight
                elif name in convolutions:
                    module = convolutions[name]
                    out[label] = module.make_weight(module.lora_down.weight, module.lora_up.weight) * (
                        module.alpha / module.rank
                    )
    finally:
        for module in wrapper.lora_modules.values():
            with contextlib.suppress(NotImplementedError):  # stand-ins of the program for layers it does not know
                module.remove_hook_from_module()
    return out
