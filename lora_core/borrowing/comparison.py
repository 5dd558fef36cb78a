"""The gradients of a borrowed model as they are trained, against an exact slow way.

The slow way uses no guard, no checkpointing, no layer in one node with its adapter, and (where weights lie ready in the compute dtype) no frozen op.
What autograd saves is copied before anything writes over it, which is exact whatever a block overwrites.
What both ways share, the layers themselves, is measured in proof.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import nn

from ..adapters import AdapterSet
from .borrow import Borrowing, Measures
from .saved import copied_before_writes

TOLERANCE = {  # relative; rounding through a deep network, far below a wrong value's error
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.05,
}

Gradients = dict[str, torch.Tensor]


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

    `forward()` is a prediction for a small fixed input. `fast` is installed again on return. Raises RuntimeError where autograd refuses.
    """
    trained = trained_gradients(fast, adapters, forward)
    return difference(trained, exact_gradients(network, fast, adapters, forward, dtype))


def writing(measures: Measures) -> AbstractContextManager[None]:
    """What has to be around forward and backward under these measures."""
    return copied_before_writes() if measures.exact else contextlib.nullcontext()


def trained_gradients(borrowing: Borrowing, adapters: AdapterSet, forward: Callable[[], torch.Tensor]) -> Gradients:
    """Of every adapter parameter by name, for a fixed sum over the prediction, as `borrowing` (installed) trains them."""
    with writing(borrowing.measures):
        return _gradients(adapters, forward)


def exact_gradients(
    network: nn.Module,
    borrowing: Borrowing,
    adapters: AdapterSet,
    forward: Callable[[], torch.Tensor],
    dtype: torch.dtype,
) -> Gradients:
    """The same by the slow way; `borrowing` (installed) is installed again on return."""
    borrowing.eject()
    ready = _ready(network, borrowing, adapters, dtype)
    slow = borrowing.with_measures(Measures(guard=False, freeze=not ready, joint=False, exact=True))
    slow.inject()
    try:
        return trained_gradients(slow, adapters, forward)
    finally:
        slow.eject()
        borrowing.inject()


def difference(trained: Gradients, exact: Gradients) -> Difference:
    """Of two sets of gradients of the same parameters, relative to the whole second one; infinite where that is zero and the first is not."""
    whole = torch.stack([g.norm() for g in exact.values()]).norm()
    errors = {name: _share(trained[name] - g, whole) for name, g in exact.items()}
    total = sum(e * e for e in errors.values()) ** 0.5
    return Difference(total, max(errors, key=lambda name: errors[name]))


def _share(part: torch.Tensor, whole: torch.Tensor) -> float:
    norm = part.norm()
    return 0.0 if not norm and not whole else float(norm / whole)


def _gradients(adapters: AdapterSet, forward: Callable[[], torch.Tensor]) -> Gradients:
    """Of a fixed sum over the prediction; zero where none arrives."""
    pred = forward()
    probe = torch.linspace(-1, 1, pred.numel(), device=pred.device).view(pred.shape)
    params = adapters.named_parameters()
    grads = torch.autograd.grad((pred * probe).sum(), [p for _, p in params], allow_unused=True)
    return {
        name: torch.zeros_like(p) if grad is None else grad.detach().clone()
        for (name, p), grad in zip(params, grads, strict=True)
    }


def _ready(network: nn.Module, borrowing: Borrowing, adapters: AdapterSet, dtype: torch.dtype) -> bool:
    """Whether every weight lies on the device that trains, in the compute dtype, and is used as it stands, so that plain autograd may save it."""
    devices = {p.device for p in network.parameters()} | {p.device for p in adapters.parameters()}
    if len(devices) != 1 or not all(borrowing.host_uses_as_they_stand(m) for m in network.modules()):
        return False
    return all(p.dtype == dtype and _plain(p) for p in network.parameters() if p.is_floating_point())


def _plain(parameter: torch.Tensor) -> bool:
    return type(parameter.data) is torch.Tensor
