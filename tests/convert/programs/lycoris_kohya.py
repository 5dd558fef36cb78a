"""LyCORIS: `lycoris.kohya`, the network module of sd-scripts and musubi-tuner, on sd-scripts' model classes."""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path

import torch
from loom_sd_scripts import FAMILIES, tree
from lycoris import kohya
from lycoris.logging import logger

TITLE, FOLDER = "LyCORIS", "sd-scripts"
VERSION = importlib.metadata.version("lycoris-lora")
logger.setLevel(logging.ERROR)
kohya.logger.setLevel(logging.ERROR)


def load(tree, path: Path) -> None:
    encoders = tree.host.encoders
    if len(encoders) < 2 and tree.family in ("sd1", "sd2"):
        encoders = encoders[0]
    network, state = kohya.create_network_from_weights(
        1.0, str(path), None, encoders, tree.host.model, for_inference=True
    )
    network.merge_to(encoders, tree.host.model, state, torch.float32, "cpu")


__all__ = ["FAMILIES", "FOLDER", "TITLE", "VERSION", "load", "tree"]
