"""Rename tables that run both ways: a row pairs the diffusers path of a layer with its path in the original code base of the model.

`*` stands for a block number. Several rows may share one native layer (q, k, v in one matrix); each then says which share of the rows it is.
Names are looked up without regard to `.` or `_` between words, so dotted and flattened (Kohya) spellings are the same lookup.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable

_DIGITS = re.compile(r"\d+")
_MAX_DIGITS = 6  # of a block number; longer ones are no layer
_WILD = re.compile(r"\*|\d+")


@dataclasses.dataclass(frozen=True)
class Row:
    """`ratio`: rows over columns of the whole native weight, where it tells families apart; 0 says nothing.

    `kernel`: () linear, (3, 3) a convolution of that size, None unknown. `swap`: the two halves of the output rows change places
    between the worlds: "always", or "last" for the one block that has only two of its six modulation vectors.
    `limit`: block numbers below it exist in the published models; larger ones speak against the family. 0: no limit.
    `host_name_only`: ComfyUI knows the layer by its native name alone, also in files of diffusers' names.
    """

    diffusers: str
    native: str
    part: int = 0
    shares: tuple[int, ...] = (1,)
    ratio: float = 0.0
    kernel: tuple[int, ...] | None = ()
    swap: str = ""
    limit: int = 0
    host_name_only: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
    """A name that was looked up: all rows of the layer (one, or the parts of a fused one), the block numbers, and whose spelling it was."""

    rows: tuple[Row, ...]
    numbers: tuple[str, ...]
    native: bool

    def diffusers(self, row: Row) -> str:
        return fill(row.diffusers, self.numbers)


def fill(pattern: str, numbers: Iterable[str]) -> str:
    """The pattern with its stars replaced from left to right."""
    values = iter(numbers)
    return re.sub(r"\*", lambda _: next(values), pattern)


def fused(*names: str, native: str, shares: tuple[int, ...] = (1, 1, 1), **more) -> list[Row]:
    """Rows for layers that the native model keeps as one matrix, in the order of its rows."""
    return [Row(name, native, part, shares, **more) for part, name in enumerate(names)]


class Table:
    """All rows of one model part, indexed by both spellings."""

    def __init__(self, rows: Iterable[Row], aliases: Iterable[Row] = ()):
        """`aliases`: further native spellings of layers that `rows` have, which are read and never written."""
        self.rows = tuple(rows)
        self._index: dict[str, list[tuple[tuple[str, ...], bool, tuple[Row, ...]]]] = {}
        natives: dict[str, list[Row]] = {}
        for row in self.rows:
            self._add(row.diffusers, False, (row,))
            natives.setdefault(row.native, []).append(row)
        for row in aliases:
            natives.setdefault(row.native, []).append(row)
        for pattern, rows_of_it in natives.items():
            self._add(pattern, True, tuple(rows_of_it))

    def _add(self, pattern: str, native: bool, rows: tuple[Row, ...]) -> None:
        flat = pattern.replace(".", "_")
        self._index.setdefault(_WILD.sub("#", flat), []).append((tuple(_WILD.findall(flat)), native, rows))

    def find(self, name: str) -> Found | None:
        """The layer called `name` (dotted or flat, in either spelling), or None. A name that both spellings share counts as diffusers."""
        return self.find_form(*(split_numbers if len(name) < LONG_NAME else split_numbers.__wrapped__)(name))

    def find_form(self, form: str, digits: tuple[str, ...]) -> Found | None:
        """As `find`, for a name that `split_numbers` took apart."""
        for numbers, native, rows in self._index.get(form, ()):
            if all(w in ("*", d) for w, d in zip(numbers, digits)):
                return Found(rows, tuple(d for w, d in zip(numbers, digits) if w == "*"), native)
        return None

    def has(self, form: str) -> bool:
        """Whether a layer is called so but for its numbers: a form of `split_numbers`."""
        return form in self._index


LONG_NAME = 400  # characters; longer names are of no model and are not remembered


@functools.lru_cache(maxsize=8192)
def split_numbers(name: str) -> tuple[str, tuple[str, ...]]:
    """(the name with # for its numbers, flat; its numbers). Of a name with a number that no block has, the form is that of no layer."""
    flat = name.replace(".", "_")
    digits = tuple(_DIGITS.findall(flat))
    form = "" if any(len(d) > _MAX_DIGITS for d in digits) else _DIGITS.sub("#", flat)
    return form, digits
