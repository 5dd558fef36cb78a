"""Other programs' own loaders on files written here, against what was measured before. Each program runs in a process of its own, for their modules share
names. Where a program is absent its test says so and is skipped; the tables and what *Inspect* says are held to the stored results everywhere.

    LOOM_UPDATE=1 python -m pytest -m slow tests/convert/programs       measures anew
    python tests/convert/programs/make_table.py                         writes convert/loaders.json and the tables of convert/README.md
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest
from lora_loom.convert.families import FAMILIES, TOYS
from lora_loom.convert.loaders import FORMS, PROGRAMS, measured

HERE = Path(__file__).resolve().parent
PROGRAMS_AT = Path(os.environ.get("LOOM_PROGRAMS", "~/programs")).expanduser()
COMFYUI = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
COMFYUI_PYTHON = Path(os.environ.get("COMFYUI_PYTHON", "~/comfy/venv/bin/python")).expanduser()
PYTHON = Path(os.environ.get("LOOM_PROGRAMS_PYTHON", PROGRAMS_AT / "venv" / "bin" / "python")).expanduser()

# file of the harness -> (what must be there, interpreter)
NEEDS = {
    "a1111": ([PROGRAMS_AT / n for n in ("a1111", "stablediffusion", "generative-models")], PYTHON),
    "forge": ([PROGRAMS_AT / "forge"], PYTHON),
    "reforge": ([PROGRAMS_AT / "reforge"], PYTHON),
    "sdnext": ([PROGRAMS_AT / "sdnext"], PYTHON),
    "sd_scripts": ([PROGRAMS_AT / "sd-scripts"], PYTHON),
    "musubi": ([PROGRAMS_AT / "musubi-tuner"], PYTHON),
    "onetrainer": ([PROGRAMS_AT / "onetrainer"], PYTHON),
    "ai_toolkit": ([PROGRAMS_AT / "ai-toolkit"], PYTHON),
    "lycoris_kohya": ([PROGRAMS_AT / "sd-scripts"], PYTHON),
    "diffusers_own": ([], PYTHON),
    "peft_own": ([], PYTHON),
    "comfyui": ([COMFYUI], COMFYUI_PYTHON),
}


def by_file(name: str):
    spec = importlib.util.spec_from_file_location(f"programs_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_table = by_file("make_table")


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_the_program_reads_what_was_measured(name, tmp_path):
    folders, python = NEEDS[name]
    for place in (*folders, python):
        if not place.exists():
            pytest.skip(f"{name} not at {place}")
    kept, out = HERE / "results" / f"{name}.json", tmp_path / "result.json"
    if not kept.exists() and not os.environ.get("LOOM_UPDATE"):
        pytest.skip(f"{name} was not measured")
    families = [",".join(json.loads(kept.read_text(encoding="utf-8"))["families"])] if kept.exists() else []
    command = [python, HERE / "run.py", name, out, *([] if os.environ.get("LOOM_UPDATE") else families)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    if os.environ.get("LOOM_UPDATE"):
        kept.write_text(out.read_text(encoding="utf-8"), encoding="utf-8")
        return
    before, now = (json.loads(file.read_text(encoding="utf-8"))["families"] for file in (kept, out))
    assert {family: now[family] for family in before} == before


def test_what_inspect_asks_is_what_was_measured():
    assert json.loads(make_table.DATA.read_text(encoding="utf-8")) == make_table.data(), "run make_table.py"


def test_the_tables_in_the_readme_are_up_to_date():
    assert make_table.readme() == make_table.README.read_text(encoding="utf-8"), "run make_table.py"


def test_every_program_that_was_run_is_a_column():
    assert set(measured()) <= set(PROGRAMS)


def test_every_result_says_which_version_was_run_and_when():
    for program, result in make_table.results().items():
        assert result["version"], program
        assert len(result["date"]) == 10, program


def test_no_finding_blames_a_program_for_the_surroundings_it_was_given():
    for file in (HERE / "results").glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert not [word for word in ("Mock", "SimpleNamespace", "StandIn", "No module named") if word in text], (
            file.name
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_universal_form_is_read_whole_by_a_program_that_runs_the_model(family):
    form = make_table.starred(FAMILIES[family])
    cells = [result["families"].get(family, {}).get("forms", {}).get(form) for result in make_table.results().values()]
    counts = [make_table.total(cell) for cell in cells if cell]
    if counts:
        assert any(read == of for read, of in counts), counts


def test_every_model_with_a_table_of_layers_was_run_with_its_own_program():
    ran = {*make_table.results()["ComfyUI"]["families"]}
    assert {*FAMILIES} - ran == {*TOYS, "sdxl-refiner"}  # our own, and one of SDXL's layers


def test_a_model_that_a_program_does_not_have_was_not_run_with_it():
    for program, result in make_table.results().items():
        assert not {*result.get("absent", {}).get("families", ())} & {*result["families"]}, program


def test_the_table_tells_what_was_not_run_from_what_a_program_does_not_have():
    results = make_table.results()
    assert make_table.cell_text(results["musubi-tuner"], "sd1", "kohya") == make_table.NO_MODEL
    assert make_table.cell_text({"families": {}, "absent": {"families": []}}, "sd1", "kohya") == ""


def test_every_form_in_the_table_is_one_that_is_written():
    for result in measured().values():
        for forms in result["families"].values():
            assert set(forms) <= set(FORMS)
