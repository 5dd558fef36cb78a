"""The start-up self-test: on a tiny latent, the gradients as we train them against an exact slow way, before the first step is made.

The slow way uses no guard, no checkpointing and (where weights lie ready in the compute dtype) no frozen op, under torch's own
copy-on-write of saved tensors, which is exact whatever a block overwrites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.messages.errors import LoomError
from .borrow import Borrowing

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}  # rounding through a deep network, far below a wrong value's error


def verify(
    network: nn.Module, layers: Mapping[str, nn.Module], adapters: AdapterSet, fast: Borrowing, forward: Callable[[], torch.Tensor], dtype: torch.dtype
) -> float:
    """Relative error of the adapter gradients of `fast` (installed) for a fixed probe. Raises LoomError naming the worst layer when too large.

    `forward()` is a prediction for a tiny fixed input. `fast` is installed again on return.
    """
    try:
        found = _gradients(adapters, forward)
        fast.eject()
        slow = Borrowing(network, layers, adapters, checkpointing=False, guard=False, freeze=not _resident(network, dtype))
        slow.inject()
        try:
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                wanted = _gradients(adapters, forward)
        finally:
            slow.eject()
        fast.inject()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise LoomError(
            "model.untrainable", field="model", network=type(network).__name__, reason=str(error).splitlines()[0][:160]
        ) from error
    whole = torch.stack([g.norm() for g in wanted.values()]).norm()
    errors = {name: float((found[name] - g).norm() / whole) for name, g in wanted.items()}
    total = sum(e * e for e in errors.values()) ** 0.5
    if not total <= TOLERANCE.get(dtype, 0.1):
        worst = max(errors, key=lambda name: errors[name])
        raise LoomError(
            "model.self_test", field="model", network=type(network).__name__, error=f"{total:.1%}", layer=worst
        )
    return total


def _gradients(adapters: AdapterSet, forward: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    pred = forward()
    probe = torch.linspace(-1, 1, pred.numel(), device=pred.device).view(pred.shape)
    params = adapters.named_parameters()
    grads = torch.autograd.grad((pred * probe).sum(), [p for _, p in params], allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g.detach().clone() for (name, p), g in zip(params, grads, strict=True)}


def _resident(network: nn.Module, dtype: torch.dtype) -> bool:
    """Whether every weight lies on one device in the compute dtype, so that plain autograd may save it."""
    devices = {p.device for p in network.parameters()}
    return len(devices) == 1 and all(p.dtype == dtype and type(p.data) is torch.Tensor for p in network.parameters() if p.is_floating_point())
