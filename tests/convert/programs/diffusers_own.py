"""diffusers: `load_lora_weights` and `fuse_lora` of the family's own pipeline."""

from __future__ import annotations

import inspect
import re
import types
import warnings
from pathlib import Path

import diffusers
import peft
import torch
from diffusers.loaders import lora_pipeline
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from loom_diffusers_models import NEWER, TEXT, denoiser, encoder, learnt, with_words
from loom_harness import Tree, randomised
from safetensors.torch import load_file

TITLE, FOLDER, VERSION = "diffusers", "diffusers", diffusers.__version__
FAMILIES = ("sd1", "sd2", "sdxl", "flux1", "chroma", "sd3", "flux2", "z-image", "lumina2", "qwen-image", "wan", *NEWER)
NOT_RUN = {
    "PixArt": "neither its pipeline nor its transformer reads a LoRA file",
    "Flux.1 and Chroma in Kohya form, HunyuanVideo in universal": "its reader has the widths of the published models in it",
}
FAMILIES = tuple(family for family in FAMILIES if family != "pixart")
PIPELINES = {
    "sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "flux1": "FluxPipeline",
    "chroma": "ChromaPipeline", "sd3": "StableDiffusion3Pipeline", "flux2": "Flux2KleinPipeline", "z-image": "ZImagePipeline",
    "lumina2": "Lumina2Pipeline", "qwen-image": "QwenImagePipeline", "wan": "WanImageToVideoPipeline", "hunyuanvideo": "HunyuanVideoPipeline",
    "ltxv": "LTXPipeline", "hidream": "HiDreamImagePipeline", "kandinsky5": "Kandinsky5T2IPipeline", "auraflow": "AuraFlowPipeline",
    "krea2": "Krea2Pipeline", "ideogram4": "Ideogram4Pipeline", "ernieimage": "ErnieImagePipeline",
}  # fmt: skip
UNETS = ("sd1", "sd2", "sdxl")  # whose text encoders it saves and reads too
OPTIONAL = {
    "return",
    "requires_safety_checker",
    "is_distilled",
    "boundary_ratio",
    "expand_timesteps",
    "force_zeros_for_empty_prompt",
    "add_watermarker",
    "text_encoder_select_layers",
    "patch_size",
}
# Of which the pipelines are built of blocks, or want a newer library for their text encoder: the reader that they inherit.
READERS = {"ltxav": "LTX2LoraLoaderMixin", "anima": "AnimaLoraLoaderMixin", "cosmospredict2": "CosmosLoraLoaderMixin"}
KINDS_ON = ("z-image",)  # the kinds beside LoRA are tried on one model: loading takes long
NOT_AT_NARROW_WIDTH = {
    ("flux1", "kohya"),
    ("chroma", "kohya"),
    ("hunyuanvideo", "universal"),
}  # the reader has the widths of the published models in it
warnings.filterwarnings("ignore")


LISTED_IN = "the transformers and UNets of diffusers"


def models() -> list[str]:
    return [name for name in dir(diffusers) if re.search(r"(Transformer|UNet)[23]D|Pipeline$", name)]


def tree(family: str) -> Tree:
    out = Tree(family, types.SimpleNamespace(parts={}))
    parts = {"unet" if family in ("sd1", "sd2", "sdxl") else "transformer": randomised(denoiser(family, depth=3))}
    for component, name in TEXT.get(family, {}).items():
        parts[component] = encoder(family, name)
    for component, model in parts.items():
        if component in TEXT.get(family, {}):
            out.add_text(TEXT[family][component], model)
        else:
            out.add_denoiser(model)
    out.host.parts = parts
    return out


def by_reader(tree: Tree):
    """What the reader of a pipeline asks of it, around the transformer."""
    host = type(
        "Host", (getattr(lora_pipeline, READERS[tree.family]),), {"transformer": tree.host.parts["transformer"]}
    )()
    host.components, host.hf_device_map = {"transformer": host.transformer}, None
    return host


def pipeline_of(tree: Tree):
    cls = getattr(diffusers, PIPELINES[tree.family])
    taken = cls.__init__.__annotations__
    more = {"requires_safety_checker": False} if "requires_safety_checker" in taken else {}
    return cls(**{name: tree.host.parts.get(name) for name in taken if name not in OPTIONAL}, **more)


def load(tree: Tree, path: Path):
    if tree.family not in PIPELINES and tree.family not in READERS:
        return by_transformer(tree, path)
    pipeline = (by_reader if tree.family in READERS else pipeline_of)(tree)
    before = {label: weight().detach().clone() for label, weight in tree.weights.items()}
    try:
        pipeline.load_lora_weights(str(path), adapter_name="x")
        pipeline.fuse_lora(components=[name for name in pipeline._lora_loadable_modules if name in tree.host.parts])
        return {label: weight().detach() - before[label] for label, weight in tree.weights.items()}
    finally:
        pipeline.unload_lora_weights()


def by_transformer(tree: Tree, path: Path):
    """As a transformer reads whose pipeline has no reader."""
    transformer = tree.host.parts["transformer"]
    before = {label: weight().detach().clone() for label, weight in tree.weights.items()}
    try:
        transformer.load_lora_adapter(str(path), adapter_name="x")
        transformer.fuse_lora()
        return {label: weight().detach() - before[label] for label, weight in tree.weights.items()}
    finally:
        if hasattr(transformer, "peft_config"):
            transformer.unload_lora()


WRITTEN_AS = ("save_lora_weights", "save_lora_adapter")


def write(tree: Tree, path: Path, form: str) -> dict[str, torch.Tensor] | None:
    """A file of its own saving: PEFT adapters over attention and MLPs, rank 4, alpha 2, random weights; what PEFT says they change. None where there is no
    such saving for the model.
    """
    parts = {
        name: model
        for name, model in tree.host.parts.items()
        if name in ("unet", "transformer") or tree.family in UNETS
    }
    cls = None if tree.family not in PIPELINES else getattr(diffusers, PIPELINES[tree.family])
    if form == "save_lora_weights" and not hasattr(cls, "save_lora_weights"):
        return None
    if form == "save_lora_adapter":
        parts = {name: model for name, model in parts.items() if hasattr(model, "save_lora_adapter")}
    config = peft.LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=r".*(attn|attention|mlp|ff|feed_forward|self_attention)\S*",
        init_lora_weights=False,
    )
    change, layers, metadata = {}, {}, {}
    for name, model in parts.items():
        layered = [
            path for path, layer in model.named_modules() if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
        ]
        config.target_modules = {
            path for path in layered if re.search("attn|attention|mlp|ff", path) and "gate" not in path
        }
        model.add_adapter(config) if hasattr(model, "add_adapter") else peft.inject_adapter_in_model(config, model)
        label = TEXT.get(tree.family, {}).get(name, name)
        for path_, layer in model.named_modules():
            if isinstance(layer, peft.tuners.lora.LoraLayer):
                change[f"{label}.{path_}"] = layer.get_delta_weight("default").detach()
        layers[name], metadata[name] = peft.get_peft_model_state_dict(model, adapter_name="default"), config.to_dict()
    try:
        if form == "save_lora_adapter":
            next(iter(parts.values())).save_lora_adapter(str(path.parent), "default", weight_name=path.name)
        else:
            told = {f"{name}_lora_layers": value for name, value in layers.items()}
            told |= {f"{name}_lora_adapter_metadata": value for name, value in metadata.items()}
            taken = inspect.signature(cls.save_lora_weights).parameters
            cls.save_lora_weights(
                str(path.parent), weight_name=path.name, **{k: v for k, v in told.items() if k in taken}
            )
    finally:
        for model in parts.values():
            recurse_remove_peft_layers(model)
            vars(model).pop("peft_config", None)
            model._hf_peft_config_loaded = False
    return change


EMBEDDINGS = ("sd1", "sd2", "sdxl", "flux1", "sd3")
KEYS = {
    "clip_l": "clip_l",
    "clip_h": "clip_h",
    "clip_g": "clip_g",
    "t5xxl": "t5",
}  # as its guides name the parts of a file for several encoders


def embedding(family: str, path: Path) -> dict[str, torch.Tensor]:
    """What `load_textual_inversion` puts into the encoders: of the file where there is one of them, else of each part, as its guides do it."""
    pipeline = with_words(family)
    state = load_file(path)
    for component, name in TEXT[family].items():
        words, encoder = getattr(pipeline, component.replace("text_encoder", "tokenizer")), getattr(pipeline, component)
        loader = type("Loader", (diffusers.loaders.TextualInversionLoaderMixin,), {"components": {}})()
        loader.components, loader.hf_device_map = {"text_encoder": encoder, "tokenizer": words}, None
        source = str(path) if len(TEXT[family]) == 1 else state.get(KEYS[name])
        if source is not None:
            loader.load_textual_inversion(source, token="zog", text_encoder=encoder, tokenizer=words)
    return learnt(family, pipeline)
