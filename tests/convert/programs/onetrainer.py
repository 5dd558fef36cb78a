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
from loom_diffusers_models import TEXT, denoiser, encoder, with_words
from loom_harness import Tree, folder, randomised
from safetensors.torch import load_file

TITLE, FOLDER = "OneTrainer", "onetrainer"
HOME = folder(FOLDER)
sys.path[:0] = [str(HOME)]

from modules.module.LoRAModule import LoRAModule, LoRAModuleWrapper  # noqa: E402
from modules.util.config.TrainConfig import TrainConfig  # noqa: E402
from modules.util.enum.ModelFormat import ModelFormat  # noqa: E402
from modules.util.enum.ModelType import ModelType, PeftType  # noqa: E402
from modules.util.enum.TrainingMethod import TrainingMethod  # noqa: E402
from modules.util.ModelNames import EmbeddingName, ModelNames  # noqa: E402

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
    "hunyuanvideo": ("HUNYUAN_VIDEO", "HunyuanVideoModel", "hunyuanVideo.HunyuanVideoLoRALoader", "HunyuanVideoLoRALoader"),
    "hidream": ("HI_DREAM_FULL", "HiDreamModel", "hiDream.HiDreamLoRALoader", "HiDreamLoRALoader"),
    "anima": ("ANIMA", "AnimaModel", "AnimaModelLoader", "AnimaLoRALoader"),
    "pixart": ("PIXART_SIGMA", "PixArtAlphaModel", "pixartAlpha.PixArtAlphaLoRALoader", "PixArtAlphaLoRALoader"),
    "krea2": ("KREA_2", "Krea2Model", "krea2.Krea2LoRALoader", "Krea2LoRALoader"),
    "ideogram4": ("IDEOGRAM_4", "IdeogramModel", "IdeogramModelLoader", "IdeogramLoRALoader"),
    "ernieimage": ("ERNIE", "ErnieModel", "ErnieModelLoader", "ErnieLoRALoader"),
}  # fmt: skip
FAMILIES = tuple(MODELS)
CONVOLUTIONS_OF = (
    "lora",
)  # kinds whose change of a convolution can be told from the program's own product of the factors
ONE_ENCODER = ("sd1", "sd2", "chroma", "pixart")
OTHER_ENCODER = (
    "qwen-image",
    "anima",
    "krea2",
    "ideogram4",
    "ernieimage",
)  # whose layers the loader may ask for; we write none


LISTED_IN = "modules.util.enum.ModelType"


def models() -> list[str]:
    return [kind.name for kind in ModelType]


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
    for component, name in TEXT.get(family, {}).items():
        parts[component] = encoder(family, name)
        number = component.rpartition("_")[2] if component[-1].isdigit() else "1"
        setattr(host, "text_encoder" if family in ONE_ENCODER else f"text_encoder_{number}", parts[component])
        out.add_text(name, parts[component])
    if family in OTHER_ENCODER:
        host.text_encoder = torch.nn.Module()
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


def filtered(part: torch.nn.Module, prefix: str, state: dict, groups: list | None) -> list[str] | None:
    """The layer filter that chooses the layers of the file: the denoiser's setting of this program. None, for all layers, where it knows none of them."""
    layers = {key.removeprefix(f"{prefix}.") for key in state if key.startswith(f"{prefix}.")}
    layers = {
        re.sub(r"\.(lora_down\.weight|lora_up\.weight|alpha|dora_scale|(hada|lokr|oft)_.*)$", "", layer)
        for layer in layers
    }
    for _, leaves, fused, _ in groups or []:
        for layer in [layer for layer in layers if layer.endswith(f".{fused}")]:
            layers |= {f"{layer.removesuffix(fused)}{leaf}" for leaf in leaves}
    known = [re.escape(name) for name, _ in part.named_modules() if name in layers]
    return [f"^({'|'.join(known)})$"] if known else None


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


WRITTEN_AS = ("DIFFUSERS_LORA", "KOHYA_LORA", "COMFY_LORA", "LEGACY_LORA")
SAVERS = {
    "sd1": "stableDiffusion.StableDiffusion", "sd2": "stableDiffusion.StableDiffusion", "sdxl": "stableDiffusionXL.StableDiffusionXL", "flux1": "flux.Flux",
    "chroma": "chroma.Chroma", "sd3": "stableDiffusion3.StableDiffusion3", "flux2": "flux2.Flux2", "z-image": "zImage.ZImage", "qwen-image": "qwen.Qwen",
    "hunyuanvideo": "hunyuanVideo.HunyuanVideo", "hidream": "hidream.HiDream", "anima": "anima.Anima", "pixart": "pixartAlpha.PixArtAlpha",
    "krea2": "krea2.Krea2", "ideogram4": "ideogram.Ideogram", "ernieimage": "ernie.Ernie",
}  # fmt: skip


def write(tree: Tree, path: Path, form: str) -> dict[str, torch.Tensor] | None:
    """A file of its own training in one of its formats: attention and MLPs of each part, rank 4, alpha 2, random weights; what they change. None where the
    program has no such format for the model.
    """
    host, config = tree.host.model, TrainConfig.default_values()
    config.train_device, config.lora_rank, config.lora_alpha, config.layer_filter_regex = "cpu", 4, 2.0, True
    host.train_config, host.lora_state_dict, change = config, None, {}
    for prefix, part in tree.host.parts.items():
        denoiser = prefix in ("unet", "transformer")
        groups = host.fusion_groups() if denoiser else None
        wrapper = LoRAModuleWrapper(
            part,
            prefix,
            config,
            [r"(attn|attention|mlp|ff)"] if denoiser else None,
            fusion_spec=groups,
            fuse=bool(groups) and ModelFormat[form].needs_qkv_fusion(),
        )
        rng = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for weight in wrapper.parameters():
                weight.copy_(torch.randn(weight.shape, generator=rng) * 0.2)
        change |= changes_of(tree, prefix, part, wrapper)
        number = (
            ""
            if denoiser or hasattr(host, "text_encoder_lora")
            else f"_{prefix.rpartition('_')[2] if prefix[-1].isdigit() else 1}"
        )
        setattr(host, f"{prefix if denoiser else 'text_encoder'}{number}_lora", wrapper)
    folder_name, _, cls = SAVERS[tree.family].partition(".")
    saver = getattr(importlib.import_module(f"modules.modelSaver.{folder_name}.{cls}LoRASaver"), f"{cls}LoRASaver")()
    try:
        saver.save(host, ModelFormat[form], str(path), torch.float32)
    except NotImplementedError:
        return None
    return change


def changes(
    tree: Tree, prefix: str, part: torch.nn.Module, config: TrainConfig, state: dict
) -> dict[str, torch.Tensor]:
    """Label -> change of the weight of each layer that carries an adapter of the file."""
    return changes_of(tree, prefix, part, wrapped(tree, prefix, part, config, state))


def changes_of(tree: Tree, prefix: str, part: torch.nn.Module, wrapper: LoRAModuleWrapper) -> dict[str, torch.Tensor]:
    """Label -> change of the weight of each layer that carries an adapter."""
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
                if isinstance(
                    layer, torch.nn.Linear
                ):  # the gate of HiDream's experts is none, and gets no adapter there
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


EMBEDDINGS = ("sd1", "sd2", "sdxl", "flux1", "sd3")
SETUPS = {
    "sd1": ("StableDiffusion", "text_encoder"), "sd2": ("StableDiffusion", "text_encoder"), "sdxl": ("StableDiffusionXL", "text_encoder_{}"),
    "flux1": ("Flux", "text_encoder_{}"), "sd3": ("StableDiffusion3", "text_encoder_{}"),
}  # fmt: skip


def embedding(family: str, path: Path) -> dict[str, torch.Tensor]:
    """What its training continues from: the file by its loader, the vectors that its setup makes of that."""
    kind, cls, _, _ = MODELS[family]
    setup_name, component = SETUPS[family]
    host = getattr(importlib.import_module(f"modules.model.{cls}"), cls)(ModelType[kind])
    loader_name = f"{setup_name}EmbeddingLoader"
    folder_name = setup_name[0].lower() + setup_name[1:]
    loader = getattr(importlib.import_module(f"modules.modelLoader.{folder_name}.{loader_name}"), loader_name)()
    names = ModelNames(embedding=EmbeddingName("x", str(path)))
    loader.load(host, "", names)
    words = with_words(family)
    config = TrainConfig.default_values()
    config.training_method = TrainingMethod.EMBEDDING
    config.embedding.uuid, config.embedding.placeholder, config.embedding.token_count = "x", "zog", 2
    host.train_config = config
    encoders = {}
    for number, (part, name) in enumerate(TEXT[family].items(), start=1):
        place = component.format(number)
        setattr(host, place, getattr(words, part))
        setattr(
            host, place.replace("text_encoder", "tokenizer"), getattr(words, part.replace("text_encoder", "tokenizer"))
        )
        encoders[place] = name
    setup_cls = importlib.import_module(f"modules.modelSetup.Base{setup_name}Setup")
    setup = types.SimpleNamespace(
        train_device="cpu", temp_device="cpu", _add_embeddings_to_tokenizer=lambda *words: None
    )
    base = getattr(setup_cls, f"Base{setup_name}Setup")
    base._setup_embeddings(setup, host, config)
    found = {name: getattr(host.embedding, f"{place}_embedding").vector for place, name in encoders.items()}
    return {name: vector.detach() for name, vector in found.items() if vector is not None}
