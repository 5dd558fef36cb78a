"""The arguments of the host's model for a batch, by the host's own `extra_conds`: every sample with its own caption, size and crop."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import comfy.sampler_helpers
import comfy.samplers
import torch

from ....lora_core.backends.base import SampleJob
from ....lora_core.data.batches import Batch
from ....lora_core.data.buckets import Fit
from ....lora_core.data.shown import NOTHING, Shown
from .base_model import reads_frame_rate, training_guidance
from .captions import Conds, Encoded, HostTexts
from .layers import is_unet
from .model import HostModel


class HostConditioning:
    """Of a `model` with its `texts`."""

    def __init__(self, model: HostModel, texts: HostTexts):
        self._model, self._texts = model, texts

    @property
    def shows_further(self) -> bool:
        """Whether what the model reads beside noise and text can be given by control pictures."""
        further, use = self._model.further, self._model.use
        return further is not None and use is not None and set(further.entries) == use.every_entry

    def require_further_input(self, batch: Batch | None = None) -> None:
        """Refuses a model that reads more than noise and text.

        Unless control pictures give it (for each picture of `batch`), or the conditioning that came from other nodes, for each caption, or for all there are.
        """
        further = self._model.further
        if further is None:
            return
        all_shown = batch is None or (len(batch.shown) > 0 and all(shown.latents for shown in batch.shown))
        if self.shows_further and all_shown and not (batch is None and self._texts.any_wired):
            return
        encoded = self._texts.wired_for(batch.captions if batch is not None else ())
        if not encoded or not all(text is not None and further.given_in(text[0][1]) for text in encoded):
            raise further.error("model")

    def of(self, batch: Batch, x_t: torch.Tensor) -> list[tuple[list[int], Conds]]:
        """(sample indices, model arguments) of each forward pass.

        One pass for the whole batch, unless the model takes text of varying length and the captions differ in it, or one noise level a pass.
        """
        apart = self._model.one_level_a_pass
        groups: list[tuple[list[int], list[Conds]]] = []
        for i, (caption, seen) in enumerate(zip(batch.captions, _seen(batch), strict=True)):
            part = self._one_conditioning(self._texts.literal(caption), seen, x_t[i : i + 1])
            for indices, parts in groups:
                if not apart and self._can_join(parts[0], part):
                    indices.append(i)
                    parts.append(part)
                    break
            else:
                groups.append(([i], [part]))
        with contextlib.nullcontext() if self._texts.live else torch.inference_mode():
            joined = [(indices, comfy.samplers.cond_cat(parts)) for indices, parts in groups]
        return [(indices, _normal_copy(conds)) for indices, conds in joined]

    def of_sample(self, job: SampleJob) -> tuple[Encoded, Encoded]:
        """The prompt and the negative prompt of a sample with its control pictures and its frame rate, as the host's sampler takes them."""
        use = self._model.use
        blind = use is not None and use.text is not None and not use.text.negative
        unseen = dataclasses.replace(job.shown, pixels=()) if blind else job.shown
        return self._with(job.prompt, job.shown, job), self._with(job.config.negative, unseen, job)

    def _with(self, prompt: str, seen: Shown, job: SampleJob) -> Encoded:
        """A prompt, encoded with what the text encoder sees, and what the network of a sample is shown."""
        encoded, use = self._texts.text(prompt, shown=seen), self._model.use
        beside = use.entries(job.shown) if use is not None and job.shown.latents else {}
        beside |= self._rate(job.frame_rate)
        return [[hidden, {**more, **beside}] for hidden, more in encoded] if beside else encoded

    def _rate(self, frame_rate: float) -> dict[str, float]:
        """As LTXVConditioning gives it to the models that it is for; the host's own default where it is unknown."""
        return {"frame_rate": frame_rate} if frame_rate and reads_frame_rate(self._model.base) else {}

    def _can_join(self, one: Conds, other: Conds) -> bool:
        """Whether two samples' arguments fit into one batch.

        The host makes texts of two lengths equal by repeating them, which only pure cross-attention does not see.
        """
        if one.keys() != other.keys() or not all(one[key].can_concat(other[key]) for key in other):
            return False
        return is_unet(self._model.network) or all(_of_one_length(one[key], other[key]) for key in other)

    def _one_conditioning(self, caption: str, seen: _Seen, noise: torch.Tensor) -> Conds:
        """Of one sample, kept where the same caption, fit, shape, pictures and frame rate always give the same."""
        if self._texts.live:
            return self._model_conds(self._texts.encode_live(caption), seen, noise)
        key = (self._model, caption, seen.fit, tuple(noise.shape), seen.shown.identity, seen.frame_rate)
        cache = self._texts.conds
        if key in cache:
            return cache[key]
        with torch.inference_mode():
            done = self._model_conds(self._texts.text(caption, shown=seen.shown), seen, noise)
        size = sum(_bytes(v.cond) for v in done.values() if torch.is_tensor(getattr(v, "cond", None)))
        if self._texts.trained or not cache.has_room_for(size):
            return done
        return cache.put(key, done, size)

    def _model_conds(self, text: Encoded, seen: _Seen, noise: torch.Tensor) -> Conds:
        """What the model takes for an encoded text, a size, a crop, control pictures and a frame rate.

        `latent_image` is empty as when a picture is made from text: some models would take it for their picture, and must not see what they learn.
        """
        (width, height), (left, top), (target_w, target_h) = seen.fit.original, seen.fit.crop, seen.fit.bucket
        conds = comfy.sampler_helpers.convert_cond(text[:1])
        conds[0].update(width=width, height=height, crop_w=left, crop_h=top)
        conds[0].update(target_width=target_w, target_height=target_h)
        if self._model.use is not None:
            conds[0].update(self._model.use.entries(seen.shown, noise))
        conds[0].update(self._rate(seen.frame_rate))
        guidance = training_guidance(self._model.base)
        if guidance is not None:
            conds[0].setdefault("guidance", guidance)
        conds = comfy.samplers.encode_model_conds(
            self._model.base.extra_conds,
            conds,
            noise,
            self._model.device,
            "positive",
            latent_image=torch.zeros_like(noise),
            denoise_mask=None,
            seed=0,
            latent_shapes=[tuple(noise.shape)],
        )
        made = conds[0]["model_conds"]
        return {k: v.process_cond(batch_size=1, area=None, device=self._model.device) for k, v in made.items()}


def _bytes(tensor: torch.Tensor) -> int:
    """What is kept of it: an expanded one is as large as what it was expanded from."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


class _Seen(NamedTuple):
    """What a sample's network is told beside its caption."""

    fit: Fit
    shown: Shown
    frame_rate: float


def _seen(batch: Batch) -> Iterator[_Seen]:
    """Of each sample of a batch."""
    count = len(batch.captions)
    yield from map(_Seen, batch.fits, batch.shown or [NOTHING] * count, batch.frame_rates or [0.0] * count)


def _of_one_length(one: Any, other: Any) -> bool:
    """Whether two arguments (the host's COND objects) have one shape, where they are tensors."""
    return getattr(one.cond, "shape", None) == getattr(other.cond, "shape", None)


def _normal_copy(value: Any) -> Any:
    """Copies of inference tensors, so the step may use them under autograd."""
    if torch.is_tensor(value):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {k: _normal_copy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_normal_copy(v) for v in value)
    return value
