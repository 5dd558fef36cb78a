"""Time left: what beside the steps takes time does not change what a step is thought to cost."""

from __future__ import annotations

import dataclasses

import pytest
from lora_loom.lora_core.runs.estimates import Estimate
from lora_loom.nodes.jobs.time_left import Countdown, Plan, forecast


class Run:
    """A run on a clock of its own. `truth`: seconds of each kind of work."""

    def __init__(self, plan: Plan, known: Estimate | None = None, **truth: float):
        self.plan, self.truth, self.now = (
            plan,
            {"step": 1.0, "samples": 0.0, "saves": 0.0, "validations": 0.0} | truth,
            0.0,
        )
        self.countdown, self.drawn = Countdown(plan, lambda: self.now, known), False
        self.left: dict[int, float] = {}  # step -> what was told after it, at its end
        self.ended: dict[int, float] = {}

    def work(self, kind: str, code: str) -> None:
        self.countdown.begins(code)
        self.now += self.truth[kind]
        self.countdown.ends()

    def go(self) -> Run:
        plan = self.plan
        for step in range(1, plan.steps + 1):
            last = step == plan.steps
            self.now += self.truth["step"]
            if plan.validations_every and (last or step % plan.validations_every == 0):
                self.work("validations", "progress.validating")
            self.countdown.took_step()
            self.ended[step] = self.now
            self.left[step] = self.countdown.left_s(step) or 0.0
            if last or (plan.saves_every and step % plan.saves_every == 0):
                self.work("saves", "progress.saving")
            if plan.samples_every and (last or step % plan.samples_every == 0):
                for _ in range(1 if self.drawn else 2):  # the first time without the adapter too
                    self.work("samples", "progress.samples")
                self.drawn = True
        return self


def test_a_sample_does_not_make_the_time_left_jump():
    run = Run(Plan(100, samples_every=20), samples=56.0).go()
    assert run.countdown.step_s == pytest.approx(1.0)
    for step in range(21, 101):
        assert run.left[step] == pytest.approx(run.now - run.ended[step])


@pytest.mark.parametrize("step_s", [0.3, 5.0])
@pytest.mark.parametrize("every", [(0, 5, 0), (20, 25, 10), (7, 8, 3), (60, 60, 60)])
def test_time_left_is_right_once_each_kind_of_work_was_seen(step_s, every):
    run = Run(Plan(100, *every), step=step_s, samples=12.0, saves=4.0, validations=2.0).go()
    for step in range(max(10, *every) + 1, 101):
        assert run.left[step] == pytest.approx(run.now - run.ended[step])


def test_samples_count_before_the_first_was_drawn():
    """As many forwards as they are: 4 pictures of 20 steps, with and without the prompt, beside 3 forwards of a step."""
    run = Run(Plan(100, samples_every=50, pictures=4, sampler_steps=20), samples=4 * 20 * 2 / 3).go()
    for step in range(10, 101):
        assert run.left[step] == pytest.approx(run.now - run.ended[step])


EARLIER = Estimate(
    1.0, 0, "earlier", {"preparing": 9.0, "pictures": 0.5, "samples": 30.0, "saves": 4.0, "writing": 1.0}, 20
)


def test_what_an_earlier_run_measured_is_known_from_the_first_step_on():
    run = Run(
        Plan(100, samples_every=50, saves_every=30, pictures=2, sampler_steps=10), EARLIER, samples=30.0, saves=4.0
    ).go()
    for step in range(10, 101):
        assert run.left[step] == pytest.approx(run.now - run.ended[step])


def test_the_time_of_a_whole_run_counts_everything_beside_its_steps():
    plan = Plan(100, samples_every=50, saves_every=30, pictures=2, sampler_steps=10)
    run = Run(plan, samples=30.0, saves=4.0).go()
    assert forecast(plan, EARLIER, pictures=8) == pytest.approx(run.now + 9.0 + 8 * 0.5 + 1.0)
    encoded = dataclasses.replace(EARLIER, encoded=True)
    assert forecast(plan, encoded, pictures=8) == pytest.approx(run.now + 9.0 + 1.0)
    assert forecast(Plan(100), Estimate(2.0, 0, "old"), pictures=8) == 200.0


def test_the_first_step_which_warms_up_does_not_count():
    now = [0.0]
    countdown = Countdown(Plan(10), lambda: now[0])
    for seconds in (30.0, 1.0, 1.0):
        now[0] += seconds
        countdown.took_step()
    assert countdown.step_s == pytest.approx(1.0)


def test_nothing_is_told_before_a_step_was_measured():
    assert Countdown(Plan(10)).left_s(0) is None
    assert Countdown(Plan(10)).step_s is None


def test_the_work_that_goes_on_counts_down():
    now = [0.0]
    countdown = Countdown(Plan(4, samples_every=2), lambda: now[0])
    for _ in range(2):
        now[0] += 1
        countdown.took_step()
    countdown.begins("progress.samples")
    now[0] += 10
    countdown.ends()
    left = countdown.left_s(2)
    countdown.begins("progress.samples")
    assert countdown.left_s(2) == pytest.approx(left + 10)
    now[0] += 4
    countdown.begins("progress.samples")  # the next picture of the same sheet
    assert countdown.left_s(2) == pytest.approx(left + 6)


def test_a_plan_is_read_of_a_runs_config():
    config = {
        "samples": {"every": 5, "prompt": "a\n\nb", "steps": 8},
        "save": {"every": 7},
        "validation": {"every": 0},
        "batch_size": 2,
        "grad_accum": 3,
    }
    assert Plan.of(50, config) == Plan(50, 5, 7, 0, 2, 8, 6)
    assert Plan.of(50, {}) == Plan(50)
