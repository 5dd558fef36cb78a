import dataclasses
from pathlib import Path

import pytest
from lora_loom.lora_core.config import ConfigError, DataConfig, TrainConfig, ValidationConfig, from_values
from lora_loom.lora_core.data.dataset import Dataset, Picture
from lora_loom.lora_core.recipes import merged
from lora_loom.lora_core.training.length import epochs_message, planned

DATA = DataConfig(resolution=128, bucket_step_px=64)


def dataset(*sizes, repeats=1, data=DATA):
    pictures = [
        Picture(Path(f"{n}.png"), f"{n}.png", w, h, repeats=repeats, data=data) for n, (w, h) in enumerate(sizes)
    ]
    return Dataset(Path(), tuple(pictures), (), ())


SQUARES, WIDE = [(128, 128)] * 5, [(256, 64)] * 2


def steps(config, pictures, processes=1):
    return planned(TrainConfig(**config), pictures, processes).steps


def test_epochs_count_the_batches_of_each_bucket_and_round_the_accumulation_up():
    pictures = dataset(*SQUARES, *WIDE)
    assert steps({"epochs": 3}, pictures) == 21
    assert steps({"epochs": 3, "batch_size": 2}, pictures) == 3 * (3 + 1)
    assert steps({"epochs": 3, "batch_size": 2, "grad_accum": 5}, pictures) == 3  # 12 batches in fives
    assert steps({"epochs": 1}, dataset(*SQUARES, repeats=4)) == 20
    assert steps({"epochs": 1, "batch_size": 2}, pictures, processes=2) == 2 + 1
    assert steps({"epochs": 1}, dataset(*SQUARES, data=dataclasses.replace(DATA, also_resolutions="64"))) == 10


def test_epochs_leave_out_what_is_held_out_for_validation():
    pictures = dataset(*SQUARES * 4)
    assert steps({"epochs": 1, "validation": ValidationConfig(every=5, share=0.1)}, pictures) == 18
    assert steps({"epochs": 1, "validation": ValidationConfig(every=5, folder="elsewhere")}, pictures) == 20


def test_an_epoch_is_as_many_batches_as_the_run_draws(toy_config, run_toy, tmp_path):
    notes = []
    from lora_loom.lora_core.events import Listener

    class Notes(Listener):
        def on_note(self, message):
            notes.append(message)

    result = run_toy(toy_config(epochs=2, batch_size=1), tmp_path, listener=Notes())
    assert result.step == 8
    assert [n.values["steps"] for n in notes if n.code == "length.epochs"] == [8]


def test_what_epochs_come_to_is_told_and_steps_need_no_words():
    pictures = dataset(*SQUARES)
    assert str(epochs_message(planned(TrainConfig(epochs=2), pictures), pictures)) == (
        "2 epochs of 5 pictures (with repeats), 1 x 1 at a time, are 10 steps"
    )
    assert epochs_message(TrainConfig(), pictures) is None


def test_two_lengths_in_one_job_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="epochs: .*steps.*epochs.* each say how long the run is"):
        from_values({"steps": 5, "epochs": 2}, tmp_path)
    with pytest.raises(ConfigError, match="epochs: "):
        TrainConfig(epochs=2, steps_per_picture=3)
    assert from_values({"steps": 0, "epochs": 2} | {"steps": 5, "epochs": 0}, tmp_path).steps == 5


def test_a_length_replaces_that_of_the_recipe(tmp_path):
    face = from_values({"recipe": "face", "steps": 500}, tmp_path)
    assert planned(face, dataset(*SQUARES)).steps == 500
    assert planned(from_values({"recipe": "web_style_v4", "epochs": 2}, tmp_path), dataset(*SQUARES)).steps == 4
    assert merged({"steps": 3, "prior": {"steps": 9}}, {"epochs": 2}) == {"epochs": 2, "prior": {"steps": 9}}
    assert merged({"steps": 3}, {"name": "a"}) == {"steps": 3, "name": "a"}
