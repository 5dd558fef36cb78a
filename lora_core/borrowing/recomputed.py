"""A block made again in the backward pass, whatever it writes over in place: its inputs alone are kept."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from .aliases import as_normal
from .layers import Forward
from .saved import copied_before_writes

Block = Callable[..., list[torch.Tensor]]  # a block as a function of tensors alone


class _Again(torch.autograd.Function):
    """`block` of the first `inputs` of `tensors`; the others are parameters it reads."""

    @staticmethod
    def forward(ctx: Any, block: Block, inputs: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.block, ctx.inputs = block, inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        with torch.enable_grad():  # as in the backward pass: dropout asks for it
            made = block(*_leaves(tensors[:inputs]))
        ctx.mark_non_differentiable(*(out for out in made if not out.requires_grad))
        return tuple(out.detach() if out.requires_grad else out for out in made)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        inputs = _leaves(ctx.saved_tensors[: ctx.inputs])
        tensors = (*inputs, *ctx.saved_tensors[ctx.inputs :])
        with torch.enable_grad(), copied_before_writes():
            pairs = [pair for pair in zip(ctx.block(*inputs), grads, strict=True) if pair[1] is not None]
            outs, leaves = [out for out, _ in pairs], [t for t in tensors if t.requires_grad]
            parts = torch.autograd.grad(outs, leaves, [grad for _, grad in pairs], allow_unused=True) if outs else ()
        of = dict(zip(map(id, leaves), parts, strict=False))
        return None, None, *(of.get(id(t)) for t in tensors)


def _leaves(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [t.detach().requires_grad_(t.requires_grad) for t in tensors]


@dataclasses.dataclass(frozen=True)
class _Call:
    """The arguments of one call, with the tensors taken out of them, also those that objects of the host carry as attributes."""

    leaves: list[Any]
    spec: _pytree.TreeSpec
    places: list[tuple[int, str]]  # (leaf, attribute or "" for the leaf itself) of each tensor

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        leaves, spec = _pytree.tree_flatten((args, kwargs))
        places = [(n, name) for n, leaf in enumerate(leaves) for name in _carried(leaf)]
        return _Call(leaves, spec, places)

    def tensors(self) -> list[torch.Tensor]:
        values = (getattr(self.leaves[n], name) if name else self.leaves[n] for n, name in self.places)
        return [as_normal(value) for value in values]

    def with_copies(self, tensors: Sequence[torch.Tensor]) -> Any:
        """(args, kwargs) with copies of these in their places: what the block writes to stays its own."""
        leaves = [copy.copy(leaf) if _carried(leaf) not in ([], [""]) else leaf for leaf in self.leaves]
        for (n, name), tensor in zip(self.places, tensors, strict=True):
            private = tensor.clone() if tensor.is_floating_point() else tensor
            if name:
                setattr(leaves[n], name, private)
            else:
                leaves[n] = private
        return _pytree.tree_unflatten(leaves, self.spec)


def _carried(leaf: Any) -> list[str]:
    """The attributes of an object that are tensors with gradients; "" for a tensor itself."""
    if torch.is_tensor(leaf):
        return [""]
    if isinstance(leaf, nn.Module | type) or not hasattr(type(leaf), "__module__"):
        return []
    names = (*getattr(type(leaf), "__slots__", ()), *getattr(leaf, "__dict__", ()))
    values = ((name, getattr(leaf, name, None)) for name in names if isinstance(name, str))
    return [name for name, value in values if torch.is_tensor(value) and value.requires_grad]


def recomputed(block: nn.Module, parameters: Sequence[nn.Parameter]) -> Forward:
    """Forward of a block that keeps only its inputs and makes the rest again in backward. `parameters`: what is trained inside of it."""
    original = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return original(*args, **kwargs)
        call, answer = _Call.of(args, kwargs), _Answer()

        def of_tensors(*tensors: torch.Tensor) -> list[torch.Tensor]:
            private_args, private_kwargs = call.with_copies(tensors)
            return answer.take(original(*private_args, **private_kwargs))

        tensors = call.tensors()
        return answer.give(_Again.apply(of_tensors, len(tensors), *tensors, *parameters))

    return forward


class _Answer:
    """What a block returned, with its tensors taken out and put in again."""

    def take(self, value: Any) -> list[torch.Tensor]:
        self._leaves, self._spec = _pytree.tree_flatten(value)
        return [leaf for leaf in self._leaves if torch.is_tensor(leaf)]

    def give(self, tensors: Sequence[torch.Tensor]) -> Any:
        rest = iter(tensors)
        leaves = [next(rest) if torch.is_tensor(leaf) else leaf for leaf in self._leaves]
        self._leaves = [None for _ in leaves]  # the first pass and its memory are not kept
        return _pytree.tree_unflatten(leaves, self._spec)
