import json
import os
import re
import signal
import threading
import time

import pytest
from lora_loom.__main__ import main
from lora_loom.lora_core.runs import checkpoints
from lora_loom.nodes.terminal import DONE, FAILED
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
    assert checkpoints.latest(out / "from_file" / "checkpoints")[0].step == 5
    assert not (out / "from_file_2").exists()


def test_a_second_run_of_the_same_name_gets_its_own_folder(job, tmp_path):
    for _ in range(2):
        assert main(["train", str(job), "--out", str(tmp_path / "runs")]) == DONE
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["cache", "from_file", "from_file_2"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("rank = 2", "rnak = 2", "adapter.rnak: unknown setting"),
        ("rank = 2", "rank = 0", "adapter.rank: found 0; allowed are 1 to 1024"),
        ("rank = 2", "rank = 1000", "adapter.rank: 1000 is larger than layer"),
        ("folder = ", "folder = 'nowhere' #", "there is no folder"),
        ("name = ", "base = 'nowhere'\nname = ", "there is no folder or file nowhere"),
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
    assert "resume: there is no run named 'from_file' to continue" in capsys.readouterr().err
    assert main(["demo", "--set", "cats", "--out", str(tmp_path / "runs")]) == FAILED
    assert (
        "'cats' is not a bundled picture set; allowed are mascot, style, object, face, word" in capsys.readouterr().err
    )


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
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not (
            (folder / "run.log").exists() and "training steps" in (folder / "run.log").read_text()
        ):
            time.sleep(0.01)
        time.sleep(0.3)  # a few steps in
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    code = main(["train", str(job), "--out", str(tmp_path / "runs")])
    sender.join()
    assert code == 128 + number
    assert "stopped after step" in capsys.readouterr().out
    assert checkpoints.latest(folder / "checkpoints")[0].step < 1_000_000
    assert (folder / "from_file.safetensors").is_file()
    assert signal.getsignal(number) is before


def test_a_setting_is_changed_from_the_command_line(job, tmp_path):
    changes = ["--set", "steps=2", "--set", "name=other", "--set", "adapter.algorithm=loha"]
    assert main(["train", str(job), "--out", str(tmp_path / "runs"), *changes]) == 0
    config = json.loads((tmp_path / "runs" / "other" / "config.json").read_text())
    assert (config["steps"], config["adapter"]["algorithm"]) == (2, "loha")


@pytest.mark.parametrize("change", ["steps", "a b=3", "=3"])
def test_a_change_that_is_none_is_quoted(change, job, tmp_path, capsys):
    assert main(["train", str(job), "--out", str(tmp_path / "runs"), "--set", change]) == 1
    assert f"--set: {change!r} is not a setting; write section.name=value" in capsys.readouterr().err


def test_check_and_find_lr_train_nothing_and_say_what_they_found(job, tmp_path, capsys):
    out = tmp_path / "runs"
    assert main(["check", str(job), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "s a step, about" in said
    assert "bucket        pictures an epoch\n32 x 32       3\n32 x 16       1\n" in said
    assert sorted(p.name for p in out.iterdir()) == ["cache", "from_file-dataset.png"]
    assert main(["find-lr", str(job), "--out", str(out), "--steps", "20", "--set", "batch_size=4"]) == 0
    assert "The loss falls fastest at a learning rate of" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["cache", "from_file-dataset.png", "from_file-learning-rate.png"]


def test_recipes_are_listed_with_what_they_are_for(capsys):
    assert main(["recipes"]) == 0
    assert "face  " in (said := capsys.readouterr().out)
    assert "120 steps a picture" in said


def test_a_sweep_trains_each_run_on_one_model_and_compares_them(job, tmp_path, capsys, monkeypatch):
    from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend

    encoded, plain = [], DiffusersBackend.encode_picture
    monkeypatch.setattr(
        DiffusersBackend, "encode_picture", lambda self, pixels: encoded.append(1) or plain(self, pixels)
    )
    sweep = tmp_path / "sweep.toml"
    runs = '\n[[runs]]\nname = "low"\noptimizer = { lr = 1e-5 }\n[[runs]]\nname = "high"\noptimizer = { lr = 1e-2 }\n'
    sweep.write_text(
        'name = "rates"\n'
        + "\n".join(line for line in job.read_text().splitlines() if not line.startswith("name"))
        + runs
    )
    changes = ["--set", 'samples.prompt="a zog"', "--set", "samples.every=100", "--set", "samples.steps=2"]
    assert main(["sweep", str(sweep), "--out", str(tmp_path / "runs"), *changes]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "cache",
        "rates-comparison.png",
        "rates-results",
        "rates_high",
        "rates_low",
    ]
    assert len(encoded) == 4  # four pictures, once
    rates = {
        n: json.loads((tmp_path / "runs" / f"rates_{n}" / "config.json").read_text())["optimizer"]["lr"]
        for n in ("low", "high")
    }
    assert rates == {"low": 1e-5, "high": 1e-2}
    assert "2 runs compared" in (said := capsys.readouterr().out)
    assert "| variant | optimizer.lr | seeds | minutes |" in said
    comparison = (tmp_path / "runs" / "rates-comparison.png").read_bytes()
    assert main(["sweep", str(sweep), "--out", str(tmp_path / "runs"), *changes]) == 0
    assert "2 of 2 were trained before" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "rates_low_2").exists()
    assert (tmp_path / "runs" / "rates-comparison.png").read_bytes() == comparison


def test_a_run_of_a_sweep_that_fails_is_told_and_the_others_are_trained(job, tmp_path, capsys):
    sweep, out = tmp_path / "sweep.toml", tmp_path / "runs"
    runs = (
        '\n[[runs]]\nname = "high_rate"\noptimizer = { lr = 10.0 }\n[[runs]]\nname = "low"\noptimizer = { lr = 1e-5 }\n'
    )
    rest = "\n".join(line for line in job.read_text().splitlines() if not line.startswith("name"))
    sweep.write_text('name = "rates"\n' + rest + runs)
    assert main(["sweep", str(sweep), "--out", str(out), "--set", "steps=40"]) == 1
    said = capsys.readouterr()
    assert re.search(r"lora-loom: rates_high_rate: Step \d+: loss ", said.err)
    assert "| rates_high_rate | 10.0 | 0 |  |" in said.out
    assert re.search(r"\| rates_low \| 1e-05 \| 1 \| [\d.e-]+ \|", said.out)
    assert {path.name for path in out.glob("*-results")} == {"rates-results"}
    assert (out / "rates_low" / "rates_low.safetensors").exists()


def test_a_run_goes_on_from_a_lora_file_of_any_kind(job, tmp_path, capsys):
    out = tmp_path / "runs"
    assert main(["train", str(job), "--out", str(out), "--set", "name=first", "--set", "adapter.algorithm=loha"]) == 0
    first = out / "first" / "first.safetensors"
    assert (
        main(
            [
                "train",
                str(job),
                "--out",
                str(out),
                "--set",
                "name=second",
                "--set",
                f"adapter.start_from={first}",
                "--set",
                "optimizer.lr=1e-9",
            ]
        )
        == 0
    )
    from lora_loom.convert import read
    from lora_loom.convert.families import UNKNOWN
    from lora_loom.convert.lora import delta
    from safetensors.torch import load_file

    one, two = (read(load_file(p), family=UNKNOWN).modules for p in (first, out / "second" / "second.safetensors"))
    assert one.keys() == two.keys()
    assert {m.kind for m in two.values()} == {"lora"}
    for name, module in one.items():
        exact, taken = delta(module), delta(two[name])
        assert (
            exact - taken
        ).norm() <= 0.05 * exact.norm() + 1e-7  # LoHa of rank 4 is of rank 16: nearly all of it fits
    assert (
        main(
            [
                "train",
                str(job),
                "--out",
                str(out),
                "--set",
                f"adapter.start_from={first}",
                "--set",
                "adapter.targets=cross-attention",
            ]
        )
        == 1
    )
    assert "is not a layer this run trains; widen adapter.targets" in capsys.readouterr().err


def test_a_job_with_several_sets_trains_and_goes_on(job, pictures, tmp_path):
    more = [
        f"[[sets]]\nfolder = {str(pictures)!r}\n{own}\n"
        for own in ("repeats = 2\nloss_weight = 0.5", "regularization = true")
    ]
    job.write_text("\n".join([job.read_text(), *more]))
    runs = ["--out", str(tmp_path / "runs")]
    assert main(["train", str(job), *runs]) == 0
    assert main(["train", str(job), "--resume", "--set", "steps=5", *runs]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs" / "from_file" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["class_loss"] > 0 for row in rows)
    job.write_text(job.read_text().replace("repeats = 2", "repeats = 3"))
    assert main(["train", str(job), "--resume", "--set", "steps=6", *runs]) == 1


def test_a_changed_set_is_named_when_continuing(job, pictures, tmp_path, capsys):
    job.write_text(job.read_text() + f"\n[[sets]]\nfolder = {str(pictures)!r}\n")
    assert main(["train", str(job), "--out", str(tmp_path)]) == 0
    job.write_text(job.read_text() + "flip = true\n")
    assert main(["train", str(job), "--resume", "--out", str(tmp_path), "--set", "steps=5"]) == 1
    assert "sets[0].flip: False before, True now" in capsys.readouterr().err
