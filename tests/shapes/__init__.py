"""The closed world of the tests: coloured shapes on plain grounds, rulers that read them, and the small model of 0.1.0 that draws them.

`MODEL` is a folder in diffusers layout and named `toy` as that base was; `set_folder(name)` are the pictures it is taught things from.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE / "toy"
BASE = str(MODEL)  # for a job's `base`
SETS = HERE / "sets"


def set_folder(name: str) -> str:
    """Folder of a picture set (object, style, pair, word), for a job's `data.folder`."""
    return str(SETS / name)
