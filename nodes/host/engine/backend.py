"""The ComfyUI backend: trains on the MODEL, CLIP and VAE that the host has loaded, through the host's own `apply_model` and sampler.

What the model is and one pass through it stand in `model.py`, what a run does to it in `lending.py`, texts and pictures in `captions.py` and
`pictures.py`. Host code runs inside inference mode, as everywhere in the host; only the step's own mathematics runs outside of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from PIL import Image
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.tokens import TokenTable
from ....lora_core.backends.base import (
    Backend,
    CompilesBlocks,
    EncodesClips,
    EncodesShownTexts,
    EncodesSpread,
    NamesSamplers,
    Remarks,
    SampleJob,
    Samplers,
    ShowsControls,
    ShowsFirstFrames,
    TakesWired,
)
from ....lora_core.backends.base_model import BaseModel
from ....lora_core.config import ObjectiveConfig, Recompute
from ....lora_core.data.batches import Batch
from ....lora_core.messages.blame import blamed
from ....lora_core.messages.message import Message
from .captions import HostTexts
from .conditioning import HostConditioning
from .lending import HostLending
from .lent_model import LentModel
from .model import HostModel
from .objective import HostObjective
from .pictures import HostPictures
from .shown import TEXT_SEES_FRAMES


class HostBackend(LentModel):
    """Lends a MODEL (a ModelPatcher), with the CLIP and VAE that belong to it. The user's objects are never changed: we work on a clone."""

    # Frozen layers keep nothing here, and what they give cannot be kept by selective checkpointing.
    recomputes = (Recompute.ALL,)
    file = ""  # of the model, where another host knows it and this one's objects do not tell

    def __init__(self, model: Any, clip: Any, vae: Any, beside: HostBackend | None = None, vision: Any = None):
        """`beside`: another one of the same run and CLIP, with which it shares what texts are encoded to. `vision`: a CLIP VISION."""
        with blamed("model.unopened", "model"):
            self.model = HostModel(model, vision)
            self.texts = beside.texts if beside is not None else self._texts_of(clip)
            self.conditioning = HostConditioning(self.model, self.texts)
            self.pictures = HostPictures(self.model.patcher, vae)
            self.lending = HostLending(self.model, self.texts, self.conditioning, self.pictures)

    def _texts_of(self, clip: Any) -> HostTexts:
        model, use = self.model, self.model.use
        return HostTexts(clip, model.family, model.text_width, use.text if use is not None else None)

    # ---- the model ---------------------------------------------------------------------------------------------------

    @property
    def clip_skip(self) -> int | None:
        """As CLIP Set Last Layer has it, for models whose text is read from a chosen layer."""
        return self.texts.clip_skip if self.model.skips_clip_layers else None

    def layers(self) -> Mapping[str, nn.Module]:
        return self.model.layers()

    def weight(self, layer: nn.Module) -> AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]:
        return self.model.weight(layer)

    def file_name(self, path: str) -> str:
        names = self.model.names
        return names[path] if path in names else self.texts.names[path]

    def fingerprint(self) -> str:
        return self.model.fingerprint()

    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        model = self.model.described(config, self.clip_skip)
        return dataclasses.replace(model, file=self.file) if self.file else model

    def objective(self, config: ObjectiveConfig) -> HostObjective:
        return self.model.objective(config, self.base_model(config).predicts.prediction)

    def find_non_finite(self) -> str | None:
        return self.model.find_non_finite()

    # ---- texts -------------------------------------------------------------------------------------------------------

    def text_layers(self) -> Mapping[str, nn.Module]:
        return self.texts.layers()

    def token_tables(self) -> Mapping[str, TokenTable]:
        return self.texts.token_tables()

    # ---- training ----------------------------------------------------------------------------------------------------

    def training(
        self,
        layers: Mapping[str, nn.Module],
        adapters: AdapterSet,
        recompute: Recompute = Recompute.NONE,
        largest: tuple[int, ...] = (),
    ) -> AbstractContextManager[None]:
        return self.lending.training(layers, adapters, recompute, largest)

    def compile_blocks(self) -> None:
        """From now on the model's blocks run as graphs while it is lent, where that is exact."""
        self.lending.compiles = True

    def remarks(self) -> Sequence[Message]:
        """What there is to say about how the model is trained, since `training` was entered."""
        use, vision = self.model.use, self.model.vision
        idle = vision is not None and (use is None or use.vision is None)
        sees = type(self.model.base).__name__ in TEXT_SEES_FRAMES and use is not None and use.behind is not None
        messages = [Message.of("vision.idle", field="clip_vision")] if idle else []
        messages += [Message.of("text.first_frame_unseen", field="clip")] if sees else []
        return (*self.lending.remarks, *messages)

    def given_back(self) -> AbstractContextManager[None]:
        """Inside, the host has its models as they were before the run and may use them; the next step takes them again."""
        return self.lending.given_back()

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        self.conditioning.require_further_input(batch)
        encoded_more = self.texts.learn(batch)
        self.lending.before_a_pass(encoded_more)
        return self.model.answer(x_t, sigma, self.conditioning.of(batch, x_t))

    # ---- sampling ----------------------------------------------------------------------------------------------------

    def samplers(self) -> Samplers:
        """Those of the host, which takes its first one for a name it does not have."""
        return Samplers(comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS)

    def sample(self, job: SampleJob) -> list[Image.Image]:
        with self.lending.sampling(), torch.inference_mode():
            latent = self.empty_latent(job)
            latents = self.sampled(job, latent, comfy.sample.prepare_noise(latent, job.config.seed))
            return self.pictures.decode(self.with_given(latents, job))


if TYPE_CHECKING:

    def _fulfils_the_protocols(
        backend: HostBackend,
    ) -> tuple[
        Backend,
        EncodesClips,
        EncodesSpread,
        TakesWired,
        Remarks,
        NamesSamplers,
        ShowsControls,
        EncodesShownTexts,
        ShowsFirstFrames,
        CompilesBlocks,
    ]:
        return backend, backend, backend, backend, backend, backend, backend, backend, backend, backend
