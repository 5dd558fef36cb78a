"""The table of model families says what was measured, and what it has to say: no class of the host is left out, at least forty are trained, exactly."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "reference"))

import make_families  # noqa: E402


@pytest.fixture
def table():
    return make_families.data()


def test_the_page_is_made_from_the_measurement():
    assert make_families.PLACE.read_text(encoding="utf-8") == make_families.text()


def test_every_class_of_the_host_is_trained_or_says_why_not_once(table):
    known = {row["class"] for row in table["rows"].values()}
    assert set(table["classes"]) - known == set(make_families.WITHOUT)
    assert len(table["classes"]) > 90
    assert all(row["trains"] or row["why"]["code"] for row in table["rows"].values())


def test_forty_classes_are_trained_with_exact_gradients(table):
    assert len(make_families.trained_classes(table)) >= 40
    for name, row in table["rows"].items():
        if row["trains"]:
            assert 0 <= make_families.largest_error(row) <= make_families.EXACT, name
            assert row["layers"] > 0, name
