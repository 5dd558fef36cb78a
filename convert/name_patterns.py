"""Values by patterns of layer names, as a PEFT config has them, looked up in bounded time however many there are."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..lora_core.matching.regex import Pattern
from ..lora_core.messages.message import Message
from .lora import FormatError

MAX_PATTERN = 400
FILE = "adapter_config.json"
_REPEAT, _REPEATED_GROUP = (
    re.compile(r"[*+{]"),
    re.compile(r"\)[*+{]"),
)  # a file must not choose how long a search takes
_NAME = re.compile(r"(?:[\w-]|\\?\.)+")  # a pattern that is a name; a bare dot in it stands for any character
_ANY = "\0"

Places = tuple[int, ...]


class NamePatterns:
    """As `peft.utils.other.get_pattern_key`: the first pattern that matches a whole name, or its end after a dot, gives the value.

    Files of mixed ranks have a pattern for each layer that is only its name: those are looked up, whatever is no name is searched.
    Raises FormatError for what is no pattern, or could take long.
    """

    def __init__(self, patterns: Any):
        if not isinstance(patterns, Mapping):
            raise FormatError("peft.patterns", field=FILE, type=type(patterns).__name__)
        self._values = list(patterns.values())
        self._names: dict[int, dict[Places, dict[str, int]]] = {}  # by length, by where any character may stand
        self._searched: list[tuple[int, str]] = []
        self._all = list(patterns)
        for number, pattern in enumerate(self._all):
            _require_bounded(pattern)
            if _NAME.fullmatch(pattern):
                name, anywhere = _as_name(pattern)
                self._names.setdefault(len(name), {}).setdefault(anywhere, {}).setdefault(name, number)
            else:
                self._searched.append((number, pattern))

    def value(self, name: str, default: Any) -> Any:
        """Of the first pattern that matches; `default` where none does."""
        if "\n" in name:  # which a dot does not stand for, and before which a name may end
            matching = (number for number, pattern in enumerate(self._all) if _compiled(pattern).search(name))
            first = next(matching, len(self._all))
        else:
            first = min(self._named(name), default=len(self._all))
            earlier = (
                number for number, pattern in self._searched if number < first and _compiled(pattern).search(name)
            )
            first = next(earlier, first)
        return self._values[first] if first < len(self._values) else default

    def _named(self, name: str) -> Iterator[int]:
        """The numbers of the patterns that are names, by each end of `name` after a dot."""
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        for start in starts:
            for anywhere, numbers in self._names.get(len(name) - start, {}).items():
                number = numbers.get(_masked(name[start:], anywhere))
                if number is not None:
                    yield number


def _as_name(pattern: str) -> tuple[str, Places]:
    """(the pattern as a name, where any character may stand in it)."""
    characters = re.findall(r"\\?\.|[\w-]", pattern)
    anywhere = tuple(place for place, character in enumerate(characters) if character == ".")
    return _masked("".join(character[-1] for character in characters), anywhere), anywhere


def _masked(name: str, places: Places) -> str:
    characters = list(name)
    for place in places:
        characters[place] = _ANY
    return "".join(characters)


def _require_bounded(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN or _REPEATED_GROUP.search(pattern) or len(_REPEAT.findall(pattern)) > 2:
        raise FormatError("peft.pattern", field=FILE, pattern=repr(pattern[:80]))


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Pattern:
    def costly(why: Message) -> FormatError:
        return FormatError("pattern.costly", field=FILE, pattern=repr(pattern[:80]), reason=why)

    try:
        return Pattern(rf"\A(.*\.)?({pattern})$", costly)
    except re.error as error:
        raise FormatError("peft.expression", field=FILE, pattern=repr(pattern[:80]), reason=error) from error
