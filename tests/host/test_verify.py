"""The self-test passes where training is right and stops the run where it would go wrong."""

from __future__ import annotations

import architectures
import pytest
import torch
from lora_loom.lora_core.borrowing import borrow, frozen, guards
from lora_loom.lora_core.config import Recompute
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.host.engine.backend import HostBackend
from stand_ins import NoVae, RandomClip
from test_gradients import make_adapters


def start(name: str, recompute: Recompute) -> None:
    patcher = architectures.build(name)
    with torch.inference_mode(False):
        backend = HostBackend(patcher, RandomClip(name), NoVae(patcher))
        layers, adapters = make_adapters(backend)
        backend.encode_texts(["a red cat"], lambda n, of: None)
        with backend.training(layers, adapters, recompute):
            pass


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.ALL], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("name", ["Flux", "Flux2", "Chroma"])
def test_guarded_architectures_pass(name, recompute):
    start(name, recompute)


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.ALL], ids=["plain", "checkpointed"])
def test_missing_guards_are_caught_before_the_first_step(monkeypatch, recompute):
    monkeypatch.setattr(borrow, "norms", lambda model: [])
    monkeypatch.setattr(borrow, "checkpointed", lambda block, pure: _unguarded(block))
    with pytest.raises(LoomError, match="Flux"):
        start("Flux", recompute)


def _unguarded(block):
    return guards.checkpointed(block, pure=True)


def test_wrong_frozen_gradient_is_named(monkeypatch):
    exact = frozen._Frozen.backward
    monkeypatch.setattr(
        frozen._Frozen, "backward", staticmethod(lambda ctx, grad: (exact(ctx, grad)[0] * 1.05, None, None, None))
    )
    with pytest.raises(LoomError, match=r"off by .*most at diffusion_model\."):
        start("Flux", Recompute.NONE)
