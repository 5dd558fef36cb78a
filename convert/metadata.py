"""Safetensors headers that WebUIs and galleries read. Everything is a string; caption and path details stay out unless asked for."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import ntpath
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..lora_core.algebra.kind import Kind
from ..lora_core.algebra.kinds import recognised, trained_as
from . import keys
from .detect import declared_family
from .embedding import Embedding
from .serialize import chunks

MAX_HEADER_BYTES = 256 * 1024
STRENGTH, MAX_STRENGTH = "ss_recommended_strength", 10.0
# Not true of a converted file, or written anew.
_STALE = (
    "sshs_", "modelspec.hash_sha256", "lora_adapter_metadata", "ss_network_dim", "ss_network_alpha",
    "ss_network_module", "ss_network_args", "ss_output_name", "modelspec.title", "modelspec.architecture",
    "modelspec.implementation", "modelspec.sai_model_spec", "format",
)  # fmt: skip
# Captions, folders, graphs: what a user may not want to give away with the file.
_PRIVATE = (
    "ss_tag_frequency",
    "ss_dataset_dirs",
    "ss_reg_dataset_dirs",
    "ss_datasets",
    "ss_bucket_info",
    "ss_sample_prompts",
    "ss_caption",
    "ss_captions",
)
_PUBLIC = ("ss_", "modelspec.", "ssmd_")  # other trainers put whole configurations under names of their own
_PATHS = ("ss_sd_model_name", "ss_vae_name", "ss_fixed_lora")


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """How the world names a base model family in metadata (kohya `ss_base_model_version`, SAI ModelSpec `architecture`)."""

    version: str
    architecture: str
    implementation: str = ""
    v2: bool = False
    prediction: str = ""
    resolution: int = 1024
    network_module: str = "networks.lora"


_FLUX = "https://github.com/black-forest-labs/flux"
_SDXL = "https://github.com/Stability-AI/generative-models"
BASES = {
    "sd1": BaseModel("sd_v1", "stable-diffusion-v1", "diffusers", prediction="epsilon", resolution=512),
    "sd2": BaseModel("sd_v2", "stable-diffusion-v2-512", "diffusers", v2=True, prediction="epsilon", resolution=512),
    "sd2-v": BaseModel("sd_v2_v", "stable-diffusion-v2-768-v", "diffusers", v2=True, prediction="v", resolution=768),
    "sdxl": BaseModel("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", _SDXL, prediction="epsilon"),
    "sdxl-refiner": BaseModel("sdxl_refiner_v1-0", "stable-diffusion-xl-v1-refiner", _SDXL, prediction="epsilon"),
    "emoji": BaseModel("sd_v1", "stable-diffusion-v1", "diffusers", prediction="epsilon", resolution=128),
    "toy": BaseModel("sd_v1", "stable-diffusion-v1", "diffusers", prediction="epsilon", resolution=64),
    "flux1": BaseModel("flux1", "flux-1-dev", _FLUX, network_module="networks.lora_flux"),
    "chroma": BaseModel("chroma", "chroma", network_module="networks.lora_flux"),
    "sd3": BaseModel(
        "sd3", "stable-diffusion-3", "https://github.com/Stability-AI/sd3-ref", network_module="networks.lora_sd3"
    ),
    "flux2": BaseModel(
        "flux2", "flux-2", "https://github.com/black-forest-labs/flux2", network_module="networks.lora_flux_2"
    ),
    "lumina2": BaseModel(
        "lumina2", "lumina-2", "https://github.com/Alpha-VLLM/Lumina-Image-2.0", network_module="networks.lora_lumina"
    ),
    "z-image": BaseModel(
        "z-image", "z-image", "https://github.com/Tongyi-MAI/Z-Image", network_module="networks.lora_zimage"
    ),
    "qwen-image": BaseModel(
        "qwen-image", "Qwen-Image", "https://github.com/QwenLM/Qwen-Image", network_module="networks.lora_qwen_image"
    ),
    "wan": BaseModel("wan2.1", "wan2.1", "https://github.com/Wan-Video/Wan2.1", network_module="networks.lora_wan"),
}


_PREDICTION = {"epsilon": "epsilon", "v": "v"}  # what the trained model itself predicts wins over its family's habit


def lora_metadata(
    tensors: Mapping[str, torch.Tensor], name: str, base: str, facts: Mapping[str, Any], with_captions: bool = False
) -> dict[str, str]:
    """Header for a LoRA file whose stem is `name`. `base` is a key of BASES or any other family name; `facts` come from the run (may be empty).

    `ss_base_model_version` is always written: A1111 hides an SDXL file without it. Hashes cover the tensors as given, so call this last.
    """
    family = BASES.get(base, BaseModel(base, base, ""))
    config = facts.get("config", {})
    trigger = ", ".join(facts.get("triggers", [])) or config.get("data", {}).get("trigger", "")
    side = config.get("data", {}).get("resolution", family.resolution)
    now = datetime.datetime.now(datetime.timezone.utc)
    header: dict[str, Any] = {
        **_identity(tensors, name, family),
        "ss_training_comment": "trained with LoRA Loom",
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": now.replace(microsecond=0, tzinfo=None).isoformat(),
        "modelspec.trigger_phrase": trigger,
        "modelspec.prediction_type": _PREDICTION.get(facts.get("objective", ""), family.prediction)
        if family.prediction
        else "",
    }
    if config:
        header |= {
            "ss_learning_rate": config["optimizer"]["lr"],
            "ss_optimizer": config["optimizer"]["name"],
            "ss_lr_scheduler": config["schedule"]["name"],
            "ss_steps": facts["step"],
            "ss_max_train_steps": config["steps"],
            "ss_seed": config["seed"],
            "ss_clip_skip": (facts.get("base_model") or {}).get("clip_skip") or "",
            "ss_num_train_images": sum(facts["repeats"]) if "repeats" in facts else "",
            "ss_resolution": f"({side}, {side})",
            "ss_total_batch_size": config["batch_size"] * config["grad_accum"],
            "ss_gradient_accumulation_steps": config["grad_accum"],
            "ss_training_started_at": facts.get("started", ""),
            "ss_training_finished_at": now.timestamp(),
            "ss_epoch": (facts["step"] * config["grad_accum"]) // max(1, facts["per_epoch"])
            if "per_epoch" in facts
            else "",
            **_options(config),
            **_recommended(facts.get("calibration") or {}),
            **_fixed(facts.get("fixed_lora") or {}),
        }
        if with_captions and "captions" in facts:
            header["ss_tag_frequency"] = json.dumps({name: tag_frequency(facts["captions"])}, ensure_ascii=False)
            pictures = len(facts["repeats"])
            header["ss_dataset_dirs"] = json.dumps(
                {name: {"n_repeats": round(sum(facts["repeats"]) / max(1, pictures)), "img_count": pictures}}
            )
    header = {k: str(v) for k, v in header.items() if v != ""}
    return within_limit({**header, **hashes(tensors)})


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What kohya notes of options, for those that were on."""
    text, prior, objective = (config.get(part, {}) for part in ("text_encoder", "prior", "objective"))
    trained, on = (
        text.get("train", False),
        prior.get("weight", 0) > 0 and any(prior.get(k) for k in ("prompt", "class_word", "folder")),
    )
    return {
        "ss_unet_lr": config["optimizer"]["lr"],
        "ss_text_encoder_lr": (text.get("lr") or config["optimizer"]["lr"]) if trained else "",
        "ss_prior_loss_weight": prior["weight"] if on else "",
        "ss_min_snr_gamma": objective["min_snr_gamma"] if objective.get("weighting") == "min_snr" else "",
        "ss_noise_offset": objective.get("noise_offset") or "",
    }


def _recommended(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """The strength to use the file at, for programs and for people."""
    if not calibration:
        return {}
    strength = f"{calibration['strength']:g}"
    return {STRENGTH: strength, "modelspec.usage_hint": f"strength {strength} to start from"}


def recommended_strength(header: Mapping[str, str]) -> float | None:
    """The strength a header recommends; None where it names none that makes sense."""
    try:
        strength = float(header.get(STRENGTH, ""))
    except ValueError:
        return None
    return strength if 0 < strength <= MAX_STRENGTH else None


def _fixed(lora: Mapping[str, Any]) -> dict[str, Any]:
    """The LoRA that acted in training alone, and is not in the file."""
    names = {"file": "ss_fixed_lora", "sha256": "ss_fixed_lora_hash", "strength": "ss_fixed_lora_strength"}
    return {names[key]: value for key, value in lora.items()}


def tag_frequency(captions: list[str]) -> dict[str, int]:
    """How often each comma-separated tag occurs."""
    counts: dict[str, int] = {}
    for caption in captions:
        for tag in filter(None, map(str.strip, caption.split(","))):
            counts[tag] = counts.get(tag, 0) + 1
    return counts


def converted_metadata(
    old: Mapping[str, str], tensors: Mapping[str, torch.Tensor], name: str, base: str, details: bool = False, **new: str
) -> dict[str, str]:
    """Header for a file made from another: what is still true of `old`, the identity and hashes written anew, `new` on top.

    `details`: also keep captions, dataset folders and embedded graphs. Paths in model names are cut to the file's name either way.
    """
    version = old.get("ss_base_model_version", "")
    family = (
        BASES["sd2-v"] if base == "sd2" and version == "sd_v2_v" else BASES.get(base, BaseModel(version or base, base))
    )
    entries = {
        k: v
        for k, v in old.items()
        if not k.startswith(_STALE) and (details or (k.startswith(_PUBLIC) and k not in _PRIVATE))
    }
    entries |= {k: ntpath.basename(entries[k]) for k in _PATHS if k in entries}
    header = {**entries, **_identity(tensors, name, family), **new}
    variant = old.get("modelspec.architecture", "")
    if variant.endswith("/lora") and declared_family({"modelspec.architecture": variant}) == base:
        header["modelspec.architecture"] = variant  # flux-1-schnell, stable-diffusion-3-5-large, ...
    return within_limit({**{k: v for k, v in header.items() if v != ""}, **hashes(tensors)})


def _identity(tensors: Mapping[str, torch.Tensor], name: str, family: BaseModel) -> dict[str, str]:
    """What tells a program which file this is and how to read it. A1111 hides an SDXL file without `ss_base_model_version`."""
    rank, alpha = describe(tensors)
    algo, arguments = _network(parts_by_layer(tensors))
    return {
        "format": "pt",
        "ss_output_name": name,
        "ss_base_model_version": family.version,
        "ss_v2": str(family.v2),
        "ss_network_module": "lycoris.kohya" if algo else family.network_module,
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(arguments),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.architecture}/lora",
        "modelspec.implementation": family.implementation,
        "modelspec.title": name,
    }


def embedding_metadata(
    embedding: Embedding, tensors: Mapping[str, torch.Tensor], name: str, negative: bool = False
) -> dict[str, str]:
    """Header for an embedding file whose stem, and so whose trigger, is `name`."""
    family = BASES.get(embedding.family, BaseModel(embedding.family, embedding.family))
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.architecture}/textual-inversion",
        "modelspec.title": name,
        "modelspec.implementation": family.implementation,
        "modelspec.trigger_phrase": name,
        "modelspec.is_negative_embedding": "true" if negative else "",
        "modelspec.resolution": f"{family.resolution}x{family.resolution}",
        "ss_output_name": name,
        "ss_base_model_version": family.version,
        "ss_v2": str(family.v2),
        "ss_steps": str(embedding.step or ""),
    }
    return within_limit({**{k: v for k, v in header.items() if v}, **hashes(tensors)})


def parts_by_layer(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The parts of each layer of a file, by the names that the kinds have for them, with `alpha`."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, part = keys.parse(key, tensors) or ("", "")
        if part:
            layers.setdefault(name, {})[part] = value
    return list(layers.values())


def _network(layers: Sequence[Mapping[str, torch.Tensor]]) -> tuple[str, dict[str, str]]:
    """(LyCORIS' algorithm, its arguments) for the kind of most layers; "" and nothing for kohya's own LoRA."""
    present = [kind for parts in layers if (kind := _kind(parts))]
    kind = Counter(present).most_common(1)[0][0] if present else None
    if kind is None or not kind.algorithm:
        return "", {}
    return kind.algorithm, {"algo": kind.algorithm, **kind.arguments}


def _kind(parts: Mapping[str, torch.Tensor]) -> Kind | None:
    bare = {name: value for name, value in parts.items() if name != "alpha"}
    return trained_as(bare) or recognised(bare)


def describe(tensors: Mapping[str, torch.Tensor]) -> tuple[str, str]:
    """(rank, alpha) as headers have them: the number all modules share, else "Dynamic", as kohya's resize writes it; "" where kinds have no such number."""
    sizes, alphas = [], []
    for parts in parts_by_layer(tensors):
        kind = _kind(parts)
        if kind is not None and (size := kind.size(parts)):
            sizes.append(size)
            alphas.append(float(parts["alpha"]) if "alpha" in parts else float(size))
    if not sizes:
        return "", ""
    return str(sizes[0] if len(set(sizes)) == 1 else "Dynamic"), str(alphas[0] if len(set(alphas)) == 1 else "Dynamic")


def hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """sshs_model_hash: sha256 of the data section, independent of metadata and key order (kohya `precalculate_safetensors_hashes`)."""
    digest = hashlib.sha256()
    parts = chunks({k: (v.dtype, tuple(v.shape)) for k, v in tensors.items()}, tensors.__getitem__)
    next(parts)  # the header
    for part in parts:
        digest.update(part)
    return {"sshs_model_hash": digest.hexdigest(), "modelspec.hash_sha256": f"0x{digest.hexdigest()}"}


def within_limit(header: dict[str, str]) -> dict[str, str]:
    """The header without its tag table, then without its largest entries, when it would exceed 256 kB, the most a gallery reads."""
    header = dict(header)
    if _size(header) > MAX_HEADER_BYTES:
        header.pop("ss_tag_frequency", None)
    while _size(header) > MAX_HEADER_BYTES:
        del header[max(header, key=lambda k: len(header[k]))]
    return header


def _size(header: Mapping[str, str]) -> int:
    return sum(len(k.encode()) + len(v.encode()) for k, v in header.items())
