"""What an exported model can do, in figures: how well its VAE shows emoji it never saw, and whether pictures drawn from captions are what the captions say.

A drawn picture is named by its nearest neighbour among all scenes, by pixel distance at 32 px over small shifts; nothing learned takes part.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from . import pictures
from .captions import plain_caption
from .learn_vae import to_tensor
from .scenes import Scene, World, kept_back, lessons
from .world import Emoji

log = logging.getLogger(__name__)
SMALL_PX = 32
SHIFTS = range(-2, 3)
BORDER_PX = 8
STEPS = 20
GUIDANCE = 4.0
CAPTIONS = 300
UNSEEN = 100
DRAWN_AT_ONCE = 25


# ---- the VAE ---------------------------------------------------------------------------------------------------------


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(B,) dB of pictures in [-1, 1]."""
    return -10 * torch.log10((a - b).square().flatten(1).mean(1).clamp(min=1e-10) / 4)


def frame(x: torch.Tensor) -> torch.Tensor:
    """The outermost `BORDER_PX` of pictures, flattened: (B, 3, n, 1)."""
    inside = torch.zeros(x.shape[-2:], dtype=torch.bool)
    inside[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = True
    return x[:, :, ~inside][..., None]


def seen_through(vae: Any, x: torch.Tensor) -> torch.Tensor:
    """Pictures encoded and decoded, clamped to [-1, 1]."""
    with torch.no_grad():
        return torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(16)]).clamp(-1, 1)


def vae_figures(vae: Any, package: Path, emoji: Iterable[Emoji]) -> dict[str, float]:
    """dB on the emoji that are held out, whole and along the border, each the mean over pictures; and the largest error in a corner, 0..255."""
    x = to_tensor([pictures.plain_picture(package, e) for e in emoji if e.held_out and not e.tone])
    y = seen_through(vae, x)
    corner = slice(0, BORDER_PX)
    blank = (x[:, :, corner, corner] == 1).all(-1).all(-1).all(-1)
    stain = float((y - x)[blank][:, :, corner, corner].abs().max() * 127.5) if blank.any() else 0.0
    return {
        "pictures": len(x),
        "psnr_db": float(psnr(x, y).mean()),
        "psnr_worst_db": float(psnr(x, y).min()),
        "border_psnr_db": float(psnr(frame(x), frame(y)).mean()),
        "blank_corner_error": stain,
    }


# ---- drawing ---------------------------------------------------------------------------------------------------------


def read_text_encoder(folder: Path) -> Any:
    """In float32, by any transformers: before 5 its names begin with `text_model.`, since then they do not."""
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    stored = {key.removeprefix("text_model."): value for key, value in load_file(folder / "model.safetensors").items()}
    names = {key: key.removeprefix("text_model.") for key, _ in text.named_parameters()}
    text.load_state_dict({key: stored[name] for key, name in names.items()}, strict=False)  # but for numbered places
    return text.float().eval()


@dataclasses.dataclass
class Model:
    """An exported model, in float32."""

    tokenizer: Any
    text: Any
    unet: Any
    vae: Any
    schedule: Any

    @classmethod
    def read(cls, folder: Path) -> Model:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTokenizer

        return cls(
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            read_text_encoder(folder / "text_encoder"),
            UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval(),
            AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval(),
            DDIMScheduler.from_pretrained(folder / "scheduler", set_alpha_to_one=False, steps_offset=1),
        )

    @torch.no_grad()
    def draw(self, captions: Sequence[str], seed: int, steps: int = STEPS, guidance: float = GUIDANCE) -> torch.Tensor:
        """(B, 3, 128, 128) in [-1, 1]; DDIM with classifier-free guidance. Picture n starts from noise of (seed, n)."""
        texts = [*captions, *[""] * len(captions)]
        ids = self.tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        words = self.text(ids).last_hidden_state
        side, channels = self.unet.config.sample_size, self.unet.config.in_channels
        noises = [torch.Generator().manual_seed(1_000_003 * seed + n) for n in range(len(captions))]
        x = torch.stack([torch.randn(channels, side, side, generator=g) for g in noises])
        self.schedule.set_timesteps(steps)
        for level in self.schedule.timesteps:
            said, unsaid = self.unet(torch.cat([x, x]), level, words).sample.chunk(2)
            x = self.schedule.step(unsaid + guidance * (said - unsaid), level, x).prev_sample
        return self.vae.decode(x / self.vae.config.scaling_factor).sample.clamp(-1, 1)

    def draw_all(self, captions: Sequence[str], seed: int) -> torch.Tensor:
        parts = [captions[n : n + DRAWN_AT_ONCE] for n in range(0, len(captions), DRAWN_AT_ONCE)]
        return torch.cat([self.draw(part, seed + n) for n, part in enumerate(parts)])


# ---- the ruler -------------------------------------------------------------------------------------------------------


def small(x: torch.Tensor) -> torch.Tensor:
    """(B, 3, 32, 32): what is compared."""
    return torch.nn.functional.interpolate(x, size=(SMALL_PX, SMALL_PX), mode="area")


class Ruler:
    """Every scene of a world as a small picture."""

    def __init__(self, world: World, scenes: Sequence[Scene]):
        self.scenes = list(scenes)
        parts = [self.scenes[n : n + 256] for n in range(0, len(self.scenes), 256)]
        self._known = torch.cat([small(to_tensor([world.draw(s) for s in part])) for part in parts]).flatten(1)

    def nearest(self, drawn: torch.Tensor) -> list[Scene]:
        """The scene nearest to each picture, the picture shifted by up to two small pixels either way."""
        tiles = torch.nn.functional.pad(small(drawn), [max(SHIFTS)] * 4, mode="replicate")
        best = torch.full((len(drawn),), float("inf"))
        which = torch.zeros(len(drawn), dtype=torch.long)
        for dy in SHIFTS:
            for dx in SHIFTS:
                top, left = dy + max(SHIFTS), dx + max(SHIFTS)
                part = tiles[:, :, top : top + SMALL_PX, left : left + SMALL_PX].flatten(1)
                distance, index = torch.cdist(part, self._known).min(1)
                which = torch.where(distance < best, index, which)
                best = torch.minimum(distance, best)
        return [self.scenes[int(n)] for n in which]


def named_rightly(scenes: Sequence[Scene], nearest: Sequence[Scene], with_change: bool) -> list[bool]:
    """Whether each picture shows its thing; `with_change`, whether also the colour, tone, accessory or companion asked for."""
    return [f.thing == s.thing and (not with_change or f.change == s.change) for s, f in zip(scenes, nearest)]


def share_by_change(scenes: Sequence[Scene], right: Sequence[bool]) -> dict[str, float]:
    """Share of pictures that are right, for each kind of change."""
    hits: dict[str, list[bool]] = {}
    for scene, is_right in zip(scenes, right):
        hits.setdefault(scene.change.split(" ")[0] or "plain", []).append(is_right)
    return {kind: float(np.mean(hits[kind])) for kind in sorted(hits)}


# ---- the report ------------------------------------------------------------------------------------------------------


def report(world: World, emoji: Sequence[Emoji], model: Path, folder: Path) -> dict[str, Any]:
    """Measures the model, writes `figures.json` and two contact sheets into the folder, and returns the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    taught, rng, parts = lessons(world), random.Random("judge"), Model.read(model)
    known = [rng.choice(rng.choices(taught, [t.share for t in taught])[0].scenes) for _ in range(CAPTIONS)]
    unseen = rng.sample(kept_back(world), min(UNSEEN, len(kept_back(world))))
    figures: dict[str, Any] = {"vae": vae_figures(parts.vae, world.package, emoji)}
    log.info("vae: %s", figures["vae"])
    ruler = Ruler(world, [s for lesson in taught for s in lesson.scenes] + kept_back(world))
    for name, scenes, with_change in (("retrieval", known, False), ("composition", unseen, True)):
        drawn = parts.draw_all([plain_caption(s) for s in scenes], seed=len(name))
        nearest = ruler.nearest(drawn)
        right, others = (named_rightly(s, nearest, with_change) for s in (scenes, [*scenes[1:], scenes[0]]))
        figures[name] = {
            "captions": len(scenes),
            "right": float(np.mean(right)),
            "right_by_another_caption": float(np.mean(others)),  # what chance gives
            **share_by_change(scenes, right),
        }
        log.info("%s: %s", name, figures[name])
        sheet(world, scenes[:60], drawn[:60]).save(folder / f"{name}.png")
    held = [e for e in emoji if e.held_out and not e.tone][::4][:48]
    x = to_tensor([pictures.plain_picture(world.package, e) for e in held])
    beside(x, seen_through(parts.vae, x)).save(folder / "vae.png")
    figures["bytes"] = sum(p.stat().st_size for p in model.rglob("*") if p.is_file())
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def sheet(world: World, scenes: Sequence[Scene], drawn: torch.Tensor) -> Image.Image:
    """What was asked for beside what was drawn, eight columns of the two."""
    return beside(to_tensor([world.draw(s) for s in scenes]), drawn)


def beside(left: torch.Tensor, right: torch.Tensor, columns: int = 6) -> Image.Image:
    """Pairs of pictures in rows, a thin line between."""
    tiles = torch.cat([left, right], 3).add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    height, width = tiles.shape[1:3]
    rows = -(-len(tiles) // columns)
    picture = Image.new("RGB", (columns * (width + 6), rows * (height + 6)), (120, 120, 120))
    for n, tile in enumerate(tiles):
        picture.paste(Image.fromarray(tile), (n % columns * (width + 6), n // columns * (height + 6)))
    return picture
