"""What the course of a run says, in words: too fast, too slow, too long."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .validation import History

FEWEST = 40  # steps below which a course says nothing


def advice(losses: Sequence[float], history: History) -> list[str]:
    """Sentences about a finished run. Judged by the probes where there are some: a training loss says more about which noise levels were drawn."""
    said = []
    measures, best = history.measures, history.best
    if best and len(measures) >= 4:
        first, last = measures[0], measures[-1]
        if best.step == 0:
            said.append("The loss on held-out pictures never fell below that of the untrained model: lower the learning rate, or check the captions.")
        elif last.held_out > 1.1 * best.held_out and last.trained < measures[measures.index(best)].trained:
            said.append(
                f"Over-trained: best on held-out pictures after step {best.step}, {last.held_out / best.held_out - 1:.0%} worse at the end. "
                "Take fewer steps or a smaller rank, or more pictures."
            )
        elif best is last and first.held_out > 0 and last.held_out > 0.97 * first.held_out:
            said.append("The loss on held-out pictures has hardly moved: raise the learning rate or the rank, or take more steps.")
    elif len(losses) >= FEWEST:
        quarter = len(losses) // 4
        start, end = statistics.median(losses[:quarter]), statistics.median(losses[-quarter:])
        if end > 1.5 * start:
            said.append("The loss has risen: lower the learning rate, or use a larger batch.")
    return said
