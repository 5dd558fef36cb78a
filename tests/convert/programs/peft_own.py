"""PEFT: `PeftModel.from_pretrained` of a folder that holds the file under the name PEFT gives its own."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from loom_diffusers_own import FAMILIES, tree
from peft import PeftModel

TITLE, FOLDER, VERSION = "PEFT", "peft", importlib.metadata.version("peft")


def load(tree, path: Path) -> None:
    folder = path.parent / "peft"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "adapter_model.safetensors")
    part = next(iter(tree.host.parts.values()))
    PeftModel.from_pretrained(part, folder).merge_adapter()


__all__ = ["FAMILIES", "FOLDER", "TITLE", "VERSION", "load", "tree"]
