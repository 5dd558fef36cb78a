"""The tab's sections hold every setting of the config, and hand on only what a person has changed."""

import dataclasses
import typing

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


def test_what_was_left_alone_is_not_handed_on():
    defaults = {field.path: field.default for field in fields.fields()}
    assert fields.changed(defaults) == {}
    assert fields.changed({**defaults, "adapter.rank": 8, "optimizer.lr": None}) == {"adapter.rank": 8}


def test_a_page_that_sends_whole_numbers_as_fractions_is_understood():
    changed = fields.changed({"adapter.rank": 8.0, "batch_size": 2.0})
    assert changed == {"adapter.rank": 8, "batch_size": 2}
    assert parse({"adapter": {"rank": changed["adapter.rank"]}, "batch_size": 2}).adapter.rank == 8
