"""What a run writes beside its checkpoints and its result may fail: that is told once, and the run goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ..events import Listener
from ..messages.errors import LoomError, reason_of
from ..messages.message import Message

Tell = Callable[[Message], None]
DISK = (
    OSError,
    LoomError,
    ValueError,
)  # by which writing a file fails; ValueError: it is closed, or holds what its format cannot


class Extras:
    """Writers of a run that it can do without. `tell`: who hears of one that failed, the first time."""

    def __init__(self, tell: Tell):
        self._tell, self._failed = tell, set[str]()

    @contextlib.contextmanager
    def writing(self, name: str, errors: tuple[type[Exception], ...] = DISK) -> Iterator[None]:
        """Inside, what is called `name` is written; where that fails, the run goes on without it."""
        try:
            yield
        except errors as error:
            if name not in self._failed:
                self._failed.add(name)
                self._tell(Message.of("extra.failed", name=name, reason=reason_of(error)))


class Guarded(Listener):
    """Passes events on to a listener that writes what is called `name`, and whose failures cost no run."""

    def __init__(self, listener: Listener, name: str, extras: Extras, errors: tuple[type[Exception], ...] = DISK):
        self._listener, self._name, self._extras, self._errors = listener, name, extras, errors


def _guarded(event: str) -> Callable[..., None]:
    def pass_on(self: Guarded, *arguments: Any) -> None:
        with self._extras.writing(self._name, self._errors):
            getattr(self._listener, event)(*arguments)

    return pass_on


for _event in [name for name in vars(Listener) if name.startswith("on_")]:
    setattr(Guarded, _event, _guarded(_event))
