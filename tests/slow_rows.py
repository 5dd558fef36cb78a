"""Rows of a large table of tests: those that run always, and those that wait for the slow suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def mostly_slow(rows: Iterable[Any], always: Callable[[Any], bool]) -> list[Any]:
    """Each row for `parametrize`; those that are not to run `always` are marked slow."""
    return [row if always(row) else _slow(row) for row in rows]


def _slow(row: Any) -> Any:
    return (
        pytest.param(*row, marks=pytest.mark.slow)
        if isinstance(row, tuple)
        else pytest.param(row, marks=pytest.mark.slow)
    )
