"""What a model folder in diffusers layout holds, looked up without reading its weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch

from ..messages.errors import LoomError
from ..messages.message import Message

LOCAL = {"local_files_only": True}  # for every from_pretrained: nothing is ever downloaded
_ON_DISK = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn}


def require_parts(folder: Path, parts: Sequence[str], what: str, field: str = "base") -> None:
    """Raises LoomError naming the folders a model in diffusers layout lacks. `what` is the code of the message that says what is needed."""
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise LoomError("base.folders_missing", field=field, folder=folder, missing=missing, needed=Message.of(what))


def stored_dtype(place: Path) -> torch.dtype:
    """The type most weights of a model folder, or of one file, have on disk; float32 where they are in no safetensors file."""
    file = place if place.is_file() else next(iter(sorted(place.glob("*.safetensors"))), None)
    if file is None or file.suffix != ".safetensors":
        return torch.float32
    with safetensors.safe_open(file, "pt") as opened:
        names, values = opened.keys(), Counter[str]()
        for name in names:
            part = opened.get_slice(name)
            values[part.get_dtype()] += math.prod(part.get_shape())
    return _ON_DISK.get(values.most_common(1)[0][0], torch.bfloat16)


def stored_names(folder: Path) -> list[str]:
    """Names of the weights of a model folder's networks; those whose config says how they are quantised, which diffusers reads, excepted."""
    names: list[str] = []
    for file in sorted(folder.glob("*/*.safetensors")):
        try:
            config = json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
            if "quantization_config" not in config:
                with safetensors.safe_open(file, "pt") as opened:
                    names += opened.keys()
        except (OSError, ValueError, safetensors.SafetensorError):
            continue  # said by who reads the part
    return names


def variant_of(place: Path) -> dict[str, str]:
    """`variant` for from_pretrained, where a model folder has its weights under such a name alone (model.fp16.safetensors)."""
    names = [file.name.removesuffix(".safetensors").split("-0")[0] for file in place.glob("*.safetensors")]
    variants = [name.rpartition(".")[2] for name in names if "." in name]
    return {"variant": variants[0]} if variants and len(variants) == len(names) else {}


def config_of(place: Path) -> dict[str, Any]:
    """What config.json of a network's folder holds; nothing where there is none that can be read."""
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def class_in(place: Path) -> str:
    """The class of a network by the config.json of its folder, as diffusers or transformers write it; empty where nothing says it."""
    config = config_of(place)
    names = [config.get("_class_name"), *(config.get("architectures") or [])]
    return next((name for name in names if isinstance(name, str)), "")


def pipeline_name(folder: Path) -> str:
    """What model_index.json calls the pipeline of a folder; empty where there is none."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(index.get("_class_name", "")) if isinstance(index, dict) else ""
