"""How hard each picture is over a run: its loss at fixed levels and noise, beside that of a usual picture before training.

Training losses would cost nothing, but each is of a level, noise, crop and caption drawn anew: what tells two pictures apart drowns in that. Here all pictures
meet the same levels every time. Each level counts alike: its loss is divided by the middle one of all pictures at the first measure, as the untrained model
predicts one level many times worse than another.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from ..messages.figures import figure, percent
from ..messages.message import Message

FEWEST, FEWEST_MEASURES = 8, 5  # pictures and measures without which nothing is said of hard ones
OUTLYING = 3.5  # modified z-score from which a value is an outlier (Iglewicz and Hoaglin 1993)
HARD = 1.5  # times as hard as the middle picture, at least
RISEN, FALLEN = 0.05, 0.1  # shares: of the loss on validation pictures since its best, of that on a picture since then
SURE = 2.0  # standard errors
NAMED = 8
SMALLEST = 1e-12  # loss below which two are alike


@dataclasses.dataclass(frozen=True)
class Seen:
    """A measured picture: its name, whether it was held out, and the number of its set."""

    name: str
    held_out: bool
    of_set: int = 0


@dataclasses.dataclass
class Course:
    """`usual`: the loss of the middle picture at each level, at the first measure.

    `rows`: the step, and of each picture the loss relative to that, 1 for as hard as a usual picture was before training.
    """

    pictures: Sequence[Seen]
    usual: list[float] = dataclasses.field(default_factory=list)
    rows: list[tuple[int, list[float]]] = dataclasses.field(default_factory=list)

    def add(self, step: int, losses: Sequence[Sequence[float]]) -> None:
        """Takes a measure over: for each picture a loss at each level."""
        if not self.usual:
            self.usual = [max(SMALLEST, statistics.median(level)) for level in zip(*losses, strict=True)]
        relative = [statistics.fmean(loss / usual for loss, usual in zip(one, self.usual)) for one in losses]
        self.rows.append((step, [float(f"{value:.6g}") for value in relative]))

    def hard(self) -> list[int]:
        """The pictures that stay outliers: over the later half of the measures, and at the last one, far harder than the middle one of their kind.

        A kind is what was held out, or trained, of one set: sets differ in how hard they are. The middle one of a picture's measures counts.
        """
        if len(self.pictures) < FEWEST or len(self.rows) < FEWEST_MEASURES:
            return []
        later = [self._centred(values) for _, values in self.rows[len(self.rows) // 2 :]]
        usually = [statistics.median(of_picture) for of_picture in zip(*later, strict=True)]
        scatter = statistics.median(map(abs, usually))
        outlying = (n for n, value in enumerate(usually) if 0.6745 * value > OUTLYING * scatter)
        numbers = [n for n in outlying if min(usually[n], later[-1][n]) > math.log(HARD)]
        return sorted(numbers, key=lambda n: -self.rows[-1][1][n])

    def _centred(self, values: Sequence[float]) -> list[float]:
        """The logarithm of each value, less the middle one of its kind."""
        logs = [math.log(max(SMALLEST, value)) for value in values]
        kinds: dict[tuple[bool, int], list[float]] = {}
        for log, picture in zip(logs, self.pictures, strict=True):
            kinds.setdefault((picture.held_out, picture.of_set), []).append(log)
        return [log - statistics.median(kinds[p.held_out, p.of_set]) for log, p in zip(logs, self.pictures)]

    def memorised(self) -> Memorised | None:
        """The trained pictures that went on to be learnt while validation pictures were unlearnt; None as long as these were not."""
        held = [n for n, picture in enumerate(self.pictures) if picture.held_out]
        if not held or len(self.rows) < 2:
            return None
        best, then = min(self.rows, key=lambda row: statistics.fmean(row[1][n] for n in held))
        now = self.rows[-1][1]
        rises = [now[n] - then[n] for n in held]
        rise = statistics.fmean(rises) / max(SMALLEST, statistics.fmean(then[n] for n in held))
        error = statistics.stdev(rises) / len(rises) ** 0.5 if len(rises) > 1 else 0.0
        if rise < RISEN or statistics.fmean(rises) <= SURE * error:
            return None
        falls = {n: 1 - now[n] / max(SMALLEST, then[n]) for n in range(len(now)) if not self.pictures[n].held_out}
        fallen = sorted((n for n, fall in falls.items() if fall >= FALLEN), key=lambda n: -falls[n])
        if not fallen:
            return None
        return Memorised(fallen, best, rise, statistics.fmean(falls[n] for n in fallen), len(falls))

    def messages(self) -> list[Message]:
        """What to say at the end of a run."""
        out = []
        if hard := self.hard():
            middle = statistics.median(self.rows[-1][1])
            times = figure(self.rows[-1][1][hard[0]] / max(SMALLEST, middle))
            out.append(Message.of("pictures.hard", count=len(hard), names=self._names(hard), times=times))
        if (learnt := self.memorised()) is not None:
            facts: dict[str, Any] = {"rise": percent(learnt.rise), "fall": percent(learnt.fall), "step": learnt.since}
            facts |= {"count": len(learnt.pictures), "of": learnt.of, "names": self._names(learnt.pictures)}
            out.append(Message.of("pictures.memorised", **facts))
        return out

    def _names(self, pictures: Sequence[int]) -> list[str]:
        return [self.pictures[n].name for n in pictures[:NAMED]] + (["…"] if len(pictures) > NAMED else [])

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Course:
        rows = [(int(step), values) for step, values in value["rows"]]
        return Course([Seen(**one) for one in value["pictures"]], value["usual"], rows)

    def as_table(self) -> dict[str, Any]:
        """For the run folder, with the pictures that stand out."""
        learnt = self.memorised()
        return {
            "pictures": [{"name": picture.name, "held_out": picture.held_out} for picture in self.pictures],
            "rows": [{"step": step, "losses": values} for step, values in self.rows],
            "hard": self.hard(),
            "memorised": list(learnt.pictures) if learnt else [],
        }


@dataclasses.dataclass(frozen=True)
class Memorised:
    """`pictures`: of `of` trained ones, most fallen first. `since`: the step of the lowest loss on validation pictures.

    Shares: `rise` of that loss since then, `fall` of the loss on these pictures.
    """

    pictures: Sequence[int]
    since: int
    rise: float
    fall: float
    of: int
