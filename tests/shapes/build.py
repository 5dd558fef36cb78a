"""Trains the toy model from nothing: tokenizer, VAE, then UNet and text encoder together. `python -m shapes.build OUT`.

Each stage resumes from its last save, so it can run beside other work. About an hour on two CPU cores. The result is four small
folders in diffusers layout, fp16 on disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from . import world

log = logging.getLogger(__name__)
WORDS = (
    *world.COLORS, *world.GROUNDS, *world.SHAPES, "a", "on", "ground", "background", "picture", "of", "the", "style",
    "in", "with", "and", "shape", "small", "big", "photo",
)  # fmt: skip
LATENT_CHANNELS = 8
TEXT_WIDTH = 64


# ---- tokenizer -------------------------------------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes (Radford et al. 2019, GPT-2 `bytes_to_unicode`)."""
    keep = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = (chr(256 + n) for n in itertools.count())
    return [chr(b) for b in keep] + [next(spare) for b in range(256) if b not in keep]


def write_tokenizer(folder: Path) -> None:
    """A CLIP byte-pair tokenizer that knows our words whole and spells every other word letter by letter."""
    letters = byte_alphabet()
    vocab = letters + [c + "</w>" for c in letters]
    merges: list[str] = []
    for word in WORDS:
        piece = word[0] + ("</w>" if len(word) == 1 else "")
        for n, char in enumerate(word[1:], 2):
            char += "</w>" if n == len(word) else ""
            pair, piece = f"{piece} {char}", piece + char
            if pair not in merges:
                merges.append(pair)
                vocab.append(piece)
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({t: i for i, t in enumerate(vocab)}, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1), encoding="utf-8")


# ---- pictures --------------------------------------------------------------------------------------------------------


def varied_picture(rng: random.Random) -> Image.Image:
    """A picture outside the captioned world (many shapes, stripes, frames, any colours), so the VAE can show new concepts too."""

    def color() -> tuple[int, int, int]:
        base = rng.choice(
            [*world.COLORS.values(), *world.GROUNDS.values(), tuple(rng.randrange(256) for _ in range(3))]
        )
        red, green, blue = (min(255, max(0, c + rng.randrange(-25, 26))) for c in base)
        return red, green, blue

    canvas = world.Canvas(color())
    if rng.random() < 0.4:
        period, tint = rng.uniform(8, 20), color()
        for k in range(int(64 / period) + 1):
            box: list[tuple[float, float]] = [
                (0, k * period),
                (64, k * period),
                (64, (k + 0.5) * period),
                (0, (k + 0.5) * period),
            ]
            canvas.polygon(box if rng.random() < 0.9 else [(y, x) for x, y in box], tint)
    for _ in range(rng.randrange(1, 5)):
        shape, size = rng.choice(world.SHAPES), rng.uniform(10, 44)
        x, y = rng.uniform(8, 56), rng.uniform(8, 56)
        canvas.polygon(world.outline(shape, x, y, size), color())
        if rng.random() < 0.4:
            canvas.polygon(world.outline(shape, x, y, size * rng.uniform(0.35, 0.75)), color())
    return canvas.finish()


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """(B, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


def caption_for(scene: world.Scene, rng: random.Random) -> str:
    """The scene's caption in one of several wordings, with attributes left out, and with words that mean nothing here.

    Nonsense words teach the model that an unknown word says nothing: a trigger starts out without effect.
    """
    color, shape, ground = scene.color, scene.shape, scene.ground
    nonsense = "".join(
        rng.choice("bdfgjklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randrange(1, 3))
    ) + rng.choice(["", "k", "x", "n", "g"])
    roll = rng.random()
    if roll < 0.1:
        return ""
    if roll < 0.2:
        noun = f"a {nonsense}"
    elif roll < 0.3:
        noun = f"a {shape}"
    elif roll < 0.35:
        noun = f"a {color} shape"
    else:
        noun = f"a {color} {shape}"
    text = rng.choice(
        [f"{noun} on a {ground} ground"] * 4 + [f"{noun}, {ground} background", f"{noun} on the {ground} ground", noun]
    )
    tail = rng.random()
    if tail < 0.1:
        text += f", {nonsense} style"
    elif tail < 0.15:
        text = f"{nonsense}, {text}"
    elif tail < 0.25:
        text = f"a picture of {text}"
    return text


# ---- stages ----------------------------------------------------------------------------------------------------------


def new_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(32, 32, 32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=32,
        sample_size=64,
    )


def new_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def new_text_encoder(vocab_size: int, bos: int, eos: int):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=TEXT_WIDTH,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


class Stage:
    """A resumable training stage: modules, AdamW with warm-up and cosine decay, a save every few hundred steps."""

    def __init__(self, path: Path, modules: dict[str, torch.nn.Module], lr: float, steps: int):
        self.path, self.modules, self.lr, self.steps, self.step = path, modules, lr, steps, 0
        params = [p for m in modules.values() for p in m.parameters()]
        self.optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=1e-3, betas=(0.9, 0.99))
        self.average = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in modules.items()}
        if path.exists():
            saved = torch.load(path, weights_only=True)
            self.step, self.average = saved["step"], saved["average"]
            self.optimizer.load_state_dict(saved["optimizer"])
            for name, module in modules.items():
                module.load_state_dict(saved["modules"][name])

    def save(self) -> None:
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "modules": {n: m.state_dict() for n, m in self.modules.items()},
        }
        temp = self.path.with_suffix(".tmp")
        torch.save(state, temp)
        temp.replace(self.path)

    def run(self, loss_of, report_every: int = 100) -> None:
        began, seen = time.time(), 0.0
        params = [p for g in self.optimizer.param_groups for p in g["params"]]
        while self.step < self.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = (
                    self.lr * min(1.0, (self.step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * self.step / self.steps))
                )
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(self.step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            seen += float(loss)
            decay = min(0.999, (1 + self.step) / (10 + self.step))
            for name, module in self.modules.items():
                for key, value in module.state_dict().items():
                    self.average[name][key].lerp_(value, 1 - decay) if value.is_floating_point() else None
            if self.step % report_every == 0:
                log.info(
                    "%s step %d/%d loss %.4f %.2f s/step",
                    self.path.stem,
                    self.step,
                    self.steps,
                    seen / report_every,
                    (time.time() - began) / report_every,
                )
                began, seen = time.time(), 0.0
                self.save()
        for name, module in self.modules.items():
            module.load_state_dict(self.average[name])


def train_vae(out: Path, steps: int) -> None:
    torch.manual_seed(0)
    vae = new_vae().to(memory_format=torch.channels_last)

    def loss_of(step: int) -> torch.Tensor:
        rng = random.Random(step)
        x = to_tensor([world.draw(world.random_scene(rng)) if n % 3 == 0 else varied_picture(rng) for n in range(16)])
        posterior = vae.encode(x.to(memory_format=torch.channels_last)).latent_dist
        y = vae.decode(posterior.sample()).sample.float()
        return F.l1_loss(y, x) + F.mse_loss(y, x) + 2e-5 * posterior.kl().mean() / x[0].numel() * 100

    Stage(out / "vae.state", {"vae": vae}, 2e-3, steps).learn(loss_of)
    rng = random.Random(10**6)
    with torch.no_grad():
        x = to_tensor([world.draw(world.random_scene(rng)) for _ in range(256)])
        latents = vae.encode(x).latent_dist.mean
        vae.register_to_config(scaling_factor=float(1 / latents.std()))
        y = vae.decode(latents[:64]).sample
        log.info(
            "vae: scaling %.4f, world PSNR %.1f dB",
            vae.config.scaling_factor,
            float(-10 * torch.log10(F.mse_loss(y, x[:64]) / 4)),
        )
    vae.half().save_pretrained(out / "vae")


def train_unet(out: Path, steps: int, batch: int, pictures: int) -> None:
    from diffusers import AutoencoderKL, DDPMScheduler
    from transformers import CLIPTokenizer

    torch.manual_seed(1)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).eval()
    schedule = DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    rng = random.Random(2)
    scenes = [world.random_scene(rng) for _ in range(pictures)]
    with torch.no_grad():
        chunks = [
            vae.encode(to_tensor([world.draw(s) for s in scenes[i : i + 64]])).latent_dist.mean
            for i in range(0, pictures, 64)
        ]
    latents = torch.cat(chunks) * vae.config.scaling_factor
    unet = new_unet().to(memory_format=torch.channels_last)
    text = new_text_encoder(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)

    def loss_of(step: int) -> torch.Tensor:
        rng, gen = random.Random(f"unet{step}"), torch.Generator().manual_seed(step)
        picks = [rng.randrange(pictures) for _ in range(batch)]
        ids = tokenizer(
            [caption_for(scenes[i], rng) for i in picks],
            padding="max_length",
            max_length=77,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        x0, noise = latents[picks], torch.randn((batch, *latents.shape[1:]), generator=gen)
        t = torch.randint(0, 1000, (batch,), generator=gen)
        pred = unet(schedule.add_noise(x0, noise, t), t, text(ids).last_hidden_state).sample
        return F.mse_loss(pred.float(), noise)

    Stage(out / "unet.state", {"unet": unet, "text_encoder": text}, 1.5e-3, steps).learn(loss_of)
    unet.half().save_pretrained(out / "unet")
    text.half().save_pretrained(out / "text_encoder")
    schedule.save_pretrained(out / "scheduler")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--pictures", type=int, default=24576)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    write_tokenizer(args.out / "tokenizer")
    if not (args.out / "vae").exists():
        train_vae(args.out, args.vae_steps)
    train_unet(args.out, args.steps, args.batch, args.pictures)


if __name__ == "__main__":
    main()
