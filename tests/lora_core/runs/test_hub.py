import json

import pytest
from lora_loom.__main__ import main
from lora_loom.lora_core.runs import listing
from PIL import Image


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    place = tmp_path_factory.mktemp("hub")
    job = place / "job.toml"
    job.write_text(
        f'name = "cat"\nsteps = 3\n[data]\nfolder = {str(pictures)!r}\nresolution = 32\nbucket_step_px = 16\ntrigger = "zog"\n[adapter]\nrank = 2\n'
        '[validation]\ncalibrate = true\nlevels = 1\n[samples]\nprompt = "a zog at sea"\nevery = 3\nsteps = 1\n'
    )
    assert main(["train", str(job), "--out", str(place / "runs")]) == 0
    return place / "runs" / "cat"


def test_what_is_gathered_is_the_file_the_pictures_and_a_card_the_hub_reads_and_no_path(
    run, pictures, tmp_path, capsys
):
    from huggingface_hub import ModelCard

    assert (
        main(["push", str(run), "--base-model", "owner/base", "--license", "mit", "--out", str(tmp_path / "hub")]) == 0
    )
    assert "4 files" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "hub").iterdir()) == [
        "README.md",
        "before-after.png",
        "cat.safetensors",
        "samples.png",
    ]
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.base_model, card.data.license, card.data.instance_prompt) == ("owner/base", "mit", "zog")
    assert {"lora", "text-to-image"} <= set(card.data.tags)
    for part in (
        "- a zog at sea",
        "| adapter.rank | 2 |",
        'weight_name="cat.safetensors"',
        "![samples](samples.png)",
        "Write `zog` in a prompt.",
    ):
        assert part in card.text
    strength = json.loads((run / "strength.json").read_text())["strength"]
    assert f"Strength to start from: {strength:g}, where the loss" in card.text
    assert listing.read_run(run).strength == strength
    everything = b"".join(p.read_bytes() for p in (tmp_path / "hub").iterdir())
    assert str(pictures.parent).encode() not in everything
    assert (
        Image.open(tmp_path / "hub" / "samples.png").size == Image.open(next((run / "samples").glob("step-*.png"))).size
    )


def test_the_upload_asks_the_library_and_passes_its_refusals_on_in_one_sentence(run, tmp_path, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, repo, private, exist_ok):
            calls.append(("create", repo, private))
            return type("Url", (str,), {"repo_id": repo})(f"https://hub/{repo}")

        def upload_folder(self, folder_path, repo_id, commit_message):
            calls.append(("upload", folder_path, repo_id))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    arguments = [
        "push",
        str(run),
        "--base-model",
        "o/b",
        "--repo",
        "me/cat",
        "--private",
        "--out",
        str(tmp_path / "hub"),
    ]
    assert main(arguments) == 0
    assert calls == [("create", "me/cat", True), ("upload", str(tmp_path / "hub"), "me/cat")]
    assert "https://hub/me/cat" in capsys.readouterr().out

    from huggingface_hub.errors import LocalTokenNotFoundError

    def refuses(self, *args, **kwargs):
        raise LocalTokenNotFoundError

    monkeypatch.setattr(Api, "create_repo", refuses)
    assert main(arguments) == 1
    assert "--repo: you are not logged in to the Hub" in capsys.readouterr().err


def test_what_is_no_finished_run_is_one_sentence(tmp_path, run, capsys):
    assert main(["push", str(tmp_path), "--base-model", "o/b"]) == 1
    assert "is not a run folder" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert main(["push", str(tmp_path), "--base-model", "o/b"]) == 1
    assert "holds no result file yet" in capsys.readouterr().err
