"""How long a run still takes: steps, samples, saves and validations are measured apart, so that one does not change what another is thought to cost."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...lora_core.runs.estimates import Estimate
from ...lora_core.runs.pace import WORKS

RECENT_STEPS = 60
UNSTEADY_STEPS = 1  # the first ones, which also warm up what comes after
TIMED_WORKS = {code: kind for code, kind in WORKS.items() if kind in ("samples", "saves", "validations")}
FORWARDS_OF_A_STEP = 3  # a step's forward and backward, in forwards
FORWARDS_OF_A_SAMPLER_STEP = 2  # with the prompt and without it


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many of each a run has in all, and after how many steps each comes; 0: never. `pictures`: drawn each time, `sampler_steps` each."""

    steps: int
    samples_every: int = 0
    saves_every: int = 0
    validations_every: int = 0
    pictures: int = 1
    sampler_steps: int = 20
    forwards: int = 1

    @classmethod
    def of(cls, steps: int, config: Mapping[str, Any]) -> Plan:
        """Of a run's config as a dict, such as listeners are given; nothing but steps where it lacks something."""
        samples, save, validation = (config.get(name) or {} for name in ("samples", "save", "validation"))
        return cls(
            steps,
            int(samples.get("every", 0)),
            int(save.get("every", 0)),
            int(validation.get("every", 0)),
            max(1, len([line for line in str(samples.get("prompt", "")).splitlines() if line.strip()])),
            int(samples.get("steps", 20)),
            int(config.get("batch_size", 1)) * int(config.get("grad_accum", 1)),
        )

    def every(self, kind: str) -> int:
        """Steps between two pieces of a kind of work; more than there are steps for what comes at the end alone, 0: never."""
        if kind == "saves":
            return self.saves_every or self.steps + 1  # what was trained is saved at the end
        return {"samples": self.samples_every, "validations": self.validations_every}[kind]

    def is_due(self, kind: str, step: int) -> bool:
        """Whether such work belongs to the end of this step."""
        every = self.every(kind)
        return bool(every) and (step % every == 0 or step == self.steps)

    def left(self, kind: str, step: int) -> int:
        """How often such work comes at the end of later steps."""
        every = self.every(kind)
        if not every or step >= self.steps:
            return 0
        return (self.steps - 1) // every - step // every + 1

    def samples_by_forwards(self, step_s: float) -> float:
        """Seconds of samples that were never measured, as their forwards cost in a step."""
        forwards = self.pictures * self.sampler_steps * FORWARDS_OF_A_SAMPLER_STEP
        return step_s * forwards / (FORWARDS_OF_A_STEP * self.forwards)

    def costs(self, known: Estimate) -> dict[str, float]:
        """Seconds of each kind of work as an earlier run had them."""
        costs = {kind: known.works[kind] for kind in TIMED_WORKS.values() if kind in known.works}
        if "samples" in costs:
            costs["samples"] *= self.pictures * self.sampler_steps / known.sampler_steps
        return costs


def forecast(plan: Plan, known: Estimate, pictures: int) -> float:
    """Seconds a run of this plan takes from its beginning to its files, with everything beside its steps. `pictures`: in its dataset."""
    costs, works = plan.costs(known), known.works
    costs.setdefault("samples", plan.samples_by_forwards(known.seconds_per_step))
    total = plan.steps * known.seconds_per_step + works.get("preparing", 0.0) + works.get("writing", 0.0)
    if not known.encoded:
        total += pictures * works.get("pictures", 0.0)
    for kind in TIMED_WORKS.values():
        first = (
            kind != "saves" and plan.every(kind) > 0
        )  # samples without the adapter, a measurement before the first step
        total += (plan.left(kind, 0) + first) * costs.get(kind, 0.0)
    return total


class Countdown:
    """Measures a run by its events, as a page sees them. Times are seconds of `clock`. `known`: what an earlier run like it took, until it is measured here."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic, known: Estimate | None = None):
        self._plan, self._clock = plan, clock
        self._known = plan.costs(known) if known else {}
        self._mark = clock()  # when the step that goes on began
        self._steps: collections.deque[float] = collections.deque(maxlen=RECENT_STEPS)
        self._unsteady = UNSTEADY_STEPS
        self._kind, self._began = "", 0.0  # of the work that goes on beside the steps
        self._done = {*TIMED_WORKS.values()}  # kinds of work done since the last step
        self._costs: dict[str, collections.deque[float]] = collections.defaultdict(lambda: collections.deque(maxlen=8))

    def begins(self, code: str) -> None:
        """Work beside the steps goes on, told by the code of its message."""
        kind = TIMED_WORKS.get(code, "")
        if kind and kind != self._kind:
            self.ends()
            self._kind, self._began = kind, self._clock()

    def ends(self) -> None:
        """The work beside the steps is done; the step that goes on did not take that time."""
        if not self._kind:
            return
        spent = self._clock() - self._began
        self._costs[self._kind].append(spent)
        self._mark += spent
        self._done.add(self._kind)
        self._kind = ""

    def took_step(self) -> None:
        self.ends()
        self._done = {"validations"}  # which are measured before a step is told of
        now = self._clock()
        spent, self._mark = now - self._mark, now
        if self._unsteady > 0:
            self._unsteady -= 1
            if self._plan.steps > 1:
                return
        self._steps.append(spent)

    @property
    def step_s(self) -> float | None:
        """Seconds of a step; None until one was measured."""
        return sum(self._steps) / len(self._steps) if self._steps else None

    def left_s(self, step: int) -> float | None:
        """Seconds until the run ends; None until a step was measured."""
        if self.step_s is None:
            return None
        total = max(0, self._plan.steps - step) * self.step_s
        for kind in TIMED_WORKS.values():
            waits = kind != self._kind and kind not in self._done and self._plan.is_due(kind, step)
            times = self._plan.left(kind, step) + waits
            if kind == "samples" and (times or kind == self._kind) and not self._costs.get(kind):
                times += 1  # the first time they are drawn without the adapter too
            total += times * self._cost(kind, self.step_s)
        if self._kind:
            total += max(0.0, self._cost(self._kind, self.step_s) - (self._clock() - self._began))
        return total

    def _cost(self, kind: str, step_s: float) -> float:
        """Seconds of one such piece of work: as measured here, else in an earlier run, samples else as their forwards cost in a step."""
        costs = self._costs.get(kind)
        if costs:
            return sum(costs) / len(costs)
        if kind in self._known:
            return self._known[kind]
        return self._plan.samples_by_forwards(step_s) if kind == "samples" else 0.0
