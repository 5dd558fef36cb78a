"""Notes what a network is given, by the names of its own forward's arguments."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def recorded(network: Any, calls: list[dict[str, Any]]) -> Iterator[None]:
    """Inside, the arguments of each call of `network` are put into `calls`, dicts among them as they were at the call."""
    forward, signature = network.forward, inspect.signature(type(network).forward)
    together = [name for name, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD]

    def noted(*args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(network, *args, **kwargs).arguments)
        given.pop(next(iter(signature.parameters)))  # self
        for name in together:
            given |= given.pop(name, {})
        # Some networks write into them.
        calls.append({name: dict(value) if isinstance(value, dict) else value for name, value in given.items()})
        return forward(*args, **kwargs)

    network.forward = noted
    try:
        yield
    finally:
        del network.forward
