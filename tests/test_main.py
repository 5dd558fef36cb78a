import os
import signal
import threading
import time

import pytest
from lora_loom.__main__ import DONE, FAILED, main
from lora_loom.lora_core import state
from safetensors import safe_open


@pytest.fixture
def job(pictures, tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(
        f"""
name = "from_file"
steps = 3
batch_size = 2
[data]
folder = {str(pictures)!r}
resolution = 32
bucket_step_px = 16
trigger = "zog"
[adapter]
rank = 2
[samples]
every = 0
""",
        encoding="utf-8",
    )
    return path


def test_train_writes_a_lora_named_after_the_job_and_resume_goes_on(job, tmp_path, capsys):
    out = tmp_path / "runs"
    assert main(["train", str(job), "--out", str(out)]) == DONE
    assert "finished after step 3" in capsys.readouterr().out
    with safe_open(out / "from_file" / "from_file.safetensors", "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "zog"
    assert "finished after step 3" in (out / "from_file" / "run.log").read_text()

    job.write_text(job.read_text().replace("steps = 3", "steps = 5"))
    assert main(["train", str(job), "--out", str(out), "--resume"]) == DONE
    assert state.latest(out / "from_file" / "checkpoints")[0].step == 5
    assert not (out / "from_file_2").exists()


def test_a_second_run_of_the_same_name_gets_its_own_folder(job, tmp_path):
    for _ in range(2):
        assert main(["train", str(job), "--out", str(tmp_path / "runs")]) == DONE
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["from_file", "from_file_2"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("rank = 2", "rnak = 2", "adapter.rnak: unknown setting"),
        ("rank = 2", "rank = 0", "adapter.rank: found 0; allowed are 1 to 1024"),
        ("rank = 2", "rank = 1000", "adapter.rank: 1000 is larger than layer"),
        ("folder = ", "folder = 'nowhere' #", "there is no folder"),
        ("name = ", "base = 'nowhere'\nname = ", "has no folder unet"),
    ],
)
def test_bad_input_is_one_sentence_on_stderr_and_exit_code_1(old, new, sentence, job, tmp_path, capsys):
    job.write_text(job.read_text().replace(old, new))
    assert main(["train", str(job), "--out", str(tmp_path / "runs")]) == FAILED
    error = capsys.readouterr().err
    line = next(line for line in error.splitlines() if line.startswith("lora-loom: "))
    assert sentence in line
    assert "Traceback" not in error


def test_resume_without_a_run_and_an_unknown_set_are_refused(job, tmp_path, capsys):
    assert main(["train", str(job), "--out", str(tmp_path / "runs"), "--resume"]) == FAILED
    assert "there is no run 'from_file'" in capsys.readouterr().err
    assert main(["demo", "--set", "cats", "--out", str(tmp_path / "runs")]) == FAILED
    assert "'cats' is not a bundled picture set; allowed are object, style, pair, word" in capsys.readouterr().err


def test_wrong_usage_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2
    assert "usage: lora-loom" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_current_step_with_the_result_kept(number, job, tmp_path, capsys):
    job.write_text(job.read_text().replace("steps = 3", "steps = 1000000"))
    folder, before = tmp_path / "runs" / "from_file", signal.getsignal(number)

    def send():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not ((folder / "run.log").exists() and "training steps" in (folder / "run.log").read_text()):
            time.sleep(0.01)
        time.sleep(0.3)  # a few steps in
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    code = main(["train", str(job), "--out", str(tmp_path / "runs")])
    sender.join()
    assert code == 128 + number
    assert "stopped after step" in capsys.readouterr().out
    assert state.latest(folder / "checkpoints")[0].step < 1000
    assert (folder / "from_file.safetensors").is_file()
    assert signal.getsignal(number) is before
