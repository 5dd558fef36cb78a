"""What a choice of memory means for a job on a model: checkpointing, how batches are split, how the frozen weights lie. Counted, never guessed.

The figures are those of benchmarks/activations.py (benchmarks/results/activations.json); what was not counted is said to be unknown, and measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from ..config import AS_SET, BY_MEMORY, MEASURE, TrainConfig
from ..messages.message import Message

GIB = 2**30
BYTES_PER_VALUE = 16  # of an adapter: fp32 weight, gradient and both averages of Adam
# GiB of a GPU that a step cannot have: PyTorch's context and libraries (0.4 to 0.6), the desktop, and what the allocator
# leaves between blocks.
RESERVED_GIB = 1.0
LIKE = 0.2  # a model is one that was counted when its number of weights is no further away than this
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the blocks in main memory, headless


@dataclasses.dataclass(frozen=True)
class Counted:
    """A published model of `billions` of weights: GiB beside the weights at the highest for one picture of `px`, without and with checkpointing."""

    name: str
    family: str
    billions: float
    kept: float
    again: float
    px: int
    adapter_millions: float

    def step_gib(self, checkpointing: bool, batch: int, px: int) -> float:
        """Of a step at another size: what is kept grows with the pictures and their area."""
        area = (px / self.px) ** 2
        return (
            batch * area * (self.again if checkpointing else self.kept)
            + self.adapter_millions * 1e6 * BYTES_PER_VALUE / GIB
        )


COUNTED = (
    Counted("sd1.5", "sd1", 0.86, 0.95, 0.26, 512, 3.2),
    Counted("sdxl", "sdxl", 2.57, 6.81, 0.73, 1024, 23.2),
    Counted("sd3.5-medium", "sd3", 2.24, 8.07, 0.88, 1024, 8.9),
    Counted("sd3.5-large", "sd3", 8.06, 15.04, 1.42, 1024, 17.7),
    Counted("flux.1-dev", "flux1", 11.9, 34.1, 1.54, 1024, 37.4),
    Counted("chroma", "chroma", 8.9, 34.13, 1.58, 1024, 37.4),
    Counted("flux.2-klein-4b", "flux2", 3.88, 18.08, 1.25, 1024, 17.7),
    Counted("flux.2-klein-9b", "flux2", 9.08, 30.67, 1.77, 1024, 29.9),
    Counted("z-image", "z-image", 6.15, 29.43, 1.35, 1024, 12.5),
    Counted("qwen-image", "qwen-image", 20.43, 30.97, 2.29, 1024, 47.2),
    Counted("wan2.1-1.3b", "wan", 1.42, 11.02, 0.93, 1024, 11.8),
    Counted("wan2.1-14b", "wan", 14.29, 43.65, 3.22, 1024, 52.4),
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The frozen network: how many values, and the bytes they take where it computes."""

    values: int
    bytes: int

    @staticmethod
    def of(network: Any) -> Weights:
        """Of a loaded one; nothing where it does not tell."""
        parameters: Iterable[torch.Tensor] = network.parameters() if hasattr(network, "parameters") else ()
        sizes = [(p.numel(), p.numel() * p.element_size()) for p in parameters]
        return Weights(sum(values for values, _ in sizes), sum(size for _, size in sizes))


def counted(family: str, values: int) -> Counted | None:
    """What was counted for a model like this; None: nothing was."""
    rows = [row for row in COUNTED if row.family == family]
    nearest = min(rows, key=lambda row: abs(row.billions - values / 1e9), default=None)
    if nearest is None or abs(nearest.billions - values / 1e9) > LIKE * nearest.billions:
        return None
    return nearest


def chosen(config: TrainConfig, family: str, weights: Weights) -> dict[str, Any]:
    """What `config.memory` decides of a job on this model, by setting; nothing of what it is to keep."""
    if config.memory == AS_SET:
        return {}
    row, budget = counted(family, weights.values), budget_gib(config.memory)
    if config.memory == MEASURE or row is None:
        values: dict[str, Any] = {"auto_fit": True}
        if row is None and budget is not None:
            values["checkpointing"] = True
    else:
        values = _fitting(config, row, weights.bytes / GIB, budget or 0.0)
    return {name: value for name, value in values.items() if name not in kept(config)}


def decided(config: TrainConfig, family: str, weights: Weights) -> tuple[TrainConfig, Message | None]:
    """The job with what its choice of memory decides, and what to say about it; None where nothing is chosen."""
    values = chosen(config, family, weights)
    if config.memory == AS_SET:
        return config, None
    return dataclasses.replace(config, **values), decision_message(config, values, family, weights)


def narrowed(config: TrainConfig, family: str, weights: Weights) -> TrainConfig:
    """A headless job with fp8 or a share of its blocks in main memory, where its weights do not fit beside a step otherwise."""
    row, budget = counted(family, weights.values), budget_gib(config.memory)
    if row is None or budget is None or {"storage", "offload"} & kept(config):
        return config
    room = budget - row.step_gib(True, 1, config.data.resolution)
    whole = weights.bytes / GIB
    if whole <= room:
        return config
    narrow = min(whole, weights.values / GIB)
    share = next((share for share in SHARES if narrow * (1 - share) <= room), 1.0)
    return dataclasses.replace(config, storage="fp8", offload=share)


def budget_gib(memory: str) -> float | None:
    """What a step and the weights may take; None where the choice names no size."""
    size = memory.partition(" ")[0]
    return float(size) - RESERVED_GIB if size.isdecimal() else None


def kept(config: TrainConfig) -> set[str]:
    """The settings that stay as they are. Batch and accumulation belong together."""
    names = {name.strip() for name in config.memory_keeps.split(",")} & set(BY_MEMORY)
    return names | ({"batch_size", "grad_accum"} if names & {"batch_size", "grad_accum"} else set())


def _fitting(config: TrainConfig, row: Counted, weights_gib: float, budget: float) -> dict[str, Any]:
    """Whole batches and no checkpointing where that fits, else checkpointing, else smaller batches and more of them."""
    px, whole = config.data.resolution, config.batch_size
    open_batch = "batch_size" not in kept(config)
    for checkpointing in (False, True):
        if checkpointing is not config.checkpointing and "checkpointing" in kept(config):
            continue
        sizes = [n for n in range(whole, 0, -1) if whole % n == 0] if checkpointing and open_batch else [whole]
        for size in sizes:
            if weights_gib + row.step_gib(checkpointing, size, px) <= budget:
                return {"checkpointing": checkpointing, **_split(config, size)}
    return {"checkpointing": True, **_split(config, 1 if open_batch else whole)}


def _split(config: TrainConfig, size: int) -> dict[str, int]:
    """As many pictures an update as before, `size` at a time."""
    return {"batch_size": size, "grad_accum": config.grad_accum * (config.batch_size // size)}


def decision_message(config: TrainConfig, values: dict[str, Any], family: str, weights: Weights) -> Message:
    """The choice in words: what it set, what for, and what it leaves."""
    row = counted(family, weights.values)
    settings = ", ".join(f"{name} = {str(value).lower()}" for name, value in values.items())
    mine = ", ".join(sorted({name.strip() for name in config.memory_keeps.split(",")} & set(BY_MEMORY)))
    facts = {"memory": config.memory, "settings": settings or "-", "kept": mine or "-"}
    if config.memory == MEASURE:
        return Message.of("memory.measured", field="memory", **facts)
    if row is None:
        return Message.of("memory.unknown", field="memory", family=family, **facts)
    after = dataclasses.replace(config, **values)
    step = row.step_gib(after.checkpointing, after.batch_size, config.data.resolution)
    need = weights.bytes / GIB + step
    code = "memory.decided" if need <= (budget_gib(config.memory) or 0.0) else "memory.exceeded"
    sizes = {"weights": f"{weights.bytes / GIB:.1f}", "step": f"{step:.1f}", "need": f"{need:.1f}"}
    return Message.of(code, field="memory", model=row.name, **sizes, **facts)
