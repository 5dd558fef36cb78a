"""The loaded model of whichever WebUI this is, as a backend, and how it is given back for a picture."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from ....lora_core.backends.base import Backend
from ....lora_core.messages.errors import LoomError
from ....lora_core.messages.message import Message
from .backend import WebUIBackend
from .host import WebUI, webui_here


@dataclasses.dataclass(frozen=True)
class Lent:
    """`settled`: what the last picture had left in the model. `settle`: takes such things out, and says what they were.

    `given_back`: a block in which the host has its model as before the run; raises LoomError at its end when it is another one.
    """

    backend: Backend
    settled: Sequence[Message]
    settle: Callable[[], list[Message]]
    given_back: Callable[[], AbstractContextManager[None]]


def lent_model() -> Lent:
    """Raises LoomError where nothing is loaded, nothing that can be trained, or where this is a fork made of other parts."""
    host = webui_here()
    if host is WebUI.REFORGE:
        with _parts_of_a_known_host():
            from .reforge import Loan

        loan = Loan()
        return Lent(loan.backend, loan.settled, loan.settle, loan.given_back)
    backend = _backend_of(host)
    return Lent(backend, backend.settled, backend.settle, backend.given_back)


def _backend_of(host: WebUI) -> WebUIBackend:
    with _parts_of_a_known_host():
        if host is WebUI.FORGE:
            from .forge import ForgeBackend as HostsBackend
        elif host is WebUI.CLASSIC:
            from .classic import ClassicBackend as HostsBackend  # type: ignore[assignment]
        else:
            from .a1111 import A1111Backend as HostsBackend  # type: ignore[assignment]
    return HostsBackend()


@contextlib.contextmanager
def _parts_of_a_known_host() -> Iterator[None]:
    """Turns what our imports miss into a sentence: forks keep a host's folders and change what is in them."""
    try:
        yield
    except ImportError as error:
        raise LoomError("webui.unknown") from error
