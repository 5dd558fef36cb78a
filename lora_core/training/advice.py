"""What the course of a run says, in words: too fast, too slow, too long."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..messages.message import Message
from .validation import History

FEWEST = 40  # steps below which a course says nothing


def advice(losses: Sequence[float], history: History) -> list[Message]:
    """What to say about a finished run. Judged by the probes where there are some: a training loss says more about which noise levels were drawn."""
    messages: list[Message] = []
    measures, best = history.measures, history.best
    if best and len(measures) >= 4:
        first, last = measures[0], measures[-1]
        if best.step == 0:
            messages.append(Message.of("advice.never_better"))
        elif last.held_out > 1.1 * best.held_out and last.trained < measures[measures.index(best)].trained:
            worse = f"{last.held_out / best.held_out - 1:.0%}"
            messages.append(Message.of("advice.over_trained", step=best.step, worse=worse))
        elif best is last and first.held_out > 0 and last.held_out > 0.97 * first.held_out:
            messages.append(Message.of("advice.hardly_moved"))
    elif len(losses) >= FEWEST:
        quarter = len(losses) // 4
        start, end = statistics.median(losses[:quarter]), statistics.median(losses[-quarter:])
        if end > 1.5 * start:
            messages.append(Message.of("advice.risen"))
    return messages
