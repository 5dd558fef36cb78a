"""Parameters of a group side by side in one buffer, their gradients in another: an update, a norm, a zero is one operation instead of one for each layer.

Only for optimizers whose update of a number depends on its own history alone, or on sums over all numbers (Prodigy). Adafactor, CAME and Muon look at
rows and columns of a matrix, 8-bit AdamW has a scale for each stretch of a parameter: these get parameters one by one, as every optimizer did before.

To the outside nothing differs: parameters, learning rates and saved state are by parameter, under the names and in the shapes that the optimizer gives
them one by one. A parameter without a gradient is not updated, not even its count of steps; from then on it is apart from its neighbours.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..algebra.joint import Gate, Sink

# In numbers: kernels read a parameter in whole vectors from where it begins, and the rest up to the next one is zero.
ALIGNED = 64
Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """Where a parameter lies in its group's buffers."""

    buffer: Buffer
    parameter: torch.nn.Parameter
    start: int
    sink: Sink

    @property
    def end(self) -> int:
        """Where the next one may begin."""
        return self.start + _padded(self.parameter.numel())

    def cut(self, flat: torch.Tensor) -> torch.Tensor:
        """The parameter's part of a tensor that runs beside the buffer's values, in its shape."""
        return flat[self.start : self.start + self.parameter.numel()].view(self.parameter.shape)


class Buffer:
    """The values of a group of parameters, which from now on lie in it, and their gradients."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], gate: Gate):
        size = sum(_padded(p.numel()) for p in parameters)
        self.values = torch.zeros(size, dtype=parameters[0].dtype, device=parameters[0].device)
        self.grads = torch.zeros_like(self.values)
        self.slots: list[Slot] = []
        start = 0
        for p in parameters:
            part = slice(start, start + p.numel())
            slot = Slot(self, p, start, Sink(gate, self.grads[part].view(p.shape)))
            slot.cut(self.values).copy_(p.detach())
            p.data = slot.cut(self.values)
            p.slot, p.sink = slot, slot.sink  # type: ignore[attr-defined]
            self.slots.append(slot)
            start = slot.end
        self.members = [
            (slot, slot.parameter, slot.sink, slot.sink.total) for slot in self.slots
        ]  # gone through in every step


class Stretch:
    """Neighbours that have had a gradient in the same steps: one parameter for the optimizer that updates them."""

    def __init__(self, slots: list[Slot]):
        self.slots, self.start, self.end = slots, slots[0].start, slots[-1].end
        buffer = slots[0].buffer
        self.parameter = torch.nn.Parameter(buffer.values[self.start : self.end])
        self.grad = buffer.grads[self.start : self.end]

    def part(self, slot: Slot, value: Any, flattened: bool) -> Any:
        """Of a value of the optimizer's state that of one parameter. A number, of which there is one for all, is that of each."""
        if not self._is_beside(value):
            return value
        part = value[slot.start - self.start :][: slot.parameter.numel()]
        return part if flattened else part.view(slot.parameter.shape)

    def whole(self, values: list[Any]) -> Any:
        """The opposite of `part`, for all parameters."""
        if not any(torch.is_tensor(value) and value.ndim for value in values):
            return values[0].clone() if torch.is_tensor(values[0]) else values[0]
        out = torch.zeros_like(self.parameter.data)
        for slot, value in zip(self.slots, values, strict=True):
            out[slot.start - self.start :][: slot.parameter.numel()] = value.flatten()
        return out

    def _is_beside(self, value: Any) -> bool:
        return torch.is_tensor(value) and value.numel() == self.end - self.start


class Flat(torch.optim.Optimizer):
    """The optimizer that `make` makes of groups, on stretches of buffers. `flattened`: names of its state that it keeps as vectors whatever the shape."""

    def __init__(self, groups: list[dict[str, Any]], make: Make, flattened: Sequence[str] = ()):
        super().__init__([dict(group) for group in groups], {})
        self.gate = Gate()
        self._make, self._flattened = make, frozenset(flattened)
        self._buffers = [Buffer(group["params"], self.gate) for group in self.param_groups]
        self._stretches = [[Stretch(buffer.slots)] for buffer in self._buffers]
        self._build()
        if hasattr(self._inner, "eval"):  # schedule-free: what is saved and sampled is its average
            self.eval, self.train = self._switched("eval"), self._switched("train")
        if getattr(self._inner, "_step_supports_amp_scaling", False):
            self._step_supports_amp_scaling = True

    @staticmethod
    def takes(groups: list[dict[str, Any]]) -> bool:
        """Whether parameters of each group can lie in one buffer."""
        kinds = [{(p.device, p.dtype, p.layout, type(p)) for p in group["params"]} for group in groups]
        return all(len(kind) == 1 and next(iter(kind))[1:] == _PLAIN for kind in kinds)

    def pieces(self) -> list[torch.nn.Parameter]:
        """Everything that has a gradient in this step, in as few tensors as it lies in."""
        return [s.parameter for stretches in self._stretches for s in stretches if s.parameter.grad is not None]

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """A backward pass inside may add its gradients to the buffers itself."""
        self.gate.open = True
        try:
            yield
        finally:
            self.gate.open = False

    @torch.no_grad()
    def gather(self, everywhere: bool = False) -> None:
        """After the last pass of a step: brings all gradients into the buffers. `everywhere`: a parameter without one has zero, not none."""
        for n, buffer in enumerate(self._buffers):
            lacking = self._gathered(buffer)
            if everywhere:
                for slot in lacking:
                    slot.sink.total.zero_()
                    slot.parameter.grad = slot.sink.total
                lacking = set()
            if any(0 < len(lacking.intersection(s.slots)) < len(s.slots) for s in self._stretches[n]):
                self._divide(n, lacking)
            for stretch in self._stretches[n]:
                stretch.parameter.grad = None if stretch.slots[0] in lacking else stretch.grad

    @staticmethod
    def _gathered(buffer: Buffer) -> set[Slot]:
        """Those that have no gradient."""
        lacking, added, copied = set(), list[Slot](), list[Slot]()
        for slot, parameter, sink, total in buffer.members:
            grad = parameter.grad
            if grad is None:
                if not sink.used:
                    lacking.add(slot)
                    continue
                parameter.grad = total
            elif grad is not total:  # of operations that know no buffer
                (added if sink.used else copied).append(slot)
            sink.used = False
        acts: tuple[tuple[list[Slot], Callable[[list[Any], list[Any]], Any]], ...] = (
            (added, torch._foreach_add_),
            (copied, torch._foreach_copy_),
        )
        for slots, act in acts:
            if slots:
                act([slot.sink.total for slot in slots], [slot.parameter.grad for slot in slots])
            for slot in slots:
                slot.parameter.grad = slot.sink.total
        return lacking

    def _divide(self, n: int, lacking: set[Slot]) -> None:
        """Parameters without a gradient in this step and those with one are apart from now on."""
        state = self.state_dict()["state"]
        self._stretches[n] = [
            Stretch(slots) for s in self._stretches[n] for slots in _runs(s.slots, lambda slot: slot in lacking)
        ]
        self._build(state)

    def step(self, closure: Any = None) -> Any:
        """An update of everything that has a gradient."""
        self.gather()
        inner = self._inner
        for name in (
            "grad_scale",
            "found_inf",
        ):  # what a GradScaler leaves for optimizers that skip overflows themselves
            if hasattr(self, name):
                setattr(inner, name, getattr(self, name))
        self._carry(self.param_groups, inner.param_groups)
        inner.step()
        self._carry(inner.param_groups, self.param_groups)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for buffer in self._buffers:
            buffer.grads.zero_()
            for _, parameter, sink, _ in buffer.members:
                parameter.grad = None
                sink.used = False

    def drop(self, group: dict[str, Any]) -> None:
        """Takes a group out for good."""
        n = next(n for n, one in enumerate(self.param_groups) if one is group)
        for stretch in self._stretches[n]:
            self._inner.state.pop(stretch.parameter, None)
        for parameter in group["params"]:
            del parameter.sink
        del self.param_groups[n], self._inner.param_groups[n], self._buffers[n], self._stretches[n]

    # ---- state, by parameter -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        self._carry(self._inner.param_groups, self.param_groups)
        state, index = {}, 0
        for stretches in self._stretches:
            for stretch in stretches:
                values = self._inner.state.get(stretch.parameter, {})
                for slot in stretch.slots:
                    if values:
                        state[index] = {name: self._part(stretch, slot, name, v) for name, v in values.items()}
                    index += 1
        return {"state": state, "param_groups": super().state_dict()["param_groups"]}

    def _part(self, stretch: Stretch, slot: Slot, name: str, value: Any) -> Any:
        part = stretch.part(slot, value, name in self._flattened)
        if name == "p0" and not part.any():  # where Prodigy started, which it keeps as one number where it is zero
            return torch.zeros((), dtype=part.dtype, device=part.device)
        return part

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # checks that it fits, and brings each value to its place and type
        state = {n: self.state.get(p, {}) for n, p in enumerate(p for g in self.param_groups for p in g["params"])}
        self.state.clear()
        first = 0
        for n, buffer in enumerate(self._buffers):
            counts = {slot: _numbers(state[first + k]) for k, slot in enumerate(buffer.slots)}
            self._stretches[n] = [Stretch(slots) for slots in _runs(buffer.slots, counts.__getitem__)]
            first += len(buffer.slots)
        self._build(state)

    def _build(self, state: dict[int, dict[str, Any]] | None = None) -> None:
        """The optimizer of the stretches as they are, with the state that each parameter has."""
        lying = zip(self.param_groups, self._stretches, strict=True)
        self._inner = self._make([{**group, "params": [s.parameter for s in stretches]} for group, stretches in lying])
        index = 0
        for stretch in (s for stretches in self._stretches for s in stretches):
            members = [(state or {}).get(index + k, {}) for k in range(len(stretch.slots))]
            index += len(members)
            if members[0]:
                joined = {name: stretch.whole([values[name] for values in members]) for name in members[0]}
                self._inner.state[stretch.parameter] = joined
        self._carry(self._inner.param_groups, self.param_groups)

    @staticmethod
    def _carry(source: list[dict[str, Any]], target: list[dict[str, Any]]) -> None:
        """Brings the settings and counts of groups from one list to the other."""
        for one, other in zip(source, target, strict=True):
            other.update((name, value) for name, value in one.items() if name != "params")

    def _switched(self, name: str) -> Callable[[], None]:
        def switch() -> None:
            getattr(self._inner, name)()
            self._carry(self._inner.param_groups, self.param_groups)

        return switch


_PLAIN = (torch.float32, torch.strided, torch.nn.Parameter)


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _runs(slots: list[Slot], key: Callable[[Slot], Any]) -> list[list[Slot]]:
    """Neighbours of the same key together."""
    runs: list[list[Slot]] = []
    for slot in slots:
        if runs and key(runs[-1][-1]) == key(slot):
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return runs


def _numbers(state: dict[str, Any]) -> Any:
    """What of a parameter's state has to be the same in neighbours that are updated as one: its counts, and which values there are."""
    counts = {name: value for name, value in state.items() if not torch.is_tensor(value) or name == "step"}
    return sorted(state), {name: float(value) for name, value in counts.items()}
