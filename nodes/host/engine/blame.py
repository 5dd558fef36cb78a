"""Any exception of the host, a pack or a library as a sentence about the input it came from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ....lora_core.compat import OutOfMemoryError
from ....lora_core.messages.errors import LoomError, Problem, reason_of

LONGEST = 160  # characters of a foreign error inside a sentence


def first_line(error: BaseException) -> str:
    """What a foreign error says, short, after its kind."""
    kind, reason = type(error).__name__, reason_of(error, LONGEST)
    return kind if reason == kind else f"{kind}: {reason}"


def passing(error: BaseException) -> None:
    """Raises again what says already what is wrong: our own errors, and a lack of memory."""
    if isinstance(error, (Problem, OutOfMemoryError, MemoryError)):
        raise error


@contextlib.contextmanager
def blamed(code: str, field: str, **values: Any) -> Iterator[None]:
    """Inside, every exception becomes the LoomError `code` about `field`, with the exception as its `reason`."""
    try:
        yield
    except Exception as error:
        passing(error)
        raise LoomError(code, field=field, reason=first_line(error), **values) from error


def misfit_width(error: BaseException, network: nn.Module, texts: Any) -> tuple[int, int] | None:
    """(width of the text, width the model reads) where a layer of `network` was handed a text of another width; None for any other error.

    `texts`: what a text was encoded to, tensors in lists and dicts.
    """
    widths = {tensor.shape[-1] for tensor in _tensors(texts) if tensor.ndim > 1}
    modules = set(map(id, network.modules()))
    for local in _innermost_first(error.__traceback__):
        layer = local.get("self", local.get("layer"))
        wanted = getattr(layer, "in_features", None) or next(iter(getattr(layer, "normalized_shape", ())), None)
        if id(layer) not in modules or wanted is None:
            continue
        given = [value.shape[-1] for value in local.values() if torch.is_tensor(value) and value.ndim > 1]
        return next(((width, wanted) for width in given if width in widths and width != wanted), None)
    return None


def _innermost_first(traceback: TracebackType | None) -> Iterator[dict[str, Any]]:
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return (frame.f_locals for frame in reversed(frames))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if torch.is_tensor(value):
        yield value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
