"""Sample prompts, one a line, with the options that kohya's tools and ai-toolkit write behind them: a cat --n blurry --w 768 --h 512 --d 7 --l 5 --s 25."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from ..adapters.tokens import wanted_tokens
from ..backends.base import Backend, EncodesClips, NamesSamplers, SampleJob
from ..config import SampleConfig, TrainConfig
from ..data.captions import named
from ..data.shown import NOTHING, Shown
from ..messages.errors import LoomError
from ..messages.message import Message

_OPTION = re.compile(r"(?:^|\s)--([A-Za-z]\w*)")
FIELDS: Mapping[str, str] = {  # option -> field of SampleConfig
    "n": "negative", "w": "width_px", "h": "height_px", "d": "seed", "seed": "seed", "l": "cfg", "cfg": "cfg",
    "s": "steps", "steps": "steps", "ss": "sampler", "f": "frames",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A line of samples.prompt: its text, what its options say by field of SampleConfig, and the options that have no counterpart."""

    text: str
    settings: Mapping[str, str | int | float]
    unknown: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture of the set with control pictures: its caption, its (width, height) in px, and what is shown of it."""

    caption: str
    size_px: tuple[int, int]
    shown: Shown


def prompts_in(text: str) -> list[Prompt]:
    """The prompts of a text; lines that are empty or begin with # are none. Raises LoomError for an option with a value it cannot have."""
    lines = (line.strip() for line in text.splitlines())
    return [_prompt(line) for line in lines if line and not line.startswith("#")]


def _prompt(line: str) -> Prompt:
    text, *options = _OPTION.split(line)
    settings: dict[str, str | int | float] = {}
    unknown = []
    for name, value in zip(options[::2], options[1::2], strict=True):
        field = FIELDS.get(name.lower())
        if field is None:
            unknown.append(f"--{name}")
        else:
            settings[field] = _value(name, field, value.strip())
    return Prompt(text.strip(), settings, tuple(unknown))


def _value(name: str, field: str, text: str) -> str | int | float:
    """What an option says. Raises LoomError."""
    setting = next(f for f in dataclasses.fields(SampleConfig) if f.name == field)
    if setting.type == "str":
        return text
    low, high = setting.metadata["low"], setting.metadata["high"]
    try:
        value = int(text) if setting.type == "int" else float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        values = {"option": f"--{name}", "value": repr(text), "low": f"{low:g}", "high": f"{high:g}"}
        raise LoomError("samples.option", field="samples.prompt", **values)
    return value


def job_of(prompt: Prompt, config: TrainConfig, pair: Pair | None = None) -> SampleJob:
    """The picture to draw: what the prompt's options say goes before the settings of the samples. `pair`: whose control pictures are edited."""
    # Each was made of its field's own type.
    settings = dataclasses.replace(config.samples, **prompt.settings)  # type: ignore[arg-type]
    side = config.data.resolution
    trigger = config.data.trigger
    if config.trains_tokens and not trigger:
        trigger = wanted_tokens(config.embedding)[0].placeholder
    text = named(prompt.text, trigger)
    width, height = pair.size_px if pair is not None else (side, side)
    shown = pair.shown if pair is not None else NOTHING
    return SampleJob(
        text, settings.width_px or width, settings.height_px or height, settings, shown, settings.frames or 1
    )


def unknown_options(config: TrainConfig) -> Message | None:
    """What to say about options that are left out of the prompts. Raises LoomError for one with a value it cannot have."""
    unknown = [option for prompt in prompts_in(config.samples.prompt) for option in prompt.unknown]
    if not unknown:
        return None
    return Message.of(
        "samples.options_unknown",
        field="samples.prompt",
        options=[*dict.fromkeys(unknown)],
        allowed=[f"--{name}" for name in FIELDS],
    )


def require_drawable(config: TrainConfig, backend: Backend) -> list[Message]:
    """What to say about the samples that a job asks for, before the first step. Raises LoomError for a sampler or a schedule that is not drawn here."""
    if not isinstance(backend, NamesSamplers) or not (
        config.samples.every or (config.prior.on and config.prior.count and not config.prior.without_pictures)
    ):
        return []
    ways, step = backend.samplers(), backend.latent_step_px
    messages = [Message.of("samples.own_sampler", field="samples.sampler", sampler=ways.fixed)] if ways.fixed else []
    for prompt in prompts_in(config.samples.prompt) or [Prompt("", {})]:
        job = job_of(prompt, config)
        _require_named("sampler", job.config.sampler, ways.names, prompt)
        _require_named("scheduler", job.config.scheduler, ways.schedules, prompt)
        if job.config.negative and not ways.negative:
            messages.append(Message.of("samples.negative_idle", field="samples.negative"))
        if job.config.cfg != SampleConfig.cfg and not ways.guided:
            messages.append(Message.of("samples.cfg_idle", field="samples.cfg"))
        near = backend.clip_lengths_near(job.frames) if isinstance(backend, EncodesClips) else None
        drawn_frames = near[0] if near is not None else 1
        if config.samples.every and job.config.frames and drawn_frames != job.frames:
            messages.append(Message.of("samples.frames", field="samples.frames", asked=job.frames, drawn=drawn_frames))
        sides = (job.width_px, job.height_px)
        if config.samples.every and any(side % step for side in sides):
            size, drawn = (" x ".join(map(str, pair)) for pair in (sides, [side // step * step for side in sides]))
            messages.append(Message.of("samples.size", field="samples.width_px", asked=size, drawn=drawn, step=step))
    return [message for n, message in enumerate(messages) if message not in messages[:n]]


def _require_named(setting: str, name: str, allowed: Sequence[str], prompt: Prompt) -> None:
    """Raises LoomError for a name that is not allowed, about the prompt whose option says it, or the setting."""
    if name.lower() not in map(str.lower, allowed):
        field = "samples.prompt" if setting in prompt.settings else f"samples.{setting}"
        raise LoomError("samples.sampler", field=field, sampler=repr(name), allowed=allowed)
