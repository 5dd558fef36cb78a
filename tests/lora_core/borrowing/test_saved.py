"""Tensors saved for the backward pass are copied before they are written to, and blocks are made again exactly whatever they write over."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from lora_loom.lora_core.borrowing.recomputed import recomputed
from lora_loom.lora_core.borrowing.saved import _CopyBeforeWrite, copied_before_writes
from torch import nn

START = torch.linspace(-1, 2, 12).view(3, 4)


def over_itself(x):
    x = x * 1
    y = x**2
    x.sin_()
    return y.sum() + (x**3).sum()


def over_a_part(x):
    """Through a view that begins elsewhere in the same memory."""
    x = x * 1
    y = x**2
    x[1:].mul_(3)
    return y.sum() + x.sum()


def through_a_slot(x):
    x = x.clone()
    y = torch.exp(x)
    torch.add(y.detach(), 1, out=y.detach())
    return y.sum()


def with_a_list(x):
    parts = [x * 2, x * 3]
    y = sum((p**2).sum() for p in parts)
    with torch.no_grad():
        torch._foreach_mul_(parts, 5.0)
    return y


WRITES = {
    over_itself: lambda x: (x**2).sum() + (torch.sin(x) ** 3).sum(),
    over_a_part: lambda x: (x**2).sum() + x[0].sum() + 3 * x[1:].sum(),
    through_a_slot: lambda x: torch.exp(x).sum(),
    with_a_list: lambda x: 4 * (x**2).sum() + 9 * (x**2).sum(),
}


def gradient(function, start=START):
    x = start.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@pytest.mark.parametrize("function", WRITES, ids=lambda f: f.__name__)
def test_the_gradient_is_that_of_what_was_there_before_the_write(function):
    with copied_before_writes():
        ours = gradient(function)
        with copied_before_writes():
            nested = gradient(function)
    torch.testing.assert_close(ours, gradient(WRITES[function]))
    torch.testing.assert_close(nested, ours)


def test_tensors_of_inference_mode_may_be_written_to():
    with torch.inference_mode():
        held = torch.ones(3)
    with copied_before_writes(), torch.inference_mode():
        held.add_(1)
    assert held.tolist() == [2, 2, 2]


def test_nothing_is_remembered_of_passes_that_are_over():
    mode = _CopyBeforeWrite()
    with torch.autograd.graph.saved_tensors_hooks(mode.pack, mode.unpack), mode:
        for _ in range(3):
            gradient(over_itself)
        x = START.clone().requires_grad_()
        pending = over_itself(x)
        assert len(mode._storages) > 0
        del pending
    gc.collect()
    assert len(mode._storages) == 0


class Told:
    """What a host hands its blocks beside tensors."""

    __slots__ = ("data", "frames")

    def __init__(self, data, frames):
        self.data, self.frames = data, frames


class Block(nn.Module):
    """Writes over its inputs and over what it has saved, drops values while it is trained, and returns more than a tensor."""

    def __init__(self):
        super().__init__()
        self.adapter = nn.Parameter(torch.linspace(0.5, 1.5, 4))
        self.runs = 0

    def forward(self, pair, told=None, options=None):
        self.runs += 1
        x, y = pair
        normed = F.layer_norm(x, (4,)) * self.adapter
        x += normed * told.data
        kept = x**2
        x.mul_(0.5 if torch.is_grad_enabled() else 9.0)
        y.add_(kept)
        return (x, y), {"frames": told.frames, "seen": options["seen"]}


def block_gradients(run, parameter):
    x, y, scale = (START.clone().requires_grad_(), START.flip(0).clone().requires_grad_(), torch.tensor(1.5))
    scale.requires_grad_()
    (a, b), rest = run((x * 2, y * 3), told=Told(scale * 2, 7), options={"seen": [1, "two", None]})
    assert rest == {"frames": 7, "seen": [1, "two", None]}
    return torch.autograd.grad((a**3).sum() + (b**2).sum(), [x, y, scale, parameter])


def test_a_block_made_again_gives_the_gradients_of_plain_autograd_for_inputs_carried_tensors_and_parameters():
    block = Block()
    with copied_before_writes():
        plain = block_gradients(block, block.adapter)
        runs = block.runs
        again = block_gradients(recomputed(block, [block.adapter]), block.adapter)
    assert block.runs - runs == 2
    for ours, exact in zip(again, plain, strict=True):
        torch.testing.assert_close(ours, exact)


def test_what_a_block_made_again_was_given_is_left_as_it_was():
    block, x = Block(), START.clone()
    told = Told(torch.tensor(1.0, requires_grad=True), 1)
    recomputed(block, [block.adapter])((x, x.clone()), told=told, options={"seen": 0})
    assert torch.equal(x, START)
    with torch.no_grad():  # the control: outside of training it is the block's own call
        recomputed(block, [block.adapter])((x, x.clone()), told=told, options={"seen": 0})
    assert not torch.equal(x, START)
