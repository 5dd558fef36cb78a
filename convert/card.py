"""The `<name>.json` that A1111 and Forge show beside a LoRA: activation text, base, preferred weight. What the user wrote there stays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SD_VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL", "flux1": "Flux", "sd3": "SD3"}


def card(
    family: str, triggers: tuple[str, ...] = (), description: str = "", weight: float = 1.0, negative: str = ""
) -> dict[str, Any]:
    """What we have to say about a file. Keys as A1111 1.10 writes them (`extensions-builtin/Lora/ui_edit_user_metadata.py`)."""
    return {
        "description": description,
        "sd version": _SD_VERSIONS.get(family, "Unknown"),
        "activation text": ", ".join(triggers),
        "preferred weight": weight,
        "negative text": negative,
        "notes": "",
    }


def merged(existing: str, ours: Mapping[str, Any], written: float = 0.0) -> str:
    """The card's text: every value the user has set stays, empty ones are filled in, keys we do not know are kept. Unreadable text is an error.

    `written`: the weight we put into it before, which is not the user's.
    """
    theirs = json.loads(existing) if existing.strip() else {}
    if not isinstance(theirs, dict):
        raise ValueError(type(theirs).__name__)
    out = {**ours, **{k: v for k, v in theirs.items() if v not in ("", None) or k not in ours}}
    if theirs.get("sd version") == "Unknown":
        out["sd version"] = ours["sd version"]
    if theirs.get("preferred weight") in (0, written):  # 0: A1111's "not set"
        out["preferred weight"] = ours["preferred weight"]
    return json.dumps(out, indent=4, ensure_ascii=False)
