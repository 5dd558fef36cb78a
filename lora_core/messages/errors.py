"""Errors a user is meant to read: each one carries a message."""

from __future__ import annotations

import dataclasses
from typing import Any

from .message import Message, Value
from .secrets import without_secrets

MAX_REASON = 1000  # characters of a foreign error
MAX_LINE = 200  # of one inside a sentence of ours
_NO_MEMORY = ("can't allocate memory", "not enough memory: you tried to allocate", "out of memory")  # PyTorch's words


class Problem(Exception):
    """An error that is a message: `Problem("folder.missing", field="data.folder", folder=...)`. Its str is the English sentence."""

    def __init__(self, code: str | Message, /, field: str = "", **values: Any):
        self.message = code if isinstance(code, Message) else Message.of(code, field, **values)
        super().__init__(str(self.message))


class LoomError(Problem):
    """Something the user can put right: which file or field, what was found, what is allowed, what to do."""


class Fault(Problem, ValueError):
    """What is wrong inside a file or a text, for the middle of the message about it."""


class NonFiniteError(LoomError):
    """A number that must be finite is not; nothing was written from it."""


def message_of(error: BaseException) -> Message:
    """What a person is told: our own errors say what to do, others their kind."""
    if isinstance(error, Problem):
        return error.message
    if is_memory(error):
        return Message.of("batch_size.no_memory", field="batch_size")
    return Message.of("error.unexpected", kind=type(error).__name__, reason=without_secrets(str(error)[:MAX_REASON]))


def is_memory(error: BaseException) -> bool:
    """Whether a library found no memory, of the device or of the machine; PyTorch's allocator for the CPU says so in words alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, by name
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def reason_of(error: BaseException, limit: int = MAX_LINE) -> Message | str:
    """Why something failed, for the middle of a sentence: the message of an error of ours; of another program's error a quotation, its first line
    without secrets, else its kind.

    A first line that ends in a colon only announces the second.
    """
    ours = getattr(error, "message", None)
    if isinstance(ours, Message) and not isinstance(error.__cause__, OSError):
        return dataclasses.replace(ours, values={name: _without_secrets(value) for name, value in ours.values.items()})
    cause = error.__cause__ if isinstance(error, Problem) and isinstance(error.__cause__, OSError) else error
    text = getattr(cause, "strerror", None) or str(cause)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()] or [type(cause).__name__]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return without_secrets(line[: 4 * limit])[:limit]


def _without_secrets(value: Value) -> Value:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Message):
        return dataclasses.replace(value, values={name: _without_secrets(one) for name, one in value.values.items()})
    return tuple(map(_without_secrets, value)) if isinstance(value, tuple) else value
