"""The tables of the benchmarks are what the committed results say, and what needs no full-size model runs."""

import runpy
import sys

import pytest


@pytest.fixture
def benchmarks(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield root / "benchmarks"
    for name in ("engines", "scaling"):
        sys.modules.pop(name, None)


def test_the_tables_are_made_from_the_results(benchmarks):
    text = (benchmarks / "README.md").read_text(encoding="utf-8")
    made = runpy.run_path(str(benchmarks / "__main__.py"), run_name="tables")["with_tables"](text)
    assert made == text, "run `python benchmarks --tables`"


def test_pictures_cost_little(benchmarks):
    import scaling

    found = scaling.pictures(3)
    assert found["pictures"] == 3
    assert 0 < found["batch_us"] < 1e5
