"""Help pages in other languages say what the English page says: the same headings, lists, paragraphs, tables and code, in the same order."""

from __future__ import annotations

import json
import re

import pytest

LANGUAGES = ("zh", "ja", "ko")
BUTTONS = ("stop", "save", "sample", "pause", "go_on")
LEAST_SHARE = 0.28  # of the English characters; Chinese needs the fewest


def pages(root):
    return {path.stem: path for path in sorted((root / "js" / "docs").glob("*.md"))}


def structure(text):
    """What each line is: h1 and so on, a list's point, a row, the fence of code with its code, or a paragraph, whose lines are one."""
    out, in_code = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            in_code = not in_code
            out.append("fence")
        elif in_code:
            out.append(line)
        elif not line.strip():
            out.append("")
        elif match := re.match(r"(#+) ", line):
            out.append(f"h{len(match[1])}")
        elif line.startswith("|"):
            out.append("row")
        elif match := re.match(r"\s*(?:([-*])|\d+\.) ", line):
            out.append("point" if match[1] else "number")
        elif line.startswith("!["):
            out.append("picture")
        elif not (out and out[-1] in ("paragraph", "point", "number", "picture")):  # else the line before goes on
            out.append("paragraph")
    return [kind for kind in out if kind]


def code_in(text):
    """Code inside of sentences, which no language changes; tables are made from one source."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    return sorted(re.findall(r"`([^`\n]+)`", prose))


def short(english, other):
    """What a translation lacks, in words; empty where it says all."""
    if structure(english) != structure(other):
        return f"built of {structure(other)}, in English of {structure(english)}"
    if code_in(english) != code_in(other):
        return f"has the code {code_in(other)}, in English {code_in(english)}"
    if len(other) < LEAST_SHARE * len(english):
        return f"has {len(other)} characters, in English {len(english)}"
    return ""


def italics(path, tables=False):
    """The words between single stars, those in tables aside unless asked for."""
    lines = path.read_text(encoding="utf-8").splitlines()
    prose = "\n".join(line for line in lines if tables or not line.startswith("|"))
    return set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", prose))


def named(root, language):
    """English titles of nodes and words of the panel's buttons, each with what it is called in a language."""
    titles = {path: path.with_suffix("") / f"{language}.md" for path in pages(root).values()}
    names = {title_of(english): title_of(other) for english, other in titles.items()}
    english, other = (
        json.loads((root / "js" / "locales" / f"{code}.json").read_text(encoding="utf-8")) for code in ("en", language)
    )
    return names | {english[f"panel.{button}"]: other[f"panel.{button}"] for button in BUTTONS}


def title_of(path):
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_help_page_says_all_that_the_english_one_says(root, language):
    found = {
        name: short(
            path.read_text(encoding="utf-8"), (path.with_suffix("") / f"{language}.md").read_text(encoding="utf-8")
        )
        for name, path in pages(root).items()
    }
    assert len(found) > 30
    assert {name: lack for name, lack in found.items() if lack} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_help_page_calls_nodes_and_buttons_as_they_are_called_in_its_language(root, language):
    names = named(root, language)
    wrong = {}
    for name, path in pages(root).items():
        english, other = italics(path), italics(path.with_suffix("") / f"{language}.md")
        if missing := [names[word] for word in english if word in names and names[word] not in other]:
            wrong[name] = missing
    assert wrong == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_guide_says_the_same_in_each_language_and_names_what_there_is(root, language):
    english, other = root / "docs" / "guide" / "en.md", root / "docs" / "guide" / f"{language}.md"
    assert short(english.read_text(encoding="utf-8"), other.read_text(encoding="utf-8")) == ""
    names = named(root, language)
    cited = [names[word] for word in italics(english, tables=True) if word in names]
    assert len(cited) > 8
    assert [name for name in cited if name not in italics(other, tables=True)] == []
    rows = [line.count("|") for line in other.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert rows == [
        line.count("|") for line in english.read_text(encoding="utf-8").splitlines() if line.startswith("|")
    ]


def test_what_the_guide_links_to_and_names_is_there(root):
    text = (root / "docs" / "guide" / "en.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (root / "docs" / "guide" / target).exists(), target
    templates = {path.stem for path in (root / "example_workflows").glob("*.json")}
    for cell in re.findall(r"\b\d+ [A-Z][^|,]*", section(text, "## 3.")):
        number = cell.split()[0]
        assert any(name.startswith(f"{number} ") for name in templates), cell


def section(text, heading):
    return text.split(heading, 1)[1].split("\n## ", 1)[0]


def test_what_is_missing_is_noticed(root):
    english = pages(root)["LoraLoomTrainLora"].read_text(encoding="utf-8")
    whole = english.replace("Trains", "Lehrt")
    assert short(english, whole) == ""
    point = next(line for line in english.splitlines() if line.startswith("- "))
    assert short(english, whole.replace(point + "\n", ""))
    paragraph = next(part for part in english.split("\n\n") if part.startswith("The panel comes back"))
    assert short(english, whole.replace(paragraph + "\n\n", ""))
    assert short(english, whole.replace("`output/loras`", "`output`"))
    row = next(line for line in english.splitlines() if line.startswith("| **model**"))
    assert short(english, whole.replace(row + "\n", "", 1))
