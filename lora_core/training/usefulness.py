"""Which blocks a finished LoRA needs: the loss on fixed probes with one block after the other left out, and with all left out that it does without."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..messages.errors import LoomError
from ..messages.figures import figure, percent
from ..messages.message import Message
from .assemble import assembled
from .calibration import texts_apart
from .job import Job
from .run import Run


@dataclasses.dataclass(frozen=True)
class BlockUse:
    """A block: how many layers it has, the loss without it, and the share of the LoRA's effect lost then, below 0 where it does harm."""

    name: str
    layers: int
    loss: float
    share: float


@dataclasses.dataclass(frozen=True)
class Usefulness:
    """Losses without the LoRA, with it, and without its `idle` blocks, which together cost less than `bound` of its effect.

    `blocks`: in the order of the model. `pictures`: how many were measured; `held_out`: whether they were kept out of training.
    """

    base: float
    whole: float
    blocks: Sequence[BlockUse]
    idle: Sequence[str]
    without_idle: float
    bound: float
    pictures: int
    held_out: bool

    @property
    def lost(self) -> float:
        """The share of the effect that is lost without the idle blocks."""
        return (self.without_idle - self.whole) / (self.base - self.whole)

    def messages(self) -> list[Message]:
        """The table and what follows from it."""
        facts: dict[str, Any] = {"base": figure(self.base), "whole": figure(self.whole), "pictures": self.pictures}
        lines = [Message.of("blocks.measured" if self.held_out else "blocks.measured_on_trained", **facts)]
        for block in self.blocks:
            values: dict[str, Any] = {"block": block.name, "layers": block.layers, "share": percent(block.share)}
            code = "blocks.idle" if block.name in self.idle else "blocks.needed"
            lines.append(Message.of(code, **values, loss=figure(block.loss)))
        if not self.idle:
            return [*lines, Message.of("blocks.all_needed", bound=percent(self.bound))]
        total: dict[str, Any] = {"count": len(self.idle), "of": len(self.blocks), "lost": percent(self.lost)}
        return [*lines, Message.of("blocks.left_out", **total, bound=percent(self.bound))]

    def bars(self) -> list[tuple[str, float]]:
        """For a picture: each block with the share of the effect lost without it, in percent."""
        return [(block.name, 100 * max(0.0, block.share)) for block in self.blocks]


def usefulness(job: Job, blocks: Mapping[str, Collection[str]], bound: float) -> Usefulness:
    """Measures the LoRA that the job starts from. `blocks`: name -> layers; `bound`: share of the effect that may be lost, in all.

    Raises LoomError for a LoRA that does not lower the loss on these pictures: then nothing can be said of its blocks.
    """
    with assembled(job) as run:
        measured = _Measures(run, len(blocks), job.listener.on_progress)
        every = [layer for layers in blocks.values() for layer in layers]
        whole, base = measured.without(()), measured.without(every)
        if base <= whole:
            raise LoomError("blocks.no_effect", base=figure(base), whole=figure(whole))
        rows = []
        for name, layers in blocks.items():
            loss = measured.without(layers)
            rows.append(BlockUse(name, len(layers), loss, (loss - whole) / (base - whole)))
        idle, loss = _idle(rows, blocks, whole, whole + bound * (base - whole), measured.without)
        probes = run.probes()
        held_out = probes.held_out is not None
        order = [row.name for row in rows if row.name in idle]
        return Usefulness(base, whole, rows, order, loss, bound, probes.pictures, held_out)


def _idle(
    rows: Sequence[BlockUse],
    blocks: Mapping[str, Collection[str]],
    whole: float,
    limit: float,
    without: Callable[[Collection[str]], float],
) -> tuple[list[str], float]:
    """(blocks without which together the loss is at most `limit`, that loss), the least useful first; never all of them."""
    idle, out, best = list[str](), list[str](), whole
    for row in sorted(rows, key=lambda row: row.loss):
        if row.loss > limit or len(idle) == len(rows) - 1:
            break
        loss = without([*out, *blocks[row.name]])
        if loss <= limit:
            idle, out, best = [*idle, row.name], [*out, *blocks[row.name]], loss
    return idle, best


class _Measures:
    """The loss of a run's probes without some layers, told as it goes."""

    def __init__(self, run: Run, blocks: int, tell: Callable[[str, int, int], None]):
        self._run, self._tell, self._done, self._most = run, tell, 0, 2 + 2 * blocks

    def without(self, layers: Collection[str]) -> float:
        self._tell("progress.blocks", self._done, self._most)
        self._done += 1
        run = self._run
        with texts_apart(run), run.adapters.left_out(layers):
            return statistics.fmean(run.probes().losses(run.backend, run.objective))
