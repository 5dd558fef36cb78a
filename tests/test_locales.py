"""Node texts in locales/ and page texts in js/locales/: complete in every language, with the same names and placeholders, and really translated."""

from __future__ import annotations

import ast
import json
import re

import pytest

LANGUAGES = ("zh", "ko", "ja")
SAME = frozenset({"LoRA", "CLIP", "VAE", "CFG", "Checkpoint", "LoRA Loom"})  # terms that every language writes like this
CODE = re.compile(r"<\w+(?::\w+)*>\w*|[a-z]+\d*_[a-z_\d]+|\b\d+(?:\.\d+)?(?:e-?\d+)?\b|[A-Z]{3,}|\bhuber\b|logit-normal|\bprodigy\b|(?<![\w.])\.[a-z]{2,}")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
ERRORS = {"LoomError", "ConfigError", "PictureError", "FormatError", "NonFiniteError", "Conflict", "Refused"}


def nodes(root, language: str) -> dict[str, str]:
    """Path of keys -> text."""
    return flat(json.loads((root / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")))


def page(root, language: str) -> dict[str, str]:
    return json.loads((root / "js" / "locales" / f"{language}.json").read_text(encoding="utf-8"))


def flat(tree: dict, above: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in tree.items():
        out |= flat(value, f"{above}{key}/") if isinstance(value, dict) else {f"{above}{key}": value}
    return out


def test_folders_are_the_four_languages(root):
    assert {p.name for p in (root / "locales").iterdir()} == {"en", *LANGUAGES}
    assert {p.stem for p in (root / "js" / "locales").iterdir()} == {"en", *LANGUAGES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_text_is_translated(root, language):
    english, ours = nodes(root, "en"), nodes(root, language)
    assert english.keys() <= ours.keys()
    assert {key.rpartition("/")[0] for key in ours} == {key.rpartition("/")[0] for key in english}  # more only where English keeps to the node's own text
    same = {text for key, text in ours.items() if text == english.get(key)}
    assert same <= SAME
    assert all(text.strip() for text in ours.values())
    print(f"{language}: {len(ours)} node texts")


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_numbers_and_file_endings_survive_translation(root, language):
    english, ours = nodes(root, "en"), nodes(root, language)
    for key, text in english.items():
        if not key.endswith("/name"):
            assert [code for code in CODE.findall(text) if code not in ours[key]] == [], f"{key}: {ours[key]}"


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_no_text_holds_what_the_page_takes_for_syntax(root, language):
    assert {key: text for key, text in nodes(root, language).items() if set("{}|@") & set(text)} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_text_is_translated_with_its_placeholders(root, language):
    english, ours = page(root, "en"), page(root, language)
    assert list(ours) == list(english)
    assert {key for key in ours if ours[key] == english[key]} == set()
    for key, text in english.items():
        assert sorted(PLACEHOLDER.findall(ours[key])) == sorted(PLACEHOLDER.findall(text)), key


def test_every_text_the_page_asks_for_is_there(root):
    english = page(root, "en")
    sections = "|".join(sorted({key.partition(".")[0] for key in english}))
    for script in (root / "js").glob("*.js"):
        code = script.read_text(encoding="utf-8")
        asked = set(re.findall(r"""\bt\(\s*["']([\w.]+)["']""", code)) | set(re.findall(rf"""["']((?:{sections})\.[a-z_]+)["']""", code))
        assert asked - english.keys() == set(), script.name


def test_the_editor_says_nothing_past_the_translations(root):
    code = (root / "js" / "dataset_editor.js").read_text(encoding="utf-8")
    assert re.findall(r"""(?:textContent|placeholder|title|alt|summary|detail)\s*[:=]\s*["'`]([^"'`$]*[A-Za-z]{2}[^"'`]*)""", code) == []
    assert re.findall(r"""\bsay\(\s*["'`]""", code) == []


def raised(root) -> set[str]:
    """The sentences our code raises, each value in them as {}."""
    found = set()
    for path in (p for part in ("lora_core", "nodes", "convert") for p in (root / part).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ERRORS:
                found.update(shape(argument) for argument in call.args)
            if isinstance(call, ast.Dict):
                found.update(shape(v) for k, v in zip(call.keys, call.values) if isinstance(k, ast.Constant) and k.value == "error")
    return found


def shape(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(shape(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return shape(node.left) + shape(node.right)
    return "{}"


def test_translated_errors_are_sentences_that_our_code_raises(root):
    ours = {key: PLACEHOLDER.sub("{}", text) for key, text in page(root, "en").items() if key.startswith("error.")}
    there = raised(root)
    assert {key: text for key, text in ours.items() if text not in there} == {}
