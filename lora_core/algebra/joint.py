"""A frozen layer and its LoRA as one node of autograd's graph: few calls a layer, and nothing kept but the input and its product with the first factor.

The same products as layer and branch apart, but the gradient for the input is summed in the last product instead of by one more addition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch

from .walk import CONVS

_backward = torch.ops.aten.convolution_backward.default


class Base(Protocol):
    """A frozen layer without its adapter. Both results are tensors of their own, which may be written to."""

    def output(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer makes of `x`; asked where autograd records nothing."""

    def gradient(self, grad: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """For the layer's input, of shape `shape`; `grad` is that of its output."""


class Gate:
    """Whether a backward pass adds gradients to the places that wait for them, or hands them to autograd."""

    open = False


class Sink:
    """A place, of a parameter's shape and type, where its gradients are added up; `used`: since it was last emptied."""

    __slots__ = ("gate", "total", "used")

    def __init__(self, gate: Gate, total: torch.Tensor):
        self.gate, self.total, self.used = gate, total, False

    def add(self, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
        """Adds scale * left @ right, which may be of a narrower type."""
        total = self.total
        if left.dtype == total.dtype:
            total.addmm_(left, right, alpha=scale)
        else:
            total.add_(left.mm(right), alpha=scale)
        self.used = True


class Factors(NamedTuple):
    """`down` (rank, in, ...) and `up` (out, rank, ...) as they are trained, the same numbers in the type of the pass, and where their gradients go."""

    down: torch.Tensor
    up: torch.Tensor
    down_here: torch.Tensor
    up_here: torch.Tensor
    sinks: tuple[Sink, Sink] | None = None


Joint = Callable[[torch.Tensor, Base, Factors, float], torch.Tensor]
_Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, None]  # for x, down and up


# Base, factors, scale, and of a convolution (stride, padding, dilation) of both factors: one argument, since each costs
# time in every layer.
_Acting = tuple[Base, Factors, float, tuple[Any, ...]]


def joint_linear(x: torch.Tensor, base: Base, factors: Factors, scale: float) -> torch.Tensor:
    """(..., out): base(x) + scale * up (down x) for `x` (..., in)."""
    return _linear(x, factors.down, factors.up, (base, factors, scale, ()))


def joint_conv(walk: Mapping[str, Any]) -> Joint:
    """The same for a convolution, of which `down` takes the steps `walk` and `up` a kernel of one."""
    ones, zeros = [1] * len(walk["stride"]), [0] * len(walk["stride"])
    steps = (walk["stride"], walk["padding"], walk["dilation"]), (ones, zeros, ones)

    def joint(x: torch.Tensor, base: Base, factors: Factors, scale: float) -> torch.Tensor:
        return _conv(x, factors.down, factors.up, (base, factors, scale, steps))

    return joint


def unviewed(out: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor that autograd does not count as a view: blocks of a host may write into what a layer gives them."""
    return out.data if out._is_view() else out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, acting: _Acting) -> torch.Tensor:
        base, (_, _, down_here, up_here, _), scale, _ = acting
        out = base.output(x)
        hidden = x.reshape(-1, x.shape[-1]).mm(down_here.t())
        out.view(-1, out.shape[-1]).addmm_(hidden, up_here.t(), alpha=scale)
        ctx.save_for_backward(x, hidden, down_here, up_here)
        ctx.acting = acting
        return out.data if out._is_view() else out  # see `unviewed`

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> _Gradients:
        x, hidden, down, up = ctx.saved_tensors
        of_x, of_down, of_up, _ = ctx.needs_input_grad
        (base, factors, scale, _), grad_x, grad_down, grad_up = ctx.acting, None, None, None
        rows, x_rows, sinks = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1]), factors.sinks
        inner = rows.mm(up)
        if scale != 1.0:
            inner.mul_(scale)
        if sinks is not None and sinks[0].gate.open:
            if of_down:
                sinks[0].add(inner.t(), x_rows, 1.0)
            if of_up:
                sinks[1].add(rows.t(), hidden, scale)
        else:
            grad_down = inner.t().mm(x_rows) if of_down else None
            grad_up = rows.t().mm(hidden) if of_up else None
            if grad_up is not None and scale != 1.0:
                grad_up.mul_(scale)
        if of_x:
            grad_x = base.gradient(grad, x.shape)
            grad_x.view(x_rows.shape).addmm_(inner, down)
        return grad_x, grad_down, grad_up, None


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, acting: _Acting) -> torch.Tensor:
        base, (_, _, down_here, up_here, _), scale, steps = acting
        out, conv = base.output(x), CONVS[down_here.ndim]
        hidden = conv(x, down_here, None, *steps[0])
        out.add_(conv(hidden, up_here), alpha=scale)
        ctx.save_for_backward(x, hidden, down_here, up_here)
        ctx.acting = acting
        return unviewed(out)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> _Gradients:
        x, hidden, down, up = ctx.saved_tensors
        of_x, of_down, of_up, _ = ctx.needs_input_grad
        (base, _, scale, steps), grad_x, grad_down = ctx.acting, None, None
        scaled = grad if scale == 1.0 else grad * scale
        inner, grad_up = _both(scaled, hidden, up, steps[1], (of_x or of_down, of_up))
        if inner is not None:
            grad_x, grad_down = _both(inner, x, down, steps[0], (of_x, of_down))
        if grad_x is not None:
            grad_x = base.gradient(grad, x.shape).add_(grad_x)
        return grad_x, grad_down, grad_up, None


def _both(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, steps: Any, needs: tuple[bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients (for x, for the weight) of a convolution without a bias; None where one is not wanted."""
    stride, padding, dilation = steps
    zeros = [0] * len(stride)
    made = _backward(grad, x, weight, None, stride, padding, dilation, False, zeros, 1, [*needs, False])
    return made[0], made[1]


def _applied(function: type[torch.autograd.Function]) -> Callable[..., torch.Tensor]:
    """`function.apply` without what torch does in it for `torch.func`, which costs as much as a small product; where that is at work, with it."""
    plain = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    transformed = getattr(torch._C, "_are_functorch_transforms_active", None)

    def apply(*args: Any) -> torch.Tensor:
        return plain(*args) if transformed is not None and not transformed() else function.apply(*args)

    return apply


_linear, _conv = _applied(_Linear), _applied(_Conv)
