"""What is put onto a WebUI's model for a run and taken off again: at its end, and between two steps while the host draws a picture."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from torch import nn

from ....lora_core.borrowing.borrow import Borrowing


class Lending:
    """Borrowings of one run, and base weights that want no gradient. `on` and `off` may be called any number of times, in turn.

    `kernels`: a block in which the host computes by code that has gradients.
    """

    def __init__(
        self,
        borrowings: Sequence[Borrowing],
        modules: Sequence[nn.Module],
        kernels: Callable[[], AbstractContextManager[None]],
    ):
        self._borrowings, self._modules, self._kernels = borrowings, modules, kernels
        self._undo: contextlib.ExitStack | None = None

    @property
    def installed(self) -> bool:
        return self._undo is not None

    def on(self) -> None:
        self.off()
        with contextlib.ExitStack() as undo:
            undo.enter_context(without_gradients(self._modules))
            undo.enter_context(self._kernels())
            for borrowing in self._borrowings:
                undo.callback(borrowing.eject)
                borrowing.inject()
            self._undo = undo.pop_all()

    def choose_again(self) -> None:
        """Before each pass, where they are on: the host may have moved weights."""
        for borrowing in self._borrowings if self.installed else ():
            borrowing.choose_again()

    def off(self) -> None:
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo.close()


@contextlib.contextmanager
def without_gradients(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, no weight asks for a gradient. Inference tensors are left alone: what stands for them asks for none."""
    wanting = [p for module in modules for p in module.parameters() if p.requires_grad and not p.is_inference()]
    for p in wanting:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanting:
            p.requires_grad_(True)
