from pathlib import Path

import pytest
from lora_loom.lora_core.config import ConfigError, from_values, load
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.recipes import HERE, about, names, read_toml, recipe
from lora_loom.lora_core.toy.model import resolve_set
from lora_loom.lora_core.toy.taught import TAUGHT
from lora_loom.lora_core.training.comparing import differences, required_ruler
from lora_loom.lora_core.training.sweep import runs_of, sheet
from PIL import Image


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_a_valid_job_and_says_what_it_is_for(name, tmp_path):
    config = from_values({"recipe": name, "name": "mine", "data": {"folder": "pictures"}}, tmp_path)
    assert config.name == "mine"
    assert config.data.folder == str(tmp_path / "pictures")
    assert len(about(name)) > 30


def test_recipes_have_the_numbers_of_the_article(tmp_path):
    """Hugging Face, "LoRA training scripts of the world, unite!": Huggy, Y2K v4 to v6, faces; diffusers' LoRA guide."""

    def numbers(name):
        c = from_values({"recipe": name}, tmp_path)
        gamma = c.objective.min_snr_gamma if c.objective.weighting == "min_snr" else None
        return c.method, c.steps, c.batch_size, c.adapter.rank, c.optimizer.name, c.optimizer.lr, gamma

    assert numbers("character_and_style") == ("pivotal", 1000, 4, 32, "adamw", 1e-4, 5.0)
    assert numbers("character_and_style_prodigy") == ("pivotal", 1000, 4, 32, "prodigy", 1.0, 5.0)
    assert numbers("web_style_v4") == ("pivotal", 1000, 4, 32, "adamw", 1e-4, 5.0)
    assert numbers("web_style_v5") == ("pivotal", 1000, 2, 32, "adamw", 1e-4, None)
    assert numbers("web_style_v6") == ("pivotal", 1000, 1, 32, "adamw", 1e-4, None)
    assert numbers("captioned_set") == ("lora", 15000, 1, 4, "adamw", 1e-4, None)
    for name in ("character_and_style", "web_style_v4", "web_style_v5", "web_style_v6"):
        token = from_values({"recipe": name}, tmp_path).embedding
        assert (token.vectors, token.lr, token.stop) == (2, 3e-4, 0.5)
    for name in ("character_and_style_prodigy", "face"):
        job = from_values({"recipe": name}, tmp_path)
        own = job.optimizer
        assert (own.name, own.lr, own.beta1, own.beta2, own.weight_decay) == ("prodigy", 1.0, 0.9, 0.99, 0.01)
        assert (job.embedding.lr, job.text_encoder.lr) == (0.0, 0.0)  # Prodigy takes one rate
    face = from_values({"recipe": "face"}, tmp_path)
    assert (face.steps_per_picture, face.epochs) == (120, 0)
    assert (face.optimizer.name, face.prior.count, face.embedding.stop, face.embedding.vectors) == (
        "prodigy",
        150,
        0.5,
        2,
    )
    assert from_values({"recipe": "web_style_v4"}, tmp_path).data.repeats == 2


def test_a_job_goes_over_its_recipe(tmp_path):
    (tmp_path / "job.toml").write_text(
        'recipe = "face"\nname = "me"\n[data]\nfolder = "pictures"\n[adapter]\nrank = 8\n'
    )
    config = load(tmp_path / "job.toml")
    assert (config.adapter.rank, config.optimizer.name, config.data.resolution) == (8, "prodigy", 1024)


def test_an_unknown_recipe_is_named_with_those_there_are(tmp_path):
    with pytest.raises(
        LoomError, match="recipe: 'faces' is not known; choose one of auto, captioned_set, character_and_style,"
    ):
        recipe("faces")
    with pytest.raises(ConfigError, match="recipe: expected str, found 3"):
        from_values({"recipe": 3}, tmp_path)


def test_the_y2k_sweep_has_the_eight_runs_of_the_article(tmp_path):
    jobs = runs_of(read_toml(HERE / "sweeps" / "y2k.toml"), tmp_path)
    table = [
        (j.name, j.steps, j.data.repeats, j.batch_size, j.objective.weighting == "min_snr", j.data.limit) for j in jobs
    ]
    assert table == [
        ("y2k_v1", 1500, 1, 4, True, 0), ("y2k_v2", 1500, 1, 4, True, 14), ("y2k_v3", 1500, 2, 4, True, 0), ("y2k_v4", 1000, 2, 4, True, 0),
        ("y2k_v5", 1000, 1, 2, False, 0), ("y2k_v6", 1000, 1, 1, False, 0), ("y2k_v7", 1000, 2, 1, True, 0), ("y2k_v8", 1000, 1, 1, True, 0),
    ]  # fmt: skip


def test_the_style_of_the_toy_is_taught_as_those_runs_taught_theirs_in_fewer_steps(tmp_path):
    theirs, ours = (runs_of(read_toml(HERE / "sweeps" / f"{name}.toml"), tmp_path) for name in ("y2k", "toy_style"))
    table = [
        [(j.data.repeats, j.batch_size, j.objective.weighting, j.data.limit, j.method) for j in jobs]
        for jobs in (theirs, ours)
    ]
    assert table[0] == table[1]
    assert [mine.steps * 5 for mine in ours] == [other.steps * 2 for other in theirs]


@pytest.mark.parametrize("file", sorted((HERE / "sweeps").glob("toy_*.toml")), ids=lambda file: file.stem)
def test_a_sweep_of_the_toy_has_pictures_a_ruler_and_runs_that_differ(file, tmp_path):
    values = read_toml(file)
    jobs = runs_of(values, tmp_path)
    assert jobs[0].name.startswith(f"{file.stem}_")
    assert required_ruler(values) in TAUGHT
    assert len(jobs) >= 2
    assert len(set(map(repr, differences(jobs).values()))) == len(jobs)
    for job in jobs:
        assert job.base == "toy"
        assert all(Path(resolve_set(data.folder)).is_dir() for data in job.all_sets())


@pytest.mark.parametrize(("values", "sentence"), [
    ({}, "runs: a sweep has a"), ({"runs": []}, "runs: a sweep has a"), ({"runs": [{"steps": 3}]}, "runs: a sweep has a"),
    ({"runs": [{"name": "a"}, {"name": "a"}]}, "runs: the name 'sweep_a' is used twice"),
    ({"runs": [{"name": "a", "base": "x"}, {"name": "b"}]}, "runs: a sweep has one base model"),
    ({"runs": [{"name": "a", "stps": 1}]}, "stps: unknown setting"),
])  # fmt: skip
def test_a_sweep_that_cannot_be_meant_is_refused(values, sentence, tmp_path):
    with pytest.raises(LoomError, match=sentence):
        runs_of(values, tmp_path)


def test_the_sheet_has_a_column_for_each_run_and_a_row_for_each_prompt():
    pictures = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
    made = sheet(
        [
            ("a", pictures, ["one", "two"], 0.25),
            ("b", pictures[:1], ["one", "two"], None),
            ("c", pictures, ["one", "two"], 1.0),
        ]
    )
    one = sheet([("a", pictures[:1], ["one"], None)])
    assert (round(made.width / one.width), round(made.height / one.height)) == (3, 2)


def test_steps_per_picture_set_the_number_of_steps(toy_config, run_toy, tmp_path):
    assert run_toy(toy_config(steps_per_picture=2), tmp_path).step == 8


def test_a_limit_takes_always_the_same_pictures(toy_config):
    from lora_loom.lora_core.data.folder import scan

    two, three = ([p.name for p in scan(toy_config(data={"limit": n}).data).pictures] for n in (2, 3))
    assert len(two) == 2
    assert set(two) < set(three)
    assert [p.name for p in scan(toy_config(data={"limit": 2}).data).pictures] == two
    assert len(scan(toy_config(data={"limit": 100}).data).pictures) == 4
