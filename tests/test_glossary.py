"""Translations use the terms of the glossary, and none of those it names as wrong."""

from __future__ import annotations

import importlib
import json
import re
import sys

import pytest

LANGUAGES = ("zh", "ja", "ko")
# Names in code, places and quotes are no words: `optimizer.lr`, {gradient}, "lora key not loaded".
CODE = re.compile(r"\{[^}]*\}|`[^`]*`|\"[^\"]*\"|\w+[._]\w+(?:[._]\w+)*|<[^>]*>")


@pytest.fixture(scope="module")
def script(root):
    sys.path.insert(0, str(root / "tests" / "reference"))
    yield importlib.import_module("make_glossary")
    sys.path.remove(str(root / "tests" / "reference"))


def pairs(root, language):
    """(English, the same in the language) of every sentence, widget and text of the page."""
    messages = root / "lora_core" / "messages" / "texts"
    pages = root / "js" / "locales"
    for place in (messages, pages):
        english, other = (json.loads((place / f"{name}.json").read_text(encoding="utf-8")) for name in ("en", language))
        yield from ((english[key], other[key]) for key in english)
    yield from json.loads(
        (root / "tests" / "reference" / "translations" / f"{language}.json").read_text(encoding="utf-8")
    ).items()
    yield from json.loads((root / "locales" / language / "page.json").read_text(encoding="utf-8")).items()


def texts(root, language):
    """Name of a file -> all that is written in it in the language."""
    out = {"sentences, widgets and page": "\n".join(text for _, text in pairs(root, language))}
    for page in sorted((root / "js" / "docs").glob(f"*/{language}.md")):
        out[f"{page.parent.name}/{page.name}"] = page.read_text(encoding="utf-8")
    return out


def test_the_page_is_that_of_the_data(script):
    assert script.PLACE.read_text(encoding="utf-8") == script.text(), "run tests/reference/make_texts.py"
    terms = script.terms()
    assert len(terms) >= 60
    assert len({term["en"] for term in terms}) == len(terms)
    assert sum(len(term["found"].get(language, ())) > 0 for term in terms for language in LANGUAGES) >= 170
    for term in terms:
        for place in (place for places in term["found"].values() for place in places):
            assert re.fullmatch(rf"(?:{'|'.join(script.SOURCES)}) [\w/.-]+\.\w+", place), (term["en"], place)
        assert all(term[language].strip() for language in LANGUAGES), term["en"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_translation_uses_a_term_that_is_named_as_wrong(root, script, language):
    for name, text in texts(root, language).items():
        for term in script.terms():
            for wrong in term["wrong"].get(language, []):
                place = text.find(wrong)
                assert place < 0, (
                    f"{language} {name}: {term['en']} is {term[language]}, here {text[max(0, place - 20) : place + 30]!r}"
                )


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_term_is_in_use(root, script, language):
    everything = "\n".join(texts(root, language).values()).lower()
    for term in script.terms():
        for word in term[language].split(" / "):
            assert word.lower() in everything, f"{language}: {term['en']}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_where_english_has_a_term_the_translation_has_it_too(root, script, language):
    exact = [term for term in script.terms() if "exact" in term]
    assert len(exact) >= 15
    counted = 0
    for english, other in pairs(root, language):
        words = CODE.sub(" ", english)
        for term in exact:
            if re.search(rf"(?<![\w-])(?:{term['exact']})(?![\w-])", words, re.IGNORECASE):
                counted += 1
                assert any(word.lower() in other.lower() for word in term[language].split(" / ")), (
                    f"{language}: {term['en']} is {term[language]}: {english!r} -> {other!r}"
                )
    assert counted > 100
