"""Counts what a step asks of a device, on the models of launch.py: operations that start a kernel, values that are waited for, calls of Python functions.

    python benchmarks/counts.py [--models sd15 sdxl flux zimage wan] [--ways least headless host peft]

No figure depends on the machine. Operations are seen as PyTorch hands them out, below autograd; those that only give a tensor another shape, or memory, start
no kernel and are not counted. One operation on a list of tensors counts as the kernels CUDA makes of it: as many tensors fit into one as its arguments have
room for (LISTS). A value is waited for where Python reads a number of a tensor: a GPU has to be done with all before it. Both run on the CPU.
Needs what launch.py needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import engines
import launch

PARTS = ("forward", "backward", "update")
FREE = frozenset((
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "split",
    "split_with_sizes", "chunk", "unbind", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_reshape_alias", "narrow", "diagonal",
    "unfold", "view_as_real", "view_as_complex", "real", "imag", "lift_fresh", "lift", "set_data", "resize_", "is_same_size",
))  # fmt: skip
LISTS = {
    1: 110,
    2: 64,
    3: 48,
    4: 36,
    5: 30,
}  # lists of tensors in one operation -> tensors of each that one kernel takes (torch's MultiTensorApply.cuh)
WAITS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")


def kernels(name: str, args: tuple[Any, ...]) -> int:
    """How many kernels an operation is on CUDA; one on lists of tensors by their length."""
    if name in FREE:
        return 0
    lists = [a for a in args if isinstance(a, list | tuple) and a and hasattr(a[0], "dtype")]
    if not name.startswith(("_foreach", "_fused", "_amp_foreach")) or not lists:
        return 1
    return math.ceil(len(lists[0]) / LISTS[min(5, len(lists))])


class Seen:
    """What was counted since it was last emptied."""

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.waits = 0


@contextlib.contextmanager
def watched(seen: Seen) -> Iterator[None]:
    """Counts inside. A backward pass on the CPU runs in the calling thread, so it is seen too."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__
            seen.kernels[name] += kernels(name, args)
            return func(*args, **(kwargs or {}))

    before = {name: getattr(torch.Tensor, name) for name in WAITS}

    def waiting(name: str) -> Any:
        def read(self: Any, *args: Any) -> Any:
            seen.waits += 1
            with contextlib.ExitStack() as inner:  # what it asks in turn is the same wait
                for other, plain in before.items():
                    inner.callback(setattr, torch.Tensor, other, getattr(torch.Tensor, other))
                    setattr(torch.Tensor, other, plain)
                return before[name](self, *args)

        return read

    try:
        for name in WAITS:
            setattr(torch.Tensor, name, waiting(name))
        with Mode():
            yield
    finally:
        for name, plain in before.items():
            setattr(torch.Tensor, name, plain)


@contextlib.contextmanager
def at_backward(passed: Any) -> Iterator[None]:
    """Tells when a backward pass begins ("backward") and ends ("update")."""
    import torch

    plain = torch.Tensor.backward

    def backward(self: Any, *args: Any, **kwargs: Any) -> None:
        passed("backward")
        plain(self, *args, **kwargs)
        passed("update")

    torch.Tensor.backward = backward  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.backward = plain  # type: ignore[method-assign]


def counted(engine: Any) -> dict[str, Any]:
    """Of one step after two others."""
    for _ in range(2):
        engine.step()
    seen, parts, part = Seen(), dict.fromkeys(PARTS, 0), "forward"

    def passed(following: str) -> None:
        nonlocal part
        parts[part] += seen.kernels.total() - sum(parts.values())
        part = following

    with watched(seen), at_backward(passed):
        engine.step()
    passed("")
    most = {name: n for name, n in seen.kernels.most_common(12) if n}
    return {"kernels": seen.kernels.total(), **parts, "waits": seen.waits, "most": most}


def measured(model: str, ways: list[str]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    case = launch.Narrow(model=model, px=64, rank=4)
    out: dict[str, Any] = {"model": launch.TITLES[model]}
    for way in ways:
        engine = launch.WAYS[way](case)
        out[way] = counted(engine) | {"calls": launch.calls(launch.profiled(engine))}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = ["least", "headless", "host", "peft"]  # the steps of ComfyUI's trainer are no steps of ours to begin and end
    parser.add_argument("--models", nargs="+", default=list(launch.FAMILIES), choices=list(launch.FAMILIES))
    parser.add_argument("--ways", nargs="+", default=ways, choices=ways)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        engines.enter_host()
        sys.stdout.write("ROW " + json.dumps(measured(args.one, args.ways)) + "\n")
        return
    rows = []
    for model in args.models:
        done = subprocess.run(
            [sys.executable, __file__, "--one", model, "--ways", *args.ways], capture_output=True, text=True
        )
        lines = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
        if not lines:
            raise SystemExit(done.stderr[-3000:])
        sys.stdout.write(lines[0] + "\n")
        sys.stdout.flush()
        rows.append(json.loads(lines[0]))
    if args.models == list(launch.FAMILIES) and args.ways == ways:
        read = "of two values that are read in ComfyUI one is the noise level, which is drawn on the CPU"
        engines.written("counts", f"a step of the models of the table above, counted; {read}", rows=rows)


if __name__ == "__main__":
    main()
