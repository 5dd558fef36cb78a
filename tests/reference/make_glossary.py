"""Writes docs/glossary.md: the terms that translations use, from glossary.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from schemas import ROOT  # noqa: E402

DATA = Path(__file__).with_name("glossary.json")
PLACE = ROOT / "docs" / "glossary.md"
LANGUAGES = ("zh", "ja", "ko")
# What a place begins with -> the project, the folder below which its files lie, and what of it was read.
SOURCES = {
    "comfy": ("Comfy-Org/ComfyUI_frontend", "src/locales/{language}", "1.49.6"),
    "kohya": ("kohya-ss/sd-scripts", "docs", "48d368fa"),
    "musubi": ("kohya-ss/musubi-tuner", "docs", "30c658c"),
    "diffusers": ("huggingface/diffusers", "docs/source/{language}", "58eb52c080"),
    "lora-scripts": ("Akegarasu/lora-scripts", "mikazuki/schema", "fdefba9"),
    "webui": (
        "stable-diffusion-webui-localization-zh_CN of dtlnor, -ja_JP of Katsuyuki-Karasawa, -ko_KR of 36DB",
        "localizations",
        "6b69340, d639f8c, 78431be",
    ),
    "course": ("huggingface/course", "chapters/{language}", "16af5667"),
    "pytorch": ("PyTorchKorea/tutorials-kr", ".", "8afe907"),
}
HEAD = """# Terms

What things are called in English and in the translations, and where the field calls them so. Made from `tests/reference/glossary.json` by `tests/reference/make_texts.py`;
`tests/test_glossary.py` holds the translations to it. Where two terms stand in a field, both are in use. Where no place is named, the choice is our own. A term that is avoided is one that
translators take first and that readers in the field use less or not at all.

| English | zh | ja | ko | zh after | ja after | ko after | avoided |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def terms() -> list[dict[str, Any]]:
    """Rows of en, zh, ja, ko, found (language -> the files that use the term), wrong (language -> terms that no translation uses) and, for some, exact: where English has this, so has each translation."""
    rows: list[dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8"))
    return rows


def text() -> str:
    """The page as it should be."""
    return HEAD + "".join(_row(term) for term in terms()) + "\n" + _places()


def _row(term: dict[str, Any]) -> str:
    wrong = ", ".join(word for language in LANGUAGES for word in term["wrong"].get(language, []))
    found = (", ".join(term["found"].get(language, [])) for language in LANGUAGES)
    return "| " + " | ".join([term["en"], *(term[language] for language in LANGUAGES), *found, wrong]) + " |\n"


def _places() -> str:
    """What the places are files of."""
    lines = ["| place | project | below | as of |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {project} | `{folder}` | {seen} |" for name, (project, folder, seen) in SOURCES.items()]
    return "\n".join(lines) + "\n"


def write() -> None:
    PLACE.write_text(text(), encoding="utf-8")
