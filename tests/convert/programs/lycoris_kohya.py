"""LyCORIS: `lycoris.kohya`, the network module of sd-scripts and musubi-tuner, on sd-scripts' model classes."""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path

import torch
from loom_harness import randomised
from loom_sd_scripts import FAMILIES, LISTED_IN, models, tree
from loom_small_models import ENCODERS
from lora_loom.convert.families import FAMILIES as FAMILIES_OF
from lycoris import kohya
from lycoris.logging import logger

TITLE, FOLDER = "LyCORIS", "sd-scripts"
VERSION = importlib.metadata.version("lycoris-lora")
logger.setLevel(logging.ERROR)
kohya.logger.setLevel(logging.ERROR)


def load(tree, path: Path) -> None:
    encoders = [
        part or torch.nn.Module() for part in tree.host.encoders
    ]  # as sd-scripts stands in for Chroma's missing CLIP
    if len(encoders) < 2 and tree.family in ("sd1", "sd2"):
        encoders = encoders[0]
    network, state = kohya.create_network_from_weights(
        1.0, str(path), None, encoders, tree.host.model, for_inference=True
    )
    network.merge_to(encoders, tree.host.model, state, torch.float32, "cpu")


WRITTEN_AS = ("locon", "loha", "lokr")


def write(tree, path: Path, form: str) -> dict[str, torch.Tensor]:
    """A file of its own training: its default layers in this kind, rank 4, alpha 2, random weights; what the modules themselves say they change."""
    encoders = [model for model in tree.host.encoders if model is not None]
    network = kohya.create_network(
        1.0, 4, 2.0, None, encoders[0] if len(encoders) == 1 else encoders, tree.host.model, algo=form, factor=4
    )
    network.apply_to(encoders, tree.host.model, apply_text_encoder=bool(ENCODERS.get(tree.family)), apply_unet=True)
    randomised(network)
    network.save_weights(str(path), torch.float32, {})
    labels = {id(module): label for label, module in modules_of(tree)}
    change = {}
    for lora in (*network.text_encoder_loras, *network.unet_loras):
        layer = lora.org_module[0]
        with torch.no_grad():  # by its forward: what some kinds say of their weight has the scale twice
            units = torch.eye(layer.weight[0].numel()).reshape(
                -1, *layer.weight.shape[1:]
            )  # patches, where it is a convolution without padding
            answers = (lora(units) - lora(torch.zeros_like(units[:1]))).flatten(1)
            change[labels[id(layer)]] = answers.T.reshape(layer.weight.shape) - layer.weight
    for _, layer in modules_of(tree):  # the layers get their own forward back
        vars(layer).pop("forward", None)
    return change


def modules_of(tree):
    """(label, layer) of each weight of the tree."""
    for part, model in (
        (FAMILIES_OF[tree.family].component, tree.host.model),
        *zip(ENCODERS.get(tree.family, {}), [model for model in tree.host.encoders if model is not None]),
    ):
        for path, module in model.named_modules():
            if f"{part}.{path}" in tree.weights:
                yield f"{part}.{path}", module


__all__ = ["FAMILIES", "FOLDER", "LISTED_IN", "TITLE", "VERSION", "WRITTEN_AS", "load", "models", "tree", "write"]
