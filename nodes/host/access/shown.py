"""What settings and inputs are called in ComfyUI: by the widget, as its node shows it in the reader's language.

Which widget that is says places.json, which is made from the nodes by tests/reference/make_texts.py; titles and labels are those of locales/.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....lora_core.messages.message import LANGUAGES, Names
from ....lora_core.messages.naming import Rows, display_name

_PLACES = Path(__file__).with_name("places.json")
_LOCALES = Path(__file__).resolve().parents[3] / "locales"


def as_shown(name: str, language: str, node: str = "") -> str:
    """The widget of a setting as `node` (a node's id) shows it; one of another node with the title of that node behind it."""
    return display_name(table(language), name, node)


def on(node: str) -> Names:
    """`as_shown` for what this node says."""
    return functools.partial(as_shown, node=node)


@functools.cache
def table(language: str) -> Rows:
    """Setting or input -> [a node's id, its title, the label of its widget], the nodes it is usually set on first. A label "" is the whole node."""
    texts, english = (_texts(one) for one in (language, LANGUAGES[0]))
    places: Rows = json.loads(_PLACES.read_text(encoding="utf-8"))
    return {name: [_row(node, widget, texts, english) for node, widget in rows] for name, rows in places.items()}


def _row(node: str, widget: str, texts: Mapping[str, Any], english: Mapping[str, Any]) -> list[str]:
    node_texts = {**english.get(node, {}), **texts.get(node, {})}
    label = node_texts.get("inputs", {}).get(widget, {}).get("name", widget)
    return [node, node_texts.get("display_name", node), label]


def _texts(language: str) -> Mapping[str, Any]:
    try:
        texts: Mapping[str, Any] = json.loads((_LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    except OSError:  # a copy without locales/
        return {}
    return texts
