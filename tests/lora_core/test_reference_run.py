"""Twenty steps on the toy model against a loop written with diffusers, PEFT and torch alone."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler
from lora_loom.lora_core.adapters import choose_targets
from lora_loom.lora_core.backends.encoder import encoder_of
from lora_loom.lora_core.data.batches import Batches
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.latents import LatentCache
from lora_loom.lora_core.rng import randn_like, step_rng
from lora_loom.lora_core.training.build import make_adapters
from peft import LoraConfig
from shapes import MODEL

STEPS = 20


@pytest.fixture
def config(toy_config):
    return toy_config(
        steps=STEPS,
        grad_accum=2,
        data={"flip": True, "shuffle_tags": True, "caption_dropout": 0.2},
        adapter={"rank": 4, "alpha": 2.0, "targets": "conv"},
    )


def plain_loop(config, backend):
    """Losses and final weights by file name. Ours gives order, captions, noise levels and noise; theirs is everything that computes."""
    batches = Batches(LatentCache(scan(config.data), encoder_of(backend), lambda n, of: None), config, "cpu")
    objective, (_, ours) = backend.objective(config.objective), make_adapters(config, backend)
    scheduler = DDPMScheduler.from_pretrained(MODEL / "scheduler")
    sigmas = ((1 - scheduler.alphas_cumprod.double()) / scheduler.alphas_cumprod.double()).sqrt()
    unet = copy.deepcopy(backend.unet)
    paths = choose_targets(backend.layers(), config.adapter)
    unet.add_adapter(LoraConfig(r=config.adapter.rank, lora_alpha=config.adapter.alpha, target_modules=paths))
    factors = {}
    with torch.no_grad():
        for path in paths:
            layer, name = unet.get_submodule(path), backend.file_name(path)
            layer.lora_A["default"].weight.copy_(ours[name].lora_down)
            layer.lora_B["default"].weight.copy_(ours[name].lora_up)
            factors[name] = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    params = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        params, lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay, foreach=False, fused=False
    )
    losses = []
    for step in range(STEPS):
        total = 0.0
        for micro in range(config.grad_accum):
            batch, rng = batches.at(step, micro), step_rng(config.seed, 0, step, micro)
            timesteps = torch.searchsorted(sigmas, objective.draw_sigma(len(batch.latents), rng))
            noise = randn_like(batch.latents, rng)
            ids = (
                backend.text.encoders["clip_l"]
                .tokenizer(batch.captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
                .input_ids
            )
            with torch.no_grad():
                text = backend.text.encoders["clip_l"].model(ids).last_hidden_state
            pred = unet(scheduler.add_noise(batch.latents, noise, timesteps), timesteps, text).sample
            loss = torch.nn.functional.mse_loss(pred, noise) / config.grad_accum
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(params, config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, factors


def test_twenty_steps_equal_a_plain_diffusers_and_peft_loop(config, toy_backend, run_toy, tmp_path):
    losses, factors = plain_loop(config, toy_backend)
    result = run_toy(config, tmp_path)
    # Losses of order 0.1; both loops round differently in float32 (scaling of x_t, where alpha / rank is multiplied in, fused AdamW).
    assert result.losses == pytest.approx(losses, abs=1e-5)
    assert len(set(losses)) == STEPS
    for name, (down, up) in factors.items():
        # AdamW turns a gradient near zero into a full step, so single entries may differ; the whole update of each layer may not by 1 %.
        theirs = up.detach().flatten(1) @ down.detach().flatten(1)
        mine = result.tensors[f"{name}.lora_up.weight"].flatten(1) @ result.tensors[f"{name}.lora_down.weight"].flatten(
            1
        )
        assert theirs.norm() > 0
        assert (mine - theirs).norm() < 0.01 * theirs.norm(), name
