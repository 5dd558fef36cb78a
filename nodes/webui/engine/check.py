"""The start-up self-test: on a tiny latent, the gradients as they are trained against an exact slow way. It finds what other extensions have hooked in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.borrowing.borrow import Borrowing
from ....lora_core.borrowing.comparison import compared
from ....lora_core.messages.errors import LoomError

LONGEST_REASON = 160


def require_exact(
    network: nn.Module,
    adapters: AdapterSet,
    borrowing: Borrowing,
    forward: Callable[[], torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Raises LoomError naming the worst layer where the gradients of `borrowing` (installed, also on return) are off, or autograd refuses."""
    name = type(network).__name__
    try:
        difference = compared(network, borrowing, adapters, forward, dtype)
    except RuntimeError as error:
        if "OutOfMemory" in type(error).__name__:
            raise
        reason = str(error).splitlines()[0][:LONGEST_REASON]
        raise LoomError("model.untrainable", field="model", network=name, reason=reason) from error
    if not difference.tolerable(dtype):
        off = f"{difference.error:.1%}"
        raise LoomError("model.self_test", field="model", network=name, error=off, layer=difference.worst)
