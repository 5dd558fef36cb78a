"""OneTrainer: the JSON of a preset or of a saved configuration, its concepts and samples in it or in files of their own."""

from __future__ import annotations

import dataclasses

from . import onetrainer_values as values
from .result import Configuration
from .rows import (
    Row,
    Settings,
    Value,
    choice,
    each,
    flag,
    flat,
    kept,
    layer_skip,
    lokr_factor,
    name_of,
    no_counterpart,
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
    "adamw": "adamw", "adam": "adamw", "adamw_8bit": "adamw8bit", "adam_8bit": "adamw8bit", "adafactor": "adafactor",
    "prodigy": "prodigy", "lion": "lion", "lion_8bit": "lion", "came": "came", "schedule_free_adamw": "schedule_free",
    "muon": "muon",
}  # fmt: skip
SCHEDULES = {
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "cosine_with_hard_restarts": "cosine_with_restarts",
}
ALGORITHMS = {"lora": "lora", "loha": "loha", "lokr": "lokr", "oft_2": "oft"}
LAYERS = {"full": "conv", "attn-mlp": "linear", "attn-only": "attention"}

ROWS: dict[str, Row] = {
    "training_method": otherwise("method", "import.why.method", values.method),
    "output_model_destination": otherwise("name", "import.why.name", lambda value, settings: {"name": name_of(value)}),
    "base_model_name": otherwise("base", "import.why.base"),
    "vae.model_name": otherwise(
        "base_vae", "import.why.vae", lambda value, settings: {"base_vae": str(value)} if value else {}
    ),
    "model_type": nothing("import.why.base_tells"),
    "frames": otherwise("data.frames", "import.why.films", values.frames),
    "peft_type": choice("adapter.algorithm", ALGORITHMS),
    "lora_rank": same("adapter.rank"),
    "lora_alpha": same("adapter.alpha", default=1.0),
    "lora_decompose": otherwise(
        "adapter.algorithm",
        "import.why.written",
        lambda value, settings: {"adapter.algorithm": "dora"} if truth(value) else {},
    ),
    "lora_decompose_output_axis": otherwise(
        "adapter.dora_axis",
        "import.why.written",
        values.dora_axis,
    ),
    "lora_model_name": otherwise(
        "adapter.start_from",
        "import.why.start",
        lambda value, settings: {"adapter.start_from": str(value)} if value else {},
    ),
    "lokr_decompose_factor": lokr_factor(),
    "layer_filter_preset": choice("adapter.targets", LAYERS, default="full", why="import.why.layers"),
    "layer_filter": otherwise("adapter.include", "import.why.layer_names", values.layers),
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
        lambda value, settings: (
            {"optimizer.prodigy_decouple": truth(value)} if settings.get("optimizer.optimizer") == "PRODIGY" else {}
        ),
    ),
    "optimizer.use_bias_correction": otherwise(
        "optimizer.prodigy_use_bias_correction",
        "import.why.prodigy",
        lambda value, settings: (
            {"optimizer.prodigy_use_bias_correction": truth(value)}
            if settings.get("optimizer.optimizer") == "PRODIGY"
            else {}
        ),
    ),
    "optimizer.safeguard_warmup": otherwise(
        "optimizer.prodigy_safeguard_warmup",
        "import.why.prodigy",
        lambda value, settings: (
            {"optimizer.prodigy_safeguard_warmup": truth(value)}
            if settings.get("optimizer.optimizer") == "PRODIGY"
            else {}
        ),
    ),
    **each(
        "optimizer.fused optimizer.fused_back_pass optimizer.foreach optimizer.stochastic_rounding "
        "optimizer.capturable optimizer.is_paged optimizer.min_8bit_size optimizer.quant_block_size "
        "optimizer.optim_bits",
        nothing("import.why.memory"),
    ),
    "optimizer.*": otherwise("", "import.why.optimizer", values.unless_unset),
    "learning_rate_scheduler": choice("schedule.name", SCHEDULES),
    "learning_rate_warmup_steps": otherwise("schedule.warmup_steps", "import.why.warmup", values.warmup, 200),
    "learning_rate_cycles": otherwise(
        "schedule.cycles", "import.why.written", lambda value, settings: {"schedule.cycles": whole(value)}
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
        lambda value, settings: {"checkpointing": str(value) not in ("OFF", "False", "false")},
        "ON",
    ),
    "ema": otherwise("ema_decay", "import.why.written", values.average),
    "ema_decay": nothing("import.why.with_other"),
    "ema_update_step_interval": nothing("import.why.with_other"),
    "train_dtype": choice(
        "precision", {"float_16": "fp16", "bfloat_16": "bf16", "float_32": "fp32", "tfloat_32": "fp32"}
    ),
    "resolution": otherwise("data.resolution data.also_resolutions", "import.why.written", values.sizes),
    "scaling": otherwise("data.upscale", "import.why.scaled_up", lambda value, settings: {"data.upscale": True}, "up"),
    "aspect_ratio_bucketing": flag("data.aspect_buckets"),
    "masked_training": otherwise(
        "data.masks", "import.why.written", lambda value, settings: {"data.masks": "file"} if truth(value) else {}
    ),
    "unmasked_weight": otherwise(
        "data.mask_floor",
        "import.why.written",
        lambda value, settings: {"data.mask_floor": value} if on(settings, "masked_training") else {},
    ),
    "unmasked_probability": nothing("import.why.masks_detail"),
    "normalize_masked_area_loss": nothing("import.why.masks_detail"),
    "masked_prior_preservation_weight": nothing("import.why.masks_detail"),
    "custom_conditioning_image": nothing("import.why.conditioning"),
    "unet.train": otherwise("", "import.why.network_always", lambda value, settings: {}),
    "transformer.train": otherwise("", "import.why.network_always", lambda value, settings: {}),
    "prior.train": otherwise("", "import.why.network_always", lambda value, settings: {}),
    "unet.learning_rate": same("optimizer.lr"),
    "transformer.learning_rate": same("optimizer.lr"),
    "prior.learning_rate": same("optimizer.lr"),
    "text_encoder.train": otherwise(
        "text_encoder.train",
        "import.why.text_by_default",
        lambda value, settings: (
            {"text_encoder.train": truth(value)} if settings.get("training_method") == "LORA" else {}
        ),
        True,
    ),
    "text_encoder.learning_rate": values.if_text("text_encoder.lr", "text_encoder"),
    "text_encoder_2.train": otherwise(
        "text_encoder.train",
        "import.why.text_rates",
        lambda value, settings: (
            {"text_encoder.train": True} if truth(value) and settings.get("training_method") == "LORA" else {}
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
        lambda value, settings: {"objective.prediction": "v"} if truth(value) else {},
    ),
    "force_epsilon_prediction": otherwise(
        "objective.prediction",
        "import.why.prediction",
        lambda value, settings: {"objective.prediction": "epsilon"} if truth(value) else {},
    ),
    "min_noising_strength": values.level("objective.min_timestep"),
    "max_noising_strength": values.level("objective.max_timestep"),
    "timestep_distribution": otherwise(
        "objective.timesteps objective.logit_mean objective.logit_std", "import.why.timesteps", values.distribution
    ),
    "noising_weight": nothing("import.why.with_other"),
    "noising_bias": nothing("import.why.with_other"),
    "timestep_shift": otherwise("objective.shift", "import.why.timesteps", values.shift),
    "dynamic_timestep_shifting": otherwise("", "import.why.timesteps", lambda value, settings: {}),
    "mse_strength": values.loss("mse"),
    "mae_strength": values.loss("l1"),
    "huber_strength": values.loss("huber"),
    "huber_delta": same("huber_delta"),
    "log_cosh_strength": otherwise(
        "", "import.why.loss", lambda value, settings: {} if not number(value) else no_counterpart()
    ),
    "vb_loss_strength": nothing("import.why.loss"),
    "loss_weight_fn": otherwise("objective.weighting", "import.why.written", values.weighting),
    "loss_weight_strength": nothing("import.why.with_other"),
    "loss_scaler": nothing("import.why.loss"),
    "samples": otherwise("samples.prompt", "import.why.samples", values.pictures),
    "sample_after": values.every("sample_after"),
    "save_every": values.every("save_every"),
    "backup_after": values.every("backup_after"),
    "validate_after": values.every("validate_after"),
    "validation": nothing("import.why.validation_of_set"),
    "rolling_backup_count": kept(),
    "tensorboard": otherwise(
        "trackers", "import.why.trackers", lambda value, settings: {"trackers": "tensorboard"} if truth(value) else {}
    ),
    "embedding.placeholder": otherwise("embedding.tokens", "import.why.if_tokens", values.tokens),
    "embedding.token_count": values.if_embedding("embedding.vectors"),
    "embedding.initial_embedding_text": values.if_embedding("embedding.init"),
    "embedding_learning_rate": same("embedding.lr"),
    "preserve_embedding_norm": same("embedding.keep_norm"),
    "compile": same("compile"),
    "text_encoder_layer_skip": otherwise("text_encoder.clip_skip", "import.why.clip_skip", layer_skip),
    "text_encoder_2_layer_skip": nothing("import.why.clip_skip_second"),
    "unet.weight_dtype": otherwise("storage", "import.why.fp8", values.storage),
    "transformer.weight_dtype": otherwise("storage", "import.why.fp8", values.storage),
    "prior.weight_dtype": otherwise("storage", "import.why.fp8", values.storage),
    "*.weight_dtype": nothing("import.why.memory"),
    "*stop_training_after*": nothing("import.why.stop_after"),
    **each(
        "additional_embeddings* embedding.* embeddings* bundle_additional_embeddings embedding_weight_dtype",
        nothing("import.why.more_embeddings"),
    ),
    **each(
        "oft_* lokr_* lora_weight_dtype lora_decompose_norm_epsilon",
        nothing("import.why.adapter_detail"),
    ),
    **each("sample_* samples_to_tensorboard non_ema_sampling", nothing("import.why.sampling")),
    **each(
        "save_* backup_* rolling_backup validate_after_unit output_dtype output_model_format include_train_config "
        "prevent_overwrites workspace_dir",
        nothing("import.why.files"),
    ),
    "continue_last_backup": nothing("import.why.resume"),
    **each(
        "latent_caching cache_dir clear_cache_before_training only_cache huggingface_cache_dir offline_mode",
        nothing("import.why.cache"),
    ),
    **each(
        "cloud.* secrets* tensorboard_* debug_* concept_file_name __version optimizer_defaults* "
        "custom_learning_rate_scheduler scheduler_params*",
        nothing("import.why.files"),
    ),
    **each(
        "multi_gpu device_indexes gradient_reduce_precision fused_gradient_reduce async_gradient_reduce "
        "async_gradient_reduce_buffer",
        nothing("import.why.accelerate"),
    ),
    "attention_mechanism": nothing("import.why.memory"),
    "dataloader_threads": nothing("import.why.memory"),
    **each(
        "train_device temp_device fallback_train_dtype enable_autocast_cache async_offloading "
        "enable_async_offloading enable_activation_offloading layer_offload_fraction *.offload_fraction "
        "*.activation_offloading *.gradient_checkpointing quantization.* weight_dtype force_circular_padding "
        "layer_filter_regex",
        nothing("import.why.memory"),
    ),
    **each(
        "unet.* prior.* transformer.* unconditional_transformer.* text_encoder*.* text_encoder*_sequence_length "
        "text_encoder_3_layer_skip text_encoder_4_layer_skip vae.* effnet_encoder.* decoder*.*",
        nothing("import.why.parts"),
    ),
}


SET_ROWS: dict[str, Row] = {
    "path": same("folder"),
    "include_subdirectories": flag("recursive", default=False),
    "balancing": otherwise(
        "repeats",
        "import.why.balancing",
        lambda value, settings: (
            {"repeats": max(1, round(number(value)))}
            if settings.get("balancing_strategy", "REPEATS") == "REPEATS"
            else no_counterpart()
        ),
    ),
    "balancing_strategy": nothing("import.why.balancing"),
    "loss_weight": same("loss_weight"),
    "type": otherwise("regularization", "import.why.regular", values.kind),
    "text.prompt_source": otherwise("captions caption_lines", "import.why.lines", values.captions, "sample"),
    "text.prompt_path": nothing("import.why.captions"),
    "text.enable_tag_shuffling": flag("shuffle_tags"),
    "text.keep_tags_count": same("keep_tokens"),
    "text.tag_delimiter": otherwise(
        "", "import.why.understood", lambda value, settings: {} if value == "," else no_counterpart()
    ),
    "text.tag_dropout_enable": otherwise(
        "tag_dropout",
        "import.why.with_other",
        lambda value, settings: (
            {"tag_dropout": settings.get("text.tag_dropout_probability", 0.0)} if truth(value) else {}
        ),
    ),
    "text.tag_dropout_*": nothing("import.why.captions"),
    "text.caps_*": nothing("import.why.captions"),
    "image.enable_random_flip": flag("flip"),
    "image.enable_crop_jitter": otherwise(
        "crop", "import.why.random_crop", lambda value, settings: {"crop": "random" if truth(value) else "centre"}, True
    ),
    "image.enable_resolution_override": otherwise(
        "resolution",
        "import.why.with_other",
        lambda value, settings: (
            {"resolution": side(settings.get("image.resolution_override", 512))} if truth(value) else {}
        ),
    ),
    "image.resolution_override": nothing("import.why.with_other"),
    "image.*": nothing("import.why.augment"),
    **each(
        "name seed enabled image_variations text_variations concept_stats*",
        nothing("import.why.set_detail"),
    ),
}
ALL_ROWS = ROWS


def configuration_of(config: Settings, concepts: Value = None, samples: Value = None) -> Configuration:
    """What a configuration says; `concepts` and `samples`: those of their own files."""
    lists = {"concepts", "samples", "embeddings", "additional_embeddings"}
    settings: dict[str, Value] = flat({key: value for key, value in config.items() if key not in lists})
    if samples or config.get("samples"):
        settings["samples"] = samples or config["samples"]
    if config.get("additional_embeddings"):
        settings["additional_embeddings"] = config["additional_embeddings"]
    listed = concepts if concepts is not None else config.get("concepts")
    entries = tables(listed)
    sets = [(f"concepts[{n}].", flat(one)) for n, one in enumerate(entries) if one.get("enabled", True)]
    return dataclasses.replace(Configuration(settings), sets=sets)
