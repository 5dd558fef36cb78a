"""ZipLoRA (Shah et al. 2023, arXiv 2311.13600): two trained LoRAs in one, with a learned coefficient for every input column of every layer.

The merged delta is m_1 * dW_1 + m_2 * dW_2 with m over columns (eq. 4). It is trained so that the merged model predicts on each concept's own
pictures what that concept's LoRA alone predicts, while the coefficients of a layer are kept from overlapping (eq. 5). The penalty is
similarity * sum over layers of mean |m_1 * m_2|, as in mkshing's ziplora-pytorch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..adapters.base import Adapter
from ..adapters.set import AdapterSet
from ..algebra.walk import CONVS, walk_of, weight_shape
from ..backends.base import Backend
from ..backends.encoder import encoder_of
from ..config import OptimizerConfig, TrainConfig
from ..data.batches import Batch, Batches
from ..data.dataset import Dataset
from ..data.latents import LatentCache
from ..events import Listener, StepReport
from ..losses import mean, mse
from ..messages.errors import LoomError
from ..optim.optimizers import filled, make_optimizer
from ..rng import preserved_rng, randn_like, step_rng
from .assemble import pass_on_remarks
from .encoding import captions_ahead
from .job import Job
from .step import clip_grad_norm

Factors = tuple[torch.Tensor, torch.Tensor]  # (down, up), the scale inside
Loras = tuple[Mapping[str, Factors], Mapping[str, Factors]]  # two LoRAs by the layers' names in files
MERGED, FIRST, SECOND = "merged", "first", "second"
PICTURES = ("progress.pictures_1", "progress.pictures_2")


class ZipAdapter(Adapter):
    """The two LoRAs of one layer and their coefficients m_1, m_2, one for each input column. `mode` says which of them acts."""

    mode: str

    def __init__(self, layer: nn.Module, first: Factors | None, second: Factors | None, device: torch.device):
        super().__init__()
        self.mode = MERGED
        self._factors = [None if f is None else tuple(t.to(device, torch.float32) for t in f) for f in (first, second)]
        both = first is not None and second is not None
        columns = next(f for f in self._factors if f is not None)[0].shape[1]
        self.coefficients = nn.ParameterList(
            [nn.Parameter(torch.ones(columns, device=device)) for _ in range(2)] if both else []
        )
        self._walk = walk_of(layer)

    def around(self, base: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        out = base(x)
        for n, mode in enumerate((FIRST, SECOND)):
            factors = self._factors[n]
            if factors is None or self.mode not in (MERGED, mode):
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


def zip_loras(job: Job, second: Dataset, loras: Loras, similarity: float) -> ZipResult:
    """Learns the coefficients for `job.config.steps` steps on pictures of both concepts, the job's and `second`.

    Layers that only one of the LoRAs has are taken over as they are. Raises LoomError before the first step when the two have no layer in
    common, or when a layer is not the model's.
    """
    config, backend = job.config, job.backend
    losses: list[float] = []
    with preserved_rng(config.seed):
        layers, adapters = _adapters(backend, loras)
        zipping = _Zipping(
            job,
            adapters,
            [_batches(job, dataset, n + 1) for n, dataset in enumerate((job.dataset, second))],
            similarity,
        )
        largest = max((batches.shapes()[0] for batches in zipping.batches), key=lambda s: s[-1] * s[-2])
        pictures = sum(len(batches.pictures) for batches in zipping.batches)
        job.listener.on_start(
            0, config.steps, {"layers": len(adapters), "trained_values": adapters.count(), "pictures": pictures}
        )
        with backend.training(layers, adapters, config.recomputed, (config.batch_size, *largest)):
            pass_on_remarks(job)
            for step in range(config.steps):
                if job.control.stopping:
                    break
                report = zipping.step(step)
                losses.append(report.loss)
                job.listener.on_step(report)
    overlap = float(torch.stack([a.overlap() for a in zipping.shared]).mean().detach())
    return ZipResult({name: a.merged() for name, a in adapters if isinstance(a, ZipAdapter)}, losses, overlap)


def _batches(job: Job, dataset: Dataset, number: int) -> Batches:
    """The pictures and captions of LoRA number 1 or 2, encoded."""
    progress = _progress(job.listener, PICTURES[number - 1])
    batches = Batches(LatentCache(dataset, encoder_of(job.backend), progress), job.config, job.backend.device)
    job.backend.encode_texts(captions_ahead(batches, job.config), _progress(job.listener, "progress.captions"))
    return batches


class _Zipping:
    """The coefficients in training. `shared`: the layers both LoRAs have, the only ones with something to learn."""

    def __init__(self, job: Job, adapters: AdapterSet, batches: Sequence[Batches], similarity: float):
        self._config, self._backend, self._adapters, self._similarity = job.config, job.backend, adapters, similarity
        self._objective = job.backend.objective(job.config.objective)
        self.batches, self.members = batches, [a for _, a in adapters if isinstance(a, ZipAdapter)]
        self.shared = [a for a in self.members if a.coefficients]
        group = {
            "params": adapters.parameters(),
            "lr": job.config.optimizer.lr,
            "weight_decay": 0.0,
            "name": "coefficients",
        }
        self._optimizer = make_optimizer([group], filled(job.config).optimizer)

    def step(self, step: int) -> StepReport:
        """One update: faithful to each LoRA on its own pictures, with coefficients that overlap little. Raises LoomError before the weights move."""
        optimizer, total, names = self._config.optimizer, 0.0, []
        for n, mode in enumerate((FIRST, SECOND)):
            batch = self.batches[n].at(step, 0)
            loss = self._faithfulness(batch, mode, step_rng(self._config.seed, n, step, 0))
            loss.backward()
            total, names = float(loss.detach()) + total, list(batch.names)
        (self._similarity * torch.stack([a.overlap() for a in self.shared]).sum()).backward()
        norm = float(clip_grad_norm(self._adapters.parameters(), optimizer.max_grad_norm))
        if not (math.isfinite(norm) and math.isfinite(total)):
            raise LoomError("zip.not_finite", step=step + 1, loss=total, norm=norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepReport(step + 1, total, 0.0, norm, optimizer.lr, names)

    def _faithfulness(self, batch: Batch, mode: str, rng: torch.Generator) -> torch.Tensor:
        """Mean squared difference between what the merged model predicts and what one LoRA alone predicts, on that LoRA's pictures."""
        sigma = self._objective.of_shape(batch.latents.shape).draw_sigma(len(batch.latents), rng)
        x_t = batch.as_given(self._objective.corrupt(batch.latents, randn_like(batch.latents, rng), sigma))
        with torch.no_grad():
            self._set_mode(mode)
            target = self._backend.predict(x_t, sigma, batch)
        self._set_mode(MERGED)
        return mean(mse(self._backend.predict(x_t, sigma, batch), target, None), batch.learnt).mean()

    def _set_mode(self, mode: str) -> None:
        for adapter in self.members:
            adapter.mode = mode


def zip_config(data, steps: int, lr: float, batch_size: int, seed: int, checkpointing: bool = False) -> TrainConfig:
    """The settings of a run like those of a training; the paper's are 100 steps at 0.01."""
    return TrainConfig(
        name="zip",
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        data=data,
        checkpointing=checkpointing,
        optimizer=OptimizerConfig(lr=lr, max_grad_norm=0.0),
    )


def _adapters(backend: Backend, loras: Loras) -> tuple[dict[str, nn.Module], AdapterSet]:
    layers = {backend.file_name(path): layer for path, layer in backend.layers().items()}
    names = {*loras[0], *loras[1]}
    if unknown := sorted(names - layers.keys()):
        raise LoomError("lora.unknown_layer", field="lora", layer=unknown[0])
    for name, (down, up) in [*loras[0].items(), *loras[1].items()]:
        if (len(up), *down.shape[1:]) != weight_shape(layers[name]):
            raise LoomError(
                "zip.other_shape",
                field="lora",
                layer=name,
                rows=len(up),
                columns=tuple(down.shape[1:]),
                shape=weight_shape(layers[name]),
            )
    if not loras[0].keys() & loras[1].keys():
        raise LoomError("zip.no_common_layer", field="lora")
    adapters = AdapterSet({n: ZipAdapter(layers[n], loras[0].get(n), loras[1].get(n), backend.device) for n in names})
    return {n: layers[n] for n in names}, adapters


def _progress(listener: Listener, what: str) -> Callable[[int, int], None]:
    return lambda done, total: listener.on_progress(what, done, total)
