"""Runs inside a WebUI's process that was started with flags which change how it keeps its model."""

import contextlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.modules.pop("proof", None)  # the file may have changed since the host was asked last

import proof  # noqa: E402


def kept():
    """How the host keeps the model it has loaded."""
    backend = proof.lend().backend
    modules = list(backend.network.modules())
    return {
        "types": sorted({str(p.dtype) for p in backend.network.parameters()}),
        "hooks": sum(len(m._forward_pre_hooks) for m in modules), "moves": bool(getattr(getattr(backend, "host", None), "_moves", False)),
    }  # fmt: skip


@contextlib.contextmanager
def moved():
    """A module that the host moves gets new tensors for its weights, and the ones it had are spoiled: on one device, what moving does to what was kept.

    Yields how many weights were moved.
    """
    plain, moves = torch.nn.Module.to, [0]

    def to(self, *arguments, **more):
        for p in self.parameters():
            before = p.data
            p.data = before.clone()
            before.fill_(float("nan"))
            moves[0] += 1
        return plain(self, *arguments, **more)

    torch.nn.Module.to = to
    try:
        yield moves
    finally:
        torch.nn.Module.to = plain


def gradients_while_moved(**config):
    """Relative error of the gradients where weights leave between forward and backward, against those where they stay; how many left."""
    with proof.locked(), torch.inference_mode(False), torch.enable_grad():
        backend = proof.lend().backend
        asked = proof.config_of(**config)
        objective = backend.objective(asked.objective)
        layers, adapters = proof._layers_and_adapters(backend, asked)
        params = [p for _, p in adapters.named_parameters()]
        loss = proof._loss_at(backend, objective)
        with backend.training(layers, adapters):
            adapters.prepare()
            still = torch.autograd.grad(loss(), params)
            with moved() as moves:
                value = loss()
                found = torch.autograd.grad(value, params)
        error = proof._norm([a - b for a, b in zip(found, still)]) / proof._norm(still)
        return {"error": float(error), "moves": moves[0]}
