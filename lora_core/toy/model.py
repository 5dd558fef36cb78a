"""Where the toy model lies, and its bundled picture sets."""

from __future__ import annotations

from pathlib import Path

# What runs of 0.1.0 hold as the fingerprint of its toy, which drew shapes, and what is said of it: headless a job file can still name it, a node cannot.
OF_0_1_0 = {
    "c80b2b8bc4a543d5a87dab421a233c33": "resume.toy_of_0_1_0",
    "0558c632a1ac75622f3164ca48c58788": "resume.toy_of_0_1_0_node",
}
HERE = Path(__file__).resolve().parent
MODEL = HERE / "model"
SETS = HERE / "sets"


def set_folder(name: str) -> Path:
    """Folder of a bundled picture set (mascot, style, object, face, word)."""
    return SETS / name


def set_names() -> list[str]:
    return sorted(p.name for p in SETS.iterdir() if p.is_dir()) if SETS.is_dir() else []


def resolve_set(folder: str) -> str:
    """`toy:NAME` as the folder of that bundled set, `toy:NAME/PART` as one of its folders; anything else as it is."""
    name, _, part = folder.removeprefix("toy:").partition("/")
    if not folder.startswith("toy:") or name not in set_names():
        return folder
    parts = [p.name for p in set_folder(name).iterdir() if p.is_dir()]
    if part and part not in parts:
        return folder
    return str(set_folder(name) / part)
