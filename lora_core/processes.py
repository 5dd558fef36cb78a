"""Several processes that train one job, started by `accelerate launch`. Each does its share of every batch, with the whole model or a part of it.

Nothing of torch is wrapped: what is trained is small, so its gradients are averaged as one buffer after the last pass of a step. Every
process then makes the same update, and only the first one writes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .compat import has_accelerator, needed
from .messages.errors import LoomError


class Processes:
    """This process, number `rank` of `size`. The methods do nothing where it is alone."""

    def __init__(self, rank: int = 0, size: int = 1, device: str = "", sharded: bool = False):
        self.rank, self.size, self.device = rank, size, device
        self.sharded = (
            sharded  # the frozen model is split over the processes, so all of them must take part in each pass
        )

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Of `size` times `count` things, those that are this process's."""
        return slice(self.rank * count, (self.rank + 1) * count)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor by its mean over all processes. All processes have to give the same shapes in the same order."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1).to(torch.float32) for t in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        at = 0
        for tensor in tensors:
            tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()

    def any(self, flag: bool) -> bool:
        """Whether it is so in one process at least."""
        if self.size == 1:
            return flag
        seen = torch.tensor([float(flag)], device=self.device or "cpu")
        torch.distributed.all_reduce(seen)
        return bool(seen.item())

    def barrier(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()

    def of_main(self, value: Any) -> Any:
        """What the first process gives, everywhere."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, 0)
        return values[0]

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The others enter the block when the first process has left it, so they find what it made."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()


ALONE = Processes()


def launched() -> Processes:
    """As `accelerate launch` has set the environment up; alone without it. Raises LoomError for what it asks and we do not do."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    stage = _zero_stage(os.environ)
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # accelerate would look for the package, which nothing here needs
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true") or stage == 3
    state = needed("accelerate").PartialState(
        cpu=not has_accelerator()
    )  # gloo between processes without an accelerator
    if state.num_processes < 2:
        raise LoomError("accelerate.one_process", field="accelerate")
    return Processes(state.process_index, state.num_processes, str(state.device), sharded)


def _zero_stage(environment: Mapping[str, str]) -> int:
    """The ZeRO stage of a DeepSpeed configuration; 0 without one.

    Stages 1 and 2 split optimizer state and gradients, which of a LoRA are too small to split; stage 3 splits the model as FSDP does.
    """
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() not in ("1", "true"):
        return 0
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    try:
        stages = (
            json.loads(Path(file).read_text(encoding="utf-8"))["zero_optimization"]["stage"]
            if file and file != "none"
            else None
        )
        return int(stages if stages is not None else environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoomError("accelerate.no_stage", field="accelerate", file=file) from error
