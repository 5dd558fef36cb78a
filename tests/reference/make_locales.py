"""Writes locales/<language>/ as ComfyUI reads it: English from the schemas of our nodes, the others from translations/<language>.json.

`make_texts.py` runs it. A text without a translation is named and stays English; write it into translations/<language>.json and run it again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCALES, TRANSLATIONS = ROOT / "locales", Path(__file__).parent / "translations"
LANGUAGES = ("zh", "ko", "ja")
CATEGORIES = ("LoRA Loom", "settings")
SYNTAX = frozenset("{}|@")  # means something to the page's i18n; left out, the page takes the node's own text


def node_texts(schemas: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Node id -> display name, description, inputs by name, outputs by position, as our schemas have them."""
    return {node_id: _texts(schemas[node_id]) for node_id in sorted(schemas)}


def _texts(schema: Any) -> dict[str, Any]:
    inputs = {i.id: {"name": i.display_name or i.id, "tooltip": i.tooltip} for i in schema.inputs}
    outputs = {str(n): {"name": o.display_name or o.id, "tooltip": o.tooltip} for n, o in enumerate(schema.outputs)}
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": inputs,
        "outputs": outputs,
    }


def in_words(texts: Any, word: Callable[[str], str]) -> Any:
    """The same tree with every text as `word` gives it, without the texts that the page would misread."""
    if not isinstance(texts, dict):
        return word(texts)
    told = {key: in_words(value, word) for key, value in texts.items()}
    return {key: value for key, value in told.items() if not (isinstance(value, str) and SYNTAX & set(value))}


def translations(language: str) -> dict[str, str]:
    return json.loads((TRANSLATIONS / f"{language}.json").read_text(encoding="utf-8"))


def locale_files(texts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Path below locales/ -> what belongs there."""
    files = {"en/nodeDefs.json": in_words(texts, str), "en/main.json": {"nodeCategories": {c: c for c in CATEGORIES}}}
    for language in LANGUAGES:
        known = translations(language)
        files[f"{language}/nodeDefs.json"] = in_words(texts, lambda text, known=known: known.get(text, text))
        files[f"{language}/main.json"] = {"nodeCategories": {c: known.get(c, c) for c in CATEGORIES}}
    return files


def every_text(texts: Any) -> set[str]:
    return (
        {texts}
        if isinstance(texts, str)
        else set().union(*map(every_text, texts.values()))
        if isinstance(texts, dict)
        else set()
    )


def untranslated(texts: dict[str, Any]) -> list[str]:
    """`<language>: <text>` for every text that a language lacks."""
    return [
        f"{language}: {text!r}"
        for language in LANGUAGES
        for text in sorted(every_text(texts) - translations(language).keys())
    ]


def write(schemas: Mapping[str, Any]) -> None:
    texts = node_texts(schemas)
    for name, content in locale_files(texts).items():
        path = LOCALES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_text(content), encoding="utf-8")
    for line in untranslated(texts):
        sys.stderr.write(f"no translation for {line}\n")


def as_text(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
