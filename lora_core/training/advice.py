"""What the course of a run says, in words: too fast, too slow, too long."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..messages.figures import percent
from ..messages.message import Message
from .validation import History

STRETCHES, FEWEST_IN_STRETCH = 10, 8
GROWN = 3.0  # how many times the scatter of a loss may grow over a run
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
            worse = percent(last.held_out / best.held_out - 1)
            messages.append(Message.of("advice.over_trained", step=best.step, worse=worse))
        elif best is last and first.held_out > 0 and last.held_out > 0.97 * first.held_out:
            messages.append(Message.of("advice.hardly_moved"))
    elif len(losses) >= FEWEST:
        quarter = len(losses) // 4
        start, end = statistics.median(losses[:quarter]), statistics.median(losses[-quarter:])
        if end > 1.5 * start:
            messages.append(Message.of("advice.risen"))
    if not messages and swings(losses):
        messages.append(Message.of("advice.oscillates"))
    return messages


def swings(losses: Sequence[float]) -> bool:
    """Whether the loss goes up and down by more than the drawn noise levels explain.

    Either medians of ten stretches turn at nearly every one and lie further apart than the values inside of a stretch do, or the values of the last third
    scatter far more than those of the first.
    """
    length = len(losses) // STRETCHES
    if length < FEWEST_IN_STRETCH:
        return False
    parts = [losses[n * length : (n + 1) * length] for n in range(STRETCHES)]
    middle = [statistics.median(part) for part in parts]
    steps = [later - earlier for earlier, later in zip(middle, middle[1:], strict=False)]
    turns = sum(one * other < 0 for one, other in zip(steps, steps[1:], strict=False))
    inside = statistics.median(map(_scatter, parts))
    if turns >= STRETCHES - 4 and statistics.median(map(abs, steps)) > 2 * inside:
        return True
    third = len(losses) // 3
    return _scatter(losses[-third:]) > GROWN * _scatter(losses[:third]) > 0


def _scatter(values: Sequence[float]) -> float:
    """Median distance from the median."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)
