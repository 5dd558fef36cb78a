"""ZipLoRA (Shah et al. 2023, arXiv 2311.13600): two trained LoRAs in one, with a learned coefficient for every input column of every layer.

The merged delta is m_1 * dW_1 + m_2 * dW_2 with m over columns (eq. 4). It is trained so that the merged model predicts on each concept's own
pictures what that concept's LoRA alone predicts, while the coefficients of a layer are kept from overlapping (eq. 5). The penalty is
similarity * sum over layers of mean |m_1 * m_2|, as in mkshing's ziplora-pytorch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from ..adapters.base import Adapter, AdapterSet
from ..algebra.walk import CONVS, walk_of, weight_shape
from ..backends.base import Backend
from ..backends.encoder import encoder_of
from ..config import OptimizerConfig, TrainConfig
from ..data.batches import Batch, Batches
from ..data.folder import Dataset
from ..data.latents import LatentCache
from ..events import Control, Listener, StepReport
from ..messages.errors import LoomError
from ..objectives import Objective
from ..optim.optimizers import filled, make_optimizer
from ..rng import preserved_rng, randn_like, step_rng
from .assemble import captions_ahead
from .step import clip_grad_norm

Factors = tuple[torch.Tensor, torch.Tensor]  # (down, up), the scale inside
MERGED, FIRST, SECOND = "merged", "first", "second"


class ZipAdapter(Adapter):
    """The two LoRAs of one layer and their coefficients m_1, m_2, one for each input column. `mode` says which of them acts."""

    mode: str

    def __init__(self, layer: nn.Module, first: Factors | None, second: Factors | None, device: torch.device):
        super().__init__()
        self.mode = MERGED
        self._factors = [None if f is None else tuple(t.to(device, torch.float32) for t in f) for f in (first, second)]
        both = first is not None and second is not None
        columns = next(f for f in self._factors if f is not None)[0].shape[1]
        self.coefficients = nn.ParameterList([nn.Parameter(torch.ones(columns, device=device)) for _ in range(2)] if both else [])
        self._walk = walk_of(layer)

    def around(self, base: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        out = base(x)
        for n, wanted in enumerate((FIRST, SECOND)):
            factors = self._factors[n]
            if factors is None or self.mode not in (MERGED, wanted):
                continue
            down, up = (f.to(x.dtype) for f in factors)
            learned = self.mode == MERGED and self.coefficients
            scaled = x * self.coefficients[n].to(x.dtype).view(-1, *[1] * (down.ndim - 2)) if learned else x
            hidden = self._walk(scaled, down)
            out = out + (F.linear(hidden, up) if down.ndim == 2 else CONVS[down.ndim](hidden, up))
        return out

    def overlap(self) -> torch.Tensor:
        """mean |m_1 * m_2|."""
        return (self.coefficients[0] * self.coefficients[1]).abs().mean()

    def merged(self) -> Factors:
        """(down, up) of the merged LoRA: both side by side, the columns of each down matrix times its coefficients. Exact; the ranks add up."""
        downs, ups = [], []
        for n, factors in enumerate(self._factors):
            if factors is not None:
                down, up = factors
                m = self.coefficients[n].detach().view(1, -1, *[1] * (down.ndim - 2)) if self.coefficients else 1.0
                downs.append(down * m)
                ups.append(up)
        return torch.cat(downs).cpu(), torch.cat(ups, 1).cpu()


@dataclasses.dataclass(frozen=True)
class ZipResult:
    """`factors` by the layer's name in files. `losses`: one a step. `overlap`: mean |m_1 * m_2| over layers, before (1) and after."""

    factors: dict[str, Factors]
    losses: list[float]
    overlap: float


def zip_loras(
    config: TrainConfig, similarity: float, backend: Backend, loras: tuple[Mapping[str, Factors], Mapping[str, Factors]],
    datasets: tuple[Dataset, Dataset], listener: Listener, control: Control | None = None,
) -> ZipResult:  # fmt: skip
    """Learns the coefficients for `config.steps` steps on pictures of both concepts.

    `loras` are by the layer's name in files, their scale inside the factors. Layers that only one of them has are taken over as they are.
    Raises LoomError before the first step when the two have no layer in common, or when a layer is not the model's.
    """
    control = control or Control()
    with preserved_rng(config.seed):
        layers, adapters = _adapters(backend, loras)
        objective = backend.objective(config.objective)
        batches = []
        for n, dataset in enumerate(datasets):
            cache = LatentCache(dataset, encoder_of(backend), _told(listener, f"Encoding pictures of LoRA {n + 1}"))
            batches.append(Batches(cache, config, backend.device))
            backend.encode_texts(captions_ahead(batches[-1], config), _told(listener, "Encoding captions"))
        members = [a for _, a in adapters if isinstance(a, ZipAdapter)]
        trained = [a for a in members if a.coefficients]
        group = {"params": adapters.parameters(), "lr": config.optimizer.lr, "weight_decay": 0.0, "name": "coefficients"}
        optimizer = make_optimizer([group], filled(config).optimizer)
        losses: list[float] = []
        largest = max((b.shapes()[0] for b in batches), key=lambda s: s[-1] * s[-2])
        listener.on_start(0, config.steps, {"layers": len(adapters), "trained_values": adapters.count(), "pictures": sum(len(b.pictures) for b in batches)})
        with backend.training(layers, adapters, config.recomputed, (config.batch_size, *largest)):
            for step in range(config.steps):
                if control.stopping:
                    break
                for n, own in enumerate((FIRST, SECOND)):
                    batch = batches[n].at(step, 0)
                    loss = _faithfulness(backend, objective, members, batch, own, step_rng(config.seed, n, step, 0))
                    loss.backward()
                    losses.append(float(loss.detach()) + (losses.pop() if n else 0.0))
                (similarity * torch.stack([a.overlap() for a in trained]).sum()).backward()
                norm = float(clip_grad_norm(adapters.parameters(), config.optimizer.max_grad_norm))
                if not (math.isfinite(norm) and math.isfinite(losses[-1])):
                    raise LoomError(f"Step {step + 1}: loss {losses[-1]}, gradient norm {norm}; lower the learning rate, or use a base model in bf16 or fp32.")
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                listener.on_step(StepReport(step + 1, losses[-1], 0.0, norm, config.optimizer.lr, batch.names))
    overlap = float(torch.stack([a.overlap() for a in trained]).mean().detach())
    return ZipResult({name: a.merged() for name, a in adapters if isinstance(a, ZipAdapter)}, losses, overlap)


def zip_config(data, steps: int, lr: float, batch_size: int, seed: int, checkpointing: bool = False) -> TrainConfig:
    """The settings of a run like those of a training; the paper's are 100 steps at 0.01."""
    return TrainConfig(
        name="zip", steps=steps, batch_size=batch_size, seed=seed, data=data, checkpointing=checkpointing, optimizer=OptimizerConfig(lr=lr, max_grad_norm=0.0)
    )


def _adapters(backend: Backend, loras: tuple[Mapping[str, Factors], Mapping[str, Factors]]) -> tuple[dict[str, nn.Module], AdapterSet]:
    found = {backend.file_name(path): layer for path, layer in backend.layers().items()}
    names = {*loras[0], *loras[1]}
    if unknown := sorted(names - found.keys()):
        raise LoomError(f"lora: {unknown[0]} is not a layer of this model; use LoRAs that were made for it.")
    for name, (down, up) in [*loras[0].items(), *loras[1].items()]:
        if (len(up), *down.shape[1:]) != weight_shape(found[name]):
            raise LoomError(
                f"lora: {name} is {len(up)} x {tuple(down.shape[1:])}, the model's layer {weight_shape(found[name])}; use LoRAs that were made for it."
            )
    if not loras[0].keys() & loras[1].keys():
        raise LoomError("lora: the two LoRAs have no layer in common, so there is nothing to learn; add them up with Merge LoRAs.")
    adapters = AdapterSet({n: ZipAdapter(found[n], loras[0].get(n), loras[1].get(n), backend.device) for n in names})
    return {n: found[n] for n in names}, adapters


def _faithfulness(backend: Backend, objective: Objective, members: list[ZipAdapter], batch: Batch, own: str, rng: torch.Generator) -> torch.Tensor:
    """Mean squared difference between what the merged model predicts and what the concept's own LoRA predicts, on that concept's pictures."""
    sigma = objective.draw_sigma(len(batch.latents), rng)
    x_t = objective.corrupt(batch.latents, randn_like(batch.latents, rng), sigma)
    with torch.no_grad():
        _set_mode(members, own)
        target = backend.predict(x_t, sigma, batch)
    _set_mode(members, MERGED)
    return F.mse_loss(backend.predict(x_t, sigma, batch).float(), target.float())


def _set_mode(members: list[ZipAdapter], mode: str) -> None:
    for adapter in members:
        adapter.mode = mode


def _told(listener: Listener, what: str) -> Callable[[int, int], None]:
    return lambda done, of: listener.on_message(f"{what}: {done}/{of}")
