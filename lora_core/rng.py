"""Random streams derived from (seed, rank, step, micro) and a label, never from global state, so a resumed run needs no saved RNG."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from .transfer import sent


def derive(*parts: int | str) -> int:
    """A 63-bit seed from the given parts; equal parts give equal seeds on every machine and version."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(derive(*parts))


def step_rng(seed: int, rank: int, step: int, micro: int, stream: str = "noise") -> torch.Generator:
    """The CPU generator of one forward pass: drawing on the CPU makes the numbers equal on every device."""
    return generator(seed, rank, step, micro, stream)


def python_rng(*parts: int | str) -> random.Random:
    return random.Random(derive(*parts))


def randn_like(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Standard normal float32 noise of x's shape, drawn on the generator's device and moved to x's."""
    return sent(torch.randn(x.shape, generator=rng, device=rng.device), x.device)


@contextlib.contextmanager
def preserved_rng(seed: int) -> Iterator[None]:
    """Seeds torch's global generators inside; puts back the state of torch, numpy and Python as it was before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
