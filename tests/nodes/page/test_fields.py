"""The tab's sections hold every setting of the config, and hand on only what a person has changed."""

import dataclasses
import typing

import pytest
from lora_loom.lora_core.config import TrainConfig, parse
from lora_loom.nodes.page import fields


def paths(section, prefix=""):
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        kind, path = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            yield from paths(kind, f"{path}.")
        else:
            yield path


def test_every_setting_is_on_the_tab_or_named_as_being_elsewhere():
    shown = {field.path for field in fields.fields()}
    assert set(paths(TrainConfig)) - shown - fields.ELSEWHERE == {"sets"}
    assert not shown & fields.ELSEWHERE


@pytest.mark.parametrize("language", ["zh", "ko", "ja"])
def test_every_setting_has_its_name_and_its_sentence_in_every_language(language):
    texts = fields.translated(language)
    leaves = {field.path: field.path.rpartition(".")[2] for field in fields.fields()}
    assert [f.path for f in fields.fields() if f.label not in texts and leaves[f.path] not in texts] == []
    assert [f.path for f in fields.fields() if f.help not in texts] == []


def test_no_translation_is_left_of_a_sentence_that_is_gone():
    said = {text for field in fields.fields() for text in (field.label, field.help)}
    for language in ("zh", "ko", "ja"):
        assert set(fields._read(language, "page")) - said == set()


def test_what_was_left_alone_is_not_handed_on():
    defaults = {field.path: field.default for field in fields.fields()}
    assert fields.changed(defaults) == {}
    assert fields.changed({**defaults, "adapter.rank": 8, "optimizer.lr": None}) == {"adapter.rank": 8}


def test_a_page_that_sends_whole_numbers_as_fractions_is_understood():
    changed = fields.changed({"adapter.rank": 8.0, "batch_size": 2.0})
    assert changed == {"adapter.rank": 8, "batch_size": 2}
    assert parse({"adapter": {"rank": changed["adapter.rank"]}, "batch_size": 2}).adapter.rank == 8


def test_a_value_that_the_preset_might_fill_in_too_is_handed_on_once_it_is_given():
    given = {"adapter.rank": 16, "data.resolution": 512, "schedule.name": "constant", "optimizer.lr": 1e-4}
    assert fields.changed(given) == given
    assert fields.changed({"adapter.rank": 0, "data.resolution": 0, "schedule.name": "auto", "optimizer.lr": 0.0}) == {}
