"""What the frozen model itself says: the same loaded network with every adapter off, no copy of it, as the target of training."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch

from ..data.batches import Batch
from ..transfer import sent
from .run import Run


def asked(batch: Batch, prompt: str) -> Batch:
    """The batch with this prompt for each of its samples."""
    return captioned(batch, [prompt] * len(batch.captions))


def captioned(batch: Batch, captions: Sequence[str]) -> Batch:
    """The batch with other captions, one a sample."""
    return dataclasses.replace(batch, captions=list(captions))


def on_device(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Noise levels (B,) where x is; on Apple GPUs, which have no float64, they stay on the CPU."""
    return sigma if x.device.type == "mps" else sent(sigma, x.device)


@contextlib.contextmanager
def frozen(run: Run) -> Iterator[None]:
    """The base model as if nothing were attached, without gradients; texts are encoded apart where adapters change them."""
    forget = run.backend.forget_texts if run.adapters.changes_text else lambda: None
    forget()
    try:
        with torch.no_grad(), run.adapters.without_trained():
            yield
    finally:
        forget()


def answers(
    run: Run, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch, prompts: Sequence[str]
) -> list[torch.Tensor]:
    """What the frozen model says of x_t (B, ...) at sigma (B,) with each prompt, (B, ...) float32; a prompt that occurs again is asked once."""
    sigma = on_device(sigma, x_t)
    with frozen(run):
        said = {p: run.backend.predict(x_t, sigma, asked(batch, p)).float() for p in dict.fromkeys(prompts)}
    return [said[prompt] for prompt in prompts]
