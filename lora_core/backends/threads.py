"""How many processor threads a run of our own process takes, and how they wait for each other. A host's threads are the host's."""

from __future__ import annotations

import os
import sys
from typing import Any

SMALL = 50_000_000  # parameters; a network below it is faster with one thread than with two that wait for each other
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # of GNU's OpenMP, and of Intel's and LLVM's


def wait_passively() -> bool:
    """Threads that wait for others sleep instead of spinning; what the user's environment says stays. To be called before torch is imported.

    Spinning threads on a busy machine take the processor from those they wait for: a step of the toy then takes ten times as long. Says whether torch
    will read it.
    """
    for name, value in _WAITING.items():
        os.environ.setdefault(name, value)
    return "torch" not in sys.modules


def use_threads(count: int) -> None:
    """`count` processor threads for torch, as the user asked for; 0 leaves the choice to `suit_threads`."""
    import torch

    if count:
        os.environ["OMP_NUM_THREADS"] = str(count)
        torch.set_num_threads(count)


def suit_threads(network: Any, device: Any) -> None:
    """One thread for a small network that computes on the processor, unless the user or a launcher has said how many."""
    import torch

    chosen = "OMP_NUM_THREADS" in os.environ
    if device.type == "cpu" and not chosen and sum(p.numel() for p in network.parameters()) < SMALL:
        torch.set_num_threads(1)
