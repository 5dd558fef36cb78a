"""Help pages: one for every node, naming everything the node has, with an example, the common mistakes, and pictures that exist."""

from __future__ import annotations

import re
import sys

import pytest
from live_server import ROOT
from PIL import Image

REFERENCE, DOCS = ROOT / "tests" / "reference", ROOT / "js" / "docs"
LANGUAGES = ("zh", "ko", "ja")


sys.path.insert(0, str(REFERENCE))
import make_docs  # noqa: E402
import make_locales  # noqa: E402


def schemas():
    from lora_loom.nodes.extension import NODES

    return {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}


def page(node_id: str, language: str = "en") -> str:
    return make_docs.path_of(node_id, language).read_text(encoding="utf-8")


def test_there_is_a_page_for_every_node_in_every_language_and_no_other():
    ids = set(schemas())
    assert {p.stem for p in DOCS.glob("*.md")} == ids
    assert {p.relative_to(DOCS).as_posix() for p in DOCS.glob("*/*.md")} == {
        f"{node_id}/{language}.md" for node_id in ids for language in LANGUAGES
    }


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_pages_name_every_input_and_output_as_the_schema_has_it(language):
    known = {} if language == "en" else make_locales.translations(language)
    for node_id, schema in schemas().items():
        text = page(node_id, language)
        assert text == make_docs.page(text, schema, language, known), f"{node_id}: run tests/reference/make_texts.py"
        assert all(f"**{i.id}**" in text for i in schema.inputs)
        assert all(f"**{o.display_name}**" in text for o in schema.outputs)
        assert text.startswith(f"# {known.get(schema.display_name, schema.display_name)}\n"), node_id
        assert (language == "en") == text.splitlines()[2].isascii(), (
            f"{node_id}: the first paragraph is not in {language}"
        )


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_pages_have_an_example_and_common_mistakes(language):
    example, mistakes, inputs, outputs = make_docs.WORDS[language].headings
    for node_id in schemas():
        text = page(node_id, language)
        assert re.findall(r"^## (.+)$", text, re.MULTILINE)[-4:] == [example, mistakes, inputs, outputs], node_id
        listed = text.partition(f"## {mistakes}\n")[2].partition("## ")[0]
        assert len(re.findall(r"^- ", listed, re.MULTILINE)) >= 2, node_id


def pictures() -> list[str]:
    """Every picture a page shows; paths are relative to js/docs/ on all pages, since that is where the page looks."""
    return sorted(
        {
            picture
            for path in DOCS.rglob("*.md")
            for picture in re.findall(r"!\[[^\]]+\]\((\S+)\)", path.read_text(encoding="utf-8"))
        }
    )


@pytest.mark.parametrize("picture", pictures())
def test_pictures_of_pages_are_there_and_small(picture):
    with Image.open(DOCS / picture) as image:
        assert image.width >= 300
    assert (DOCS / picture).stat().st_size <= 150_000
