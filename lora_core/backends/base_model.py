"""What a base model is and what it needs, decided in one place before the first step, for every host.

Sources say what they know of a model (`Witness`): the weights themselves, the configs beside them, a name. `predicts` decides among them and the job.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from ..config import ObjectiveConfig
from ..matching.scales import SCALE
from ..messages.errors import LoomError
from ..messages.figures import figure
from ..messages.message import Message

EITHER = (
    "epsilon",
    "v",
)  # what a network with a table of noise levels can be asked for, whichever of them it was made for
STEPS = 1000
_NO_ZERO_SNR = {"flow": "objective.zero_terminal_snr.flow", "epsilon": "objective.zero_terminal_snr.epsilon"}
TOLERATED = 50  # of 1000: a range that begins or ends so far from an expert's is meant to be its own


class Strength(IntEnum):
    """How much a source's word counts."""

    GUESS = 0  # a name, or numbers that are usually so
    CONFIG = 1  # what lies beside the weights
    WEIGHTS = 2  # the file of the weights says it of itself, or a host has it loaded so


@dataclasses.dataclass(frozen=True)
class Witness:
    """What one source says: the prediction ("" for nothing), and whether the noise schedule ends in pure noise (None for nothing)."""

    source: Message
    prediction: str = ""
    zero_snr: bool | None = None
    strength: Strength = Strength.CONFIG


@dataclasses.dataclass(frozen=True)
class Predicts:
    """What was decided: epsilon, v, flow or x0, whether the last noise level is pure noise, who said so, and what has to be told about it."""

    prediction: str
    zero_snr: bool
    source: Message
    warnings: tuple[Message, ...] = ()


def predicts(
    witnesses: Sequence[Witness], objective: ObjectiveConfig, field: str = "base", able: Sequence[str] = ()
) -> Predicts:
    """Decides what is trained. A setting wins over every source, the weights' own word over configs, the first of two that are equally strong.

    A guess never decides: where it contradicts a config, the job has to say which. `field`: what the base is called at this door.
    `able`: what the job may ask for; by default the other of epsilon and v, where the model is one of them.
    Raises LoomError for that, and for a setting that the model's kind of noise levels cannot follow.
    """
    speaking = [w for w in witnesses if w.prediction]
    best = max(speaking, key=lambda w: w.strength)  # of equals the first
    if objective.prediction != "auto":
        either = EITHER if best.prediction in EITHER else (best.prediction,)
        decided = _as_asked(best, speaking, objective, able or either)
    else:
        decided = _as_told(best, speaking, field)
    _require_possible(objective, decided.prediction)
    return dataclasses.replace(decided, zero_snr=decided.zero_snr or objective.zero_terminal_snr)


def _as_asked(best: Witness, speaking: Sequence[Witness], objective: ObjectiveConfig, able: Sequence[str]) -> Predicts:
    if objective.prediction not in able:
        raise LoomError(
            "objective.prediction",
            field="objective.prediction",
            kind=best.prediction,
            asked=objective.prediction,
            allowed=("auto", *able),
        )
    warnings: tuple[Message, ...] = ()
    if objective.prediction != best.prediction:
        values = {"asked": objective.prediction, "kind": best.prediction, "source": best.source}
        warnings = (Message.of("objective.prediction.overrides", field="objective.prediction", **values),)
    return Predicts(
        objective.prediction, _zero_snr(speaking, objective.prediction), Message.of("base.source.setting"), warnings
    )


def _as_told(best: Witness, speaking: Sequence[Witness], field: str) -> Predicts:
    others = [w for w in speaking if w.prediction != best.prediction]
    doubt = next((w for w in others if w.strength == Strength.GUESS), None)
    if doubt is not None and best.strength < Strength.WEIGHTS and doubt.prediction in EITHER:
        raise LoomError(
            "objective.prediction.doubtful",
            field="objective.prediction",
            kind=best.prediction,
            source=best.source,
            other=doubt.prediction,
            doubt=doubt.source,
        )
    warnings = tuple(
        Message.of(
            "base.overruled",
            field=field,
            kind=best.prediction,
            source=best.source,
            other=w.prediction,
            overruled=w.source,
        )
        for w in others
    )
    return Predicts(best.prediction, _zero_snr(speaking, best.prediction), best.source, warnings)


def _zero_snr(speaking: Sequence[Witness], prediction: str) -> bool:
    """What the strongest source says of the schedule that also says this prediction."""
    agreeing = [w for w in speaking if w.prediction == prediction and w.zero_snr is not None]
    return bool(agreeing) and bool(max(agreeing, key=lambda w: w.strength).zero_snr)


def _require_possible(objective: ObjectiveConfig, prediction: str) -> None:
    """Refuses a schedule to pure noise that was asked for and the prediction cannot learn from."""
    if objective.zero_terminal_snr and prediction in _NO_ZERO_SNR:
        raise LoomError(_NO_ZERO_SNR[prediction], field="objective.zero_terminal_snr")


# ---- what a model is -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FurtherInput:
    """An input beside noise and text without which a model is asked something it was not made for.

    `model`, `needs` and `plain` are codes of messages. `entries`: those of a host's conditioning that give it. `plain`: what to train instead.
    """

    model: str
    needs: str
    entries: tuple[str, ...] = ()
    plain: str = "plain_model.text_to_image_model_it_was_made_from"
    count: int = 0  # of channels, for models that are called by them

    def given_in(self, conditioning: Mapping[str, Any]) -> bool:
        return bool(self.entries) and all(conditioning.get(entry) is not None for entry in self.entries)

    def error(self, field: str = "base") -> LoomError:
        """`field`: what the base is called at this door."""
        model = Message.of(self.model, count=self.count) if self.count else Message.of(self.model)
        needs, plain = Message.of(self.needs), Message.of(self.plain)
        if field == "model":
            return LoomError("model.further_input", field=field, model=model, needs=needs, plain=plain)
        return LoomError("base.further_input", field=field, model=model, needs=needs)


@dataclasses.dataclass(frozen=True)
class Expert:
    """One of the networks that share the noise levels of a model. It is asked for sigma from `low` to `high` (of flow, 0 to 1)."""

    name: str  # code of a message
    low: float
    high: float

    def range_of(self, shift: float) -> tuple[int, int]:
        """(smallest timestep, one past the largest), of 1000, in the settings' terms: shares of the schedule before the time shift."""
        low, high = (round(STEPS * s / (shift - (shift - 1) * s)) for s in (self.low, self.high))
        return low, high

    def warnings(self, objective: ObjectiveConfig, shift: float, field: str) -> tuple[Message, ...]:
        """What to say when the job trains it where it is never asked."""
        low, high = self.range_of(shift)
        if objective.min_timestep >= low - TOLERATED and objective.max_timestep <= high + TOLERATED:
            return ()
        return (Message.of("base.expert", field=field, expert=Message.of(self.name), low=low, high=high),)


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """What a base model was found to be. `channels`: of its latents. `guidance`: the one it embeds and is trained at. `stored`: the type of its weights.

    `distilled`: the sign by which it was told, None where nothing tells. `clip_skip`: from which layer captions are read, from the end; None where that is
    not chosen. `anime`: the name by which it looks like a model made for clip skip 2. `warnings`: what the user has to know before the first step.
    `file`: the name of the file a host has it from; empty where nothing tells. `sized`: whether its noise levels depend on the size of the latents.
    """

    family: str
    predicts: Predicts
    channels: int
    stored: str
    guidance: float | None = None
    shift: float | None = None
    expert: Expert | None = None
    distilled: Message | None = None
    further: FurtherInput | None = None
    notes: tuple[Message, ...] = ()
    field: str = "base"
    clip_skip: int | None = None
    anime: str | None = None
    file: str = ""
    sized: bool = False

    def message(self) -> Message:
        """All of it in one sentence."""
        decided = self.predicts
        facts = [Message.of("base.fact.prediction", kind=decided.prediction, source=decided.source)]
        if decided.zero_snr:
            facts.append(Message.of("base.fact.zero_snr"))
        if self.sized:
            facts.append(Message.of("base.fact.levels_by_size"))
        elif self.shift is not None:
            facts.append(Message.of("base.fact.shift", shift=figure(self.shift)))
        if self.guidance is not None:
            facts.append(Message.of("base.fact.guidance", guidance=figure(self.guidance)))
        facts.append(Message.of("base.fact.channels", count=self.channels))
        if self.clip_skip not in (None, 1):
            facts.append(Message.of("base.fact.clip_skip", skip=self.clip_skip))
        if self.expert is not None:
            facts.append(Message.of("base.fact.expert", expert=Message.of(self.expert.name)))
        if self.distilled is not None:
            facts.append(Message.of("base.fact.distilled", sign=self.distilled))
        facts.append(Message.of("base.fact.stored", stored=self.stored))
        return Message.of("base.told", field=self.field, family=self.family, facts=facts)

    def warnings(self, objective: ObjectiveConfig, fixed: bool = False) -> tuple[Message, ...]:
        """What the user has to know before the first step of this job. `fixed`: whether a LoRA acts in training alone, as a training adapter does."""
        messages = self.predicts.warnings + self.notes
        if self.expert is not None:
            messages += self.expert.warnings(objective, self.shift or 1.0, self.field)
        if self.distilled is not None and not fixed:
            messages += (Message.of("base.distilled", field=self.field, sign=self.distilled),)
        if self.anime and self.clip_skip == 1:
            code = "model.clip_skip_guess" if self.field == "model" else "base.clip_skip_guess"
            messages += (Message.of(code, field=self.field, name=repr(self.anime)),)
        return messages

    def as_json(self) -> dict[str, Any]:
        """For the run folder and for programs; sentences in English."""
        return {
            "family": self.family,
            "prediction": self.predicts.prediction,
            "told_by": self.predicts.source.text(),
            "zero_terminal_snr": self.predicts.zero_snr,
            "shift": self.shift,
            "guidance": self.guidance,
            "latent_channels": self.channels,
            "expert": self.expert.name.rpartition(".")[2] if self.expert else None,
            "distilled": self.distilled.text() if self.distilled else None,
            "further_input": self.further.needs.rpartition(".")[2] if self.further else None,
            "stored": self.stored,
            "clip_skip": self.clip_skip,
            "file": self.file,
        }


# ---- what is refused by configs and shapes ---------------------------------------------------------------------------

_SD_BY_CHANNELS = {
    9: ("kind_of_model.inpainting_model", "input.mask_and_the_masked_picture"),
    8: ("kind_of_model.instruct_pix2pix_model", "input.picture_to_edit"),
    7: ("kind_of_model.upscaler", "input.small_picture"),
    5: ("kind_of_model.depth_model", "input.depth_map"),
}
_FLUX_BY_CHANNELS = {
    384: ("kind_of_model.fill_inpainting_model", "input.mask_and_the_masked_picture"),
    128: ("kind_of_model.control_model_such_as_canny_or_depth", "input.control_picture"),
}
_ENDS = (
    ("input_blocks.0.0.weight", "out.2.weight"),
    ("img_in.weight", "final_layer.linear.weight"),
)  # first and last layer of a single file's network
PREFIXES = ("", "diffusion_model.", "model.diffusion_model.")


def scaled_keys(names: Iterable[str]) -> list[str]:
    """The keys of scales, without which the weights beside them are other numbers."""
    return [name for name in names if SCALE.fullmatch(name)]


def require_unscaled(what: str, names: Iterable[str]) -> None:
    """Refuses weights that are quantised with scales of their own, which diffusers would leave out. Raises LoomError."""
    scales = scaled_keys(names)
    if scales:
        raise LoomError("base.scaled", field="base", file=what, key=scales[0])


def require_plain_network(config: Mapping[str, Any], latent_channels: int) -> None:
    """Refuses a network in diffusers layout that reads more than noise and text. `config`: its config.json. Raises LoomError."""
    channels = int(config.get("in_channels", latent_channels))
    if channels not in (
        latent_channels,
        4 * latent_channels,
    ):  # the latter: patches of 2 x 2, as Flux and Qwen-Image read them
        raise _kind(channels).error()
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise FurtherInput("kind_of_model.class_labels", "input.image_embedding_or_a_noise_level").error()
    if config.get("encoder_hid_dim_type") or config.get("addition_embed_type") not in (None, "text", "text_time"):
        raise FurtherInput("kind_of_model.reads_image_embedding", "input.image_embedding").error()


def require_plain_file(names: Collection[str], shape_of: Callable[[str], Sequence[int]]) -> None:
    """The same for a single file, whose network reads more channels than it writes. `shape_of(name)` reads no weights. Raises LoomError."""
    for prefix, (first, last) in itertools.product(PREFIXES, _ENDS):
        if prefix + first in names and prefix + last in names:
            channels, written = shape_of(prefix + first)[1], shape_of(prefix + last)[0]
            if channels > written:
                raise _kind(channels).error()


def _kind(channels: int) -> FurtherInput:
    """What a model with so many input channels is, and what it needs."""
    named = {**_SD_BY_CHANNELS, **_FLUX_BY_CHANNELS}
    if channels in named:
        return FurtherInput(*named[channels])
    return FurtherInput("kind_of_model.channels", "input.for_channels", count=channels)
