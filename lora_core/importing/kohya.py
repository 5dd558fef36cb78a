"""kohya's sd-scripts: train_network.py and its kin for SDXL, SD3, Flux and others, textual inversion, by command line, .toml or dataset .toml."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from . import kohya_values as values
from .result import Configuration
from .rows import (
    SCHEDULES,
    Row,
    Settings,
    arguments,
    choice,
    each,
    flag,
    kept,
    lokr_factor,
    name_of,
    nothing,
    otherwise,
    same,
    system_prompt,
    tables,
    truth,
)

TITLE = "kohya's sd-scripts"
SCRIPTS = (
    "train_network.py", "sdxl_train_network.py", "flux_train_network.py", "sd3_train_network.py",
    "lumina_train_network.py", "anima_train_network.py", "hunyuan_image_train_network.py", "train_textual_inversion.py",
    "sdxl_train_textual_inversion.py", "train_db.py", "fine_tune.py", "sdxl_train.py", "flux_train.py", "sd3_train.py",
)  # fmt: skip
FULL = ("train_db.py", "fine_tune.py", "sdxl_train.py", "flux_train.py", "sd3_train.py")

SAMPLERS = {
    "ddim": "ddim", "euler": "euler", "k_euler": "euler", "euler_a": "euler_ancestral", "k_euler_a": "euler_ancestral",
    "dpmsolver++": "dpmpp_2m", "dpmsolver": "dpmpp_2m", "heun": "heun", "dpm_2": "dpm_2", "k_dpm_2": "dpm_2",
    "dpm_2_a": "dpm_2_ancestral", "k_dpm_2_a": "dpm_2_ancestral", "k_lms": "lms", "lms": "lms",
}  # fmt: skip


SHARED_SETS: dict[str, Row] = {
    "resolution": otherwise("resolution", "import.why.area", values.several, 512),
    "enable_bucket": flag("aspect_buckets", default=False),
    "min_bucket_reso": same("min_side_px"),
    "max_bucket_reso": same("max_side_px"),
    "bucket_reso_steps": same("bucket_step_px"),
    "bucket_no_upscale": flag("upscale", default=False, opposite=True),
    "num_repeats": same("repeats"),
    "dataset_repeats": same("repeats"),
    "shuffle_caption": flag("shuffle_tags"),
    "keep_tokens": same("keep_tokens", default=0),
    "keep_tokens_separator": otherwise("", "import.why.understood", values.separator),
    "secondary_separator": otherwise(
        "", "import.why.understood", lambda value, settings: values.separator("" if value == ";;;" else value, settings)
    ),
    "caption_separator": otherwise(
        "", "import.why.understood", lambda value, settings: values.separator("" if value == "," else value, settings)
    ),
    "enable_wildcard": otherwise("wildcards caption_lines", "import.why.lines", values.lines, False),
    "caption_prefix": otherwise("prefix", "import.why.written", lambda value, settings: {"prefix": f"{value} "}),
    "caption_suffix": otherwise("suffix", "import.why.written", lambda value, settings: {"suffix": f" {value}"}),
    "caption_dropout_rate": same("caption_dropout"),
    "caption_tag_dropout_rate": same("tag_dropout"),
    "caption_dropout_every_n_epochs": nothing("import.why.captions"),
    "token_warmup_min": nothing("import.why.captions"),
    "token_warmup_step": nothing("import.why.captions"),
    "color_aug": nothing("import.why.augment"),
    "face_crop_aug_range": nothing("import.why.augment"),
    "flip_aug": flag("flip"),
    "random_crop": otherwise(
        "crop", "import.why.random_crop", lambda value, settings: {"crop": "random" if truth(value) else "centre"}
    ),
    "caption_extension": otherwise("captions", "import.why.extension", values.extension, ".caption"),
    "caption_extention": otherwise("captions", "import.why.extension", values.extension),
    "class_tokens": otherwise("trigger", "import.why.class_tokens"),
    "alpha_mask": otherwise("masks", "import.why.written", values.masked),
    "metadata_file": otherwise("captions", "import.why.written", lambda value, settings: {"captions": "metadata"}),
    "in_json": otherwise("captions", "import.why.written", lambda value, settings: {"captions": "metadata"}),
    "conditioning_data_dir": otherwise("masks", "import.why.loss_masks", lambda value, settings: {"masks": "file"}),
    "is_reg": otherwise("regularization", "import.why.written", values.images),
    "resize_interpolation": nothing("import.why.lanczos"),
    "network_multiplier": nothing("import.why.set_detail"),
    "custom_attributes": nothing("import.why.set_detail"),
    "debug_dataset": nothing("import.why.logging"),
    "validation_split": nothing("import.why.validation_of_set"),
    "validation_seed": nothing("import.why.validation_of_set"),
    "batch_size": nothing("import.why.one_batch"),
    "cache_info": nothing("import.why.cache"),
    "skip_image_resolution": nothing("import.why.set_detail"),
    "dataset_class": nothing("import.why.set_detail"),
}
SET_ROWS: dict[str, Row] = {"image_dir": same("folder"), "train_data_dir": same("folder"), **SHARED_SETS}

ROWS: dict[str, Row] = {
    "output_name": otherwise("name", "import.why.name", lambda value, settings: {"name": name_of(value)}),
    "script": nothing("import.why.adapters_only"),
    "pretrained_model_name_or_path": otherwise("base", "import.why.base"),
    "vae": otherwise("base_vae", "import.why.vae"),
    "network_module": otherwise("adapter.algorithm", "import.why.lycoris", values.module),
    "network_dim": same("adapter.rank", default=4),
    "network_alpha": same("adapter.alpha", default=1),
    "network_args.algo": otherwise("adapter.algorithm", "import.why.lycoris", values.algorithm),
    "network_args.dora_wd": otherwise("adapter.algorithm", "import.why.lycoris", values.dora),
    "network_args.weight_decompose": otherwise("adapter.algorithm", "import.why.lycoris", values.dora),
    "network_args.preset": otherwise(
        "adapter.targets",
        "import.why.layers",
        lambda value, settings: {
            "adapter.targets": {"attn-only": "attention", "unet-transformer-only": "linear"}.get(str(value), "conv")
        },
    ),
    "network_args.conv_dim": otherwise(
        "adapter.conv_rank adapter.targets", "import.why.convolutions", values.convolutions
    ),
    "network_args.conv_alpha": same("adapter.conv_alpha"),
    "network_args.factor": lokr_factor(),
    "network_args.constraint": same("adapter.oft_constraint"),
    "network_args.dropout": same("adapter.dropout"),
    "network_args.loraplus_lr_ratio": same("optimizer.lora_plus_ratio"),
    "network_args.loraplus_unet_lr_ratio": same("optimizer.lora_plus_ratio"),
    "network_args.exclude_patterns": otherwise("adapter.exclude", "import.why.layer_names"),
    "network_args.include_patterns": otherwise("adapter.include", "import.why.layer_names"),
    **each(
        "network_args.rank_dropout network_args.module_dropout network_args.use_tucker network_args.use_cp "
        "network_args.use_scalar network_args.rs_lora network_args.train_norm network_args.bypass_mode "
        "network_args.decompose_both network_args.rescaled network_args.block_* network_args.conv_block_* "
        "network_args.*_lr_weight network_args.train_* network_args.in_dims network_args.*_dim "
        "network_args.split_qkv network_args.full_matrix network_args.verbose network_args.*_lr_ratio "
        "network_args.network_reg_* network_args.ggpo_* network_args.unit network_args.train_llm_adapter",
        otherwise("", "import.why.adapter_detail", values.unless_false),
    ),
    "network_dropout": same("adapter.dropout"),
    "network_weights": otherwise("adapter.start_from", "import.why.start"),
    "dim_from_weights": nothing("import.why.ranks_kept"),
    "scale_weight_norms": same("adapter.max_norm"),
    "network_train_unet_only": otherwise(
        "text_encoder.train", "import.why.text_by_default", values.text_encoders, False
    ),
    "network_train_text_encoder_only": nothing("import.why.text_alone"),
    "learning_rate": otherwise("optimizer.lr", "import.why.own_rate", values.rate, 2e-6),
    "unet_lr": same("optimizer.lr"),
    "text_encoder_lr": otherwise("text_encoder.lr", "import.why.text_rates", values.text_rate),
    "optimizer_type": otherwise("optimizer", "import.why.library", values.optimizer),
    "optimizer_args.betas": otherwise("optimizer.beta1 optimizer.beta2", "import.why.written", values.betas),
    "optimizer_args.weight_decay": same("optimizer.weight_decay"),
    "optimizer_args.eps": same("optimizer.eps"),
    "optimizer_args.d_coef": same("optimizer.prodigy_d_coef"),
    "optimizer_args.beta3": otherwise(
        "optimizer.prodigy_beta3",
        "import.why.off",
        lambda value, settings: {} if str(value) == "None" else {"optimizer.prodigy_beta3": value},
    ),
    "optimizer_args.decouple": flag("optimizer.prodigy_decouple"),
    "optimizer_args.use_bias_correction": flag("optimizer.prodigy_use_bias_correction"),
    "optimizer_args.safeguard_warmup": flag("optimizer.prodigy_safeguard_warmup"),
    "optimizer_args.*": otherwise("", "import.why.optimizer", values.unless_false),
    "use_8bit_adam": otherwise(
        "optimizer.name",
        "import.why.written",
        lambda value, settings: {"optimizer.name": "adamw8bit"} if truth(value) else {},
    ),
    "use_lion_optimizer": otherwise(
        "optimizer.name",
        "import.why.written",
        lambda value, settings: {"optimizer.name": "lion"} if truth(value) else {},
    ),
    "max_grad_norm": same("optimizer.max_grad_norm"),
    "lr_scheduler": choice("schedule.name", SCHEDULES, why="import.why.schedule"),
    "lr_warmup_steps": otherwise("schedule.warmup_steps", "import.why.warmup", values.warmup),
    "lr_scheduler_num_cycles": same("schedule.cycles"),
    "lr_scheduler_power": same("schedule.power"),
    "lr_scheduler_type": nothing("import.why.schedule_detail"),
    "lr_scheduler_args": nothing("import.why.schedule_detail"),
    "lr_scheduler_min_lr_ratio": nothing("import.why.schedule_detail"),
    "lr_scheduler_timescale": nothing("import.why.schedule_detail"),
    "lr_decay_steps": nothing("import.why.schedule_detail"),
    "max_train_steps": otherwise("steps", "import.why.length", values.steps, 1600),
    "max_train_epochs": same("epochs"),
    "train_batch_size": same("batch_size", default=1),
    "batch_size": same("batch_size"),
    "gradient_accumulation_steps": same("grad_accum"),
    "gradient_checkpointing": same("checkpointing"),
    "cpu_offload_checkpointing": nothing("import.why.memory"),
    "unsloth_offload_checkpointing": nothing("import.why.memory"),
    "mixed_precision": choice("precision", {"no": "auto", "fp16": "fp16", "bf16": "bf16"}),
    "full_fp16": nothing("import.why.adapters_fp32"),
    "full_bf16": nothing("import.why.adapters_fp32"),
    "fp16_master_weights_and_gradients": nothing("import.why.adapters_fp32"),
    "fp8_base": otherwise(
        "storage", "import.why.fp8", lambda value, settings: {"storage": "fp8"} if truth(value) else {}
    ),
    "fp8_base_unet": otherwise(
        "storage", "import.why.fp8", lambda value, settings: {"storage": "fp8"} if truth(value) else {}
    ),
    "fp8_scaled": nothing("import.why.memory"),
    "fp8_vl": nothing("import.why.memory"),
    "blocks_to_swap": nothing("import.why.offload"),
    "seed": same("seed"),
    "noise_offset": same("objective.noise_offset"),
    "noise_offset_random_strength": nothing("import.why.noise"),
    "adaptive_noise_scale": nothing("import.why.noise"),
    "multires_noise_iterations": same("objective.multires_iterations"),
    "multires_noise_discount": same("objective.multires_discount"),
    "ip_noise_gamma": same("objective.input_perturbation"),
    "ip_noise_gamma_random_strength": nothing("import.why.noise"),
    "min_snr_gamma": otherwise("objective.weighting objective.min_snr_gamma", "import.why.written", values.weighting),
    "debiased_estimation_loss": otherwise(
        "objective.weighting",
        "import.why.written",
        lambda value, settings: {"objective.weighting": "debiased"} if truth(value) else {},
    ),
    "scale_v_pred_loss_like_noise_pred": nothing("import.why.loss"),
    "v_pred_like_loss": nothing("import.why.loss"),
    "loss_type": choice("loss", {"l2": "mse", "l1": "l1", "huber": "huber", "smooth_l1": "smooth_l1"}),
    "huber_schedule": same("huber_schedule"),
    "huber_c": same("huber_delta"),
    "huber_scale": nothing("import.why.loss"),
    "min_timestep": same("objective.min_timestep"),
    "max_timestep": same("objective.max_timestep"),
    "zero_terminal_snr": same("objective.zero_terminal_snr"),
    "v_parameterization": otherwise(
        "objective.prediction",
        "import.why.prediction",
        lambda value, settings: {"objective.prediction": "v"} if truth(value) else {},
    ),
    "v2": nothing("import.why.base_tells"),
    "model_type": nothing("import.why.base_tells"),
    "timestep_sampling": otherwise("objective.timesteps objective.shift", "import.why.timesteps", values.noise_levels),
    "sigmoid_scale": otherwise(
        "objective.logit_std", "import.why.timesteps", lambda value, settings: {"objective.logit_std": value}
    ),
    "discrete_flow_shift": otherwise(
        "objective.shift",
        "import.why.timesteps",
        lambda value, settings: {"objective.shift": value} if settings.get("timestep_sampling") == "shift" else {},
    ),
    "training_shift": same("objective.shift"),
    "weighting_scheme": otherwise("objective.timesteps", "import.why.timesteps", values.scheme),
    "logit_mean": same("objective.logit_mean"),
    "logit_std": same("objective.logit_std"),
    "mode_scale": nothing("import.why.noise"),
    "model_prediction_type": otherwise("", "import.why.base_tells", lambda value, settings: {}),
    "guidance_scale": nothing("import.why.guidance"),
    "prior_loss_weight": same("prior.weight"),
    "save_every_n_steps": same("save.every"),
    "save_every_n_epochs": nothing("import.why.every_epochs"),
    "save_n_epoch_ratio": nothing("import.why.every_epochs"),
    "save_last_n_steps": nothing("import.why.keep"),
    "save_last_n_epochs": kept(),
    "sample_every_n_steps": same("samples.every"),
    "sample_every_n_epochs": nothing("import.why.every_epochs"),
    "sample_at_first": nothing("import.why.sample_first"),
    "sample_prompts": otherwise("samples.prompt", "import.why.samples"),
    "sample_sampler": choice("samples.sampler", SAMPLERS),
    "sample_batch_size": nothing("import.why.memory"),
    "validate_every_n_steps": same("validation.every"),
    "validate_every_n_epochs": nothing("import.why.every_epochs"),
    "max_validation_steps": same("validation.pictures"),
    "log_with": otherwise(
        "trackers",
        "import.why.trackers",
        lambda value, settings: {"trackers": {"all": "tensorboard, wandb"}.get(str(value), str(value))},
    ),
    "initial_epoch": nothing("import.why.resume"),
    "initial_step": nothing("import.why.resume"),
    "skip_until_initial_step": nothing("import.why.resume"),
    "resume": nothing("import.why.resume"),
    "token_string": otherwise(
        "embedding.tokens method",
        "import.why.tokens",
        lambda value, settings: {"embedding.tokens": str(value), "method": "embedding"},
    ),
    "init_word": same("embedding.init"),
    "num_vectors_per_token": same("embedding.vectors"),
    "weights": otherwise("", "import.why.start_embedding", lambda value, settings: {}),
    "use_object_template": nothing("import.why.templates"),
    "use_style_template": nothing("import.why.templates"),
    "torch_compile": same("compile"),
    "clip_skip": otherwise("text_encoder.clip_skip", "import.why.clip_skip"),
    "max_token_length": nothing("import.why.token_length"),
    "weighted_captions": nothing("import.why.weighted"),
    "masked_loss": nothing("import.why.loss_masks"),
    "train_text_encoder": nothing("import.why.text_by_default"),
    "max_data_loader_n_workers": nothing("import.why.memory"),
    "persistent_data_loader_workers": nothing("import.why.memory"),
    "accelerate.mixed_precision": choice("precision", {"no": "auto", "fp16": "fp16", "bf16": "bf16"}),
    "accelerate.*": nothing("import.why.accelerate"),
    **each(
        "output_dir save_precision save_model_as use_safetensors no_metadata training_comment output_config "
        "config_file no_safe_serialization metadata_* dataset_config",
        nothing("import.why.files"),
    ),
    **each(
        "save_state save_state_on_train_end save_last_n_steps_state save_last_n_epochs_state",
        nothing("import.why.saved"),
    ),
    **each(
        "huggingface_* save_state_to_huggingface resume_from_huggingface async_upload",
        nothing("import.why.hub"),
    ),
    **each(
        "logging_dir log_prefix log_tracker_name log_tracker_config wandb_* log_config console_*",
        nothing("import.why.logging"),
    ),
    **each(
        "xformers sdpa mem_eff_attn split_attn attn_mode use_flash_attn use_sage_attn split_mode apply_*_mask "
        "diffusers_xformers",
        nothing("import.why.memory"),
    ),
    **each(
        "cache_latents cache_latents_to_disk cache_text_encoder_outputs cache_text_encoder_outputs_to_disk "
        "skip_cache_check tokenizer_cache_dir text_encoder_batch_size vae_batch_size",
        nothing("import.why.cache"),
    ),
    **each(
        "lowram highvram no_half_vae vae_chunk_size vae_disable_cache text_encoder_cpu fused_backward_pass "
        "disable_mmap_load_safetensors dynamo_backend t5xxl_device t5xxl_dtype fused_optimizer_groups",
        nothing("import.why.memory"),
    ),
    **each("deepspeed zero* offload_* ddp_*", nothing("import.why.accelerate")),
    "system_prompt": otherwise("data.prefix", "import.why.system_prompt", system_prompt),
    **each(
        "ae clip_l clip_g t5xxl gemma2 qwen3 byt5 text_encoder t5_tokenizer_path llm_adapter_path "
        "controlnet_model_name_or_path",
        nothing("import.why.parts"),
    ),
    **each(
        "t5xxl_max_token_length gemma2_max_token_length qwen3_max_token_length t5_max_token_length "
        "clip_l_dropout_rate clip_g_dropout_rate t5_dropout_rate",
        nothing("import.why.token_length"),
    ),
    **each(
        "self_attn_lr cross_attn_lr mlp_lr mod_lr llm_adapter_lr",
        nothing("import.why.layer_rates"),
    ),
    **each(
        "pos_emb_random_crop_rate enable_scaled_pos_embed base_weights base_weights_multiplier debug_dataset",
        nothing("import.why.set_detail"),
    ),
}
ALL_ROWS = ROWS


def configuration_of(settings: Settings, datasets: Settings | None, script: str) -> Configuration:
    """What a command or a config says; `datasets`: the dataset config that goes with it."""
    plain = {key: value for key, value in settings.items() if key not in SET_ROWS or key in ROWS}
    shared = {key: value for key, value in settings.items() if key in SET_ROWS and key not in ROWS}
    regular = plain.pop("reg_data_dir", None)
    for key in ("network_args", "optimizer_args"):
        if plain.get(key) is not None:
            plain |= {f"{key}.{name}": word for name, word in arguments(plain.pop(key)).items()}
    if script in FULL:
        plain["script"] = script
    sets: list[tuple[str, Settings]] = []
    if datasets is not None:
        sets = sets_of(datasets)
        first = next((one for one in tables(datasets.get("datasets")) if "batch_size" in one), datasets.get("general"))
        if isinstance(first, Mapping) and "batch_size" in first:
            plain["batch_size"] = first["batch_size"]
        plain |= {key: value for key, value in shared.items() if key in ("train_data_dir",)}
    elif shared:
        sets = [("", shared)]
    if regular is not None:
        common = {key: value for key, value in shared.items() if key != "train_data_dir"}
        sets.append(("reg_data_dir: ", {**common, "image_dir": regular, "is_reg": True}))
    return Configuration(plain, sets, {"timestep_sampling": "sigma"} if script == "flux_train_network.py" else {})


def sets_of(datasets: Settings) -> list[tuple[str, Settings]]:
    """The folders of a dataset config: general settings, those of the dataset, and those of the subset over each other."""
    general = datasets.get("general")
    common = dict(general) if isinstance(general, Mapping) else {}
    out: list[tuple[str, Settings]] = []
    for n, dataset in enumerate(tables(datasets.get("datasets"))):
        shared = {key: value for key, value in dataset.items() if key != "subsets"}
        if n == 0:  # that of the first one is the job's
            shared.pop("batch_size", None)
        common.pop("batch_size", None)
        for m, subset in enumerate(tables(dataset.get("subsets")) or [{}]):
            out.append((f"datasets[{n}].subsets[{m}].", {**common, **shared, **subset}))
    return out


def with_prompts(configuration: Configuration, text: str | None) -> Configuration:
    """With the prompts of the file that `sample_prompts` names, where it was read."""
    if text is None:
        return configuration
    return dataclasses.replace(configuration, settings={**configuration.settings, "sample_prompts": text})
