"""The bytes of a safetensors file, one tensor at a time, for a disk or for a hash."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from .lora import FormatError

TYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def chunks(
    layout: Layout, tensor: Callable[[str], torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, one tensor at a time: the header first, then the data section."""
    order = sorted(layout, key=lambda key: (-layout[key][0].itemsize, key))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for key in order:
        dtype, shape = layout[key]
        end = offset + math.prod(shape) * dtype.itemsize
        entries[key] = {"dtype": TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for key in order:
        value = tensor(key)
        if (value.dtype, tuple(value.shape)) != layout[key]:
            raise FormatError("tensor.changed", key=key, type=value.dtype, shape=tuple(value.shape))
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
