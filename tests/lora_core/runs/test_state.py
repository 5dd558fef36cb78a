"""run.json says how a run is, written whole at every turn, and is read with the care a file of a stranger gets."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs import listing, state
from lora_loom.lora_core.runs.state import recorded

OLD_RUN = Path(__file__).parents[2] / "data" / "run_0_1_0"


class TakenBack(Exception):
    """By which a host cancels."""


def read(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_says_how_it_is_at_every_turn(tmp_path):
    with recorded(tmp_path, host="Host 1.2") as record:
        assert (read(tmp_path)["outcome"], read(tmp_path)["step"]) == ("running", 0)
        record.on_start(0, 8, {"layers": 1, "trained_values": 2, "pictures": 3})
        record.on_save(4, tmp_path)
        now = read(tmp_path)
        assert (now["format"], now["outcome"], now["step"], now["steps"], now["ended"], now["process"]) == (
            1,
            "running",
            4,
            8,
            None,
            os.getpid(),
        )
        record.on_end("stopped early", 6)
    then = read(tmp_path)
    assert (then["outcome"], then["step"], then["error"]) == ("stopped early", 6, None)
    assert then["started"] <= then["changed"] == then["ended"]
    assert then["versions"]["host"] == "Host 1.2"
    assert {"python", "torch", "diffusers"} <= then["versions"].keys()


@pytest.mark.parametrize(("error", "outcome", "code"), [
    (LoomError("lora.unknown_layer", field="lora", layer="q"), "failed", "lora.unknown_layer"), (KeyError("x"), "failed", "error.unexpected"),
    (KeyboardInterrupt(), "cancelled", None), (TakenBack(), "cancelled", None),
])  # fmt: skip
def test_an_error_is_kept_with_its_code_and_values(tmp_path, error, outcome, code):
    with pytest.raises(type(error)), recorded(tmp_path, cancels=(TakenBack,)):
        raise error
    then = read(tmp_path)
    assert then["outcome"] == outcome
    assert (then["error"] or {}).get("code") == code
    assert (state.ending(tmp_path).error or {}).get("text", "") == (
        str(error) if code == "lora.unknown_layer" else (then["error"] or {}).get("text", "")
    )


def test_a_run_that_goes_on_keeps_its_step_until_it_has_begun(tmp_path):
    with recorded(tmp_path) as record:
        record.on_end("paused", 5)
    with pytest.raises(LoomError), recorded(tmp_path):
        raise LoomError("file.empty")
    assert read(tmp_path)["step"] == 5


def made(root, **values):
    folder = root / "a"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": "a", "steps": 9}))
    (folder / "run.log").write_text("")
    (folder / "run.json").write_text(json.dumps({"format": 1, "outcome": "finished", "step": 9, **values}))
    return folder


@pytest.mark.parametrize(("outcome", "wanted"), [
    ("running", ("interrupted", 0)), ("paused", ("paused", 9)), ("stopped", ("stopped", 9)), ("stopped early", ("stopped", 9)),
    ("finished", ("finished", 9)), ("cancelled", ("interrupted", 0)), ("failed", ("failed", 0)),
])  # fmt: skip
def test_the_list_takes_the_state_from_run_json(tmp_path, outcome, wanted):
    run = listing.read_run(made(tmp_path, outcome=outcome))
    assert (run.state, run.step) == wanted


def test_the_words_of_the_log_change_nothing_where_there_is_a_run_json(tmp_path):
    folder = made(tmp_path, outcome="paused", step=3)
    (folder / "run.log").write_text("2026-11-21 02:41:07.002 finished after step 9\n")
    assert (listing.read_run(folder).state, listing.read_run(folder).step) == ("paused", 3)


def test_a_run_is_running_only_while_its_process_holds_the_log(tmp_path):
    code = (
        "import sys, pathlib\nfrom lora_loom.lora_core.runs.state import recorded\nfolder = pathlib.Path(sys.argv[1])\n"
        "with recorded(folder) as record:\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    folder = made(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline().strip() == "held"
        assert listing.read_run(folder).state == "running"
    finally:
        child.kill()
        child.wait()
    assert listing.read_run(folder).state == "interrupted"


@pytest.mark.parametrize("values", [
    {"format": 2}, {"outcome": "well"}, {"outcome": ["finished"]}, {"outcome": None}, {"format": None},
])  # fmt: skip
def test_a_file_that_is_none_of_ours_is_passed_over(tmp_path, values):
    assert state.ending(made(tmp_path, **values)) is None
    assert listing.read_run(tmp_path / "a").state == "interrupted"


@pytest.mark.parametrize("error", [
    {"code": 3, "text": "x" * 10_000}, {"text": ["a"]}, {"code": "a", "field": "b", "values": [], "text": "said"}, "words", 3, [],
    {"code": "a", "field": "b", "values": {}, "text": "\ud800"},
])  # fmt: skip
def test_an_error_that_is_none_is_a_short_text_at_most(tmp_path, error):
    run = listing.read_run(made(tmp_path, outcome="failed", error=error))
    assert run.state == "failed"
    assert len(json.dumps(run.error)) < 500
    json.dumps(vars(run)).encode()


def test_a_run_json_of_megabytes_is_not_read(tmp_path):
    assert state.ending(made(tmp_path, error={"text": "x" * state.MAX_BYTES})) is None


def test_a_run_folder_of_0_1_0_is_listed_as_it_ended():
    run = listing.read_run(OLD_RUN)
    assert not (OLD_RUN / "run.json").exists()
    assert (run.state, run.step, run.steps, run.error, run.saves, run.best_save) == ("finished", 4, 4, None, [2, 4], 0)
    assert run.results == ["old.safetensors"]
    assert run.picture == 4
    assert listing.held_out(OLD_RUN).keys() == {2, 4}


def test_a_run_folder_of_0_1_0_goes_on(tmp_path):
    from lora_loom.lora_core.runs import checkpoints
    from lora_loom.lora_core.runs.folders import config_of

    folder = tmp_path / "old"
    shutil.copytree(OLD_RUN, folder)
    checkpoint, broken = checkpoints.latest(folder / "checkpoints")
    assert (checkpoint.step, broken) == (4, [])
    assert len(checkpoint.facts["losses"]) == 4
    assert config_of(folder).adapter.rank == 1
