"""The preset auto: what a job leaves open is measured before the first step, and each choice is told with its reason and its figure.

A choice is made once. It stands in the run's config, from which a run that goes on takes it; a value that the job gives itself is never chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..algebra.kinds import KINDS
from ..config import AS_SET, BY_AUTO, TrainConfig
from ..events import Listener, StepReport
from ..messages.errors import LoomError
from ..messages.figures import figure
from ..messages.message import Message, Setting
from ..optim.optimizers import OPTIMIZERS, filled
from .assemble import dry_run
from .fitting import as_chosen
from .job import Job
from .length import planned
from .lr_range import LrRange, Trial, lr_range

ENOUGH, HELD_SHARE, FEWEST_HELD = 10, 0.1, 2  # pictures from which some are held out; how many of them
MEASURES, PATIENCE, SHORTEST = 20, 5, 10  # in the longest run; without a better one; steps between two
RATES, RATE_PICTURES = Trial(low=1e-5, high=1e-1, steps=48, every=3, held_out=False), 8
FALL = 0.01  # share of the loss that a rate has to take off, or it is not told from chance
LENGTHS = ("steps", "steps_per_picture", "epochs")
BY_HAND = ("memory", "checkpointing", "recompute", "auto_fit", "storage", "offload")  # any of them decides on memory


def longest(pictures: int) -> int:
    """Steps after which a run that is watched ends at the latest."""
    return min(4000, max(600, 150 * pictures))


def unwatched(pictures: int) -> int:
    """Steps of a run with too few pictures to hold any out."""
    return min(3000, max(500, 100 * pictures))


def ends_unjudged(config: TrainConfig, step: int, pictures: int) -> bool:
    """Whether a run ends whose validation was never better than before training, and so cannot say when: at the length of one that has none."""
    return step >= min(config.steps, unwatched(pictures))


def kept(config: TrainConfig) -> set[str]:
    """The settings that the job gave itself."""
    return {name.strip() for name in config.auto_keeps.split(",")} & {*BY_AUTO, *LENGTHS}


def as_stored(config: TrainConfig, then: TrainConfig) -> TrainConfig:
    """The job with what its run chose when it began, except for what it gives itself."""
    mine = kept(config)
    taken = {name: _value(then, name) for name in BY_AUTO if name not in mine and name != "memory"}
    if mine & {*LENGTHS}:
        taken.pop("steps", None)
    return _changed(config, taken)


def chosen(job: Job) -> Job:
    """The job with everything that auto decides decided, and `choices` saying why. Raises LoomError for what it cannot decide."""
    if job.processes.size > 1:
        raise LoomError("auto.several_processes", field="auto")
    deciding = _Deciding(job)
    for decide in (deciding.length, deciding.validation, deciding.memory, deciding.rate, deciding.strength):
        decide()
    return dataclasses.replace(deciding.job, choices=deciding.choices)


class _Deciding:
    """One decision after the other, each on what the earlier ones came to."""

    def __init__(self, job: Job):
        self.job, self.mine = job, kept(job.config)
        self.pictures = len(job.dataset.pictures)
        validation = job.config.validation
        self.watched = bool(validation.folder) or self.pictures >= ENOUGH
        if "validation.every" in self.mine:
            self.watched = validation.every > 0
        elif self.mine & {"validation.patience", "validation.restore_best"}:
            self.watched = bool(validation.patience) or validation.restore_best
        self.choices: list[Message] = []
        if self.mine:
            lines = [
                Message.of("auto.given", setting=Setting(name), value=_text(_value(job.config, name)))
                for name in (*BY_AUTO, *LENGTHS[1:])
                if name in self.mine
            ]
            self.say(Message.of("auto.yours", given=lines))

    def say(self, message: Message) -> None:
        self.choices.append(message)
        self.job.listener.on_note(message)

    def set(self, **values: Any) -> None:
        """Settings by config path, with __ for the dot; those that the job gave itself stay."""
        paths = {name.replace("__", "."): value for name, value in values.items()}
        self.job = self.job.with_config(
            _changed(self.job.config, {path: value for path, value in paths.items() if path not in self.mine})
        )

    def length(self) -> None:
        if self.mine & {*LENGTHS}:
            self.job = self.job.with_config(planned(self.job.config, self.job.dataset))
            return
        steps = (longest if self.watched else unwatched)(self.pictures)
        self.set(steps=steps)
        code = "auto.at_most" if self.watched else "auto.length"
        self.say(Message.of(code, steps=steps, pictures=self.pictures))

    def validation(self) -> None:
        if not self.watched:
            if "validation.every" not in self.mine:
                self.say(Message.of("auto.not_watched", pictures=self.pictures, enough=ENOUGH))
            return
        every = max(SHORTEST, self.job.config.steps // MEASURES)
        share = max(HELD_SHARE, min(0.5, FEWEST_HELD / max(1, self.pictures)))
        self.set(
            validation__every=every,
            validation__share=round(share, 4),
            validation__patience=PATIENCE,
            validation__restore_best=True,
        )
        validation = self.job.config.validation
        if validation.folder:
            self.say(Message.of("auto.watched_folder", every=validation.every))
        else:
            held = max(1, round(validation.share * self.pictures))
            self.say(Message.of("auto.watched", held=held, pictures=self.pictures, every=validation.every))
        if validation.patience:
            steps = validation.patience * validation.every
            self.say(Message.of("auto.turn", patience=validation.patience, steps=steps))
        if validation.restore_best:
            self.say(Message.of("auto.best"))

    def memory(self) -> None:
        keeps = {name.strip() for name in self.job.config.memory_keeps.split(",")}
        if "memory" in self.mine or self.job.config.memory != AS_SET or keeps & {*BY_HAND}:
            return
        config, measured = dry_run(dataclasses.replace(self.job, listener=_Quiet(self.job.listener)))
        before, self.job = self.job.config, self.job.with_config(as_chosen(self.job.config, config))
        code = "auto.fits" if as_chosen(before, config) == before else "auto.made_to_fit"
        self.say(Message.of(code, measured=measured.message(self.job.config.steps)))

    def rate(self) -> None:
        optimizer = self.job.config.optimizer
        if "optimizer.lr" in self.mine:
            return
        self.set(optimizer__lr=0.0)
        if OPTIMIZERS[optimizer.name].one_lr:
            self.say(Message.of("auto.own_rate", name=optimizer.name))
            return
        test = self._tested()
        if self.job.control.stopping:
            raise LoomError("run.stopped_first")
        if test is None or min(loss for _, loss in test.points) > (1 - FALL) * test.points[0][1]:
            usual = filled(self.job.config).optimizer.lr
            self.say(Message.of("auto.no_rate", rate=figure(usual), low=figure(RATES.low), high=figure(RATES.high)))
            return
        rate = float(f"{test.suggested:.2g}")
        self.set(optimizer__lr=rate)
        losses = [loss for _, loss in test.points]
        facts = {"rate": f"{rate:.1e}", "first": figure(losses[0]), "lowest": figure(min(losses))}
        low, high = test.points[0][0], test.points[-1][0]
        self.say(Message.of("auto.rate", steps=RATES.steps, low=f"{low:.1e}", high=f"{high:.1e}", **facts))

    def _tested(self) -> LrRange | None:
        """The learning rate test on a few pictures that are trained, fixed; None where no rate lowers their loss."""
        config = self.job.config
        few = min(config.validation.pictures, RATE_PICTURES)
        tried = dataclasses.replace(config, validation=dataclasses.replace(config.validation, pictures=few))
        quiet = _Quiet(self.job.listener)
        try:
            return lr_range(dataclasses.replace(self.job.with_config(tried), listener=quiet), RATES)
        except LoomError as error:
            if error.message.code != "learning_rate.none_found":
                raise
            return None

    def strength(self) -> None:
        config = self.job.config
        if "validation.calibrate" in self.mine or not config.trains_lora:
            return
        kind = KINDS[config.adapter.algorithm]
        if not kind.proportional:
            self.say(Message.of("auto.no_strength", kind=kind.title))
            return
        self.set(validation__calibrate=True)
        self.say(Message.of("auto.strength"))


class _Quiet(Listener):
    """Of a try only how far it is; what there is to say about model and pictures is said when the run begins."""

    def __init__(self, listener: Listener):
        self._listener = listener

    def on_progress(self, what: str, done: int, total: int) -> None:
        self._listener.on_progress(what, done, total)

    def on_step(self, report: StepReport) -> None:
        self._listener.on_progress("progress.finding_rate", report.step, RATES.steps)


def _changed(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """The config with these values, by path."""
    for path, value in values.items():
        section, _, leaf = path.rpartition(".")
        if section:
            value = dataclasses.replace(getattr(config, section), **{leaf: value})
        config = dataclasses.replace(config, **{section or leaf: value})
    return config


def _value(config: TrainConfig, path: str) -> Any:
    section, _, leaf = path.rpartition(".")
    return getattr(getattr(config, section) if section else config, leaf)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def messages_of(choices: Sequence[Message]) -> list[dict[str, Any]]:
    """The choices as a run folder keeps them."""
    return [choice.as_json() for choice in choices]
