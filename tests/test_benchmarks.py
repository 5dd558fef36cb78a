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
    for name in ("engines", "scaling", "review", "gpu", "counts", "launch", "claims"):
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


def test_a_part_of_the_gpu_script_that_dies_or_hangs_leaves_its_rows_and_says_why(benchmarks, monkeypatch, tmp_path):
    import gpu

    script = tmp_path / "part.py"
    script.write_text(
        "import sys, time\n"
        'print(\'ROW {"case": "SDXL 1024 px, batch 4", "model": "sdxl", "way": "plain", "ms": 100.0}\', flush=True)\n'
        "sys.stderr.write('words of a library\\nthe last words\\n')\n"
        "sys.stderr.flush()\n"
        "time.sleep(1000) if sys.argv[2] == 'hangs' else sys.exit(3)\n"
    )
    monkeypatch.setattr(gpu, "HERE", script)
    for name, limit_s, ending in (("dies", 60, "ended with 3: the last words"), ("hangs", 5, "took longer than 5 s")):
        row, end = gpu.run_part(name, limit_s, tiny=True)
        assert row["ms"] == 100.0
        assert end["failed"].startswith(ending)
        told = gpu.with_utilisation(row, {"sdxl": 10.0}, {"bf16_tflops": 800.0})
        assert told["utilisation"] == 0.5  # 40 TFLOP in a tenth of a second, of 800 a second
        made = runpy.run_path(str(benchmarks / "__main__.py"), run_name="tables")["gpu"]
        drawn = made({"rate": {}, "seconds": 7, "steps": [told, end]})
        assert "| 0.5 |" in drawn
        assert end["failed"] in drawn


def test_packages_that_travel_are_unpacked_without_an_installer(benchmarks, tmp_path):
    import zipfile

    import gpu

    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "one-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("one/__init__.py", "A = 1\n")
        wheel.writestr("one-1.data/purelib/two.py", "B = 2\n")
    for _ in range(2):
        env = gpu.unpack(tmp_path)
    first = env["PYTHONPATH"].split(":")[0]
    assert sorted(p.name for p in (tmp_path / "unpacked").iterdir() if p.suffix == ".py" or p.is_dir()) == [
        "one",
        "one-1.data",
        "two.py",
    ]
    assert first == str(tmp_path / "unpacked")
    assert "COMFYUI_DIR" not in env or env["COMFYUI_DIR"] != str(tmp_path / "ComfyUI")


def test_kernels_of_lists_are_counted_by_what_one_of_them_takes(benchmarks):
    import counts
    import torch

    many = [torch.zeros(2) for _ in range(130)]
    assert counts.kernels("mm", (many[0], many[1])) == 1
    assert counts.kernels("view", (many[0],)) == 0
    assert counts.kernels("_foreach_mul_", (many, 2.0)) == 2  # 110 and 20
    assert counts.kernels("_fused_adamw_", (many, many, many, many)) == 4
    seen = counts.Seen()
    with counts.watched(seen):
        float(torch.ones(3).sum() + 1)
        torch.ones(2).tolist()
    assert (seen.waits, seen.kernels["sum"], seen.kernels["add"]) == (2, 1, 1)
    assert torch.ones(2).tolist() == [1.0, 1.0]


# ---- the claims ------------------------------------------------------------------------------------------------------


def test_each_claim_is_of_variants_that_its_sweep_trains(benchmarks):
    import claims
    from lora_loom.lora_core.recipes import HERE

    assert {file.stem for file in (HERE / "sweeps").glob("toy_*.toml")} == {*claims.SWEEPS}
    for name, sweep in claims.SWEEPS.items():
        variants = {run["name"] for run in claims.settings_of(name)["runs"]}
        assert {one for claim in sweep.claims for one in (claim.better, claim.than)} <= variants, name


@pytest.mark.parametrize(
    ("better", "than", "verdict"),
    [
        ([0.8, 0.7, 0.9], [0.2, 0.1, 0.2], ("holds", "+0.63 ± 0.14")),
        ([0.2, 0.1, 0.2], [0.8, 0.7, 0.9], ("does not hold", "-0.63 ± 0.14")),
        ([0.8, 0.2, 0.5], [0.4, 0.5, 0.3], ("cannot be told apart", "+0.10 ± 0.90")),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], ("cannot be told apart", "+0.00 ± 0.00")),
        ([0.75, 0.8, 0.75], [0.7, 0.75, 0.7], ("cannot be told apart", "+0.05 ± 0.00")),  # a picture each
        ([0.5, 0.6], [0.2, 0.2], ("too few seeds yet", "+0.35")),
        ([0.5], [0.2], ("too few seeds yet", "+0.30")),
        ([], [0.2], ("not trained", "")),
    ],
)
def test_a_claim_holds_where_its_interval_lies_on_one_side(benchmarks, better, than, verdict):
    import claims

    variants = {
        name: {claims.SHOWN: {str(n): value for n, value in enumerate(values)}} if values else {}
        for name, values in (("a", better), ("b", than))
    }
    assert claims.verdict(claims.difference(variants, claims.Claim("", "a", "b"))) == verdict


def test_where_a_share_leaks_less_is_better(benchmarks):
    import claims

    variants = {name: {claims.LEAKED: {"0": value}} for name, value in (("a", 0.1), ("b", 0.5))}
    assert claims.difference(variants, claims.Claim("", "a", "b", claims.LEAKED)) == pytest.approx([0.4])


def test_the_gallery_says_what_the_results_say(benchmarks, root):
    import claims

    for name, text in claims.pages(claims.read()).items():
        assert (claims.GALLERY / name).read_text(encoding="utf-8") == text, "run `python benchmarks/claims.py --pages`"
    for name in claims.read()["sweeps"]:
        assert (claims.GALLERY / f"{name}.webp").is_file()
