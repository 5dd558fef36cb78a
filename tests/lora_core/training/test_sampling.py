"""Pictures from files and saves are those the run itself drew, and strengths do what they say."""

import numpy as np
import pytest
import torch
from lora_loom.__main__ import main
from lora_loom.convert.files.disk import save
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.config import SampleConfig
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.sampling import attached, drawn, of_run, of_start, sheet
from PIL import Image
from shapes import BASE

JOB = SampleJob("a zog on a white ground", 64, 64, SampleConfig(steps=2, seed=3, cfg=4.0))


def array(image):
    return np.asarray(image, int)


@pytest.fixture(scope="module")
def run(toy_config, toy_backend, tmp_path_factory):
    from lora_loom.lora_core.data.folder import open_sets
    from lora_loom.lora_core.training.job import Job
    from lora_loom.lora_core.training.trainer import train

    folder = tmp_path_factory.mktemp("sampled") / "run"
    config = toy_config(
        steps=6,
        save={"every": 3},
        optimizer={"lr": 0.02},
        adapter={"targets": "conv"},
        samples={"every": 6, "steps": 2, "prompt": JOB.prompt},
    )
    from lora_loom.convert import products

    job = Job(config, toy_backend, open_sets(config), folder.parent)
    result = train(job, folder, lambda state, facts: products(state, "run", "sd1", facts))
    return folder, result


def start_of(path, backend):
    from lora_loom.nodes.jobs.headless import lora_of

    return lora_of(path, backend)


def test_the_saves_of_a_run_draw_what_the_run_and_its_file_draw(run, toy_backend):
    folder, result = run
    saves = of_run(folder, toy_backend)
    assert [s.label for s in saves] == ["step 3", "step 6"]
    file = of_start("file", toy_backend, start_of(result.file, toy_backend))
    columns = dict(drawn([*saves, file], [1.0], [JOB], toy_backend))
    assert (
        np.abs(array(columns["step 6"][0]) - array(columns["file"][0])).max() <= 1
    )  # the same numbers; sums in another order
    assert np.abs(array(columns["step 3"][0]) - array(columns["step 6"][0])).max() > 5
    assert np.abs(array(columns["without"][0]) - array(columns["step 6"][0])).max() > 5


def test_strength_scales_the_change_and_the_model_is_left_as_it_was(run, toy_backend):
    folder, result = run
    before = {k: v.clone() for k, v in toy_backend.unet.state_dict().items()}
    worn = of_start("file", toy_backend, start_of(result.file, toy_backend))
    name, adapter = next(iter(worn.adapters))
    layer, x = worn.layers[name], None
    x = torch.randn(1, adapter.shape.weight[1], *[4] * (len(adapter.shape.weight) - 2))
    with torch.no_grad():
        plain = layer(x)
        changes = []
        for strength in (0.5, 1.0, -1.0):
            with attached(worn, toy_backend, strength):
                changes.append(layer(x) - plain)
        assert torch.equal(layer(x), plain)
    assert torch.allclose(2 * changes[0], changes[1], atol=1e-6)
    assert torch.allclose(-changes[2], changes[1], atol=1e-6)
    with attached(worn, toy_backend, 0.0):
        assert torch.equal(layer(x), plain)
    assert all(torch.equal(before[k], v) for k, v in toy_backend.unet.state_dict().items())


def test_dora_has_no_strength_between_none_and_all(toy_backend, toy_config, run_toy, tmp_path):
    run_toy(toy_config(steps=1, adapter={"algorithm": "dora"}), tmp_path / "run")
    (worn,) = of_run(tmp_path / "run", toy_backend)
    with pytest.raises(LoomError, match="strength: 0.5 is not defined for DoRA"), attached(worn, toy_backend, 0.5):
        pass
    with attached(worn, toy_backend, 1.0):
        pass


def test_the_command_draws_a_sheet_of_files_strengths_and_prompts(run, tmp_path, capsys):
    folder, result = run
    word = tmp_path / "vish.safetensors"
    save(word, {"clip_l": torch.randn(2, 64)})
    out = tmp_path / "sheets" / "s.png"
    options = [
        "--prompt",
        "a red circle",
        "--prompt",
        "vish on a white ground",
        "--strength",
        "0",
        "0.5",
        "1",
        "--steps",
        "2",
        "--base",
        BASE,
        "--out",
        str(out),
    ]
    assert main(["sample", str(result.file), str(folder), str(word), *options]) == 0
    assert "7 x 2 pictures" in capsys.readouterr().out  # without, and the file and two saves at two strengths
    assert Image.open(out).size == (8 + 7 * 200, 22 + 2 * (192 + 22 + 8))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give LoRA or embedding files"),
        (["nothing.safetensors"], "there is no file or run folder nothing.safetensors"),
        (["."], "is not a run folder"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", *arguments, "--prompt", "x"]) == 1
    assert sentence in capsys.readouterr().err


def test_an_embedding_of_another_model_is_refused(toy_backend):
    with pytest.raises(
        LoomError,
        match="word: is an embedding for clip_l of width 768, but the model reads clip_l of width 64; use one made for this model",
    ):
        of_start("x", toy_backend, {}, {"word": {"clip_l": torch.randn(2, 768)}})


def test_a_sheet_has_a_column_for_each_label():
    image = sheet([("a", [Image.new("RGB", (64, 64))]), ("b", [Image.new("RGB", (64, 64))])], ["prompt"])
    assert image.size == (8 + 2 * 200, 22 + 192 + 22 + 8)


def test_saves_of_another_model_are_refused(run_toy, toy_config, toy_backend, tmp_path):
    import json

    run_toy(toy_config(steps=1), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["adapter"]["exclude"] = "mid"  # as if the model had no such layers
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoomError, match="run: its step 1 does not fit this model; use the one the run was trained on"):
        of_run(tmp_path / "run", toy_backend)


def test_notes_stand_under_the_cells_of_their_column_and_large_pictures_are_made_smaller():
    columns = [("a", [Image.new("RGB", (400, 200), "red")] * 2), ("b", [Image.new("RGB", (400, 200), "red")] * 2)]
    image = sheet(columns, ["one", "two"], ["", "held-out 0.1"], largest_px=250)
    assert image.size == (8 + 2 * 258, 22 + 2 * (192 + 22 + 22 + 8))
    pixels = array(image)
    under = [pixels[44 + 192 : 44 + 192 + 22, x : x + 250] for x in (8, 266)]
    assert [int(part.min()) < 128 for part in under] == [False, True]
    assert (pixels[44 : 44 + 125, 8:258] == [255, 0, 0]).all()


def test_each_save_is_read_when_its_turn_comes_and_each_picture_is_told(run, toy_backend):
    from lora_loom.lora_core.runs.saves import all_saves
    from lora_loom.lora_core.training.sampling import of_saves

    folder, _ = run
    told = []
    columns = drawn(of_saves(folder, all_saves(folder)[-1:], toy_backend), [0.5, 1.0], [JOB], toy_backend, told.append)
    assert [label for label, _ in columns] == ["without", "step 6 x 0.5", "step 6 x 1"]
    assert [image for _, images in columns for image in images] == told


@pytest.mark.parametrize(("base", "side_px"), [(BASE, 64), ("toy", 128)], ids=["shapes", "emoji"])
def test_without_a_width_pictures_are_as_large_as_the_base_draws_them(base, side_px, tmp_path, monkeypatch):
    """A sheet of the wrong size shows nothing a person would keep."""
    from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend

    asked = []

    def drawn_by_nobody(self, job):
        asked.append((job.width_px, job.height_px))
        return [Image.new("RGB", (job.width_px, job.height_px))]

    monkeypatch.setattr(DiffusersBackend, "sample", drawn_by_nobody)
    word = tmp_path / "vish.safetensors"
    save(word, {"clip_l": torch.randn(2, side_px)})
    options = ["--prompt", "vish", "--base", base, "--out", str(tmp_path / "s.png")]
    assert main(["sample", str(word), *options]) == 0
    assert {*asked} == {(side_px, side_px)}
    asked.clear()
    assert main(["sample", str(word), *options, "--width", "32"]) == 0
    assert {*asked} == {(32, 32)}
