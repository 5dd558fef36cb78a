"""Any exception of a library as one sentence about what it was asked to do, to which file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .errors import LoomError, Problem, is_memory, reason_of
from .message import Message

_PANIC = "PanicException"  # of pyo3, for tokenizers and safetensors
_CANCELS = ("InterruptProcessingException",)  # a host's, which in some is an Exception
LONGEST = 160  # characters of a foreign error inside a sentence


def first_line(error: BaseException) -> Message | str:
    """What a foreign error says, short, after its kind: a quotation. Of an error of ours its message."""
    kind, reason = type(error).__name__, reason_of(error, LONGEST)
    if isinstance(reason, Message):
        return reason
    return kind if reason == kind else f"{kind}: {reason}"


def is_foreign(error: BaseException) -> bool:
    """Whether it came out of a library. Cancels, signals and the end of the program did not; a panic of a library in Rust did,

    though pyo3 derives it from BaseException.
    """
    kind = type(error).__name__
    return kind == _PANIC or (isinstance(error, Exception) and kind not in _CANCELS)


def passing(error: BaseException) -> None:
    """Raises again what says already what is wrong: our own errors, and a lack of memory; a package that cannot be loaded by its name."""
    if isinstance(error, Problem) or is_memory(error):
        raise error
    for cause in (error, error.__cause__):
        if isinstance(cause, ImportError):
            package = (cause.name or _raised_in(cause)).partition(".")[0]
            raise LoomError("package.broken", package=package, reason=first_line(cause)) from error


def _raised_in(error: BaseException) -> str:
    """The module whose code raised it."""
    name, traceback = "", error.__traceback__
    while traceback is not None:
        name, traceback = str(traceback.tb_frame.f_globals.get("__name__", "")), traceback.tb_next
    return name


@contextlib.contextmanager
def blamed(code: str, field: str, memory: str = "", **values: Any) -> Iterator[None]:
    """Inside, every exception of a library becomes the LoomError `code` about `field`, with the exception as its `reason`.

    `memory`: the code for a lack of memory, which passes through where there is none.
    """
    try:
        yield
    except BaseException as error:
        if not is_foreign(error):
            raise
        if memory and is_memory(error):
            raise LoomError(memory, field=field, **values) from error
        passing(error)
        raise LoomError(code, field=field, reason=first_line(error), **values) from error
