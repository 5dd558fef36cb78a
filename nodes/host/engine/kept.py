"""Results kept in memory, as many as fit into a number of bytes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """Values by key, in the order they came."""

    def __init__(self, limit_bytes: int):
        self._limit, self._bytes = limit_bytes, 0
        self._values: dict[Key, Value] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __getitem__(self, key: Key) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    @property
    def overfull(self) -> bool:
        return self._bytes > self._limit

    def has_room_for(self, size_bytes: int) -> bool:
        return self._bytes + size_bytes <= self._limit

    def put(self, key: Key, value: Value, size_bytes: int) -> Value:
        """Keeps the value in any case, and gives it back."""
        self._values[key] = value
        self._bytes += size_bytes
        return value

    def clear(self) -> None:
        self._values.clear()
        self._bytes = 0
