import dataclasses
import json
import math
import typing

import pytest
from lora_loom.lora_core import config as cfg
from lora_loom.lora_core.config import ConfigError, TrainConfig, as_dict, load, parse
from lora_loom.lora_core.losses import LOSSES
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.optim.schedules import SCHEDULES


def every_field(cls=TrainConfig, where=()):
    """(path, type, field) of every plain setting."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from every_field(hints[field.name], (*where, field.name))
        elif typing.get_origin(hints[field.name]) is not tuple:  # sets: a list of sections like data
            yield (*where, field.name), hints[field.name], field


def nested(path, value):
    return nested(path[:-1], {path[-1]: value}) if path else value


FIELDS = list(every_field())
BOUNDED = [f for f in FIELDS if f[2].metadata["low"] is not None or f[2].metadata["high"] is not None]


@pytest.mark.parametrize(
    ("values", "name"),
    [({"lerning_rate": 1}, "lerning_rate"), ({"data": {"folders": ""}}, "data.folders"), ({"save": {"": 1}}, "save.")],
)
def test_an_unknown_key_is_refused_with_its_full_name_and_what_is_allowed(values, name):
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert str(caught.value).startswith(f"{name}: unknown setting; allowed here are ")


@pytest.mark.parametrize(("path", "kind", "field"), BOUNDED, ids=lambda p: ".".join(p) if isinstance(p, tuple) else "")
def test_bounds_are_allowed_and_one_beyond_is_refused_by_name(path, kind, field):
    for bound, beyond in ((field.metadata["low"], -1), (field.metadata["high"], 1)):
        assert bound is not None
        if path not in (("objective", "min_timestep"), ("objective", "max_timestep")):  # these also limit each other
            parse(nested(path, kind(bound)))
        outside = bound + beyond if kind is int else bound + beyond * max(1.0, abs(bound))
        with pytest.raises(ConfigError) as caught:
            parse(nested(path, kind(outside)))
        assert str(caught.value).startswith(".".join(path))
        assert "allowed are" in str(caught.value)


@pytest.mark.parametrize(("path", "kind", "field"), FIELDS, ids=lambda p: ".".join(p) if isinstance(p, tuple) else "")
def test_a_value_of_the_wrong_type_is_refused_by_name(path, kind, field):
    wrong = {
        int: ["3", 1.5, True, None],
        float: ["0.1", True, None, math.nan, math.inf],
        str: [3, None, ["a"]],
        bool: [1, "true", None],
    }[kind]
    for value in wrong:
        with pytest.raises(ConfigError) as caught:
            parse(nested(path, value))
        assert str(caught.value).startswith(f"{'.'.join(path)}: ")
        assert "expected" in str(caught.value)


def test_a_whole_number_is_taken_where_a_fraction_is_allowed():
    lr = parse({"optimizer": {"lr": 1}}).optimizer.lr
    assert (lr, type(lr)) == (1.0, float)


@pytest.mark.parametrize("value", [3, "text", [1]])
def test_a_section_that_is_no_table_is_refused(value):
    with pytest.raises(ConfigError, match="data: expected a section"):
        parse({"data": value})


def test_a_choice_that_does_not_exist_is_refused_with_the_list():
    with pytest.raises(ConfigError, match="schedule.name: found 'cosin'; allowed are constant, linear, cosine"):
        parse({"schedule": {"name": "cosin"}})


def test_an_empty_timestep_range_is_refused():
    with pytest.raises(ConfigError, match="objective.min_timestep: 500 is not below objective.max_timestep 500"):
        parse({"objective": {"min_timestep": 500, "max_timestep": 500}})


def test_defaults_lie_within_their_own_bounds_and_have_a_sentence():
    for path, kind, field in FIELDS:
        assert cfg.check(".".join(path), field.default, kind, field.metadata) == field.default
        assert field.metadata["help"].endswith((".", ")")), path


def test_choices_of_the_config_are_the_tables_of_the_engine():
    choices = {".".join(path): set(field.metadata["choices"]) for path, _, field in FIELDS if field.metadata["choices"]}
    assert choices["schedule.name"] == set(SCHEDULES)
    assert choices["loss"] == set(LOSSES)


@pytest.mark.parametrize("value", [3, "text", [1], {"folder": "x"}])
def test_sets_that_are_no_sections_are_refused(value):
    with pytest.raises(ConfigError, match=r"sets: expected \[\[sets\]\] sections"):
        parse({"sets": value})


def test_sets_take_over_what_data_says_and_a_mistake_in_one_is_named(tmp_path):
    sets = [{"folder": "b", "trigger": ""}, {"folder": "c", "repeats": 3}]
    config = cfg.from_values({"data": {"folder": "a", "flip": True, "trigger": "zog"}, "sets": sets}, tmp_path)
    assert [(s.folder, s.flip, s.trigger, s.repeats) for s in config.all_sets()] == [
        (str(tmp_path / "a"), True, "zog", 0), (str(tmp_path / "b"), True, "", 0), (str(tmp_path / "c"), True, "zog", 3)
    ]  # fmt: skip
    assert parse(json.loads(json.dumps(as_dict(config)))) == config
    only = cfg.from_values({"data": {"flip": True}, "sets": [{"folder": "b"}]}, tmp_path)
    assert [s.folder for s in only.all_sets()] == [str(tmp_path / "b")]
    with pytest.raises(ConfigError, match=r"sets\[1\].repeats: found 5000"):
        parse({"sets": [{}, {"repeats": 5000}]})


def test_a_config_survives_json_and_comes_back_equal():
    config = parse({"name": "Ünïcode 1", "steps": 3, "data": {"folder": "x", "flip": True}, "optimizer": {"lr": 1 / 3}})
    assert parse(json.loads(json.dumps(as_dict(config)))) == config
    assert parse(as_dict(TrainConfig())) == TrainConfig()


def test_a_config_cannot_be_changed_after_parsing():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().data.flip = True


def test_load_reads_toml_and_takes_the_data_folder_from_the_job_file(tmp_path):
    job = tmp_path / "job.toml"
    job.write_bytes(
        "\ufeffname = 'b'\nsteps = 5\n[data]\nfolder = 'pictures'\n".encode()
    )  # with a byte-order mark, as Notepad writes it
    config = load(job)
    assert (config.name, config.steps, config.data.folder) == ("b", 5, str((tmp_path / "pictures").resolve()))
    job.write_text("[data]\nfolder = 'toy:object'\n")
    assert load(job).data.folder == "toy:object"


@pytest.mark.parametrize("content", [b"steps = ", b"[data\n", b"steps = 1\nsteps = 2\n", b"name = '\xff\xfe'\n"])
def test_a_file_that_is_no_toml_is_refused_by_its_path(content, tmp_path):
    job = tmp_path / "job.toml"
    job.write_bytes(content)
    with pytest.raises(ConfigError, match="job.toml: is not a TOML file"):
        load(job)


def test_a_job_file_that_is_missing_or_a_folder_is_refused_by_its_path(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.toml: cannot be read"):
        load(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_a_bad_name_is_refused_before_anything_runs():
    with pytest.raises(LoomError, match="name: '../x' contains a path"):
        parse({"name": "../x"})


def test_half_a_character_is_refused_by_its_place_and_the_bytes_of_a_files_name_are_not():
    with pytest.raises(ConfigError, match=r"^data.trigger: character 2 of the text is half a character"):
        parse({"data": {"trigger": "z\ud800g"}})
    assert parse({"data": {"folder": "caf\udce9"}}).data.folder == "caf\udce9"
    with pytest.raises(ConfigError, match=r"^data.folder: character 4 of the text is half a character"):
        parse({"data": {"folder": "caf\udc10"}})
    with pytest.raises(ConfigError, match=r"^data.prefix: character 1 of the text is half a character"):
        parse({"data": {"prefix": "\udce9"}})  # bytes of a name are no text
