"""OneTrainer: the JSON of a preset or of a saved configuration, its concepts and samples in it or in files of their own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from .result import Given
from .rows import (
    Paths,
    Row,
    Settings,
    Unmapped,
    Value,
    choice,
    flag,
    flat,
    layer_skip,
    name_of,
    nothing,
    number,
    on,
    otherwise,
    same,
    side,
    tables,
    truth,
    whole,
)

TITLE = "OneTrainer"
OPTIMIZERS = {
    "adamw": "adamw", "adam": "adamw", "adamw_8bit": "adamw8bit", "adam_8bit": "adamw8bit", "adafactor": "adafactor", "prodigy": "prodigy",
    "lion": "lion", "lion_8bit": "lion", "came": "came", "schedule_free_adamw": "schedule_free", "muon": "muon",
}  # fmt: skip
SCHEDULES = {
    "constant": "constant", "linear": "linear", "cosine": "cosine", "cosine_with_restarts": "cosine_with_restarts",
    "cosine_with_hard_restarts": "cosine_with_restarts",
}  # fmt: skip
KINDS = {"lora": "lora", "loha": "loha", "lokr": "lokr", "oft_2": "oft"}
LAYERS = {"full": "conv", "attn-mlp": "linear", "attn-only": "attention"}
NARROW = ("FLOAT_8", "INT_8", "NFLOAT_4")


def method(value: Value, given: Settings) -> Paths:
    names = {"LORA": "lora", "EMBEDDING": "embedding"}
    if str(value) not in names:
        raise Unmapped("import.why.adapters_only")
    return {"method": names[str(value)]}


def sizes(value: Value, given: Settings) -> Paths:
    """512, "512,768" for several, "512x768" for a shape."""
    several = [side(part) for part in str(value).split(",") if part.strip()]
    if not several:
        raise Unmapped("import.why.value")
    more: Paths = {"data.also_resolutions": ", ".join(map(str, several[1:]))} if several[1:] else {}
    return {"data.resolution": several[0], **more}


def warmup(value: Value, given: Settings) -> Paths:
    """Steps, or a share of all steps up to 1."""
    figure = number(value)
    if 0 < figure <= 1:
        raise Unmapped("import.why.share_of_epochs")
    return {"schedule.warmup_steps": round(figure)}


def average(value: Value, given: Settings) -> Paths:
    return {"ema_decay": given.get("ema_decay", 0.999)} if str(value) != "OFF" else {}


def loss(name: str) -> Row:
    """The strength of one loss; ours is one of them at full strength."""
    return otherwise("loss", "import.why.one_loss", lambda value, given: {"loss": name} if number(value) else {})


def weighting(value: Value, given: Settings) -> Paths:
    strength = given.get("loss_weight_strength", 5.0)
    ways: Mapping[str, Paths] = {
        "CONSTANT": {"objective.weighting": "none"},
        "MIN_SNR_GAMMA": {"objective.weighting": "min_snr", "objective.min_snr_gamma": strength},
        "DEBIASED_ESTIMATION": {"objective.weighting": "debiased"},
        "P2": {"objective.weighting": "p2", "objective.p2_gamma": strength},
    }
    if str(value) not in ways:
        raise Unmapped("import.why.value")
    return ways[str(value)]


def level(path: str) -> Row:
    """A share of the noise levels as a timestep of 1000."""
    return otherwise(path, "import.why.written", lambda value, given: {path: round(1000 * number(value))})


def distribution(value: Value, given: Settings) -> Paths:
    names = {"UNIFORM": "uniform", "LOGIT_NORMAL": "logit_normal"}
    if str(value) not in names:
        raise Unmapped("import.why.value")
    out: Paths = {"objective.timesteps": names[str(value)]}
    if names[str(value)] == "logit_normal":
        weight = number(given.get("noising_weight", 0.0))
        out |= {"objective.logit_mean": number(given.get("noising_bias", 0.0)), "objective.logit_std": weight + 1.0}
    return out


def shift(value: Value, given: Settings) -> Paths:
    return {} if on(given, "dynamic_timestep_shifting") else {"objective.shift": number(value)}


def every(path: str) -> Row:
    """How often something is done, where it is counted in steps."""

    def convert(value: Value, given: Settings) -> Paths:
        unit = str(given.get(f"{path}_unit", UNITS[path]))
        if unit == "NEVER":
            return {}
        if unit != "STEP":
            raise Unmapped("import.why.every_epochs")
        return {EVERY[path]: whole(value)}

    return otherwise(EVERY[path], "import.why.written", convert)


UNITS = {
    "sample_after": "MINUTE",
    "backup_after": "MINUTE",
    "save_every": "NEVER",
    "validate_after": "EPOCH",
}  # unless it says otherwise
EVERY = {
    "sample_after": "samples.every",
    "backup_after": "save.every",
    "save_every": "save.every",
    "validate_after": "validation.every",
}


def layers(value: Value, given: Settings) -> Paths:
    """Parts of the names of layers, separated by commas, or a regular expression."""
    text = str(value)
    names = (
        text
        if on(given, "layer_filter_regex")
        else "|".join(re.escape(part.strip()) for part in text.split(",") if part.strip())
    )
    return {"adapter.include": names}


def storage(value: Value, given: Settings) -> Paths:
    if str(value) in NARROW:
        return {"storage": "fp8"}
    return {}


def pictures(value: Value, given: Settings) -> Paths:
    """Sample prompts with their sizes behind them."""
    lines = []
    for sample in value if isinstance(value, Sequence) and not isinstance(value, str) else []:
        if isinstance(sample, Mapping) and sample.get("prompt") and sample.get("enabled", True):
            options = {
                "n": "negative_prompt",
                "w": "width",
                "h": "height",
                "d": "seed",
                "s": "diffusion_steps",
                "l": "cfg_scale",
            }
            more = "".join(
                f" --{name} {sample[key]}" for name, key in options.items() if sample.get(key) not in (None, "")
            )
            lines.append(" ".join(str(sample["prompt"]).split()) + more)
    return {"samples.prompt": "\n".join(lines)}


def tokens(value: Value, given: Settings) -> Paths:
    return {"embedding.tokens": str(value)} if given.get("training_method") == "EMBEDDING" else {}


def if_embedding(path: str) -> Row:
    return otherwise(
        path,
        "import.why.if_tokens",
        lambda value, given: {path: value} if given.get("training_method") == "EMBEDDING" else {},
    )


def if_text(path: str, key: str) -> Row:
    """A setting of a text encoder's LoRA, where it is trained."""
    return otherwise(
        path, "import.why.if_trained", lambda value, given: {path: value} if on(given, f"{key}.train") else {}
    )


def weight_dtype(value: Value, given: Settings) -> Paths:
    return storage(value, given)


_UNSET = otherwise(
    "", "import.why.optimizer", lambda value, given: {} if str(value).lower() in ("false", "0", "0.0") else _no_value()
)


def _no_value() -> Paths:
    raise Unmapped("import.why.value")


ROWS: dict[str, Row] = {
    "training_method": otherwise("method", "import.why.method", method),
    "output_model_destination": otherwise("name", "import.why.name", lambda value, given: {"name": name_of(value)}),
    "base_model_name": otherwise("base", "import.why.base"),
    "vae.model_name": otherwise(
        "base_vae", "import.why.vae", lambda value, given: {"base_vae": str(value)} if value else {}
    ),
    "model_type": nothing("import.why.base_tells"),
    "peft_type": choice("adapter.algorithm", KINDS),
    "lora_rank": same("adapter.rank"),
    "lora_alpha": same("adapter.alpha", default=1.0),
    "lora_decompose": otherwise(
        "adapter.algorithm",
        "import.why.written",
        lambda value, given: {"adapter.algorithm": "dora"} if truth(value) else {},
    ),
    "lora_decompose_output_axis": otherwise(
        "adapter.dora_axis",
        "import.why.written",
        lambda value, given: (
            {"adapter.dora_axis": "output" if truth(value) else "input"} if on(given, "lora_decompose") else {}
        ),
    ),
    "lora_model_name": otherwise(
        "adapter.start_from",
        "import.why.start",
        lambda value, given: {"adapter.start_from": str(value)} if value else {},
    ),
    "lokr_decompose_factor": otherwise(
        "adapter.lokr_factor", "import.why.factor", lambda value, given: {"adapter.lokr_factor": max(0, whole(value))}
    ),
    "layer_filter_preset": choice("adapter.targets", LAYERS, default="full", why="import.why.layers"),
    "layer_filter": otherwise("adapter.include", "import.why.layer_names", layers),
    "dropout_probability": same("adapter.dropout"),
    "learning_rate": same("optimizer.lr", default=3e-6),
    "optimizer.optimizer": choice("optimizer.name", OPTIMIZERS),
    "optimizer.beta1": same("optimizer.beta1"),
    "optimizer.beta2": same("optimizer.beta2"),
    "optimizer.beta3": same("optimizer.prodigy_beta3"),
    "optimizer.eps": same("optimizer.eps"),
    "optimizer.weight_decay": same("optimizer.weight_decay"),
    "optimizer.d_coef": same("optimizer.prodigy_d_coef"),
    "optimizer.decouple": otherwise(
        "optimizer.prodigy_decouple",
        "import.why.prodigy",
        lambda value, given: (
            {"optimizer.prodigy_decouple": truth(value)} if given.get("optimizer.optimizer") == "PRODIGY" else {}
        ),
    ),
    "optimizer.use_bias_correction": otherwise(
        "optimizer.prodigy_use_bias_correction",
        "import.why.prodigy",
        lambda value, given: (
            {"optimizer.prodigy_use_bias_correction": truth(value)}
            if given.get("optimizer.optimizer") == "PRODIGY"
            else {}
        ),
    ),
    "optimizer.safeguard_warmup": otherwise(
        "optimizer.prodigy_safeguard_warmup",
        "import.why.prodigy",
        lambda value, given: (
            {"optimizer.prodigy_safeguard_warmup": truth(value)}
            if given.get("optimizer.optimizer") == "PRODIGY"
            else {}
        ),
    ),
    **dict.fromkeys(
        (
            "optimizer.fused",
            "optimizer.fused_back_pass",
            "optimizer.foreach",
            "optimizer.stochastic_rounding",
            "optimizer.capturable",
            "optimizer.is_paged",
            "optimizer.min_8bit_size",
            "optimizer.quant_block_size",
            "optimizer.optim_bits",
        ),
        nothing("import.why.memory"),
    ),
    "optimizer.*": _UNSET,
    "learning_rate_scheduler": choice("schedule.name", SCHEDULES),
    "learning_rate_warmup_steps": otherwise("schedule.warmup_steps", "import.why.warmup", warmup, 200),
    "learning_rate_cycles": otherwise(
        "schedule.cycles", "import.why.written", lambda value, given: {"schedule.cycles": whole(value)}
    ),
    "learning_rate_min_factor": nothing("import.why.schedule_detail"),
    "learning_rate_scaler": nothing("import.why.scale_lr"),
    "clip_grad_norm": same("optimizer.max_grad_norm"),
    "epochs": same("epochs", default=100),
    "batch_size": same("batch_size"),
    "gradient_accumulation_steps": same("grad_accum"),
    "gradient_checkpointing": otherwise(
        "checkpointing",
        "import.why.written",
        lambda value, given: {"checkpointing": str(value) not in ("OFF", "False", "false")},
        "ON",
    ),
    "ema": otherwise("ema_decay", "import.why.written", average),
    "ema_decay": nothing("import.why.with_other"),
    "ema_update_step_interval": nothing("import.why.with_other"),
    "train_dtype": choice(
        "precision", {"float_16": "fp16", "bfloat_16": "bf16", "float_32": "fp32", "tfloat_32": "fp32"}
    ),
    "resolution": otherwise("data.resolution data.also_resolutions", "import.why.written", sizes),
    "scaling": otherwise("data.upscale", "import.why.scaled_up", lambda value, given: {"data.upscale": True}, "up"),
    "aspect_ratio_bucketing": flag("data.aspect_buckets"),
    "masked_training": otherwise(
        "data.masks", "import.why.written", lambda value, given: {"data.masks": "file"} if truth(value) else {}
    ),
    "unmasked_weight": otherwise(
        "data.mask_floor",
        "import.why.written",
        lambda value, given: {"data.mask_floor": value} if on(given, "masked_training") else {},
    ),
    "unmasked_probability": nothing("import.why.masks_detail"),
    "normalize_masked_area_loss": nothing("import.why.masks_detail"),
    "masked_prior_preservation_weight": nothing("import.why.masks_detail"),
    "custom_conditioning_image": nothing("import.why.conditioning"),
    "unet.train": otherwise("", "import.why.network_always", lambda value, given: {}),
    "transformer.train": otherwise("", "import.why.network_always", lambda value, given: {}),
    "prior.train": otherwise("", "import.why.network_always", lambda value, given: {}),
    "unet.learning_rate": same("optimizer.lr"),
    "transformer.learning_rate": same("optimizer.lr"),
    "prior.learning_rate": same("optimizer.lr"),
    "text_encoder.train": otherwise(
        "text_encoder.train",
        "import.why.text_by_default",
        lambda value, given: {"text_encoder.train": truth(value)} if given.get("training_method") == "LORA" else {},
        True,
    ),
    "text_encoder.learning_rate": if_text("text_encoder.lr", "text_encoder"),
    "text_encoder_2.train": otherwise(
        "text_encoder.train",
        "import.why.text_rates",
        lambda value, given: (
            {"text_encoder.train": True} if truth(value) and given.get("training_method") == "LORA" else {}
        ),
    ),
    "text_encoder_2.learning_rate": nothing("import.why.text_rates"),
    "offset_noise_weight": same("objective.noise_offset"),
    "generalized_offset_noise": nothing("import.why.noise"),
    "perturbation_noise_weight": same("objective.input_perturbation"),
    "rescale_noise_scheduler_to_zero_terminal_snr": same("objective.zero_terminal_snr"),
    "force_v_prediction": otherwise(
        "objective.prediction",
        "import.why.prediction",
        lambda value, given: {"objective.prediction": "v"} if truth(value) else {},
    ),
    "force_epsilon_prediction": otherwise(
        "objective.prediction",
        "import.why.prediction",
        lambda value, given: {"objective.prediction": "epsilon"} if truth(value) else {},
    ),
    "min_noising_strength": level("objective.min_timestep"),
    "max_noising_strength": level("objective.max_timestep"),
    "timestep_distribution": otherwise(
        "objective.timesteps objective.logit_mean objective.logit_std", "import.why.timesteps", distribution
    ),
    "noising_weight": nothing("import.why.with_other"),
    "noising_bias": nothing("import.why.with_other"),
    "timestep_shift": otherwise("objective.shift", "import.why.timesteps", shift),
    "dynamic_timestep_shifting": otherwise("", "import.why.timesteps", lambda value, given: {}),
    "mse_strength": loss("mse"),
    "mae_strength": loss("l1"),
    "huber_strength": loss("huber"),
    "huber_delta": same("huber_delta"),
    "log_cosh_strength": otherwise(
        "", "import.why.loss", lambda value, given: {} if not number(value) else _no_value()
    ),
    "vb_loss_strength": nothing("import.why.loss"),
    "loss_weight_fn": otherwise("objective.weighting", "import.why.written", weighting),
    "loss_weight_strength": nothing("import.why.with_other"),
    "loss_scaler": nothing("import.why.loss"),
    "samples": otherwise("samples.prompt", "import.why.samples", pictures),
    "sample_after": every("sample_after"),
    "save_every": every("save_every"),
    "backup_after": every("backup_after"),
    "validate_after": every("validate_after"),
    "validation": nothing("import.why.validation_of_set"),
    "rolling_backup_count": otherwise(
        "save.keep", "import.why.keep", lambda value, given: {"save.keep": max(2, whole(value))}
    ),
    "tensorboard": otherwise(
        "trackers", "import.why.trackers", lambda value, given: {"trackers": "tensorboard"} if truth(value) else {}
    ),
    "embedding.placeholder": otherwise("embedding.tokens", "import.why.if_tokens", tokens),
    "embedding.token_count": if_embedding("embedding.vectors"),
    "embedding.initial_embedding_text": if_embedding("embedding.init"),
    "embedding_learning_rate": same("embedding.lr"),
    "preserve_embedding_norm": same("embedding.keep_norm"),
    "compile": same("compile"),
    "text_encoder_layer_skip": otherwise("text_encoder.clip_skip", "import.why.clip_skip", layer_skip),
    "text_encoder_2_layer_skip": nothing("import.why.clip_skip_second"),
    "unet.weight_dtype": otherwise("storage", "import.why.fp8", weight_dtype),
    "transformer.weight_dtype": otherwise("storage", "import.why.fp8", weight_dtype),
    "prior.weight_dtype": otherwise("storage", "import.why.fp8", weight_dtype),
    "*.weight_dtype": nothing("import.why.memory"),
    "*stop_training_after*": nothing("import.why.stop_after"),
    **dict.fromkeys(
        (
            "additional_embeddings*",
            "embedding.*",
            "embeddings*",
            "bundle_additional_embeddings",
            "embedding_weight_dtype",
        ),
        nothing("import.why.more_embeddings"),
    ),
    **dict.fromkeys(
        ("oft_*", "lokr_*", "lora_weight_dtype", "lora_decompose_norm_epsilon"), nothing("import.why.adapter_detail")
    ),
    **dict.fromkeys(("sample_*", "samples_to_tensorboard", "non_ema_sampling"), nothing("import.why.sampling")),
    **dict.fromkeys(
        (
            "save_*",
            "backup_*",
            "rolling_backup",
            "validate_after_unit",
            "output_dtype",
            "output_model_format",
            "include_train_config",
            "prevent_overwrites",
            "workspace_dir",
        ),
        nothing("import.why.files"),
    ),
    **dict.fromkeys(("continue_last_backup",), nothing("import.why.resume")),
    **dict.fromkeys(
        (
            "latent_caching",
            "cache_dir",
            "clear_cache_before_training",
            "only_cache",
            "huggingface_cache_dir",
            "offline_mode",
        ),
        nothing("import.why.cache"),
    ),
    **dict.fromkeys(
        (
            "cloud.*",
            "secrets*",
            "tensorboard_*",
            "debug_*",
            "concept_file_name",
            "__version",
            "optimizer_defaults*",
            "custom_learning_rate_scheduler",
            "scheduler_params*",
        ),
        nothing("import.why.files"),
    ),
    **dict.fromkeys(
        (
            "multi_gpu",
            "device_indexes",
            "gradient_reduce_precision",
            "fused_gradient_reduce",
            "async_gradient_reduce",
            "async_gradient_reduce_buffer",
        ),
        nothing("import.why.accelerate"),
    ),
    **dict.fromkeys(("attention_mechanism",), nothing("import.why.memory")),
    **dict.fromkeys(("dataloader_threads",), nothing("import.why.memory")),
    **dict.fromkeys(
        (
            "train_device",
            "temp_device",
            "fallback_train_dtype",
            "enable_autocast_cache",
            "async_offloading",
            "enable_async_offloading",
            "enable_activation_offloading",
            "layer_offload_fraction",
            "*.offload_fraction",
            "*.activation_offloading",
            "*.gradient_checkpointing",
            "quantization.*",
            "weight_dtype",
            "force_circular_padding",
            "frames",
            "layer_filter_regex",
        ),
        nothing("import.why.memory"),
    ),
    **dict.fromkeys(
        (
            "unet.*",
            "prior.*",
            "transformer.*",
            "unconditional_transformer.*",
            "text_encoder*.*",
            "text_encoder*_sequence_length",
            "text_encoder_3_layer_skip",
            "text_encoder_4_layer_skip",
            "vae.*",
            "effnet_encoder.*",
            "decoder*.*",
        ),
        nothing("import.why.parts"),
    ),
}


def captions(value: Value, given: Settings) -> Paths:
    """Text files whose lines are alternatives, the file's name, or one text for all."""
    names: Mapping[str, Paths] = {
        "sample": {"captions": ".txt", "caption_lines": "alternatives"},
        "filename": {"captions": "file name"},
        "concept": {"captions": "none"},
    }
    if str(value) not in names:
        raise Unmapped("import.why.value")
    return names[str(value)]


def kind(value: Value, given: Settings) -> Paths:
    names: Mapping[str, Paths] = {"STANDARD": {}, "PRIOR_PREDICTION": {"regularization": True}}
    if str(value) not in names:
        raise Unmapped("import.why.validation_concept")
    return names[str(value)]


SET_ROWS: dict[str, Row] = {
    "path": same("folder"),
    "include_subdirectories": flag("recursive", default=False),
    "balancing": otherwise(
        "repeats",
        "import.why.balancing",
        lambda value, given: (
            {"repeats": max(1, round(number(value)))}
            if given.get("balancing_strategy", "REPEATS") == "REPEATS"
            else _no_value()
        ),
    ),
    "balancing_strategy": nothing("import.why.balancing"),
    "loss_weight": same("loss_weight"),
    "type": otherwise("regularization", "import.why.regular", kind),
    "text.prompt_source": otherwise("captions caption_lines", "import.why.lines", captions, "sample"),
    "text.prompt_path": nothing("import.why.captions"),
    "text.enable_tag_shuffling": flag("shuffle_tags"),
    "text.keep_tags_count": same("keep_tokens"),
    "text.tag_delimiter": otherwise(
        "", "import.why.understood", lambda value, given: {} if value == "," else _no_value()
    ),
    "text.tag_dropout_enable": otherwise(
        "tag_dropout",
        "import.why.with_other",
        lambda value, given: {"tag_dropout": given.get("text.tag_dropout_probability", 0.0)} if truth(value) else {},
    ),
    "text.tag_dropout_*": nothing("import.why.captions"),
    "text.caps_*": nothing("import.why.captions"),
    "image.enable_random_flip": flag("flip"),
    "image.enable_crop_jitter": otherwise(
        "crop", "import.why.random_crop", lambda value, given: {"crop": "random" if truth(value) else "centre"}, True
    ),
    "image.enable_resolution_override": otherwise(
        "resolution",
        "import.why.with_other",
        lambda value, given: {"resolution": side(given.get("image.resolution_override", 512))} if truth(value) else {},
    ),
    "image.resolution_override": nothing("import.why.with_other"),
    "image.*": nothing("import.why.augment"),
    **dict.fromkeys(
        ("name", "seed", "enabled", "image_variations", "text_variations", "concept_stats*"),
        nothing("import.why.set_detail"),
    ),
}
ALL_ROWS = ROWS


def given_of(config: Settings, concepts: Value = None, samples: Value = None) -> Given:
    """What a configuration says; `concepts` and `samples`: those of their own files."""
    lists = {"concepts", "samples", "embeddings", "additional_embeddings"}
    settings = flat({key: value for key, value in config.items() if key not in lists})
    given = dict(settings)
    if samples or config.get("samples"):
        given["samples"] = samples or config["samples"]
    if config.get("additional_embeddings"):
        given["additional_embeddings"] = config["additional_embeddings"]
    listed = concepts if concepts is not None else config.get("concepts")
    entries = tables(listed)
    sets = [(f"concepts[{n}].", flat(one)) for n, one in enumerate(entries) if one.get("enabled", True)]
    return dataclasses.replace(Given(given), sets=sets)
