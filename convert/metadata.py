"""Safetensors headers that WebUIs and galleries read. Everything is a string; caption and path details stay out unless asked for."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save

from .lora import describe

MAX_HEADER_BYTES = 256 * 1024


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """How the world names a base model family in metadata (kohya `ss_base_model_version`, SAI ModelSpec `architecture`)."""

    version: str
    architecture: str
    implementation: str
    v2: bool = False
    prediction: str = "epsilon"
    resolution: int = 512
    network_module: str = "networks.lora"


BASES = {
    "sd1": BaseModel("sd_v1", "stable-diffusion-v1", "diffusers"),
    "sd2": BaseModel("sd_v2", "stable-diffusion-v2-512", "diffusers", v2=True),
    "sd2-v": BaseModel("sd_v2_v", "stable-diffusion-v2-768-v", "diffusers", v2=True, prediction="v", resolution=768),
    "sdxl": BaseModel("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models", resolution=1024),
    "flux1": BaseModel("flux1", "flux-1-dev", "https://github.com/black-forest-labs/flux", prediction="", resolution=1024, network_module="networks.lora_flux"),
}


_PREDICTION = {"epsilon": "epsilon", "v": "v"}  # what the trained model itself predicts wins over its family's habit


def lora_metadata(tensors: Mapping[str, torch.Tensor], name: str, base: str, facts: Mapping[str, Any], with_captions: bool = False) -> dict[str, str]:
    """Header for a LoRA file whose stem is `name`. `base` is a key of BASES or any other family name; `facts` come from the run (may be empty).

    `ss_base_model_version` is always written: A1111 hides an SDXL file without it. Hashes cover the tensors as given, so call this last.
    """
    family = BASES.get(base, BaseModel(base, base, ""))
    rank, alpha = describe(tensors)
    config = facts.get("config", {})
    trigger = config.get("data", {}).get("trigger", "")
    side = config.get("data", {}).get("resolution", family.resolution)
    now = datetime.datetime.now(datetime.timezone.utc)
    header: dict[str, Any] = {
        "format": "pt",
        "ss_output_name": name,
        "ss_base_model_version": family.version,
        "ss_v2": str(family.v2),
        "ss_network_module": family.network_module,
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": "{}",
        "ss_training_comment": "trained with LoRA Loom",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.architecture}/lora",
        "modelspec.implementation": family.implementation,
        "modelspec.title": name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": now.replace(microsecond=0, tzinfo=None).isoformat(),
        "modelspec.trigger_phrase": trigger,
        "modelspec.prediction_type": _PREDICTION.get(facts.get("objective", ""), family.prediction) if family.prediction else "",
    }
    if config:
        header |= {
            "ss_learning_rate": config["optimizer"]["lr"], "ss_optimizer": config["optimizer"]["name"], "ss_lr_scheduler": config["schedule"]["name"],
            "ss_steps": facts["step"], "ss_max_train_steps": config["steps"], "ss_seed": config["seed"], "ss_num_train_images": sum(facts["repeats"]),
            "ss_resolution": f"({side}, {side})", "ss_total_batch_size": config["batch_size"] * config["grad_accum"],
            "ss_gradient_accumulation_steps": config["grad_accum"], "ss_training_started_at": facts.get("started", ""),
            "ss_training_finished_at": now.timestamp(),
            "ss_epoch": (facts["step"] * config["grad_accum"]) // max(1, facts["per_epoch"]),
        }  # fmt: skip
        if with_captions:
            header["ss_tag_frequency"] = json.dumps({name: tag_frequency(facts["captions"])}, ensure_ascii=False)
    header = {k: str(v) for k, v in header.items() if v != ""}
    return within_limit({**header, **hashes(tensors)})


def tag_frequency(captions: list[str]) -> dict[str, int]:
    """How often each comma-separated tag occurs."""
    counts: dict[str, int] = {}
    for tag in (t.strip() for caption in captions for t in caption.split(",") if t.strip()):
        counts[tag] = counts.get(tag, 0) + 1
    return counts


def hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """sshs_model_hash: sha256 of the data section, independent of metadata and key order (kohya `precalculate_safetensors_hashes`)."""
    data = save({k: v.contiguous() for k, v in tensors.items()})
    start = 8 + int.from_bytes(data[:8], "little")
    digest = hashlib.sha256(memoryview(data)[start:]).hexdigest()
    return {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}


def within_limit(header: dict[str, str]) -> dict[str, str]:
    """The header without its tag table when it would exceed 256 kB, the most a gallery reads."""
    size = sum(len(k.encode()) + len(v.encode()) for k, v in header.items())
    if size > MAX_HEADER_BYTES:
        header = {k: v for k, v in header.items() if k != "ss_tag_frequency"}
    return header
