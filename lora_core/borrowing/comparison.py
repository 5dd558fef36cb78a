"""The gradients of a borrowed model as they are trained, against an exact slow way.

The slow way uses no guard, no checkpointing and (where weights lie ready in the compute dtype) no frozen op, under torch's own
copy-on-write of saved tensors, which is exact whatever a block overwrites.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ..adapters import AdapterSet
from .borrow import Borrowing, Measures

TOLERANCE = {  # relative; rounding through a deep network, far below a wrong value's error
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.05,
}


class Difference(NamedTuple):
    """Relative error of all adapter gradients together, and the parameter it is largest at."""

    error: float
    worst: str

    def tolerable(self, dtype: torch.dtype) -> bool:
        """Whether rounding explains it for a model that computes in `dtype`; not a number is never tolerable."""
        return self.error <= TOLERANCE.get(dtype, 0.1)


def compared(
    network: nn.Module,
    fast: Borrowing,
    adapters: AdapterSet,
    forward: Callable[[], torch.Tensor],
    dtype: torch.dtype,
) -> Difference:
    """How far the adapter gradients of `fast` (installed on `network`) are from exact ones, for a fixed probe.

    `forward()` is a prediction for a tiny fixed input. `fast` is installed again on return. Raises RuntimeError where autograd refuses.
    """
    trained = _gradients(adapters, forward)
    fast.eject()
    slow = fast.with_measures(Measures(checkpointing=False, guard=False, freeze=not _resident(network, dtype)))
    slow.inject()
    try:
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            exact = _gradients(adapters, forward)
    finally:
        slow.eject()
    fast.inject()
    whole = torch.stack([g.norm() for g in exact.values()]).norm()
    errors = {name: float((trained[name] - g).norm() / whole) for name, g in exact.items()}
    total = sum(e * e for e in errors.values()) ** 0.5
    return Difference(total, max(errors, key=lambda name: errors[name]))


def _gradients(adapters: AdapterSet, forward: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a fixed sum over the prediction; zero where none arrives."""
    pred = forward()
    probe = torch.linspace(-1, 1, pred.numel(), device=pred.device).view(pred.shape)
    params = adapters.named_parameters()
    grads = torch.autograd.grad((pred * probe).sum(), [p for _, p in params], allow_unused=True)
    return {
        name: torch.zeros_like(p) if grad is None else grad.detach().clone()
        for (name, p), grad in zip(params, grads, strict=True)
    }


def _resident(network: nn.Module, dtype: torch.dtype) -> bool:
    """Whether every weight lies on one device in the compute dtype, so that plain autograd may save it."""
    params = list(network.parameters())
    if len({p.device for p in params}) != 1:
        return False
    return all(p.dtype == dtype and type(p.data) is torch.Tensor for p in params if p.is_floating_point())
