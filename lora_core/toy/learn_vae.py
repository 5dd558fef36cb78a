"""The VAE in two stages: all of it on quarters of pictures, then its decoder alone on whole ones, while latents made before stay valid."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from . import networks, pictures
from .stage import Stage, device
from .world import Emoji

RATE = 1.2e-3
DECODER_RATE = 5e-4
# (up to which share of the first stage's steps, side of the squares it sees in px, how many for one picture's work)
SQUARES = ((0.25, 32, 8), (0.7, 64, 3), (1.0, pictures.SIDE_PX, 1))
# Steps over which three of the four latent channels are drawn towards the mean colours, so that colour is learned first.
COLOR_STEPS = 400
POLISH_SHARE = 3 / 8  # the last part of the decoder's steps, which lessens the plain error that decibels measure
LATENT_NOISE = 0.05  # in standard deviations of the latents: what a UNet's answer is off by, and the decoder is to bear


def to_tensor(images: Sequence[np.ndarray]) -> torch.Tensor:
    """(H, W, 3) pictures in 0..255 as (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def squares(package: Path, emoji: Sequence[Emoji], rng: random.Random, side: int, count: int) -> torch.Tensor:
    """(`count`, 3, side, side): parts of pictures, two of each, rather where something is to be seen."""
    parts: list[np.ndarray] = []
    while len(parts) < count:
        picture = pictures.varied_picture(package, emoji, rng)
        for _ in range(2 if side < pictures.SIDE_PX else 1):
            top, left = pictures.busiest_corner(picture, side, rng)
            parts.append(picture[top : top + side, left : left + side])
    return to_tensor(parts[:count])


def whole(package: Path, emoji: Sequence[Emoji], rng: random.Random, count: int) -> torch.Tensor:
    return squares(package, emoji, rng, pictures.SIDE_PX, count)


def slopes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def distance(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Of the pictures and of their slopes, which keeps edges sharp."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(slopes(y), slopes(x)))
    return F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + 0.5 * edges


def decibels(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The mean over pictures of the logarithm of their squared error: falls as their mean PSNR rises."""
    return torch.log((y - x).square().flatten(1).mean(1) + 1e-6).mean()


def train_whole(
    package: Path,
    emoji: Sequence[Emoji],
    state: Path,
    steps: int,
    count: int,
    pause: Path | None = None,
    begun: Path | None = None,
) -> None:
    """Encoder and decoder together, in bfloat16, on ever larger squares; a little KL keeps the latents smooth."""
    torch.manual_seed(0)
    vae = networks.new_vae().to(device())

    def loss_of(step: int) -> torch.Tensor:
        torch.manual_seed(step)
        side, times = next((side, times) for share, side, times in SQUARES if step < steps * share)
        x = squares(package, emoji, random.Random(f"vae{step}"), side, count * times).to(device())
        with torch.autocast(device().type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        toward_color = max(0.0, 1 - step / COLOR_STEPS) * F.mse_loss(
            posterior.mean[:, :3].float(), 2 * F.avg_pool2d(x, 8)
        )
        return distance(y.float(), x) + toward_color + 1e-3 * posterior.kl().float().mean() / x[0].numel()

    Stage(state / "vae.state", {"vae": vae}, RATE, steps, pause, begun).learn(loss_of)


def decoding(vae: Any) -> dict[str, torch.nn.Module]:
    """The parts that turn latents into pictures."""
    return {"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder}


def train_decoder(
    package: Path,
    emoji: Sequence[Emoji],
    state: Path,
    steps: int,
    count: int,
    pause: Path | None = None,
    begun: Path | None = None,
) -> None:
    """The decoder goes on alone on whole pictures whose latents are a little off; at the end the error alone counts."""
    vae = read_vae(state, decoder=False).to(device())
    vae.requires_grad_(False)
    parts = decoding(vae)
    for part in parts.values():
        part.requires_grad_(True)

    def loss_of(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        x = whole(package, emoji, random.Random(f"decoder{step}"), count).to(device())
        with torch.no_grad(), torch.autocast(device().type, torch.bfloat16):
            latents = vae.encode(x).latent_dist.mean
            noise = torch.randn(latents.shape, generator=generator).to(device())
            strength = torch.rand(len(x), 1, 1, 1, generator=generator).to(device())
            latents = latents + noise * strength * LATENT_NOISE * latents.std()
        with torch.autocast(device().type, torch.bfloat16):
            y = vae.decode(latents).sample
        measure = decibels if step >= steps * (1 - POLISH_SHARE) else distance
        return measure(y.float(), x)

    Stage(state / "decoder.state", parts, DECODER_RATE, steps, pause, begun).learn(loss_of)


def read_vae(state: Path, decoder: bool = True) -> Any:
    """The VAE of the last saves, its averaged weights; with the decoder of its own stage where that has begun."""
    vae = networks.new_vae()
    Stage(state / "vae.state", {"vae": vae}, 0.0, 0).use_average()
    if decoder and (state / "decoder.state").exists():
        Stage(state / "decoder.state", decoding(vae), 0.0, 0).use_average()
    return vae.eval()
