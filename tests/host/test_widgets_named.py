"""In ComfyUI a bad value in any widget is told by that widget as its node shows it, a setting of another node with that node's title."""

from __future__ import annotations

import json
import re

import pytest
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.messages.message import LANGUAGES, Message
from lora_loom.nodes.extension import NODES, TABLES
from lora_loom.nodes.host.access.api import widgets_of
from lora_loom.nodes.host.access.shown import on

A_KEY = re.compile(
    r"\b(?:adapter|cache|data|embedding|objective|optimizer|prior|samples|save|schedule|text_encoder|validation)\.[a-z_]+"
)
BAD = {"INT": float("nan"), "FLOAT": float("inf"), "STRING": 7, "COMBO": "no such choice", "BOOLEAN": "x"}


def titles(root, language):
    """Node id -> (its title, widget -> label) as ComfyUI's page is given them."""
    texts = json.loads((root / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return {
        node: (one["display_name"], {name: row.get("name", name) for name, row in one.get("inputs", {}).items()})
        for node, one in texts.items()
    }


@pytest.mark.always
def test_a_bad_value_in_any_widget_is_told_by_the_label_of_that_widget(root):
    shown, counted = titles(root, "en"), 0
    for node in NODES:
        kind = node.GET_SCHEMA().node_id
        for widget in widgets_of(node):
            bad = BAD[widget.kind]
            with pytest.raises(LoomError) as caught:
                node.execute(**{widget.name: [bad] if widget.listed else bad})
            label = shown.get(kind, ("", {}))[1].get(widget.name, widget.name)
            assert str(caught.value).startswith(f"{label}: "), f"{kind}.{widget.name}: {caught.value}"
            assert not A_KEY.search(str(caught.value)), f"{kind}.{widget.name}: {caught.value}"
            counted += 1
    assert counted > 200


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_setting_of_another_node_is_told_with_the_title_that_node_has(root, language):
    shown, counted = titles(root, language), 0
    for node, rows in TABLES.items():
        for row in rows:
            title, labels = shown[node]
            label = labels.get(row.name, row.name)
            message = Message.of("setting.not_finite", field=row.path, value=float("nan"))
            assert message.text(language, on(node)).startswith(f"{label}: "), f"{node} {row.path}"
            told = message.text(language, on("a node without widgets"))
            others = {
                f"{shown[one][1].get(r.name, r.name)} ({shown[one][0]}): "
                for one, rs in TABLES.items()
                for r in rs
                if r.path == row.path
            }
            assert title
            assert any(told.startswith(one) for one in others), f"{node} {row.path}: {told}"
            counted += 1
    assert counted > 100
