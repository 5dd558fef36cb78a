"""What image-to-video models of the host are shown of a clip: its first frame, as the host's own nodes give it, and its last one where they take it.

WanImageToVideo, WanFirstLastFrameToVideo, HunyuanImageToVideo, HunyuanVideo15ImageToVideo, Kandinsky5ImageToVideo, Wan22ImageToVideoLatent and
LTXVImgToVideo. The clean latent of what is to be learnt never reaches the network: what is not given is grey, zero, nothing or noise.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import comfy.clip_vision
import torch

from ....lora_core.backends.base import whole_fingerprint
from ....lora_core.data.shown import Shown
from ....lora_core.messages.blame import blamed
from ....lora_core.messages.errors import LoomError

GREY = 0.5  # of the frames that are not given


class Behind(enum.Enum):
    """What a model is shown behind the first frame."""

    GREY = "grey"  # Wan: grey frames, through the VAE with the given ones
    NOTHING = "nothing"  # HunyuanVideo: the frame alone is encoded; the host fills up with zeros
    ZEROS = "zeros"  # HunyuanVideo 1.5: the same, filled up here
    REPLACED = "replaced"  # Kandinsky 5: the network puts the encoded frame over the noise
    CLEAN = "clean"  # LTX, Wan 2.2 5B: the first latent frame has no noise, and a noise level of 0
    GUIDING = "guiding"  # HunyuanVideo image to video, v2: the same, said by its number

    @property
    def in_place(self) -> bool:
        """Whether the frame stands in the latents that are learnt, instead of beside them."""
        return self in (Behind.REPLACED, Behind.CLEAN, Behind.GUIDING)


def first_frame(
    pixels: torch.Tensor, frames: int, behind: Behind, last: bool, encode: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents as the host's VAE gives them, mask (1, 1 or 4, T, h, w): 0 where a frame is given) of a clip (N, H, W, 3) with `frames` in latents.

    `last`: of its last frame too, which only GREY has a place for.
    """
    shown = pixels[:1]
    if behind is Behind.GREY:
        shown = torch.full_like(pixels, GREY)
        shown[:1] = pixels[:1]
        if last:
            shown[-1:] = pixels[-1:]
    latents = encode(shown)
    if behind is Behind.ZEROS:
        latents = torch.cat([latents, latents.new_zeros(*latents.shape[:2], frames - 1, *latents.shape[3:])], 2)
    return latents, both_given(frames, latents) if last else first_given(frames, latents)


def first_given(frames: int, like: torch.Tensor) -> torch.Tensor:
    """The mask (1, 1, frames, h, w), as large and where `like` (…, h, w) is, that says that the first of them is given."""
    mask = torch.ones(1, 1, frames, *like.shape[-2:], device=like.device)
    mask[:, :, :1] = 0.0
    return mask


def both_given(frames: int, like: torch.Tensor) -> torch.Tensor:
    """The same for the first and the last frame (1, 4, frames, h, w): Wan is told of each of the four frames that stand in a latent one."""
    mask = first_given(frames, like).repeat(1, 4, 1, 1, 1)
    mask[:, 3, -1] = 0.0
    return mask


def with_first(empty: torch.Tensor, shown: Shown, model: Any) -> torch.Tensor:
    """Latents of zeros, in the units of the host's VAE, that begin with the frame that is given: what the sampler of `model` (a BaseModel) starts from."""
    first = shown.latents[0]
    return torch.cat([first.to(empty), model.process_latent_out(empty)[:, :, first.shape[2] :]], 2)


class Vision:
    """What a CLIP VISION model of the host sees of the frames that are given, for the models that read it."""

    def __init__(self, model: Any, name: str, crop: bool, width: int):
        self._model, self._name, self._crop, self._width = model, name, crop, width

    @staticmethod
    def read_by(network: Any, model: Any) -> Vision | None:
        """For a network of the host; None for one that reads no such thing. Cut to a square (`crop`) as the host's own workflows do it."""
        for part, name, crop in (
            ("img_emb", "penultimate_hidden_states", False),  # Wan 2.1
            ("vision_in", "last_hidden_state", True),  # HunyuanVideo 1.5
        ):
            reader = getattr(network, part, None)
            if reader is not None:
                norm = next(module for module in reader.modules() if isinstance(module, torch.nn.LayerNorm))
                return Vision(model, name, crop, norm.normalized_shape[-1])
        return None

    @property
    def wired(self) -> bool:
        return self._model is not None

    def fingerprint(self) -> str:
        with blamed("vision.failed", "clip_vision"):
            return whole_fingerprint(self._model.model)

    def seen(self, frames: torch.Tensor) -> torch.Tensor:
        """(1 or 2, H, W, 3) in [0, 1] -> the tokens (1, n, C) of each, one behind the other. Raises LoomError."""
        with blamed("vision.failed", "clip_vision"), torch.inference_mode():
            each = [self._model.encode_image(frame[None], crop=self._crop)[self._name] for frame in frames]
            tokens = torch.cat(each, 1)
        if tokens.shape[-1] != self._width:
            raise LoomError("vision.width", field="clip_vision", width=tokens.shape[-1], wanted=self._width)
        return tokens.clone()

    def example(self, like: torch.Tensor) -> torch.Tensor:
        """Tokens of nothing, where `like` is."""
        return torch.zeros(1, 4, self._width, device=like.device)

    def entries(self, seen: torch.Tensor) -> dict[str, Any]:
        """What the conditioning of a sample gets."""
        output = comfy.clip_vision.Output()
        output[self._name] = seen
        return {"clip_vision_output": output}
