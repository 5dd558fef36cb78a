import io
import sys

from lora_loom.__main__ import main
from lora_loom.lora_core.config import load

COMMAND = "python train_network.py --network_dim 8 --output_name cat --train_data_dir pictures --sample_prompts prompts.txt --odd 1"


def test_a_job_file_is_written_with_the_report_in_it_and_read_back(tmp_path, capsys):
    (tmp_path / "train.sh").write_text(COMMAND)
    (tmp_path / "prompts.txt").write_text("a cat --w 640\n")
    out = tmp_path / "jobs" / "cat.toml"
    assert main(["import", str(tmp_path / "train.sh"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    config = load(out)
    assert (config.name, config.adapter.rank, config.adapter.alpha, config.samples.prompt) == (
        "cat",
        8,
        1.0,
        "a cat --w 640\n",
    )
    assert config.data.folder == str(tmp_path / "jobs" / "pictures")  # as every job file: beside it
    assert all(f"# {line}" in out.read_text().splitlines() for line in said.err.splitlines())
    assert "odd = 1: unknown, and left out" in said.err


def test_a_file_that_is_there_is_not_written_over(tmp_path, capsys):
    out = tmp_path / "job.toml"
    out.write_text("mine")
    assert main(["import", "--command", COMMAND, "--out", str(out)]) == 1
    assert "--out: there is a file" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_without_a_target_the_job_goes_to_the_terminal_and_text_comes_from_it(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(COMMAND))
    assert main(["import", "-"]) == 0
    assert 'name = "cat"' in capsys.readouterr().out


def test_what_is_no_configuration_is_a_sentence_with_exit_code_one(tmp_path, capsys):
    assert main(["import", str(tmp_path / "nowhere.toml")]) == 1
    assert main(["import"]) == 1
    (tmp_path / "x.txt").write_text("hello")
    assert main(["import", str(tmp_path / "x.txt")]) == 1
    err = capsys.readouterr().err
    assert "there is no text to read" in err
    assert "x.txt is not a configuration of any known program" in err
