"""What a MODEL that was lent is, what a backend makes of texts, pictures and clips through its CLIP and VAE, and what a sample begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from torch import nn

from ....lora_core.backends.base import SampleJob
from ....lora_core.data.lengths import TextLength
from ....lora_core.data.shown import OfFrames, Showing, Shown
from ....lora_core.data.store import Store
from .base_model import films
from .captions import HostTexts
from .conditioning import HostConditioning
from .first_frame import first_frame, with_first
from .model import HostModel
from .pictures import HostPictures


class LentModel:
    """The part that is the same whether one network is trained or two that share CLIP and VAE."""

    model: HostModel
    texts: HostTexts
    conditioning: HostConditioning
    pictures: HostPictures

    # ---- the model ---------------------------------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        return self.model.network

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def family(self) -> str:
        return self.model.family

    @property
    def context_width(self) -> int | None:
        """Width of the text the model reads, where its configuration tells."""
        return self.model.context_width

    # ---- texts -------------------------------------------------------------------------------------------------------

    @property
    def text_device(self) -> torch.device:
        return self.texts.device

    def text_fingerprint(self) -> str:
        return self.texts.fingerprint

    def keep_texts(self, store: Store) -> None:
        self.texts.keep(store)

    def know_text(self, caption: str, file: Path) -> None:
        self.texts.know(caption, file)

    def text_length(self, caption: str) -> TextLength:
        return self.texts.length(caption)

    def encode_texts(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        self.texts.encode_ahead(captions, progress)

    def encode_shown_texts(self, texts: Sequence[tuple[str, Shown]], progress: Callable[[int, int], None]) -> None:
        self.texts.encode_shown_ahead(texts, progress)

    def forget_texts(self) -> None:
        self.texts.forget()

    # ---- pictures ----------------------------------------------------------------------------------------------------

    @property
    def latent_step_px(self) -> int:
        return self.pictures.step_px

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        further = self.model.further
        if further is not None and not self.conditioning.shows_further:  # a picture comes with a caption alone
            raise further.error("model")
        return self.pictures.encode(pixels)

    def clip_lengths_near(self, frames: int) -> tuple[int, int] | None:
        return self.pictures.clip_lengths_near(frames) if films(self.model.base) else None

    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pictures.encode_spread(pixels)

    def showing(self) -> Showing | None:
        use, further = self.model.use, self.model.further
        return use.showing(needed=further is not None) if use is not None else None

    def encode_shown(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.pictures.encode_shown(pixels)

    def encode_first_frame(self, pixels: torch.Tensor, last: bool = False) -> OfFrames:
        use = self.model.use
        assert use is not None
        assert use.behind is not None
        frames = self.pictures.latent_frames(len(pixels))
        latents, mask = first_frame(pixels, frames, use.behind, last, self.pictures.encode_shown)
        clean = self.pictures.encode_wired(latents) if use.behind.in_place else None
        if use.vision is None or not use.vision.wired:
            return OfFrames((latents, mask), clean)
        return OfFrames((latents, mask, use.vision.seen(pixels[[0, -1]] if last else pixels[:1])), clean)

    def encode_wired(self, samples: torch.Tensor) -> torch.Tensor:
        return self.pictures.encode_wired(samples)

    def frame_fingerprint(self) -> str:
        vision = self.model.use.vision if self.model.use is not None else None
        return vision.fingerprint() if vision is not None and vision.wired else ""

    def picture_fingerprint(self) -> str:
        return self.pictures.fingerprint()

    def sampled(self, job: SampleJob, latent: torch.Tensor, noise: torch.Tensor, **part: Any) -> torch.Tensor:
        """Latents by the host's own sampler, with the model as it is; `part`: which of the steps, where it is not all of them."""
        config = job.config
        return comfy.sample.sample(
            self.model.patcher,
            noise,
            config.steps,
            config.cfg,
            config.sampler,
            config.scheduler,
            *self.conditioning.of_sample(job),
            latent,
            noise_mask=self.noise_mask(job),
            seed=config.seed,
            disable_pbar=True,
            **part,
        )

    @staticmethod
    def noise_mask(job: SampleJob) -> torch.Tensor | None:
        """(1, 1, T, h, w): where a sample has noise; None for everywhere."""
        return job.shown.latents[1] if job.shown.clean is not None else None

    @staticmethod
    def with_given(latents: torch.Tensor, job: SampleJob) -> torch.Tensor:
        """What was sampled, with the frames that were given: what the network made of them is thrown away."""
        if job.shown.clean is None:
            return latents
        first = job.shown.latents[0]
        return torch.cat([first.to(latents), latents[:, :, first.shape[2] :]], 2)

    def empty_latent(self, job: SampleJob) -> torch.Tensor:
        """What a sample begins with: of the size of what it is shown, else of its own, and as long as the VAE can make it."""
        device, sides = comfy.model_management.intermediate_device(), (job.height_px, job.width_px)
        if self.model.use is not None and self.model.use.behind is not None and job.shown.latents:
            empty = torch.zeros(1, self.pictures.channels, *job.shown.latents[1].shape[2:], device=device)
            return with_first(empty, job.shown, self.model.base) if job.shown.clean is not None else empty
        height, width = (side // self.latent_step_px for side in sides)
        near = self.clip_lengths_near(job.frames)
        if near is None:
            picture = torch.zeros(1, 4, height, width, device=device)
            return comfy.sample.fix_empty_latent_channels(self.model.patcher, picture)
        channels, frames = self.pictures.channels, self.pictures.latent_frames(near[0] or 1)
        return torch.zeros(1, channels, frames, height, width, device=device)
