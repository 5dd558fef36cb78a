"""Which captioners lie in folders of the user's: named below the folder they were found in, never by a path that came from outside."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..messages.errors import LoomError
from .base import Captioner
from .tagger import GENERAL_BAR, Tagger, table_of
from .vision import VisionModel, looks_like_one

FOLDER = "captioners"  # where a host looks for them: models/captioners
FOLDERS = (
    FOLDER,
    "wd14_tagger",
    "wd14-tagger",
    "taggers",
    "tagger",
    "LLM",
    "llm",
    "VLM",
    "vlm",
    "blip",
    "BLIP",
    "florence2",
    "llm_gguf",
    "onnx",
)
DEEPEST, MAX_LOOKED_AT = 3, 5000  # folders


def captioners(roots: Sequence[Path]) -> dict[str, Path]:
    """Name -> ONNX file of a tagger, or folder of a transformers model, below `roots`."""
    out: dict[str, Path] = {}
    for root in roots:
        for path in _below(root):
            out.setdefault(f"{root.name}/{path.relative_to(root).as_posix()}".removesuffix("/."), path)
    return dict(sorted(out.items()))


def _below(root: Path) -> list[Path]:
    """Links are followed only while they stay below the folder that `root` lies in; each folder is entered once."""
    places, queue, seen, models = [], [(root, 0)], set[Path](), root.resolve().parent
    while queue and len(seen) < MAX_LOOKED_AT:
        folder, depth = queue.pop(0)
        real = folder.resolve()
        if real in seen or not real.is_relative_to(models):
            continue
        seen.add(real)
        if looks_like_one(folder):
            places.append(folder)
            continue
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = Path(entry.path)
                if entry.is_dir() and not entry.name.startswith(".") and depth < DEEPEST:
                    queue.append((path, depth + 1))
                elif entry.is_file() and _is_tagger(path) and path.resolve().is_relative_to(models):
                    places.append(path)
    return places


def _is_tagger(path: Path) -> bool:
    return path.suffix.lower() == ".onnx" and table_of(path) is not None


def known_roots(models: Sequence[Path]) -> list[Path]:
    """The folders among a host's folders of models in which captioners lie, ours first."""
    return [root / name for root in models for name in FOLDERS if (root / name).is_dir()]


def opened(
    name: str,
    known: Mapping[str, Path],
    device: torch.device,
    max_tokens: int,
    bar: float = GENERAL_BAR,
    character: bool = True,
) -> Captioner:
    """The captioner of that name among the `known` ones. Raises LoomError."""
    path = known.get(name)
    if path is None:
        raise LoomError("captioning.unknown", field="captioner", captioner=repr(name), known=list(known)[:20])
    if path.is_dir():
        return VisionModel(path, device, max_tokens)
    return Tagger(path, bar, character)
