"""A setting: its default, its bounds and its sentence, and the check of a value against them."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
from typing import Any

from ..messages.errors import LoomError

MAX_TEXT = 20_000  # characters of a setting
HALF = re.compile("[\ud800-\udfff]")  # of a character that is written as a pair; no tokenizer takes one alone
HALF_IN_PATH = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # U+DC80 to U+DCFF stand for bytes of a file's name (PEP 383)
short = reprlib.Repr()  # of a value in a sentence
short.maxstring = short.maxother = 200
short.maxlong = 40


class ConfigError(LoomError):
    """A setting is unknown, of the wrong type or out of bounds."""


# What 0 may stand for; pages say it behind a widget's name ("zero.<word>" in js/locales).
ZEROS = (
    "auto",
    "off",
    "all",
    "no_limit",
    "half",
    "rank",
    "conv_rank",
    "learning_rate",
    "steps",
    "target",
    "samples",
    "training",
    "exact",
)


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    zero: str = "",
) -> Any:
    """A dataclass field that carries its own documentation and bounds (`low` and `high` are allowed values).

    `zero`: what 0 stands for where it is no amount, a word of ZEROS.
    """
    return _field(default, {"help": help, "low": low, "high": high, "choices": choices, "zero": zero})


def path_setting(default: str, help: str) -> Any:
    """The same of a file or folder, whose name may have bytes that are no text."""
    return _field(default, {"help": help, "low": None, "high": None, "choices": (), "zero": "", "half": HALF_IN_PATH})


def _field(default: Any, meta: dict[str, Any]) -> Any:
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def check(label: str, value: Any, kind: type, meta: types.MappingProxyType | dict) -> Any:
    """`value` as `kind` when it is of that type and within the bounds of `meta`; else ConfigError."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError("setting.type", field=label, kind=kind.__name__, value=short.repr(value))
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ConfigError("setting.long", field=label, length=len(value), limit=MAX_TEXT)
    if isinstance(value, str) and (half := meta.get("half", HALF).search(value)):
        raise ConfigError("setting.half_character", field=label, place=half.start() + 1)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("setting.not_finite", field=label, value=value)
    low, high, choices = meta["low"], meta["high"], meta["choices"]
    if choices and value not in choices:
        raise ConfigError("setting.choice", field=label, value=short.repr(value), allowed=choices)
    if (low is not None and value < low) or (high is not None and value > high):
        figure = value if isinstance(value, float) else short.repr(value)
        raise ConfigError("setting.range", field=label, value=figure, low=f"{low:g}", high=f"{high:g}")
    return value
