"""Writes js/widget_names.js: what the widget of a config field is called where that is not the field's last word, from the nodes' own tables."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from schemas import ROOT, load_package, without_host  # noqa: E402

PLACE = ROOT / "js" / "widget_names.js"
HEAD = """// @ts-check
// Widgets of config fields that are not called like the field. Made from the nodes by tests/reference/make_texts.py.

/** @type {Record<string, string[]>} */
"""


def text() -> str:
    """The module as it should be."""
    load_package()
    with without_host():
        names = importlib.import_module("lora_loom.nodes.extension").WIDGET_NAMES
    others = {path: widgets for path, widgets in sorted(names.items()) if widgets != (path.rpartition(".")[2],)}
    rows = "".join(f"  {json.dumps(path)}: {json.dumps(list(widgets))},\n" for path, widgets in others.items())
    return f"{HEAD}export const WIDGET_NAMES = {{\n{rows}}};\n"


def write() -> None:
    PLACE.write_text(text(), encoding="utf-8")
