"""Recomputing blocks changes memory, never numbers."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.backends.recompute import recomputed, worthwhile
from lora_loom.lora_core.config import Recompute
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import fit
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.build import make_adapters
from since import since


def gradients(backend, config, how):
    layers, adapters = make_adapters(config, backend)
    for _, p in adapters.named_parameters():
        p.data.normal_(std=0.05, generator=torch.Generator().manual_seed(p.numel()))
    x, how_wide = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(1)), fit(64, 64, 64, 8)
    with backend.training(layers, adapters, how):
        adapters.prepare()
        adapters.begin_pass(0, 0, 0)
        out = backend.predict(
            x, torch.tensor([0.5, 2.0]), Batch(x, ["a red circle", ""], [how_wide] * 2, ["a", "b"], torch.ones(2))
        )
        out.square().mean().backward()
    return [p.grad for p in adapters.parameters()]


@pytest.mark.parametrize("how", [Recompute.CHEAP, Recompute.ALL])
@pytest.mark.parametrize("algorithm", ["lora", "dora", "lokr"])
def test_gradients_are_the_same(how, algorithm, toy_backend, toy_config):
    config = toy_config(adapter={"algorithm": algorithm, "rank": 4, "dropout": 0.2})
    plain, again = gradients(toy_backend, config, Recompute.NONE), gradients(toy_backend, config, how)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@since("torch", "2.4", "a recomputed block may keep some results")
def test_cheap_keeps_products_and_makes_the_rest_again():
    block = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.GELU(), torch.nn.Linear(64, 64)
    )
    runs = {Recompute.CHEAP: [], Recompute.ALL: []}
    for how, calls in runs.items():
        hooks = [
            m.register_forward_hook(lambda m, args, out, calls=calls: calls.append(type(m).__name__)) for m in block
        ]
        products = []
        with _Products(products):
            recomputed(block, how, torch.randn(8, 64, requires_grad=True)).sum().backward()
        calls.append(len(products))
        for hook in hooks:
            hook.remove()
    assert runs[Recompute.ALL].count("GELU") == runs[Recompute.CHEAP].count("GELU") == 2
    assert runs[Recompute.ALL][-1] > runs[Recompute.CHEAP][-1]  # matrix products carried out


def test_small_inputs_of_large_blocks_are_not_worth_it():
    """SD1.5 at 512 px: what runs at 8 x 8 is kept, what runs at 64 x 64 is not; a transformer block of Flux.1 never is, at 256 px neither."""
    conv = lambda channels: torch.nn.Sequential(
        *(torch.nn.Conv2d(channels, channels, 3, device="meta") for _ in range(2))
    )  # noqa: E731
    assert worthwhile(conv(320), torch.empty(1, 320, 64, 64, device="meta"))
    assert not worthwhile(conv(1280), torch.empty(1, 1280, 8, 8, device="meta"))
    assert worthwhile(
        torch.nn.Linear(3072, 340_000_000 // 3072, device="meta"), torch.empty(1, 768, 3072, device="meta")
    )


class _Products(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, seen):
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            self._seen.append(func)
        return func(*args, **(kwargs or {}))


def test_a_way_the_model_cannot_do_is_refused(toy_backend, toy_config, run_toy, tmp_path, monkeypatch):
    monkeypatch.setattr(type(toy_backend), "recomputes", (Recompute.ALL,))
    with pytest.raises(LoomError, match="recompute: this model cannot do cheap; choose all"):
        run_toy(toy_config(checkpointing=True, recompute="cheap"), tmp_path / "run")
