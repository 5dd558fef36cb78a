"""The start-up self-test, before the first step: each kind of layer measured, then the whole model as we train it against an exact slow way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

import torch
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.borrowing import proof
from ....lora_core.borrowing.borrow import Borrowing, Measures
from ....lora_core.borrowing.comparison import Difference, difference, exact_gradients, trained_gradients
from ....lora_core.borrowing.layers import Place
from ....lora_core.messages.blame import first_line, passing
from ....lora_core.messages.errors import LoomError
from ....lora_core.messages.figures import percent
from ....lora_core.messages.message import Message
from .layers import LAYERS

DIFFUSION, TEXT = "diffusion_model", "text_encoders"


def prove_layers(network: nn.Module, place: Place, root: str) -> None:
    """Measures one layer of each kind of a loaded network that nothing is put on. Raises LoomError naming the layer whose gradient is wrong.

    `place`: where it computes. `root`: what the host calls the network.
    """
    field = "model" if root == DIFFUSION else "clip"
    for name, layer in proof.one_of_each_kind(network, LAYERS, place).items():
        path = f"{root}.{name}"
        try:
            error = proof.error_of(layer, LAYERS, place)
        except Exception as problem:  # noqa: BLE001 - of any pack's layer
            passing(problem)
            raise LoomError(
                "model.layer_untrainable", field=field, layer=path, kind=_kind(layer), reason=first_line(problem)
            ) from problem
        if not proof.tolerable(error, place.dtype):
            raise LoomError("model.layer_gradient", field=field, layer=path, kind=_kind(layer), error=percent(error))


def _kind(layer: nn.Module) -> str:
    """What a layer is, as a person may look for it: its class, and how its weight is stored."""
    weight = layer.weight
    storage = getattr(weight, "_layout_cls", None) or getattr(weight, "tensor_type", None) or weight.dtype
    return (
        f"{type(layer).__name__}, {PurePosixPath(str(getattr(storage, 'name', storage))).name.removeprefix('torch.')}"
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The measures that were proven exact, and what to say of them when they are not those asked for."""

    measures: Measures
    remark: Message | None = None


def verify(
    network: nn.Module,
    adapters: AdapterSet,
    borrowing: Borrowing,
    forward: Callable[[], torch.Tensor],
    dtype: torch.dtype,
) -> Verdict:
    """The first way to train whose gradients are exact: as `borrowing` (installed) is, else with what is saved copied before it is written over.

    It is installed on return. Raises LoomError where autograd refuses even that, or where no way agrees with the exact one.
    `forward()` is a prediction for a small fixed input.
    """
    asked = borrowing.measures
    try:
        exact = exact_gradients(network, borrowing, adapters, forward, dtype)
    except Exception as error:
        passing(error)
        raise LoomError(
            "model.untrainable", field="model", network=type(network).__name__, reason=first_line(error)
        ) from error
    off = Difference(float("inf"), "")
    for measures in _ways(asked):
        off = max(
            _off(borrowing, way, adapters, forward, exact) for way in dict.fromkeys((_open_to_view(measures), measures))
        )
        if off.tolerable(dtype):
            return Verdict(measures, _remark(asked, measures, network))
    borrowing.take(asked)
    raise LoomError(
        "model.self_test", field="model", network=type(network).__name__, error=percent(off.error), layer=off.worst
    )


def _ways(asked: Measures) -> Iterator[Measures]:
    yield asked
    exact = dataclasses.replace(asked, guard=False, exact=True)
    yield exact
    if asked.checkpointing:
        yield dataclasses.replace(exact, checkpointing=False)


def _open_to_view(measures: Measures) -> Measures:
    """The same without checkpointing, under which autograd does not notice that what it needs was written over."""
    return measures if measures.exact else dataclasses.replace(measures, checkpointing=False)


def _off(
    borrowing: Borrowing,
    measures: Measures,
    adapters: AdapterSet,
    forward: Callable[[], torch.Tensor],
    exact: dict[str, torch.Tensor],
) -> Difference:
    """How far it is off under these measures; infinitely where autograd refuses, as it does when a block overwrites what it still needs."""
    borrowing.take(measures)
    try:
        return difference(trained_gradients(borrowing, adapters, forward), exact)
    except RuntimeError as error:
        passing(error)
        return Difference(float("inf"), "")


def _remark(asked: Measures, proven: Measures, network: nn.Module) -> Message | None:
    if proven == asked:
        return None
    if proven.checkpointing == asked.checkpointing:
        return Message.of("model.slow_way", field="model", network=type(network).__name__)
    return Message.of("model.slow_way_unchecked", field="checkpointing", network=type(network).__name__)


def compiled_if_exact(
    borrowing: Borrowing, adapters: AdapterSet, forward: Callable[[], torch.Tensor], dtype: torch.dtype
) -> Message | None:
    """Lets the blocks of `borrowing` (installed, proven exact) run as graphs where these give the same gradients; else says why they do not."""
    proven = borrowing.measures
    if proven.exact:  # what autograd saves is watched from outside, which no graph allows
        return Message.of("compile.slow_way", field="compile")
    eager = trained_gradients(borrowing, adapters, forward)
    borrowing.take(dataclasses.replace(proven, compiled=True))
    if not borrowing.compiled:
        borrowing.take(proven)
        return Message.of("compile.not_ready", field="compile")
    remark = _compiled_remark(borrowing, adapters, forward, dtype, eager)
    if remark is not None:
        borrowing.take(proven)
    return remark


def _compiled_remark(
    borrowing: Borrowing,
    adapters: AdapterSet,
    forward: Callable[[], torch.Tensor],
    dtype: torch.dtype,
    eager: dict[str, torch.Tensor],
) -> Message | None:
    try:
        off = difference(trained_gradients(borrowing, adapters, forward), eager)
    except Exception as error:  # noqa: BLE001 - of the compiler, or of what it calls
        passing(error)
        return Message.of("compile.failed", field="compile", reason=first_line(error))
    if borrowing.compiler.failure:
        return Message.of("compile.failed", field="compile", reason=borrowing.compiler.failure)
    return None if off.tolerable(dtype) else Message.of("compile.differs", field="compile", error=percent(off.error))
