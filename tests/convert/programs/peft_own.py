"""PEFT: `PeftModel.from_pretrained` and `save_pretrained` of directories, on diffusers' and transformers' models."""

from __future__ import annotations

import re
from pathlib import Path

import loom_diffusers_own
import peft
import torch
from loom_diffusers_models import NEWER, TEXT
from loom_harness import Tree

TITLE, FOLDER, VERSION, FORMS = "PEFT", "diffusers", peft.__version__, ()
FAMILIES = (*loom_diffusers_own.PIPELINES, *(family for family in NEWER if family not in loom_diffusers_own.PIPELINES))
LISTED_IN, models, tree = loom_diffusers_own.LISTED_IN, loom_diffusers_own.models, loom_diffusers_own.tree


def load_directories(tree: Tree, places: dict[str, Path]) -> dict[str, torch.Tensor]:
    """What the adapter of each part's directory changes."""
    change = {}
    for name, place in places.items():
        model = peft.PeftModel.from_pretrained(tree.host.parts[name], str(place), adapter_name="x")
        try:
            change |= deltas(tree, name, "x")
        finally:
            model.unload()
    return change


def deltas(tree: Tree, name: str, adapter: str) -> dict[str, torch.Tensor]:
    """Label -> what an adapter says it changes of a part's layers."""
    label = TEXT.get(tree.family, {}).get(name, name)
    layers = {
        path: layer
        for path, layer in tree.host.parts[name].named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    return {f"{label}.{path}": layer.get_delta_weight(adapter).detach() for path, layer in layers.items()}


def write(tree: Tree, path: Path, form: str) -> dict[str, torch.Tensor]:
    """Directories of its own making, one for each part: attention and MLPs, rank 4, alpha 2, random weights."""
    change = {}
    for name, part in tree.host.parts.items():
        sorts = (torch.nn.Linear, torch.nn.Conv2d)
        layers = [
            n
            for n, layer in part.named_modules()
            if isinstance(layer, sorts) and re.search("attn|attention|mlp|ff|dense", n.lower())
        ]
        model = peft.get_peft_model(part, peft.LoraConfig(r=4, lora_alpha=2, target_modules=layers))
        with torch.no_grad():
            for n, weight in enumerate(weight for key, weight in part.named_parameters() if "lora_" in key):
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(n)) * 0.2)
        change |= deltas(tree, name, "default")
        model.save_pretrained(str(path / name))
        model.unload()
    return change


__all__ = [
    "FAMILIES",
    "FOLDER",
    "FORMS",
    "LISTED_IN",
    "TITLE",
    "VERSION",
    "load_directories",
    "models",
    "tree",
    "write",
]
