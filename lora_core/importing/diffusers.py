"""diffusers' example scripts: DreamBooth and text-to-image LoRAs of all models, the advanced ones, textual inversion, Kandinsky and Würstchen."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from .result import Configuration
from .rows import (
    SCHEDULES,
    Paths,
    Row,
    Settings,
    Unmapped,
    Value,
    choice,
    each,
    flag,
    kept,
    layer_skip,
    meaning,
    name_of,
    nothing,
    number,
    on,
    otherwise,
    same,
    side,
    system_prompt,
    truth,
    whole,
)

TITLE = "diffusers' training scripts"
SCRIPT = re.compile(
    r"(train_(dreambooth|text_to_image|unconditional|instruct_pix2pix|control|cog|cosmos)\w*|textual_inversion\w*|train_\w*lora\w*)\.py"
)
NOT_LORA = re.compile(r"control|instruct_pix2pix|img2img|cogvideo|unconditional|lcm|consistency|dpo|_edit")
FULL = re.compile(r"train_(dreambooth|text_to_image)(_flux|_sd3|_sdxl|_prior|_decoder)?\.py")
ALPHA_GIVEN = (
    "flux",
    "qwen_image",
    "z_image",
    "sana",
    "ideogram4",
    "krea2",
)  # scripts with --lora_alpha, which is not the rank where it is left out


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What the scripts of one kind take where the command says nothing."""

    batch: int = 4
    epochs: int = 1
    weight_decay: float = 1e-4
    rate: float = 1e-4
    resolution: int = 512


SCRIPT_DEFAULTS: Mapping[str, Defaults] = {  # by how a script's name begins; the first that fits
    "textual_inversion": Defaults(16, 100, 1e-2),
    "train_text_to_image_lora_decoder": Defaults(1, 100, 0.0),
    "train_text_to_image_lora_prior": Defaults(1, 100, 0.0),
    "train_text_to_image_decoder_lora": Defaults(1, 100, 0.0),  # as the guide calls them
    "train_text_to_image_prior_lora": Defaults(1, 100, 0.0),
    "train_text_to_image_lora_sdxl": Defaults(16, 100, 1e-2, resolution=1024),
    "train_text_to_image": Defaults(16, 100, 1e-2),
    "train_dreambooth_lora_sdxl": Defaults(resolution=1024),
    "train_dreambooth_lora_krea2": Defaults(rate=3e-4),
    "train_dreambooth_lora.py": Defaults(weight_decay=1e-2, rate=5e-4),
    "train_": Defaults(),
}


def warmup(value: Value, settings: Settings) -> Paths:
    """The plain constant schedule takes no notice of a warm-up."""
    plain = str(settings.get("lr_scheduler", "constant")) == "constant"
    return {} if plain else {"schedule.warmup_steps": whole(value)}


def epochs(value: Value, settings: Settings) -> Paths:
    """Of no effect where steps are given."""
    return {} if settings.get("max_train_steps") else {"epochs": whole(value)}


def tokens(settings: Settings) -> bool:
    return on(settings, "train_text_encoder_ti")


def text_rate(value: Value, settings: Settings) -> Paths:
    """The rate of the new tokens or of the text encoders' LoRA, whichever is trained."""
    if tokens(settings):
        return {"embedding.lr": number(value)}
    return {"text_encoder.lr": number(value)} if on(settings, "train_text_encoder") else {}


def text_decay(value: Value, settings: Settings) -> Paths:
    if tokens(settings):
        return {"embedding.weight_decay": number(value)}
    return {"text_encoder.weight_decay": number(value)} if on(settings, "train_text_encoder") else {}


def pivotal(value: Value, settings: Settings) -> Paths:
    if not truth(value):
        return {}
    word = str(settings.get("token_abstraction") or "TOK")
    names = [part.strip() for part in word.split(",") if part.strip()]
    count = settings.get("num_new_tokens_per_abstraction") or 2
    return {"method": "pivotal", "embedding.tokens": "\n".join(names), "embedding.vectors": count}


def vectors(value: Value, settings: Settings) -> Paths:
    return {"embedding.vectors": whole(value)} if tokens(settings) else {}


def pivot(value: Value, settings: Settings) -> Paths:
    return {"embedding.stop": number(value)} if tokens(settings) else {}


def text_stop(value: Value, settings: Settings) -> Paths:
    return {"text_encoder.stop": number(value)} if on(settings, "train_text_encoder") else {}


def token_init(value: Value, settings: Settings) -> Paths:
    return {"embedding.init": str(value)} if tokens(settings) else {}


def prodigy(path: str, convert: type = bool) -> Row:
    """A setting of Prodigy, which other optimizers take no notice of."""

    def converted(value: Value, settings: Settings) -> Paths:
        if str(settings.get("optimizer", "")).lower() != "prodigy" or str(value) == "None":
            return {}
        return {path: truth(value) if convert is bool else number(value)}

    return otherwise(path, "import.why.prodigy", converted)


def minimum(value: Value, settings: Settings) -> Paths:
    return {"objective.weighting": "min_snr", "objective.min_snr_gamma": number(value)} if str(value) != "None" else {}


def instance(value: Value, settings: Settings) -> Paths:
    """The prompt of all pictures, where they have no captions of their own."""
    if settings.get("caption_column") or settings.get("dataset_name"):
        raise Unmapped("import.why.instance_with_captions")
    return {"data.trigger": str(value), "data.captions": "none"}


def hub(value: Value, settings: Settings) -> Paths:
    """A dataset of the Hub, or a folder."""
    name = str(value)
    plain = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith(".")
    return {"data.folder": f"hf:{name}" if plain else name}


def prior(path: str, kind: str = "text") -> Row:
    """A setting of prior preservation, where it is on."""
    readers: dict[str, Callable[[Value], Any]] = {"text": str, "number": number, "whole": whole}

    def converted(value: Value, settings: Settings) -> Paths:
        if not on(settings, "with_prior_preservation"):
            return {}
        return {path: readers[kind](value)}

    return otherwise(path, "import.why.prior", converted)


def crop(value: Value, settings: Settings) -> Paths:
    return {"data.crop": "centre" if truth(value) else "random"}


def buckets(value: Value, settings: Settings) -> Paths:
    return {"data.aspect_buckets": bool(value) and str(value).lower() != "false"}


def density(value: Value, settings: Settings) -> Paths:
    """How the flow scripts draw noise levels."""
    names = {"none": "uniform", "logit_normal": "logit_normal"}
    return {"objective.timesteps": meaning(names, str(value))}


def layers(value: Value, settings: Settings) -> Paths:
    """A list of names of layers, as the end of their paths."""
    names = [re.escape(part.strip()) for part in str(value).split(",") if part.strip()]
    return {"adapter.targets": "regex", "adapter.include": rf"(^|\.)({'|'.join(names)})$"}


def named_tokens(value: Value, settings: Settings) -> Paths:
    return {"method": "embedding", "embedding.tokens": str(value)}


def known_script(value: Value, settings: Settings) -> Paths:
    """A script that trains what is trained here."""
    if FULL.fullmatch(str(value)) or NOT_LORA.search(str(value)):
        raise Unmapped("import.why.adapters_only")
    return {}


def stage(option: str) -> Row:
    """One of the two models of Kandinsky and Würstchen: the one that its script trains is the base, the other one its companion."""

    def convert(value: Value, settings: Settings) -> Paths:
        trained = "prior" if "prior" in str(settings.get("script", "")) else "decoder"
        return {"base" if trained == option else "companion": str(value)}

    return otherwise("base companion", "import.why.base", convert)


ROWS: dict[str, Row] = {
    "output_dir": otherwise("name", "import.why.name", lambda value, settings: {"name": name_of(value)}),
    "pretrained_model_name_or_path": otherwise("base", "import.why.base"),
    "pretrained_vae_model_name_or_path": otherwise("base_vae", "import.why.vae"),
    "pretrained_decoder_model_name_or_path": stage("decoder"),
    "pretrained_prior_model_name_or_path": stage("prior"),
    "dataset_name": otherwise("data.folder", "import.why.written", hub),
    "train_data_dir": same("data.folder"),
    "instance_data_dir": same("data.folder"),
    "caption_column": otherwise(
        "data.caption_column data.captions",
        "import.why.written",
        lambda value, settings: {"data.caption_column": str(value), "data.captions": "metadata"},
    ),
    "cond_image_column": otherwise(
        "data.controls", "import.why.control", lambda value, settings: {"data.controls": "auto"}
    ),
    "image_column": otherwise(
        "data.image_column",
        "import.why.written",
        lambda value, settings: {"data.image_column": str(value)} if settings.get("dataset_name") else {},
    ),
    "max_train_samples": same("data.limit"),
    "instance_prompt": otherwise("data.trigger data.captions", "import.why.instance", instance),
    "caption_dropout": same("data.caption_dropout"),
    "resolution": otherwise(
        "data.resolution", "import.why.area", lambda value, settings: {"data.resolution": side(value)}, 512
    ),
    "scaling": otherwise("data.upscale", "import.why.scaled_up", lambda value, settings: {"data.upscale": True}, "up"),
    "center_crop": otherwise("data.crop", "import.why.random_crop", crop, False),
    "random_flip": flag("data.flip"),
    "use_aspect_ratio_buckets": otherwise("data.aspect_buckets", "import.why.squares", buckets, False),
    "aspect_ratio_buckets": otherwise("data.aspect_buckets", "import.why.squares", buckets),
    "repeats": same("data.repeats"),
    "with_prior_preservation": otherwise(
        "prior.required", "import.why.prior", lambda value, settings: {"prior.required": True} if truth(value) else {}
    ),
    "class_data_dir": prior("prior.folder"),
    "class_prompt": prior("prior.prompt"),
    "num_class_images": prior("prior.count", "whole"),
    "prior_loss_weight": prior("prior.weight", "number"),
    "prior_generation_precision": nothing("import.why.memory"),
    "sample_batch_size": nothing("import.why.memory"),
    "class_labels_conditioning": nothing("import.why.set_detail"),
    "rank": same("adapter.rank", default=4),
    "lora_alpha": same("adapter.alpha"),
    "lora_dropout": same("adapter.dropout"),
    "init": otherwise(
        "adapter.init adapter.targets",
        "import.why.layers",
        lambda value, settings: {"adapter.init": "gaussian", "adapter.targets": "attention"},
        "gaussian",
    ),
    "use_dora": otherwise(
        "adapter.algorithm",
        "import.why.written",
        lambda value, settings: {"adapter.algorithm": "dora"} if truth(value) else {},
    ),
    "lora_layers": otherwise("adapter.targets adapter.include", "import.why.layer_names", layers),
    "lora_unet_blocks": nothing("import.why.layer_names"),
    "lora_blocks": nothing("import.why.layer_names"),
    "use_blora": nothing("import.why.layer_names"),
    "train_text_encoder": same("text_encoder.train"),
    "train_text_encoder_frac": otherwise("text_encoder.stop", "import.why.if_trained", text_stop),
    "train_transformer_frac": nothing("import.why.stop_after"),
    "train_text_encoder_ti": otherwise("method embedding.tokens embedding.vectors", "import.why.tokens", pivotal),
    "token_abstraction": otherwise(
        "embedding.tokens", "import.why.if_tokens", lambda value, settings: pivotal(tokens(settings), settings)
    ),
    "num_new_tokens_per_abstraction": otherwise("embedding.vectors", "import.why.if_tokens", vectors),
    "train_text_encoder_ti_frac": otherwise("embedding.stop", "import.why.if_tokens", pivot),
    "initializer_concept": otherwise("embedding.init", "import.why.if_tokens", token_init),
    "enable_t5_ti": nothing("import.why.more_embeddings"),
    "learning_rate": same("optimizer.lr"),
    "text_encoder_lr": otherwise("text_encoder.lr embedding.lr", "import.why.if_trained", text_rate),
    "scale_lr": otherwise("", "import.why.scale_lr", lambda value, settings: {}),
    "optimizer": choice("optimizer.name", {"adamw": "adamw", "prodigy": "prodigy"}),
    "use_8bit_adam": otherwise(
        "optimizer.name",
        "import.why.written",
        lambda value, settings: (
            {"optimizer.name": "adamw8bit"}
            if truth(value) and str(settings.get("optimizer", "adamw")).lower() == "adamw"
            else {}
        ),
    ),
    "adam_beta1": same("optimizer.beta1"),
    "adam_beta2": same("optimizer.beta2"),
    "adam_weight_decay": same("optimizer.weight_decay"),
    "adam_weight_decay_text_encoder": otherwise(
        "text_encoder.weight_decay embedding.weight_decay", "import.why.if_trained", text_decay
    ),
    "adam_epsilon": same("optimizer.eps"),
    "prodigy_beta3": prodigy("optimizer.prodigy_beta3", float),
    "prodigy_decouple": prodigy("optimizer.prodigy_decouple"),
    "prodigy_use_bias_correction": prodigy("optimizer.prodigy_use_bias_correction"),
    "prodigy_safeguard_warmup": prodigy("optimizer.prodigy_safeguard_warmup"),
    "max_grad_norm": same("optimizer.max_grad_norm"),
    "lr_scheduler": choice("schedule.name", SCHEDULES, why="import.why.schedule"),
    "lr_warmup_steps": otherwise("schedule.warmup_steps", "import.why.warmup", warmup, 500),
    "lr_num_cycles": same("schedule.cycles"),
    "lr_power": same("schedule.power"),
    "num_train_epochs": otherwise("epochs", "import.why.length", epochs, 1),
    "max_train_steps": same("steps"),
    "train_batch_size": same("batch_size", default=4),
    "gradient_accumulation_steps": same("grad_accum"),
    "gradient_checkpointing": same("checkpointing"),
    "mixed_precision": choice("precision", {"no": "auto", "fp16": "fp16", "bf16": "bf16"}),
    "seed": same("seed"),
    "snr_gamma": otherwise("objective.weighting objective.min_snr_gamma", "import.why.written", minimum),
    "noise_offset": same("objective.noise_offset"),
    "prediction_type": choice("objective.prediction", {"epsilon": "epsilon", "v_prediction": "v"}),
    "weighting_scheme": otherwise("objective.timesteps", "import.why.timesteps", density),
    "logit_mean": same("objective.logit_mean"),
    "logit_std": same("objective.logit_std"),
    "mode_scale": nothing("import.why.noise"),
    "guidance_scale": nothing("import.why.guidance"),
    "do_edm_style_training": nothing("import.why.edm"),
    "precondition_outputs": nothing("import.why.edm"),
    "validation_prompt": otherwise(
        "samples.prompt", "import.why.one_picture", lambda value, settings: {"samples.prompt": str(value)}
    ),
    "validation_prompts": otherwise(
        "samples.prompt",
        "import.why.one_picture",
        lambda value, settings: {
            "samples.prompt": "\n".join(map(str, value)) if isinstance(value, list) else str(value)
        },
    ),
    "num_validation_images": nothing("import.why.one_picture"),
    "validation_epochs": nothing("import.why.every_epochs"),
    "validation_steps": same("samples.every"),
    "validation_num_inference_steps": same("samples.steps"),
    "validation_guidance_scale": same("samples.cfg"),
    "final_validation_prompt": nothing("import.why.one_picture"),
    "skip_final_inference": nothing("import.why.one_picture"),
    "checkpointing_steps": same("save.every", default=500),
    "checkpoints_total_limit": kept(),
    "save_steps": same("save.every"),
    "report_to": otherwise(
        "trackers",
        "import.why.trackers",
        lambda value, settings: {"trackers": {"all": "tensorboard, wandb", "none": ""}.get(str(value), str(value))},
    ),
    "placeholder_token": otherwise("method embedding.tokens", "import.why.tokens", named_tokens),
    "initializer_token": same("embedding.init"),
    "num_vectors": same("embedding.vectors"),
    "learnable_property": nothing("import.why.templates"),
    "clip_skip": otherwise("text_encoder.clip_skip", "import.why.clip_skip", layer_skip),
    "script": otherwise("", "import.why.understood", known_script),
    "vae_encode_mode": otherwise(
        "data.latents",
        "import.why.written",
        lambda value, settings: {"data.latents": "sampled" if value == "sample" else "mean"},
    ),
    "accelerate.mixed_precision": choice("precision", {"no": "auto", "fp16": "fp16", "bf16": "bf16"}),
    "accelerate.*": nothing("import.why.accelerate"),
    "resume_from_checkpoint": nothing("import.why.resume"),
    **each("push_to_hub hub_model_id hub_token", nothing("import.why.hub")),
    **each("logging_dir tracker_project_name debug_loss", nothing("import.why.logging")),
    **each("cache_latents pre_compute_text_embeddings cache_dir", nothing("import.why.cache")),
    "dataloader_num_workers": nothing("import.why.memory"),
    **each(
        "enable_xformers_memory_efficient_attention enable_npu_flash_attention",
        nothing("import.why.memory"),
    ),
    **each(
        "allow_tf32 offload do_fp8_training bnb_quantization_config_path fsdp_text_encoder enable_vae_tiling "
        "remote_text_encoder disable_training_autocast local_rank upcast_before_saving",
        nothing("import.why.memory"),
    ),
    **each(
        "revision variant dataset_config_name tokenizer_name pretrained_text_encoder_4_name_or_path "
        "pretrained_tokenizer_4_name_or_path",
        nothing("import.why.parts"),
    ),
    **each(
        "max_sequence_length tokenizer_max_length text_encoder_use_attention_mask complex_human_instruction "
        "text_encoder_out_layers prompt_enhancer_head_id upsample_prompt",
        nothing("import.why.token_length"),
    ),
    "system_prompt": otherwise("data.prefix", "import.why.system_prompt", system_prompt),
    "image_interpolation_mode": nothing("import.why.lanczos"),
    **each(
        "output_kohya_format no_safe_serialization save_as_full_pipeline validation_model_path",
        nothing("import.why.files"),
    ),
    **each(
        "validation_image validation_images conditioning_image_column",
        nothing("import.why.conditioning"),
    ),
}
SET_ROWS: dict[str, Row] = {}
ALL_ROWS = ROWS


def configuration_of(settings: Settings, script: str) -> Configuration:
    """What a command line says, with what the script takes where it says nothing."""
    script_defaults = next(
        (values for start, values in SCRIPT_DEFAULTS.items() if script.startswith(start)), Defaults()
    )
    defaults: dict[str, Value] = {
        "learning_rate": script_defaults.rate,
        "adam_weight_decay": script_defaults.weight_decay,
        "train_batch_size": script_defaults.batch,
        "num_train_epochs": script_defaults.epochs,
        "resolution": script_defaults.resolution,
    }
    if "text_to_image" in script and "caption_column" not in settings and not settings.get("dataset_name"):
        defaults["caption_column"] = "text"
    if any(name in script for name in ALPHA_GIVEN):
        defaults["lora_alpha"] = 32 if "krea2" in script else 4
    if "weighting" not in script and any(
        name in script for name in ("flux", "qwen", "z_image", "lumina2", "sana", "hidream", "krea2")
    ):
        defaults["weighting_scheme"] = "none"
    if script.startswith("textual_inversion"):
        defaults |= {"max_train_steps": 5000, "repeats": 100}
        settings = {key: value for key, value in settings.items() if key != "num_train_epochs" or value is not None}
    if on(settings, "train_text_encoder") and "text_encoder_lr" not in settings:
        defaults["text_encoder_lr"] = 5e-6
    if tokens(settings):
        defaults |= {"train_text_encoder_ti_frac": 0.5}
    plain = dict(settings)
    plain["script"] = script
    if "max_train_steps" in defaults and not plain.get("max_train_steps"):
        plain["max_train_steps"] = defaults["max_train_steps"]
    return Configuration(plain, (), defaults)
