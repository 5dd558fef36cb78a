"""A message as data. Whoever has something to say gives its code and values; a door puts it into words, in the reader's language."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Union

from .secrets import in_one_line

LANGUAGES = ("en", "zh", "ko", "ja")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
SETTING = re.compile(r"\{@([\w.]+)\}")  # {@optimizer.lr}: a setting, by the name each door has for it
NUMBER = re.compile(
    r"\[(\w+):([^|\]]*)\|([^\]]*)\]"
)  # [count:picture is|pictures are] for one and for any other number of {count}
MOST_DIGITS = 8  # significant ones; what has more was computed, and is told with three
MOST_CHARACTERS, MOST_MEMBERS = (
    600,
    100,
)  # of a text and a list inside a sentence; the middle of longer ones is left out
LARGEST_WHOLE, ELLIPSIS = 10**100, "…"
_PLACE = re.compile(rf"{PLACEHOLDER.pattern}|{SETTING.pattern}")
_TEXTS = Path(__file__).parent / "texts"
Names = Callable[[str, str], str]  # (a setting or input, a language) -> what the reader of a door knows it by


def as_in_a_job(name: str, language: str) -> str:
    """The names of job files, which are the settings' own."""
    return name


@dataclasses.dataclass(frozen=True)
class Setting:
    """The name of a setting as a value of a sentence; each door puts the name its user knows it by in its place.

    A setting that a sentence always names stands in the sentence itself, as {@optimizer.lr}.
    """

    name: str


Value = Union[str, int, float, Setting, "Message", tuple["Value", ...]]


@dataclasses.dataclass(frozen=True)
class Message:
    """`code`: which sentence. `field`: the setting, input or option it is about, "" for none. `values`: what stands in the places of the sentence."""

    code: str
    field: str = ""
    values: Mapping[str, Value] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, code: str, /, field: str = "", **values: Any) -> Message:
        """A message with values of any kind: an error gives its own message, what is neither number nor text gives what it prints as. Long ones are cut."""
        return cls(code, _cut(field), {name: _plain(value) for name, value in values.items()})

    def text(self, language: str = "en", names: Names = as_in_a_job) -> str:
        """The sentence, after the name of its field. Raises KeyError for a code that has no sentence and for a value that is missing."""
        worded = NUMBER.sub(lambda m: m[2] if str(self.values[m[1]]) == "1" else m[3], table(language)[self.code])

        def filled(place: re.Match[str]) -> str:
            if place[1]:
                return _rendered(self.values[place[1]], language, names)
            return names(place[2], language)

        sentence = _PLACE.sub(filled, worded)
        return f"{in_one_line(names(self.field, language))}: {sentence}" if self.field else sentence

    def __str__(self) -> str:
        return self.text()

    def about(self, field: str) -> Message:
        """The same about another field."""
        return dataclasses.replace(self, field=field)

    def as_json(self, names: Names = as_in_a_job) -> dict[str, Any]:
        """For a page or a file: code, field and values, and the English sentence for whoever has no table."""
        return {**_as_data(self), "text": self.text(LANGUAGES[0], names)}


@functools.cache
def table(language: str) -> dict[str, str]:
    """Code -> sentence of one of LANGUAGES."""
    texts: dict[str, str] = json.loads((_TEXTS / f"{language}.json").read_text(encoding="utf-8"))
    return texts


def _plain(value: Any) -> Value:
    carried = getattr(value, "message", value)
    if isinstance(carried, Message):
        return carried
    if isinstance(value, float):
        return _short(value) if math.isfinite(value) else str(value)  # JSON has no word for nan
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, int):
        return value if abs(value) < LARGEST_WHOLE else _large(value)
    if isinstance(value, Setting):
        return value
    if isinstance(value, list | tuple | dict):
        members = tuple(_plain(member) for member in itertools.islice(value, MOST_MEMBERS))
        if all(isinstance(member, str | Message | Setting) for member in members):
            return _shortened(members, len(value))
    return _cut(str(value))  # a path, a shape, a type


def _shortened(members: tuple[Value, ...], count: int) -> tuple[Value, ...]:
    """The first members of a list that has `count`: messages all, texts as many as a sentence has room for, at least one."""
    room, fitting = MOST_CHARACTERS, 0
    for member in members:
        room -= len(member) if isinstance(member, str) else 0
        if room < 0 and fitting:
            break
        fitting += 1
    return members if fitting == count else (*members[:fitting], ELLIPSIS)


def _cut(text: str) -> str:
    """The text, or its beginning and its end."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}{ELLIPSIS}{text[-half:]}"


def _large(number: int) -> str:
    """A whole number with more digits than Python is willing to write."""
    return f"{'-' if number < 0 else ''}2^{abs(number).bit_length() - 1}"


def _short(number: float) -> float:
    digits = repr(number).partition("e")[0].replace(".", "").lstrip("-0")
    return float(f"{number:.3g}") if len(digits) > MOST_DIGITS else number


def _rendered(value: Value, language: str, names: Names) -> str:
    if isinstance(value, Message):
        return value.text(language, names)
    if isinstance(value, Setting):
        return names(value.name, language)
    if isinstance(value, tuple):
        sign = "; " if any(isinstance(member, Message) for member in value) else ", "
        return sign.join(_rendered(member, language, names) for member in value)
    return in_one_line(str(value).removesuffix(".0") if isinstance(value, float) else str(value))


def _as_data(value: Value) -> Any:
    if isinstance(value, Message):
        values = {place: _as_data(member) for place, member in value.values.items()}
        return {"code": value.code, "field": value.field, "values": values}
    if isinstance(value, Setting):
        return {"setting": value.name}
    return [_as_data(member) for member in value] if isinstance(value, tuple) else value
