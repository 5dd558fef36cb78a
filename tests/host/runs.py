"""A small training run on the toy inside the host, and a fingerprint of everything in the host that a run must leave alone."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import numpy as np
import torch
from lora_loom.convert import products
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.events import Control, Listener
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.trainer import Result, train
from lora_loom.nodes.host.engine.backend import HostBackend
from shapes import set_folder


def toy_config(**changes: Any):
    values = {
        "name": "run", "steps": 6, "batch_size": 2, "data": {"folder": str(set_folder("object")), "resolution": 64, "bucket_step_px": 8},
        "adapter": {"rank": 4}, "save": {"every": 2}, "samples": {"every": 0},
    }  # fmt: skip
    return parse({**values, **changes})


def export(state: dict, facts: dict) -> dict:
    return products(state, "run", "sd1", facts)


def run(
    toy: tuple,
    folder: Path,
    listener: Listener | None = None,
    control: Control | None = None,
    change=None,
    **changes: Any,
) -> Result:
    """Trains as the node does: called inside inference mode, engine outside of it. `change(backend)` may sabotage the backend."""
    config = toy_config(**changes)
    with torch.inference_mode(), torch.inference_mode(False):
        backend = HostBackend(*toy)
        if change:
            change(backend)
        job = Job(config, backend, scan(config.data), folder.parent, listener or Listener(), control or Control())
        return train(job, folder, export)


def picture(toy: tuple, seed: int = 5, text: str = "a zog on a white ground") -> torch.Tensor:
    """A generation with the host's own sampler, outside of any training."""
    model, clip, vae = toy
    with torch.inference_mode():
        cond, empty = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in (text, ""))
        latent = torch.zeros(1, 8, 8, 8)
        noise = comfy.sample.prepare_noise(latent, seed)
        latents = comfy.sample.sample(
            model, noise, 6, 4.0, "euler", "simple", cond, empty, latent, seed=seed, disable_pbar=True
        )
        return vae.decode(latents).clone()


def fingerprint(toy: tuple) -> dict[str, Any]:
    """Everything of the host that must be the same after a run: values, identity and flags of every weight, module state, patches, globals, RNG."""
    model, clip, vae = toy
    facts: dict[str, Any] = {}
    for label, root in (("model", model.model), ("clip", clip.cond_stage_model), ("vae", vae.first_stage_model)):
        for name, value in [*root.named_parameters(), *root.named_buffers()]:
            data = (
                value.detach().clone().contiguous().view(torch.uint8)
                if value.ndim
                else value.detach().clone().reshape(1).view(torch.uint8)
            )
            flags = (value.dtype, value.device, value.requires_grad, value.is_inference())
            facts[f"{label}.{name}"] = (
                hashlib.sha256(data.numpy().tobytes()).hexdigest(),
                flags,
                value.data_ptr(),
                id(value),
            )
        for name, module in root.named_modules():
            own = {
                k: id(v)
                for k, v in vars(module).items()
                if k not in ("_parameters", "_buffers", "_modules") and callable(v)
            }
            hooks = [
                len(getattr(module, h))
                for h in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
            ]
            facts[f"{label}.{name}()"] = (own, hooks, module.training, sorted(vars(module)))
    for label, patcher in (("model", model), ("clip", clip.patcher)):
        facts[f"{label} patcher"] = (
            len(patcher.patches),
            str(patcher.patches_uuid),
            sorted(patcher.injections),
            patcher.is_injected,
            sorted(patcher.object_patches),
            str(patcher.model_options),
        )
    facts["rng"] = (torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes())
    facts["modes"] = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
    )
    facts["in_training"] = getattr(comfy.model_management, "in_training", None)
    import comfy_kitchen

    facts["kernels"] = {k: id(v) for k, v in vars(comfy_kitchen).items() if callable(v)}
    return facts


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]


@dataclasses.dataclass
class At(Listener):
    """Calls `action` when step `step` is done."""

    step: int
    action: Any

    def on_step(self, report) -> None:
        if report.step == self.step:
            self.action()
