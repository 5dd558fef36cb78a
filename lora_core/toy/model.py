"""Where the toy model lies, and its bundled picture sets."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE / "model"
SETS = HERE / "sets"


def set_folder(name: str) -> Path:
    """Folder of a bundled picture set (object, style, pair, word)."""
    return SETS / name


def set_names() -> list[str]:
    return sorted(p.name for p in SETS.iterdir() if p.is_dir()) if SETS.is_dir() else []


def resolve_set(folder: str) -> str:
    """`toy:NAME` as the folder of that bundled set; anything else as it is."""
    name = folder.removeprefix("toy:")
    return str(set_folder(name)) if folder.startswith("toy:") and name in set_names() else folder
