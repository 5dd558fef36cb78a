"""SimpleTuner: its config as JSON, TOML or env, with the list of its data backends."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .result import Configuration
from .rows import (
    LYCORIS,
    SCHEDULES,
    Paths,
    Row,
    Settings,
    Unmapped,
    Value,
    as_list,
    choice,
    clip_length,
    each,
    first_frames,
    flag,
    flat,
    kept,
    lokr_factor,
    meaning,
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
from .texts import options

TITLE = "SimpleTuner"
OPTIMIZERS = {
    "adamw_bf16": "adamw", "ao-adamw8bit": "adamw8bit", "ao-adamw4bit": "adamw8bit", "bnb-adamw8bit": "adamw8bit",
    "bnb-adamw": "adamw", "adamw": "adamw", "torch-adamw": "adamw", "optimi-adamw": "adamw",
    "optimi-stableadamw": "adamw", "optimi-lion": "lion", "bnb-lion8bit": "lion", "bnb-lion": "lion",
    "prodigy": "prodigy", "adamw_schedulefree": "schedule_free", "adamw_schedulefree+no_kahan": "schedule_free",
    "adafactor": "adafactor", "muon": "muon",
}  # fmt: skip
UNET_LAYERS = (  # that its sliders change: its own attention, and what leads in and out
    "attn1.to_q attn1.to_k attn1.to_v attn1.to_out.0 attn1.to_qkv to_qkv proj_in proj_out conv_in conv_out "
    "time_embedding.linear_1 time_embedding.linear_2"
)
SLIDER_LAYERS = {  # models of which it changes others -> those; without the projections of the text
    "auraflow boogu_image chroma ernie flux hidream sd3 wan z_image": "to_q to_k to_v to_out.0 to_qkv",
    "flux2": "attn.to_q attn.to_k attn.to_v attn.to_out.0 attn.to_qkv_mlp_proj",
    "kandinsky5-image kandinsky5-video": (
        "attn1.to_query attn1.to_key attn1.to_value conv_in conv_out time_embedding.linear_1 time_embedding.linear_2"
    ),
}
VARIABLES = {  # of its env files, where they are called otherwise than the setting
    "model_name": "pretrained_model_name_or_path", "dataloader_config": "data_backend_config", "training_seed": "seed",
    "max_num_steps": "max_train_steps", "num_epochs": "num_train_epochs",
    "checkpointing_steps": "checkpoint_step_interval", "checkpointing_limit": "checkpoints_total_limit",
    "lr_schedule": "lr_scheduler", "use_gradient_checkpointing": "gradient_checkpointing",
    "resume_checkpoint": "resume_from_checkpoint", "hub_model_name": "hub_model_id",
    "push_checkpoints": "push_checkpoints_to_hub", "minimum_resolution": "minimum_image_size",
    "training_num_processes": "num_processes", "training_num_machines": "num_machines",
    "training_dynamo_backend": "dynamo_backend", "trainer_dynamo_backend": "dynamo_backend",
    "use_xformers": "attention_mechanism",
}  # fmt: skip
EXTRA = ("trainer_extra_args", "debug_extra_args")  # variables that hold options as a command line has them
BACKENDS = ("image", "video", "")  # dataset types that hold what is trained
REFERENCES = ("reference_strict", "reference_loose")  # kinds of conditioning that an edit model is shown


def of_variables(variables: Mapping[str, str]) -> dict[str, Value]:
    """The settings of an env file."""
    out: dict[str, Value] = {}
    for name, value in variables.items():
        key = name.lower()
        if key in EXTRA:
            out |= options(value.split())
        else:
            out[VARIABLES.get(key, key)] = value
    return out


def model(value: Value, settings: Settings) -> Paths:
    if str(value) != "lora":
        raise Unmapped("import.why.adapters_only")
    return {"method": "lora"}


def kind(value: Value, settings: Settings) -> Paths:
    """lycoris has a file of its own, in which its kind stands."""
    names = {"standard": "lora", "lycoris": "lokr"}
    return {"adapter.algorithm": meaning(names, str(value))}


def algorithm(value: Value, settings: Settings) -> Paths:
    return {"adapter.algorithm": meaning(LYCORIS, str(value))}


def full_rank(value: Value, settings: Settings) -> Paths:
    """A dimension above every layer's sides means full matrices."""
    return {"adapter.rank": min(1024, whole(value))}


def epochs(value: Value, settings: Settings) -> Paths:
    count = whole(value)
    return (
        {"epochs": count}
        if count and not (settings.get("max_train_steps") and whole(settings["max_train_steps"]))
        else {}
    )


def steps(value: Value, settings: Settings) -> Paths:
    return {"steps": whole(value)} if whole(value) else {}


def warmup(value: Value, settings: Settings) -> Paths:
    plain = str(settings.get("lr_scheduler", "")) == "constant"
    return {} if plain else {"schedule.warmup_steps": whole(value)}


def average(value: Value, settings: Settings) -> Paths:
    return {"ema_decay": number(settings.get("ema_decay", 0.995))} if truth(value) else {}


def precision(value: Value, settings: Settings) -> Paths:
    """Bases held in 8 or 4 bits."""
    word = str(value)
    if word == "no_change":
        return {}
    if not any(part in word for part in ("8", "4", "2")):
        raise Unmapped("import.why.value")
    return {"storage": "fp8"}


def size(value: Value, settings: Settings) -> Paths:
    """1024x1024; the first of several."""
    first = str(value).split(",")[0].lower()
    parts = [part for part in first.split("x") if part]
    if not parts:
        return no_counterpart()
    return {"samples.width_px": whole(parts[0]), "samples.height_px": whole(parts[-1])}


def resolution(path: str) -> Row:
    """In px, or in millions of them."""

    def convert(value: Value, settings: Settings) -> Paths:
        figure = number(value)
        if figure <= 0:
            return no_counterpart()
        area = str(settings.get("resolution_type", "")) == "area" or figure < 16
        return {path: round((figure * 1_000_000) ** 0.5) if area else side(value)}

    return otherwise(path, "import.why.area", convert)


def gamma(value: Value, settings: Settings) -> Paths:
    return {"objective.weighting": "min_snr", "objective.min_snr_gamma": number(value)} if number(value) else {}


def trackers(value: Value, settings: Settings) -> Paths:
    names = {"all": "tensorboard, wandb", "none": ""}
    return {"trackers": names.get(str(value), str(value))}


def slider_layers(value: Value, settings: Settings) -> Paths:
    """The layers of the picture's own attention, and what leads into and out of a UNet."""
    if not truth(value) or str(settings.get("lora_type", "standard")) != "standard":
        return {}
    family = str(settings.get("model_family", "")).lower()
    names = next((layers for families, layers in SLIDER_LAYERS.items() if family in families.split()), UNET_LAYERS)
    return {"adapter.targets": "regex", "adapter.include": rf"(^|\.)({'|'.join(map(re.escape, names.split()))})$"}


IGNORED: Mapping[str, str] = {  # why -> settings
    "import.why.base_tells": (
        "model_family model_flavour flux_lora_target prediction_type flow_schedule_auto_shift ideogram_* hidream_* "
        "cosmos3_* krea2_* flux_*"
    ),
    "import.why.memory": (
        "quantize_* quantization_config ramtorch* musubi_* offload_* enable_group_offload group_offload_* sdnq_* "
        "fuse_qkv_projections gradient_checkpointing_* vae_* text_encoder_batch_size text_cache_* text_embed_* "
        "delete_model_after_load vae_batch_size ema_device ema_cpu_only ema_foreach_disable dynamo_* "
        "gradient_precision base_model_default_dtype text_encoder_*_precision trust_remote_code "
        "enable_chunked_feed_forward feed_forward_* custom_text_encoder_intermediary_layers use_fsdp fsdp_* "
        "disable_accelerator i_know_what_i_am_doing compile_* fused_* num_layers num_single_layers layers_per_block "
        "attention_mechanism use_flash_attn sla_*"
    ),
    "import.why.hub": "push_* hub_* publishing_config modelspec_comment model_card_*",
    "import.why.logging": (
        "tracker_* num_machines webhook_* logging_dir disable_benchmark log_level print_* debug_* num_processes "
        "TRAINING_* post_*_script"
    ),
    "import.why.files": (
        "output_dir_* lora_format save_* delete_invalid_checkpoints disk_low_* delete_unwanted_images "
        "config_backend user_prompt_library"
    ),
    "import.why.resume": (
        "resume_from_checkpoint init_lora_step init_lora_ema override_dataset_config strict_epoch_limit "
        "ignore_final_epochs"
    ),
    "import.why.cache": (
        "compress_disk_cache skip_file_discovery preserve_data_backend_cache cache_* write_batch_size "
        "read_batch_size data_backend_config torch_num_threads max_workers aws_* dataloader_* "
        "image_processing_batch_size metadata_update_interval"
    ),
    "import.why.accelerate": "context_parallel_* find_unused_parameters accelerator_cache_clear_interval",
    "import.why.sampling": (
        "validation_* num_eval_images num_validation_images eval_* evaluation_type fuse_guidance_scale ema_validation"
    ),
    "import.why.train_detail": (
        "loss_weight sft_loss_weight distillation_* meanflow_* crepa_* urepa_* irepa_* tread_config "
        "scheduled_sampling_* diff2flow_* mixflow_* internal_guidance_* xm_* nextlat_* layersync_* flow_* "
        "use_soft_min_snr grad_clip_method rescale_betas_zero_snr soft_min_snr_* masked_loss_probability snr_weight "
        "timestep_bias_* offset_noise noise_offset_* input_perturbation_steps central_difference_* anyflow stage "
        "consistency_ratio diffusion_* gate_value deltatime_type routes start_layer_idx end_layer_idx "
        "selection_ratio balance twinflow_* real_score_guidance_scale cotrain_forward train_time_embedder "
        "train_delta_embedder use_shared_modules schedule_shift hidream_use_* layer_freeze_strategy "
        "unet_attention_slice refiner_training* loss_weight_type ema_warmup_steps overlap spatial_region "
        "temporal_boundary acestep_* lora_initialisation_style init_lokr_norm"
    ),
    "import.why.optimizer": "optimizer_* prodigy_steps adam_bfloat16 lr_scale* adam_* optimizer_cpu_offload_method",
    "import.why.adapters_only": "controlnet* control peft_lora_mode singlora_* lora_init_type",
    "import.why.conditioning": "*_video_* video_weight audio_* minimax_* heartmula_* conditioning_multidataset_sampling wan_* ltx*",
    "import.why.parts": (
        "pretrained_transformer_* pretrained_unet_* pretrained_t5_* pretrained_gemma_* qwen_text_* "
        "pretrained_controlnet_* revision variant tokenizer_max_length"
    ),
    "import.why.set_detail": (
        "aspect_bucket_* disable_bucket_pruning allow_dataset_oversubscription delete_problematic_images "
        "delete_nsfw_images enable_nsfw_check nsfw_* minimum_image_size resolution_type caption_strategy "
        "instance_prompt sampler_* data_backend_sampling max_grounding_entities train_*_component snr_* type "
        "probability"
    ),
}

ROWS: dict[str, Row] = {
    "output_dir": otherwise("name", "import.why.name", lambda value, settings: {"name": name_of(value)}),
    "model_type": otherwise("method", "import.why.method", model),
    "pretrained_model_name_or_path": otherwise("base", "import.why.base"),
    "pretrained_vae_model_name_or_path": otherwise("base_vae", "import.why.vae"),
    "vae_path": otherwise("base_vae", "import.why.vae"),
    "lora_type": otherwise("adapter.algorithm", "import.why.lycoris_file", kind),
    "lora_rank": same("adapter.rank", default=16),
    "lora_alpha": same("adapter.alpha", default=16),
    "lora_dropout": same("adapter.dropout"),
    "use_dora": otherwise(
        "adapter.algorithm",
        "import.why.written",
        lambda value, settings: {"adapter.algorithm": "dora"} if truth(value) else {},
    ),
    "slider_lora_target": otherwise("adapter.targets adapter.include", "import.why.layer_names", slider_layers),
    "init_lora": otherwise("adapter.start_from", "import.why.start"),
    "lycoris_config": nothing("import.why.lycoris_file"),
    "lycoris.algo": otherwise("adapter.algorithm", "import.why.lycoris", algorithm),
    "lycoris.linear_dim": otherwise("adapter.rank", "import.why.lokr_full", full_rank),
    "lycoris.linear_alpha": otherwise(
        "adapter.alpha", "import.why.lokr_full", lambda value, settings: {"adapter.alpha": min(1024, number(value))}
    ),
    "lycoris.factor": lokr_factor(),
    "lycoris.*": nothing("import.why.adapter_detail"),
    "train_text_encoder": same("text_encoder.train"),
    "text_encoder_lr": otherwise(
        "text_encoder.lr",
        "import.why.if_trained",
        lambda value, settings: {"text_encoder.lr": number(value)} if on(settings, "train_text_encoder") else {},
    ),
    "optimizer": choice("optimizer.name", OPTIMIZERS, why="import.why.adapters_fp32"),
    "learning_rate": same("optimizer.lr"),
    "adam_beta1": same("optimizer.beta1"),
    "optimizer_beta1": same("optimizer.beta1"),
    "adam_beta2": same("optimizer.beta2"),
    "optimizer_beta2": same("optimizer.beta2"),
    "adam_weight_decay": same("optimizer.weight_decay"),
    "adam_epsilon": same("optimizer.eps"),
    "max_grad_norm": otherwise("optimizer.max_grad_norm", "import.why.written"),
    "lr_scheduler": choice("schedule.name", SCHEDULES, why="import.why.schedule"),
    "lr_warmup_steps": otherwise("schedule.warmup_steps", "import.why.warmup", warmup),
    "lr_num_cycles": same("schedule.cycles"),
    "lr_power": same("schedule.power"),
    "lr_end": nothing("import.why.schedule_detail"),
    "max_train_steps": otherwise("steps", "import.why.length", steps),
    "num_train_epochs": otherwise("epochs", "import.why.length", epochs),
    "train_batch_size": same("batch_size", default=4),
    "gradient_accumulation_steps": same("grad_accum"),
    "gradient_checkpointing": same("checkpointing"),
    "mixed_precision": choice("precision", {"no": "fp32", "bf16": "bf16", "fp16": "fp16", "fp8": "bf16"}),
    "base_model_precision": otherwise("storage", "import.why.fp8", precision),
    "seed": same("seed"),
    "use_ema": otherwise("ema_decay", "import.why.written", average),
    "ema_decay": nothing("import.why.with_other"),
    "ema_update_interval": nothing("import.why.with_other"),
    "snr_gamma": otherwise("objective.weighting objective.min_snr_gamma", "import.why.written", gamma),
    "noise_offset": same("objective.noise_offset"),
    "input_perturbation": same("objective.input_perturbation"),
    "rescale_betas_zero_snr": same("objective.zero_terminal_snr"),
    "loss_type": choice("loss", {"l2": "mse", "huber": "huber", "smooth_l1": "smooth_l1"}),
    "huber_c": same("huber_delta"),
    "huber_schedule": same("huber_schedule"),
    "flow_schedule_shift": otherwise(
        "objective.shift", "import.why.timesteps", lambda value, settings: {"objective.shift": number(value)}
    ),
    "flow_sigmoid_scale": otherwise(
        "objective.logit_std", "import.why.timesteps", lambda value, settings: {"objective.logit_std": number(value)}
    ),
    "flow_use_uniform_schedule": otherwise(
        "objective.timesteps",
        "import.why.timesteps",
        lambda value, settings: {"objective.timesteps": "uniform"} if truth(value) else {},
    ),
    "framerate": otherwise("data.frame_rate", "import.why.films"),
    "resolution": resolution("data.resolution"),
    "scaling": otherwise("data.upscale", "import.why.scaled_up", lambda value, settings: {"data.upscale": True}, "up"),
    "caption_dropout_probability": same("data.caption_dropout"),
    "checkpoint_step_interval": same("save.every"),
    "checkpointing_steps": same("save.every"),
    "checkpoint_epoch_interval": nothing("import.why.every_epochs"),
    "checkpoints_total_limit": kept(),
    "validation_prompt": otherwise(
        "samples.prompt", "import.why.one_picture", lambda value, settings: {"samples.prompt": str(value)}
    ),
    "validation_negative_prompt": same("samples.negative"),
    "validation_steps": same("samples.every"),
    "validation_step_interval": same("samples.every"),
    "validation_num_inference_steps": same("samples.steps"),
    "validation_guidance": same("samples.cfg"),
    "validation_seed": same("samples.seed"),
    "validation_resolution": otherwise("samples.width_px samples.height_px", "import.why.one_picture", size),
    "eval_steps_interval": same("validation.every"),
    "report_to": otherwise("trackers", "import.why.trackers", trackers),
    **{name: nothing(why) for why, names in IGNORED.items() for name in names.split()},
}


def captions(value: Value, settings: Settings) -> Paths:
    names: Mapping[str, Paths] = {
        "textfile": {"captions": ".txt"},
        "filename": {"captions": "file name"},
        "instanceprompt": {"captions": "none"},
        "parquet": {"captions": "metadata"},
        "csv": {"captions": "metadata"},
        "huggingface": {},
    }
    return meaning(names, str(value))


def prompt(value: Value, settings: Settings) -> Paths:
    """The one caption of all pictures, or words in front of each."""
    if on(settings, "only_instance_prompt") or settings.get("caption_strategy") == "instanceprompt":
        return {"trigger": str(value), "captions": "none"}
    return {"prefix": f"{value} "} if on(settings, "prepend_instance_prompt") else {}


def repeats(value: Value, settings: Settings) -> Paths:
    """Here repeats are further ones: 0 shows a picture once."""
    return {"repeats": whole(value) + 1}


def crop(value: Value, settings: Settings) -> Paths:
    names = {"center": "centre", "centre": "centre", "random": "random"}
    if not on(settings, "crop"):
        return {}
    return {"crop": meaning(names, str(value))}


class Folders(tuple[str, ...]):
    """Where the pictures of data backends lie that are named by another one."""


def references(value: Value, settings: Settings) -> Paths:
    """The folders of control pictures, which `configuration_of` has put in the place of the data backends they are in."""
    if not isinstance(value, Folders):
        raise Unmapped("import.why.conditioning")
    return {"control_path": "\n".join(value)}


def strength(value: Value, settings: Settings) -> Paths:
    """Of the LoRA while a set is trained on, which is always 1 here."""
    raise Unmapped("import.why.off" if number(value) == 1 else "import.why.slider_sets")


SET_ROWS: dict[str, Row] = {
    "instance_data_dir": same("folder"),
    "dataset_name": otherwise("folder", "import.why.written", lambda value, settings: {"folder": f"hf:{value}"}),
    "huggingface.split": same("split"),
    "split": same("split"),
    "caption_column": same("caption_column"),
    "image_column": otherwise(
        "image_column",
        "import.why.written",
        lambda value, settings: {"image_column": str(value)} if settings.get("dataset_name") else {},
    ),
    "caption_strategy": otherwise("captions", "import.why.written", captions),
    "instance_prompt": otherwise("trigger captions prefix", "import.why.instance", prompt),
    "prepend_instance_prompt": nothing("import.why.with_other"),
    "only_instance_prompt": nothing("import.why.with_other"),
    "resolution": resolution("resolution"),
    "repeats": otherwise("repeats", "import.why.further_repeats", repeats),
    "crop": otherwise("crop", "import.why.buckets_crop", lambda value, settings: {}),
    "crop_style": otherwise("crop", "import.why.buckets_crop", crop),
    "crop_aspect": otherwise(
        "aspect_buckets",
        "import.why.squares",
        lambda value, settings: {"aspect_buckets": not (on(settings, "crop") and value == "square")},
    ),
    "conditioning_data": otherwise("control_path", "import.why.control", references),
    "video.num_frames": otherwise("frames", "import.why.films", clip_length),
    "video.is_i2v": otherwise("first_frame", "import.why.first_frame", first_frames),
    **each("video video.*", nothing("import.why.films")),
    "max_num_samples": same("limit"),
    "slider_strength": otherwise("", "import.why.slider_sets", strength),
    "is_regularisation_data": flag("regularization"),
    "is_regularization_data": flag("regularization"),
    "probability": otherwise(
        "loss_weight", "import.why.probability", lambda value, settings: {} if number(value) == 1 else no_counterpart()
    ),
    **each(
        "conditioning conditioning.* audio.* conditioning_type conditioning_* audio captions",
        nothing("import.why.conditioning"),
    ),
    **each(
        "cache_* vae_cache_* text_embeds image_embeds skip_file_discovery preserve_data_backend_cache "
        "hash_filenames metadata_backend parquet* huggingface* csv*",
        nothing("import.why.cache"),
    ),
    **each(
        "id type dataset_type disabled minimum_image_size maximum_image_size minimum_aspect_ratio "
        "maximum_aspect_ratio target_downsample_size resolution_type aws_* ignore_epochs default bucket_strategy "
        "auto_split file_extension instance_data_root disable_validation start_epoch start_step end_epoch end_step "
        "caption_filter_list crop_aspect_buckets aspect_bucket_alignment sampling mask_*",
        nothing("import.why.set_detail"),
    ),
}
ALL_ROWS = ROWS


def _is_shown(backend: Settings) -> bool:
    """Whether a data backend holds pictures that an edit model is shown."""
    return backend.get("dataset_type") == "conditioning" and backend.get("conditioning_type") in REFERENCES


def configuration_of(config: Settings, backends: Value = None, lycoris: Value = None) -> Configuration:
    """What a config says, with the list of its data backends and the settings of LyCORIS."""
    settings = {key.lstrip("-"): value for key, value in config.items()}
    if isinstance(lycoris, Mapping):
        settings |= {f"lycoris.{key}": value for key, value in flat(lycoris).items()}
    listed = tables(backends)
    reference_folders = {str(one.get("id")): one.get("instance_data_dir") for one in listed if _is_shown(one)}
    sets = []
    for n, one in enumerate(listed):
        plain = flat(one)
        if "conditioning_data" in plain:
            folders = [reference_folders.get(str(name)) for name in as_list(plain["conditioning_data"])]
            if all(folders):
                plain["conditioning_data"] = Folders(map(str, folders))
        if str(one.get("dataset_type", "image")) in BACKENDS and not one.get("disabled"):
            plain.setdefault("dataset_name", plain.get("huggingface.dataset_name"))
            sets.append((f"backends[{n}].", plain))
        else:
            settings[f"backends[{n}] ({one.get('dataset_type', 'disabled')})"] = one.get("id") or str(n)
    return Configuration(settings, sets)


ROWS["backends*_embeds)"] = nothing("import.why.cache")
ROWS["backends*"] = nothing("import.why.conditioning")
