"""The start-up self-test: on a tiny latent, the gradients as we train them against an exact slow way, before the first step is made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.borrowing.borrow import Borrowing
from ....lora_core.borrowing.comparison import compared
from ....lora_core.compat import OutOfMemoryError
from ....lora_core.messages.errors import LoomError


def verify(
    network: nn.Module,
    adapters: AdapterSet,
    borrowing: Borrowing,
    forward: Callable[[], torch.Tensor],
    dtype: torch.dtype,
) -> float:
    """Relative error of the adapter gradients of `borrowing` (installed). Raises LoomError naming the worst layer when too large.

    `forward()` is a prediction for a tiny fixed input. `borrowing` is installed again on return.
    """
    try:
        difference = compared(network, borrowing, adapters, forward, dtype)
    except RuntimeError as error:
        if isinstance(error, OutOfMemoryError):
            raise
        raise LoomError(
            "model.untrainable", field="model", network=type(network).__name__, reason=str(error).splitlines()[0][:160]
        ) from error
    if not difference.tolerable(dtype):
        total, worst = difference
        raise LoomError(
            "model.self_test", field="model", network=type(network).__name__, error=f"{total:.1%}", layer=worst
        )
    return difference.error
