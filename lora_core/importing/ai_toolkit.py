"""ostris' ai-toolkit: the YAML (or JSON) of an sd_trainer job."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from .result import Configuration
from .rows import (
    Convert,
    Paths,
    Row,
    Settings,
    Unmapped,
    Value,
    as_list,
    choice,
    clip_length,
    control_folders,
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
    tables,
    truth,
    whole,
)

TITLE = "ai-toolkit"
OPTIMIZERS = {
    "adamw": "adamw",
    "adam": "adamw",
    "adamw8bit": "adamw8bit",
    "adam8bit": "adamw8bit",
    "adafactor": "adafactor",
    "prodigy": "prodigy",
    "prodigy8bit": "prodigy",
    "lion": "lion",
    "lion8bit": "lion",
}
SCHEDULES = {
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "constant_with_warmup": "constant",
}
STRUCTURE = ("sd_trainer", "diffusion_trainer", "ui_trainer")
SLIDER, OLDER_SLIDER = "concept_slider", "slider"
PRESERVED = "train.diff_output_preservation"


def task(value: Value, settings: Settings) -> Paths:
    if str(value) not in ("extension", "train"):
        raise Unmapped("import.why.adapters_only")
    return {}


def kind(value: Value, settings: Settings) -> Paths:
    if str(value) == SLIDER:
        if not one_line(settings.get("slider.positive_prompt")):
            raise Unmapped("import.why.slider_prompts")
        return {"method": "slider"}
    if str(value) not in STRUCTURE:
        raise Unmapped("import.why.slider_older" if str(value) == OLDER_SLIDER else "import.why.adapters_only")
    return {}


def one_line(value: Value) -> str:
    """A prompt without line breaks, which would make several of it here."""
    return " ".join(str(value or "").split())


def of_slider(path: str, convert: Convert, why: str = "", default: Value = None) -> Row:
    """A setting of a slider; of any other job it has no effect."""

    def only_there(value: Value, settings: Settings) -> Paths:
        if str(settings.get("type")) != SLIDER:
            raise Unmapped("import.why.off")
        return convert(value, settings)

    return Row((path,), why, only_there, default)


def unless_slider(row: Row) -> Row:
    """A setting that a slider is trained without."""

    def convert(value: Value, settings: Settings) -> Paths:
        if str(settings.get("type")) == SLIDER:
            raise Unmapped("import.why.slider_without")
        return row.convert(value, settings) if row.convert else {}

    return dataclasses.replace(row, convert=convert)


def opposite(value: Value, settings: Settings) -> Paths:
    """The prompt of strengths below 0. An empty one is asked there, and stands here for the target."""
    if not one_line(value) and one_line(settings.get("slider.target_class")):
        raise Unmapped("import.why.slider_negative")
    return {"slider.negative": one_line(value)}


def reach(value: Value, settings: Settings) -> Paths:
    return {"slider.guidance": number(value)} if number(value) else no_counterpart()


def anchor(value: Value, settings: Settings) -> Paths:
    """A prompt that stays what it is; there it may be an empty one."""
    if not one_line(value):
        raise Unmapped("import.why.slider_anchor")
    return {"slider.preserve": one_line(value)}


def anchor_weight(value: Value, settings: Settings) -> Paths:
    """Beside it the slider's own loss counts there twice."""
    if not one_line(settings.get("slider.anchor_class")):
        raise Unmapped("import.why.off")
    return {"slider.preserve_weight": number(value) / 2}


def held(value: Value, settings: Settings) -> Paths:
    """What the frozen model says of the training pictures by captions with the class for the trigger."""
    if truth(value) and not settings.get(f"{PRESERVED}_class"):
        raise Unmapped("import.why.held_class")
    return {"prior.held_by": "predictions"} if truth(value) else {}


def if_held(path: str) -> Row:
    def convert(value: Value, settings: Settings) -> Paths:
        if not on(settings, PRESERVED) or not value:
            raise Unmapped("import.why.off")
        return {path: value}

    return Row((path,), "", convert)


def weight_of_class(value: Value, settings: Settings) -> Paths:
    if on(settings, PRESERVED):
        raise Unmapped("import.why.held_weight")
    return {"prior.weight": number(value)}


def network(value: Value, settings: Settings) -> Paths:
    names = {"lora": "lora", "locon": "lora", "lokr": "lokr", "dora": "dora"}
    return {"adapter.algorithm": meaning(names, str(value).lower())}


def full_lokr(value: Value, settings: Settings) -> Paths:
    """LoKr of full matrices: a rank above the layers' sides."""
    return {"adapter.rank": 1024} if str(settings.get("network.type")).lower() == "lokr" and truth(value) else {}


def rank(value: Value, settings: Settings) -> Paths:
    full = str(settings.get("network.type")).lower() == "lokr" and settings.get("network.lokr_full_rank", True)
    return {} if full else {"adapter.rank": whole(value)}


def convolutions(value: Value, settings: Settings) -> Paths:
    return {"adapter.conv_rank": whole(value), "adapter.targets": "conv"} if whole(value) else {}


def layer_names(key: str) -> Row:
    def convert(value: Value, settings: Settings) -> Paths:
        return {key: "|".join(re.escape(str(part)) for part in as_list(value))}

    return otherwise(key, "import.why.layer_names", convert)


def average(value: Value, settings: Settings) -> Paths:
    return {"ema_decay": number(settings.get("train.ema_config.ema_decay", 0.999))} if truth(value) else {}


def noise(value: Value, settings: Settings) -> Paths:
    """How noise levels of flow models are drawn: sigmoid is logit-normal."""
    names = {"sigmoid": "logit_normal", "linear": "uniform"}
    return {"objective.timesteps": meaning(names, str(value))}


def gamma(value: Value, settings: Settings) -> Paths:
    return {"objective.weighting": "min_snr", "objective.min_snr_gamma": number(value)} if number(value) else {}


def accumulation(value: Value, settings: Settings) -> Paths:
    """Two settings for one thing, of which at most one is above 1."""
    if whole(value) < 1:
        raise Unmapped("import.why.value")
    both = (settings.get(f"train.{name}", 1) for name in ("gradient_accumulation", "gradient_accumulation_steps"))
    return {"grad_accum": max(map(whole, both))}


def prompts(value: Value, settings: Settings) -> Paths:
    """A list of prompts."""
    texts = [str(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else [str(value)]
    return {"samples.prompt": "\n".join(" ".join(text.split()) for text in texts)}


def samples(value: Value, settings: Settings) -> Paths:
    """A list of prompts with sizes of their own."""
    lines = []
    for one in value if isinstance(value, Sequence) and not isinstance(value, str) else []:
        if isinstance(one, Mapping) and one.get("prompt"):
            options = {"n": "neg", "w": "width", "h": "height", "d": "seed", "s": "sample_steps", "l": "guidance_scale"}
            more = "".join(
                f" --{name} {one[key]}" for name, key in options.items() if one.get(key) not in (None, "", False)
            )
            lines.append(" ".join(str(one["prompt"]).split()) + more)
    return {"samples.prompt": "\n".join(lines)}


def sampling(value: Value, settings: Settings) -> Paths:
    return {"samples.every": 0} if truth(value) else {}


def quantized(value: Value, settings: Settings) -> Paths:
    return {"storage": "fp8"} if truth(value) else {}


def sizes(value: Value, settings: Settings) -> Paths:
    numbers = [whole(part) for part in as_list(value)]
    if not numbers:
        raise Unmapped("import.why.value")
    more: Paths = {"also_resolutions": ", ".join(map(str, numbers[1:]))} if numbers[1:] else {}
    return {"resolution": numbers[0], **more}


def extension(value: Value, settings: Settings) -> Paths:
    word = f".{str(value).lstrip('.')}"
    if word not in (".txt", ".caption", ".json"):
        raise Unmapped("import.why.extension")
    return {"captions": "auto" if word == ".json" else word}


def replaced(value: Value, settings: Settings) -> Paths:
    """old|new pairs as rules of ours."""
    rules = [str(one).partition("|") for one in (value if isinstance(value, list) else [value])]
    return {"replace": "\n".join(f"{old} => {new}" for old, sign, new in rules if sign)}


def token(key: str) -> Row:
    return otherwise(
        key,
        "import.why.tokens",
        lambda value, settings: {key: value, "method": "embedding" if not settings.get("network.type") else "pivotal"},
    )


TRAIN_DETAIL = (
    "content_or_style", "content_or_style_reg", "min_denoising_steps", "max_denoising_steps", "train_refiner",
    "refiner_lr", "adapter_lr", "train_turbo", "show_turbo_outputs", "learnable_snr_gos", "weight_jitter",
    "merge_network_on_save*", "start_step", "free_u", "adapter_assist*", "noise_multiplier", "target_noise_multiplier",
    "random_noise_multiplier", "do_*", "batch_noise_correction_scale", "signal_*", "random_noise_shift",
    "img_multiplier", "noisy_latent_multiplier", "latent_multiplier", "negative_prompt", "max_negative_prompts",
    "num_train_timesteps", "adaptive_scaling_factor", "prompt_dropout_prob", "match_noise_norm",
    "short_and_long_captions*", "single_item_batching", "match_adapter*", "loss_target", "inverted_mask_prior*",
    "standardize_*", "dynamic_noise_offset", "cfg_scale",
    "max_cfg_scale", "cfg_rescale", "correct_pred_norm*", "t0_*", "pred_scaler", "prompt_saturation_chance",
    "target_norm_std*", "next_sample_timesteps", "linear_timesteps*", "paramiter_swapping_factor",
    "bypass_guidance_embedding", "latent_feature*", "diffusion_feature*", "optimal_noise_pairing_samples",
    "force_consistent_noise", "blended_blur_noise", "guidance_loss*", "unconditional_prompt",
    "differential_guidance_scale", "switch_boundary_every", "audio_loss_multiplier", "max_loss*",
    "ema_config.use_feedback", "ema_config.param_multiplier", "timestep_blend*",
)  # fmt: skip

ROWS: dict[str, Row] = {
    "name": otherwise("name", "import.why.name", lambda value, settings: {"name": name_of(value)}),
    "process*": nothing("import.why.adapters_only"),
    "job": otherwise("", "import.why.understood", task),
    "type": otherwise("method", "import.why.process", kind),
    "slider.target_class": of_slider("slider.target", lambda value, settings: {"slider.target": one_line(value)}),
    "slider.positive_prompt": of_slider(
        "slider.positive", lambda value, settings: {"slider.positive": one_line(value)}
    ),
    "slider.negative_prompt": of_slider("slider.negative", opposite),
    "slider.guidance_strength": of_slider("slider.guidance", reach, "import.why.slider_reach"),
    "slider.anchor_class": of_slider("slider.preserve", anchor),
    "slider.anchor_strength": of_slider("slider.preserve_weight", anchor_weight, "import.why.slider_weight", 1.0),
    "trigger_word": same("data.trigger"),
    "network.type": otherwise("adapter.algorithm", "import.why.layers", network, "lora"),
    "network.rank": otherwise("adapter.rank", "import.why.lokr_full", rank),
    "network.linear": otherwise("adapter.rank", "import.why.lokr_full", rank, 4),
    "network.alpha": same("adapter.alpha"),
    "network.linear_alpha": same("adapter.alpha", default=1.0),
    "targets": otherwise(
        "adapter.targets", "import.why.layers", lambda value, settings: {"adapter.targets": "linear"}, "linear"
    ),
    "network.conv": otherwise("adapter.conv_rank adapter.targets", "import.why.convolutions", convolutions),
    "network.conv_alpha": same("adapter.conv_alpha"),
    "network.dropout": same("adapter.dropout"),
    "network.lokr_factor": lokr_factor(),
    "network.lokr_full_rank": otherwise("adapter.rank", "import.why.lokr_full", full_lokr, True),
    "network.pretrained_lora_path": otherwise("adapter.start_from", "import.why.start"),
    "network.network_kwargs.ignore_if_contains": layer_names("adapter.exclude"),
    "network.network_kwargs.only_if_contains": layer_names("adapter.include"),
    **each(
        "network.network_kwargs.* network.transformer_only network.all_layers network.lorm* network.old_lokr_format "
        "network.split_multistage_loras network.layer_offloading",
        nothing("import.why.adapter_detail"),
    ),
    "embedding.trigger": token("embedding.tokens"),
    "embedding.tokens": token("embedding.vectors"),
    "embedding.init_words": same("embedding.init"),
    "embedding.save_format": nothing("import.why.files"),
    "save.save_every": same("save.every", default=1000),
    "save.max_step_saves_to_keep": kept(5),
    "train.batch_size": same("batch_size"),
    "train.steps": same("steps"),
    "train.gradient_accumulation_steps": otherwise("grad_accum", "import.why.written", accumulation),
    "train.gradient_accumulation": otherwise("grad_accum", "import.why.written", accumulation),
    "train.lr": same("optimizer.lr", default=1e-6),
    "train.unet_lr": same("optimizer.lr"),
    "train.text_encoder_lr": otherwise(
        "text_encoder.lr",
        "import.why.if_trained",
        lambda value, settings: {"text_encoder.lr": number(value)} if on(settings, "train.train_text_encoder") else {},
    ),
    "train.embedding_lr": same("embedding.lr"),
    "train.train_unet": otherwise("", "import.why.network_always", lambda value, settings: {}),
    "train.train_text_encoder": unless_slider(same("text_encoder.train")),
    "train.gradient_checkpointing": same("checkpointing", default=True),
    "train.optimizer": choice("optimizer.name", OPTIMIZERS),
    "train.optimizer_params.weight_decay": same("optimizer.weight_decay"),
    "train.optimizer_params.eps": same("optimizer.eps"),
    "train.optimizer_params.betas": otherwise(
        "optimizer.beta1 optimizer.beta2",
        "import.why.written",
        lambda value, settings: dict(zip(("optimizer.beta1", "optimizer.beta2"), as_list(value), strict=False)),
    ),
    "train.optimizer_params.d_coef": same("optimizer.prodigy_d_coef"),
    "train.optimizer_params.decouple": flag("optimizer.prodigy_decouple"),
    "train.optimizer_params.use_bias_correction": flag("optimizer.prodigy_use_bias_correction"),
    "train.optimizer_params.safeguard_warmup": flag("optimizer.prodigy_safeguard_warmup"),
    "train.lr_scheduler": choice("schedule.name", SCHEDULES),
    "train.lr_scheduler_params.num_warmup_steps": same("schedule.warmup_steps"),
    "train.lr_scheduler_params.warmup_steps": same("schedule.warmup_steps"),
    "train.lr_scheduler_params.*": nothing("import.why.schedule_detail"),
    "train.max_grad_norm": same("optimizer.max_grad_norm"),
    "train.ema_config.use_ema": otherwise("ema_decay", "import.why.written", average),
    "train.ema_config.ema_decay": nothing("import.why.with_other"),
    "train.dtype": choice(
        "precision",
        {"fp32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"},
    ),
    "train.min_snr_gamma": unless_slider(
        otherwise("objective.weighting objective.min_snr_gamma", "import.why.written", gamma)
    ),
    "train.snr_gamma": unless_slider(
        otherwise("objective.weighting objective.min_snr_gamma", "import.why.written", gamma)
    ),
    "train.noise_offset": same("objective.noise_offset"),
    "train.timestep_type": otherwise("objective.timesteps", "import.why.timesteps", noise),
    "train.noise_scheduler": otherwise("", "import.why.base_tells", lambda value, settings: {}),
    "train.loss_type": unless_slider(choice("loss", {"mse": "mse", "mae": "l1"})),
    "train.reg_weight": unless_slider(Row(("prior.weight",), "", weight_of_class)),
    PRESERVED: unless_slider(otherwise("prior.held_by", "import.why.held", held)),
    f"{PRESERVED}_class": unless_slider(if_held("prior.class_word")),
    f"{PRESERVED}_multiplier": unless_slider(if_held("prior.weight")),
    "train.blank_prompt_preservation*": nothing("import.why.blank_prompt"),
    "train.skip_first_sample": nothing("import.why.sample_first"),
    "train.force_first_sample": nothing("import.why.sample_first"),
    "train.disable_sampling": otherwise("samples.every", "import.why.written", sampling),
    "train.validation_config.validate_every_n_steps": unless_slider(same("validation.every")),
    "train.validation_config.*": nothing("import.why.validation_of_set"),
    "model.name_or_path": otherwise("base", "import.why.base"),
    "model.vae_path": otherwise("base_vae", "import.why.vae"),
    "model.quantize": otherwise("storage", "import.why.fp8", quantized),
    "model.is_v_pred": otherwise(
        "objective.prediction",
        "import.why.prediction",
        lambda value, settings: {"objective.prediction": "v"} if truth(value) else {},
    ),
    "model.compile": same("compile"),
    "model.assistant_lora_path": otherwise("adapter.fixed", "import.why.fixed"),
    "model.lora_path": nothing("import.why.assistant"),
    "model.inference_lora_path": nothing("import.why.assistant"),
    "model.unconditional_lora_path": nothing("import.why.assistant"),
    **each(
        "model.is_* model.arch model.latent_space_version model.use_flux_cfg model.experimental_xl model.in_context",
        nothing("import.why.base_tells"),
    ),
    **each(
        "model.dtype model.quantize_* model.qtype* model.low_vram model.*_device model.*_dtype "
        "model.layer_offloading* model.auto_memory model.text_encoder_bits model.split_model_* model.block_compile "
        "model.compile_* model.cache_size_limit model.attn_masking model.accuracy_recovery_adapter "
        "train.unload_text_encoder train.cache_text_embeddings train.do_paramiter_swapping train.sdp train.xformers "
        "train.attention_backend device low_vram",
        nothing("import.why.memory"),
    ),
    **each(
        "model.extras_name_or_path model.te_name_or_path model.unet_path model.unet_sample_size model.refiner* "
        "model.use_text_encoder_* model.model_kwargs* model.model_paths* model.ignore_if_contains "
        "model.only_if_contains",
        nothing("import.why.parts"),
    ),
    "sample.sample_every": same("samples.every", default=100),
    "sample.width": same("samples.width_px"),
    "sample.height": same("samples.height_px"),
    "sample.prompts": otherwise("samples.prompt", "import.why.samples", prompts),
    "sample.samples": otherwise("samples.prompt", "import.why.samples", samples),
    "sample.neg": otherwise(
        "samples.negative",
        "import.why.written",
        lambda value, settings: {"samples.negative": value} if isinstance(value, str) else {},
    ),
    "sample.seed": same("samples.seed"),
    "sample.guidance_scale": same("samples.cfg"),
    "sample.sample_steps": same("samples.steps"),
    "sample.*": nothing("import.why.sampling"),
    **dict.fromkeys((f"train.{name}" for name in TRAIN_DETAIL), nothing("import.why.train_detail")),
    "slider.*": nothing("import.why.slider_older"),
    **each("adapter.* decorator.* guidance.*", nothing("import.why.adapters_only")),
    **each(
        "training_folder save.dtype save.save_format meta.* metadata.* training_seed",
        nothing("import.why.files"),
    ),
    **each("save.push_to_hub save.hf_*", nothing("import.why.hub")),
    **each(
        "logging.* performance_log_every sqlite_db_path log_dir",
        nothing("import.why.logging"),
    ),
}


def clip_rate(value: Value, settings: Settings) -> Paths:
    """At which films are read; of pictures there is none."""
    return {"frame_rate": number(value)} if whole(settings.get("num_frames", 1)) > 1 else {}


def filled(value: Value, settings: Settings) -> Paths:
    """What an inpainting model is asked to fill: transparent parts, of the pictures themselves or of others with their names."""
    if not value:
        raise Unmapped("import.why.off")
    if settings.get("mask_path"):
        raise Unmapped("import.why.one_mask")
    pictures = [str(settings[key]).rstrip("/") for key in ("folder_path", "dataset_path") if settings.get(key)]
    return {"input_mask": "alpha" if str(value).rstrip("/") in pictures else "file"}


SET_ROWS: dict[str, Row] = {
    "folder_path": same("folder"),
    "control_path*": otherwise("control_path", "import.why.control", control_folders),
    "dataset_path": same("folder"),
    "num_frames": otherwise("frames", "import.why.films", clip_length, default=1),
    "fps": otherwise("frame_rate", "import.why.films", clip_rate),
    "do_i2v": otherwise("first_frame", "import.why.first_frame", first_frames, default=True),
    "shrink_video_to_frames": nothing("import.why.films"),
    "do_audio": nothing("import.why.conditioning"),
    "caption_ext": otherwise("captions", "import.why.extension", extension, ".txt"),
    "trigger_word": same("trigger"),
    "caption_dropout_rate": same("caption_dropout"),
    "token_dropout_rate": same("tag_dropout"),
    "shuffle_tokens": flag("shuffle_tags"),
    "keep_tokens": same("keep_tokens", default=0),
    "resolution": otherwise("resolution also_resolutions", "import.why.written", sizes),
    "num_repeats": same("repeats"),
    "flip_x": flag("flip"),
    "is_reg": flag("regularization"),
    "random_crop": otherwise(
        "crop", "import.why.random_crop", lambda value, settings: {"crop": "random" if truth(value) else "centre"}
    ),
    "buckets": flag("aspect_buckets"),
    "square_crop": flag("aspect_buckets", opposite=True),
    "bucket_tolerance": same("bucket_step_px"),
    "alpha_mask": otherwise(
        "masks", "import.why.written", lambda value, settings: {"masks": "alpha"} if truth(value) else {}
    ),
    "mask_path": otherwise("masks", "import.why.mask_folder", lambda value, settings: {"masks": "file"}),
    "mask_min_value": same("mask_floor"),
    "inpaint_path": otherwise("input_mask", "import.why.input_mask", filled),
    "loss_multiplier": same("loss_weight"),
    "network_weight": nothing("import.why.set_detail"),
    "replacements": otherwise("replace", "import.why.written", replaced),
    "default_caption": nothing("import.why.default_caption"),
    "cache_latents": nothing("import.why.cache"),
    "cache_latents_*": nothing("import.why.cache"),
    "cache_*": nothing("import.why.cache"),
    "load_image_when_caching_latents": nothing("import.why.cache"),
    **each("num_workers prefetch_factor", nothing("import.why.memory")),
    **each(
        "control_* controls unconditional_path clip_image_* full_size_control_images num_controls_*",
        nothing("import.why.conditioning"),
    ),
    **each(
        "augments augmentations shuffle_augmentations random_scale scale flip_y standardize_images replay_transforms",
        nothing("import.why.augment"),
    ),
    **each(
        "type batch_size random_triggers* prior_reg invert_mask poi use_short_captions caption_type guidance_type "
        "extra_values auto_frame_count trim_auto_frame_count_tail",
        nothing("import.why.set_detail"),
    ),
    "diff_output_preservation*": nothing("import.why.with_other"),
}
ALL_ROWS = ROWS


def configuration_of(config: Settings) -> Configuration:
    """The first process of a job."""
    inside = config.get("config")
    job = inside if isinstance(inside, Mapping) else config
    listed = tables(job.get("process"))
    process = dict(listed[0]) if listed else {}
    datasets = process.pop("datasets", None)
    settings: dict[str, Value] = {"job": config.get("job")}
    settings |= {key: value for key, value in job.items() if key != "process"}
    settings |= flat(process)
    if isinstance(config.get("meta"), Mapping):
        settings |= flat({"meta": config["meta"]})
    if settings.get("type") == SLIDER:
        settings.setdefault("slider.negative_prompt", "")
    for n, more in enumerate(listed[1:], 1):
        settings[f"process[{n}]"] = str(more.get("type", ""))
    return Configuration(settings, [(f"datasets[{n}].", one) for n, one in enumerate(tables(datasets))])
