"""The bundled toy as models that are shown a picture: one that edits, as instruct-pix2pix does, and one that fills a hole, as SD1.5's inpainting model does.

Each is widened by the channels its class of the host reads and trained from the toy's weights until it uses them: `python tests/host/wide_toys.py OUT`
(with ComfyUI and `tests` among the places of modules) keeps
both as files, in the host's own names; tests train their own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import comfy.model_base
import numpy as np
import torch
from lora_loom.lora_core.data.input_masks import hidden
from lora_loom.nodes.host.access import toy
from lora_loom.nodes.host.engine.backend import HostBackend
from PIL import Image
from shapes import MODEL, world

# What the editing base can make a shape: not red, which is left to learn.
EDITS = ("green", "blue", "yellow", "purple", "orange")
STEPS, BATCH, LR, PICTURES = 1300, 24, 1e-3, 480
Example = tuple[Image.Image, torch.Tensor, str]  # target, channels beside its noise (1, C, h, w), caption


def widened(patcher: Any, channels: int, kind: type, scale: float = 1.0) -> Any:
    """The MODEL with so many input channels more, as a class of the host's. The last ones begin with its own

    first weights times `scale`, which brings what comes in there to the size of its latents.
    """
    model = patcher.model
    first = model.diffusion_model.input_blocks[0][0]
    wide = type(first)(first.in_channels + channels, first.out_channels, 3, padding=1, dtype=torch.float32)
    with torch.no_grad():
        torch.nn.init.zeros_(wide.weight)
        wide.weight[:, : first.in_channels] = first.weight
        wide.weight[:, -first.in_channels :] = scale * first.weight
        wide.bias.copy_(first.bias)
    wide.requires_grad_(False)
    model.diffusion_model.input_blocks[0][0] = wide
    model.model_config.unet_config["in_channels"] = first.in_channels + channels
    model.__class__ = kind
    return patcher


def editing() -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE) that takes a control picture and has not learnt to use it."""
    model, clip, vae = toy.load(MODEL)
    widened(model, 8, comfy.model_base.SD15_instructpix2pix, model.model.latent_format.scale_factor)
    model.model.process_ip2p_image_in = lambda image: image
    return model, clip, vae


def filling() -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE) that takes a mask and the picture without what it covers, and has not learnt to use them."""
    model, clip, vae = toy.load(MODEL)
    widened(model, 9, comfy.model_base.BaseModel)
    model.model.set_inpaint()
    return model, clip, vae


def pixels_of(image: Image.Image) -> torch.Tensor:
    """(1, H, W, 3) float32 in [0, 1]."""
    return torch.from_numpy(np.asarray(image, np.float32) / 255.0)[None]


def an_edit(backend: HostBackend, rng: random.Random) -> Example:
    scene, color = world.random_scene(rng), rng.choice(EDITS)
    control = backend.encode_shown(pixels_of(world.draw(scene)))
    return world.draw(recoloured(scene, color)), control, f"make it {color}"


def recoloured(scene: world.Scene, color: str) -> world.Scene:
    return world.Scene(scene.shape, color, scene.ground, scene.size_px, scene.x_px, scene.y_px)


def a_hole(rng: random.Random) -> np.ndarray:
    """A mask (64, 64) uint8 of a rectangle that may hold a whole shape, 255 where it is filled."""
    mask = np.zeros((world.SIZE_PX, world.SIZE_PX), np.uint8)
    width, height = rng.randrange(24, 57), rng.randrange(24, 57)
    left, top = rng.randrange(world.SIZE_PX - width + 1), rng.randrange(world.SIZE_PX - height + 1)
    mask[top : top + height, left : left + width] = 255
    return mask


def a_filling(backend: HostBackend, rng: random.Random) -> Example:
    scene, mask = world.random_scene(rng), a_hole(rng)
    target = world.draw(scene)
    left = torch.from_numpy(hidden(np.asarray(target, np.float32) / 255.0, mask))[None]
    small = torch.nn.functional.interpolate(
        torch.from_numpy(mask / 255.0).float()[None, None], size=(8, 8), mode="area"
    )
    return (
        target,
        torch.cat([small.round(), backend.model.base.process_latent_in(backend.encode_shown(left))], 1),
        scene.caption,
    )


def taught(
    models: tuple[Any, Any, Any], example: Callable[[HostBackend, random.Random], Example], steps: int = STEPS
) -> tuple[Any, Any, Any]:
    """The same objects, every weight of the network trained on such examples."""
    backend = HostBackend(*models)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    examples = [example(backend, rng) for _ in range(PICTURES)]
    latents = torch.cat([backend.encode_picture(pixels_of(target)) for target, _, _ in examples])
    beside = torch.cat([given for _, given, _ in examples])
    texts = {caption: backend.texts.text(caption)[0][0] for caption in {caption for *_, caption in examples} | {""}}
    network, sampling = backend.network, backend.model.base.model_sampling
    values = list(network.parameters())
    for value in values:
        value.requires_grad_(True)
    optimizer = torch.optim.AdamW(values, LR, weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=0.1)
    for _ in range(steps):
        picks = [rng.randrange(PICTURES) for _ in range(BATCH)]
        text = torch.cat([texts["" if rng.random() < 0.1 else examples[n][2]] for n in picks])
        shown = beside[picks] * torch.tensor([rng.random() >= 0.1 for _ in picks]).view(-1, 1, 1, 1)
        t = (
            (1000 * (1 - torch.rand(BATCH, generator=generator) ** 2)).long().clamp(max=999)
        )  # what is shown counts where little else is seen
        sigma = sampling.sigma(t).view(-1, 1, 1, 1).float()
        noise = torch.randn(latents[picks].shape, generator=generator)
        x_t = (latents[picks] + sigma * noise) / (sigma**2 + 1).sqrt()
        loss = (network(torch.cat([x_t, shown], 1), t.float(), context=text) - noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
    for value in values:
        value.requires_grad_(False)
    return models


if __name__ == "__main__":
    import sys
    from pathlib import Path

    from safetensors.torch import save_file

    for name, models, example in (("editing", editing(), an_edit), ("filling", filling(), a_filling)):
        network = taught(models, example)[0].model.diffusion_model
        save_file(
            {k: v.contiguous() for k, v in network.state_dict().items()}, Path(sys.argv[1], f"toy_{name}.safetensors")
        )
