"""Node texts in locales/ and page texts in js/locales/: complete in every language, with the same names and placeholders, and really translated.

What the server says stands in lora_core/messages/texts/; its tests are beside those of messages.
"""

from __future__ import annotations

import json
import re

import pytest

LANGUAGES = ("zh", "ko", "ja")
SAME = frozenset(
    {"LoRA", "CLIP", "VAE", "CFG", "Checkpoint", "LoRA Loom"}
)  # terms that every language writes like this
CODE = re.compile(
    r"<\w+(?::\w+)*>\w*|[a-z]+\d*_[a-z_\d]+|\b\d+(?:\.\d+)?(?:e-?\d+)?\b|[A-Z]{3,}|\bhuber\b|logit-normal|\bprodigy\b|(?<![\w.])\.[a-z]{2,}"
)
PLACEHOLDER = re.compile(r"\{(\w+)\}")


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
    assert {key.rpartition("/")[0] for key in ours} == {
        key.rpartition("/")[0] for key in english
    }  # more only where English keeps to the node's own text
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
    for name, code in scripts(root).items():
        asked = set(re.findall(r"""\bt\(\s*["']([\w.]+)["']""", code)) | set(
            re.findall(rf"""["']((?:{sections})\.[a-z_]+)["']""", code)
        )
        assert asked - english.keys() == set(), name


def scripts(root) -> dict[str, str]:
    """Name -> code without comments and styles."""
    code = {path.name: path.read_text(encoding="utf-8") for path in sorted((root / "js").glob("*.js"))}
    assert len(code) >= 6
    return {
        name: re.sub(r"const STYLE = `[^`]*`|/\*.*?\*/|(?<!:)//[^\n]*", "", text, flags=re.DOTALL)
        for name, text in code.items()
    }


def test_the_page_says_nothing_past_the_translations(root):
    for name, code in scripts(root).items():
        shown = re.findall(
            r"""(?:textContent|placeholder|title|alt|tooltip|content|summary|detail)\s*[:=]\s*["'`]([^"'`$]*[A-Za-z]{2}[^"'`]*)""",
            code,
        )
        assert set(shown) <= {"LoRA Loom"}, name
        assert re.findall(r"""\bsay\(["'`]\w|\btoast\("\w+", ["'`]""", code) == [], name
        assert re.findall(r"""["'`]([A-Z][a-z]+ [a-z]+[^"'`]*)["'`]""", code) == [], f"{name}: a sentence"


def test_every_text_of_the_page_is_used(root):
    """By its key, or by a name that our code puts into a key, as in t(`panel.${name}_tip`). A key with @page is the text of the same key there."""
    code = "".join(scripts(root).values())
    python = "".join(
        path.read_text(encoding="utf-8") for part in ("nodes", "lora_core") for path in (root / part).rglob("*.py")
    )
    names = set(re.findall(r'"(\w+)"', code + python))
    made = [
        re.compile(re.sub(r"\\\$\\{.+\\}", r"(\\w+)", re.escape(key)))
        for key in re.findall(r"`([a-z]+\.\w*\$\{[^`}]+\}\w*)`", code)
    ]
    assert len(made) >= 5
    ours = [key for text in page(root, "en") if f'"{(key := text.partition("@")[0])}"' not in code]
    assert [
        key for key in ours if not any(found[1] in names for family in made if (found := family.fullmatch(key)))
    ] == []


def test_a_text_for_another_page_stands_beside_the_text_it_replaces(root):
    english = page(root, "en")
    special = [key for key in english if "@" in key]
    assert special
    for key in special:
        usual, _, program = key.partition("@")
        assert program == "page"
        assert set(PLACEHOLDER.findall(english[key])) <= set(PLACEHOLDER.findall(english[usual])), key
