"""Help pages: one for every node, naming everything the node has, with an example, the common mistakes, and pictures that exist."""

from __future__ import annotations

import importlib.util
import re
import sys

import pytest
from live_server import ROOT
from PIL import Image

REFERENCE, DOCS = ROOT / "tests" / "reference", ROOT / "js" / "docs"
sys.path.append(str(REFERENCE))
spec = importlib.util.spec_from_file_location("make_docs", REFERENCE / "make_docs.py")
make_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_docs)
WRITTEN_BY_HAND = {"LoraLoomTrainLora"}  # describes the panel too


def schemas():
    from lora_loom.nodes.extension import NODES

    return {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}


def page(node_id: str) -> str:
    return (DOCS / f"{node_id}.md").read_text(encoding="utf-8")


def test_there_is_a_page_for_every_node_and_no_other():
    assert {p.stem for p in DOCS.glob("*.md")} == set(schemas())


def test_pages_name_every_input_and_output_as_the_schema_has_it():
    for node_id, schema in schemas().items():
        if node_id not in WRITTEN_BY_HAND:
            assert page(node_id) == make_docs.page(page(node_id), schema), f"{node_id}: run tests/reference/make_docs.py"
            assert all(f"**{i.id}**" in page(node_id) for i in schema.inputs)
            assert all(f"**{o.display_name}**" in page(node_id) for o in schema.outputs)


def test_pages_begin_with_the_nodes_name():
    for node_id, schema in schemas().items():
        assert page(node_id).startswith(f"# {schema.display_name}\n"), node_id


def test_pages_have_an_example_and_common_mistakes():
    for node_id in schemas().keys() - WRITTEN_BY_HAND:
        headings = re.findall(r"^## (.+)$", page(node_id), re.MULTILINE)
        assert headings == ["Example", "Common mistakes", "Inputs", "Outputs"], node_id
        mistakes = page(node_id).partition("## Common mistakes")[2].partition("## Inputs")[0]
        assert len(re.findall(r"^- ", mistakes, re.MULTILINE)) >= 2, node_id


@pytest.mark.parametrize("picture", sorted({p for path in DOCS.glob("*.md") for p in re.findall(r"!\[[^\]]+\]\((\S+)\)", path.read_text(encoding="utf-8"))}))
def test_pictures_of_pages_are_there_and_small(picture):
    with Image.open(DOCS / picture) as image:
        assert image.width >= 300
    assert (DOCS / picture).stat().st_size <= 150_000
