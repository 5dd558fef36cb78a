"""What the page and the server both do is done alike. The page's side: tests/js/series.test.mjs, from the same cases."""

from __future__ import annotations

import json

import pytest
from lora_loom.nodes.jobs.series import halved, joined


@pytest.fixture(scope="module")
def cases(root):
    return json.loads((root / "tests" / "js" / "series_cases.json").read_text(encoding="utf-8"))


def test_rows_are_joined_as_in_the_page(cases):
    assert cases["joined"]
    for case in cases["joined"]:
        assert joined(case["one"], case["two"]) == case["joined"], case["name"]


def test_rows_are_halved_as_in_the_page(cases):
    assert cases["halved"]
    for case in cases["halved"]:
        assert halved(case["rows"]) == case["halved"], case["name"]
