"""What image-to-video models of the host are shown of a clip: its first frame, as the host's own nodes give it (WanImageToVideo, HunyuanImageToVideo).

The clean latent of the rest never reaches the network: what follows the first frame is grey, or nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import torch

GREY = 0.5  # of the frames that are not given


class Behind(enum.Enum):
    """What a model is shown behind the first frame."""

    GREY = "grey"  # Wan: grey frames, through the VAE with the first one
    NOTHING = "nothing"  # HunyuanVideo: the frame alone is encoded; the host fills up with zeros


def first_frame(
    pixels: torch.Tensor, frames: int, behind: Behind, encode: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents as the host's VAE gives them, mask (1, 1, T, h, w): 0 where the frame is given) of a clip (N, H, W, 3) with `frames` in latents."""
    shown = pixels[:1]
    if behind is Behind.GREY:
        shown = torch.full_like(pixels, GREY)
        shown[:1] = pixels[:1]
    latents = encode(shown)
    return latents, first_given(frames, latents)


def first_given(frames: int, like: torch.Tensor) -> torch.Tensor:
    """The mask (1, 1, frames, h, w), as large and where `like` (…, h, w) is, that says that the first of them is given."""
    mask = torch.ones(1, 1, frames, *like.shape[-2:], device=like.device)
    mask[:, :, :1] = 0.0
    return mask
