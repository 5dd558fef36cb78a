"""The tables of the benchmarks are what the committed results say, and what needs no full-size model runs."""

import json
import re
import runpy
import subprocess
import sys

import pytest


@pytest.fixture
def benchmarks(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield root / "benchmarks"
    for name in ("engines", "scaling", "review"):
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


SAMPLE = '''"""What it is
in two lines."""
import typing

from . import second


class Wide:
    def method(self, a, b, c, d, e, f, *, g):
        """Told."""
        for n in range(3):  # three times
            if n:
                try:
                    return [x for y in a for x in y if x]
                except (ValueError, Exception):  # noqa: BLE001
                    pass
        return a if b else c if d else e

    def untold(self, x: typing.Any):
        return "{sentence}" + self.other({spaces}x)
'''


def test_the_review_counts_what_is_in_a_file(benchmarks):
    import review

    text = SAMPLE.replace("{sentence}", "w" * 100).replace("{spaces}", "a," * 60)
    source = review.Source({"__init__": "", "first": text, "second": "def f():\n    from .first import Wide\n"}, "name")
    row = {name: of(source) for name, of in review.ROWS}
    assert row["files / lines"] == "3 / 22"
    assert row["function length: median / 95 % / longest"] == "2 / 9 / 9"
    assert row["functions of complexity over 10 / 20"] == "0 / 0"
    assert [1 + review.complexity(f.body) for f in source.functions] == [4, 1, 1]
    assert [review.depth(f.body) for f in source.functions] == [3, 0, 0]
    assert row["functions with 7 parameters or more"] == "1"
    assert row["broad except"] == "1"
    assert row["comments, rate"] == f"{1000 / 22:.1f}"
    assert row["public functions with a docstring"] == "33 %"
    assert row["lines over 120 (code / sentence / docstring)"] == f"{100 / 22:.1f} % (1 / 0 / 0)"
    assert row["ternaries, rate"] == f"{2000 / 22:.1f}"
    assert row["ternaries inside a ternary"] == "1"
    assert (
        row["nested comprehensions, rate"] == row["nested comprehensions with conditions, rate"] == f"{1000 / 22:.1f}"
    )
    assert row["`Any`, imports apart"] == "1"
    assert row["import circles"] == "1"


def test_the_complexity_of_the_review_is_the_one_ruff_counts(benchmarks, root):
    import review

    pytest.importorskip("ruff", reason="the linter is not installed")
    options = [
        "--isolated",
        "--no-cache",
        "--select",
        "C901",
        "--config",
        "lint.mccabe.max-complexity=7",
        "--output-format",
        "json",
    ]
    command = [sys.executable, "-m", "ruff", "check", *options, "lora_core"]
    found = json.loads(subprocess.run(command, cwd=root, capture_output=True, text=True).stdout)
    theirs = sorted(int(re.search(r"\((\d+) > 7\)", item["message"])[1]) for item in found)
    source = review.Source(review.read(root, "lora_core/"), "lora_loom")
    ours = sorted(n for f in source.functions if (n := 1 + review.complexity(f.body)) > 7)
    assert len(ours) > 10
    assert ours == theirs


def test_a_line_over_the_width_is_told_apart_by_what_makes_it_long(benchmarks):
    import review

    doc, sentence, code = '"""' + "d" * 130 + '"""', f'x = "{"s" * 130}"', "y = " + " + ".join(["name"] * 30)
    assert review.File(f"{doc}\n{sentence}\n{code}\n").long_lines == {"docstring": 1, "sentence": 1, "code": 1}


def test_the_table_of_the_review_has_ours_and_others(benchmarks, tmp_path, capsys):
    import review

    (tmp_path / "one.py").write_text("a = 1\n", encoding="utf-8")
    review.main(["--root", str(tmp_path), f"other={tmp_path}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "|  | ours | lora_core | nodes | convert | other |"
    assert lines[2] == "| files / lines | 1 / 1 | 0 / 0 | 0 / 0 | 0 / 0 | 1 / 1 |"
