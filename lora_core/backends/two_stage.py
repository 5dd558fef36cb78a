"""What models of two stages have in common: a prior that turns text into an image embedding, and a decoder that turns it into pixels.

Either stage can be trained; `companion` names the folder of the other one, which encodes pictures and draws samples. Sampling is diffusers' own pipelines'.
"""

from __future__ import annotations

from pathlib import Path

from ..config import ObjectiveConfig
from ..messages.errors import LoomError
from ..messages.message import Message
from .base import Samplers, weights_checksum
from .base_model import BaseModel, Strength, Witness, predicts
from .clip_text import vocabulary
from .headless import Headless


class TwoStage(Headless):
    """Lends one of the two stages. `channels`: of what it calls its latents."""

    channels: int

    def samplers(self) -> Samplers:
        return Samplers(("euler",), ("simple",), fixed=type(self.parts["scheduler"]).__name__)

    def stage(self, prediction: str, config: ObjectiveConfig) -> BaseModel:
        """What a stage is whose network is only ever asked for this prediction. Raises LoomError when the job asks for another."""
        witness = Witness(Message.of("base.source.kind", family=self.family), prediction, strength=Strength.WEIGHTS)
        return BaseModel(self.family, predicts([witness], config, able=(prediction,)), self.channels, self.stored_type)

    def text_fingerprint(self) -> str:
        return weights_checksum(self.parts["text_encoder"]) + vocabulary(self.parts["tokenizer"])


def companion_folder(place: str, code: str) -> Path:
    """The folder of the other stage. Raises LoomError where none is given, with the `code` that says which one is needed."""
    if not place:
        raise LoomError(code, field="companion")
    return Path(place)


def require_plain_schedule(config: ObjectiveConfig) -> None:
    """Refuses a noise schedule stretched to zero signal, which these stages were not made with. Raises LoomError."""
    if config.zero_terminal_snr:
        raise LoomError("objective.zero_terminal_snr.not_v", field="objective.zero_terminal_snr")
