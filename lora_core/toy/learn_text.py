"""UNet and text encoder learn together what captions mean, on latents that are made once."""

from __future__ import annotations

import hashlib
import logging
import random
from pathlib import Path
from typing import Any

import torch

from . import networks
from .captions import caption
from .learn_vae import read_vae, to_tensor
from .scenes import Scene, World, lessons
from .stage import Stage, device
from .tokenizer import write_tokenizer

log = logging.getLogger(__name__)
RATE = 1e-3
STRUCTURE_SHARE = 0.5  # of the noise levels drawn: those at which a picture's structure, not its detail, is decided
STRUCTURE_FROM = 350
MOST_WEIGHT = 8.0
ENCODED_AT_ONCE = 32


def keep_latents(world: World, state: Path) -> None:
    """Draws and encodes every scene of the lessons, unless that was done with this very encoder."""
    vae, place = read_vae(state), state / "latents.pt"
    scenes = [scene for lesson in lessons(world) for scene in lesson.scenes]
    made_of = fingerprint(vae.encoder, scenes)
    if place.exists() and torch.load(place, weights_only=True)["made_of"] == made_of:
        return
    vae = vae.to(device())
    chunks = []
    for first in range(0, len(scenes), ENCODED_AT_ONCE):
        x = to_tensor([world.draw(s) for s in scenes[first : first + ENCODED_AT_ONCE]]).to(device())
        with torch.no_grad():
            chunks.append(vae.encode(x).latent_dist.mean.cpu())
        if first % (16 * ENCODED_AT_ONCE) == 0:
            log.info("latents: %d of %d scenes", first + len(x), len(scenes))
    latents = torch.cat(chunks)
    torch.save({"made_of": made_of, "latents": latents, "scale": float(1 / latents.std())}, place)


def fingerprint(encoder: torch.nn.Module, scenes: list[Scene]) -> str:
    """Of the encoder's weights and of what it encoded."""
    digest = hashlib.sha256(repr(scenes).encode())
    for weight in encoder.parameters():
        digest.update(weight.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def latent_scale(state: Path) -> float:
    """What latents are multiplied by so that their standard deviation is one (`scaling_factor`)."""
    return float(torch.load(state / "latents.pt", weights_only=True)["scale"])


def keep_tokenizer(world: World, state: Path) -> Any:
    """The tokenizer of the captions' words, written once: its tokens number the text encoder's rows."""
    from transformers import CLIPTokenizer

    folder = state / "tokenizer"
    if not (folder / "special_tokens_map.json").exists():
        rng = random.Random("tokenizer")
        write_tokenizer(folder, [caption(s, rng) for lesson in lessons(world) for s in lesson.scenes for _ in range(3)])
    return CLIPTokenizer.from_pretrained(folder)


def new_text_networks(tokenizer: Any) -> dict[str, torch.nn.Module]:
    torch.manual_seed(1)
    text = networks.new_text_encoder(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    return {"unet": networks.new_unet(), "text_encoder": text}


def noise_weights(schedule: Any) -> torch.Tensor:
    """(1000,) weight of a step's loss: as if the velocity were predicted, up to a limit, so that structure counts as much as detail."""
    signal = schedule.alphas_cumprod
    return (1 / signal).clamp(max=MOST_WEIGHT)


def draw_levels(generator: torch.Generator, count: int) -> torch.Tensor:
    """(count,) noise levels 0..999, the first half of them from those that decide structure."""
    levels = torch.randint(0, 1000, (count,), generator=generator)
    high = round(count * STRUCTURE_SHARE)
    levels[:high] = torch.randint(STRUCTURE_FROM, 1000, (high,), generator=generator)
    return levels


def train_unet(
    world: World, state: Path, steps: int, count: int, pause: Path | None = None, begun: Path | None = None
) -> None:
    tokenizer = keep_tokenizer(world, state)
    parts = {name: part.to(device()) for name, part in new_text_networks(tokenizer).items()}
    schedule = networks.new_schedule()
    weights = noise_weights(schedule)
    stored = torch.load(state / "latents.pt", weights_only=True)
    latents = stored["latents"] * stored["scale"]
    taught = lessons(world)
    first = [sum(len(lesson.scenes) for lesson in taught[:n]) for n in range(len(taught))]

    def loss_of(step: int) -> torch.Tensor:
        rng, generator = random.Random(f"unet{step}"), torch.Generator().manual_seed(step)
        texts, picks = [], []
        for n in rng.choices(range(len(taught)), [lesson.share for lesson in taught], k=count):
            which = rng.randrange(len(taught[n].scenes))
            texts.append(caption(taught[n].scenes[which], rng))
            picks.append(first[n] + which)
        ids = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        levels, noise = draw_levels(generator, count), torch.randn((count, *latents.shape[1:]), generator=generator)
        noisy = schedule.add_noise(latents[picks], noise, levels)
        with torch.autocast(device().type, torch.bfloat16):
            words = parts["text_encoder"](ids.to(device())).last_hidden_state
            answer = parts["unet"](noisy.to(device()), levels.to(device()), words).sample
        errors = (answer.float() - noise.to(device())).square().mean((1, 2, 3))
        return (errors * weights[levels].to(device())).mean()

    Stage(state / "unet.state", parts, RATE, steps, pause, begun).learn(loss_of)
