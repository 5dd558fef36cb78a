"""Which input an exception of the host came from."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import nn


def misfit_width(error: BaseException, network: nn.Module, texts: Any) -> tuple[int, int] | None:
    """(width of the text, width the model reads) where a layer of `network` was handed a text of another width; None for any other error.

    `texts`: what a text was encoded to, tensors in lists and dicts.
    """
    widths = {tensor.shape[-1] for tensor in _tensors(texts) if tensor.ndim > 1}
    modules = set(map(id, network.modules()))
    for local in _innermost_first(error.__traceback__):
        layer = local.get("self", local.get("layer"))
        expected = getattr(layer, "in_features", None) or next(iter(getattr(layer, "normalized_shape", ())), None)
        if id(layer) not in modules or expected is None:
            continue
        sizes = [value.shape[-1] for value in local.values() if torch.is_tensor(value) and value.ndim > 1]
        return next(((width, expected) for width in sizes if width in widths and width != expected), None)
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
