"""Every setting of a run with its default, its bounds and its sentence, in one place. A TOML job file and the train node fill the same classes."""

from __future__ import annotations

import dataclasses
import enum
import math
import reprlib
import types
import typing
from pathlib import Path
from typing import Any

from .algebra import NAMES as ADAPTER_KINDS
from .messages.errors import LoomError
from .names import check_name
from .recipes import LENGTHS, merged, read_toml, recipe

MAX_TEXT = 20_000  # characters of a setting
_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 200
_shown.maxlong = 40


class Recompute(str, enum.Enum):
    """What of a block the backward pass makes again instead of keeping it."""

    NONE = ""
    CHEAP = "cheap"  # all but matrix products, convolutions and attention
    ALL = "all"

    def __str__(self) -> str:
        return self.value


class ConfigError(LoomError):
    """A setting is unknown, of the wrong type or out of bounds."""


def setting(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A dataclass field that carries its own documentation and bounds (`low` and `high` are allowed values)."""
    meta = {"help": help, "low": low, "high": high, "choices": choices}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    folder: str = setting(
        "", "Folder with pictures and captions. Kohya trees with sub-folders named 12_name are understood."
    )
    trigger: str = setting(
        "",
        "Word that stands for the concept. Put in front of captions that lack it; the caption of pictures without one.",
    )
    captions: str = setting(
        "auto",
        "Where captions come from; auto: a .txt, .caption or .json beside the picture, else a metadata file, else the Kohya folder's name.",
        choices=("auto", ".txt", ".caption", "metadata", "file name", "none"),
    )
    recursive: bool = setting(True, "Look into sub-folders too.")
    repeats: int = setting(
        0,
        "How often each picture counts per epoch; 0 takes the number in front of a Kohya folder name, else 1.",
        low=0,
        high=1000,
    )
    limit: int = setting(
        0, "Use only so many of the pictures, always the same ones; 0 takes all.", low=0, high=1_000_000
    )
    resolution: int = setting(
        512,
        "Pictures are scaled down to about this many pixels squared; smaller ones are never scaled up.",
        low=16,
        high=4096,
    )
    bucket_step_px: int = setting(64, "Sides of a bucket are multiples of this.", low=8, high=256)
    flip: bool = setting(
        False, "Mirror pictures left to right half of the time. Leave off for faces, text and anything with a side."
    )
    shuffle_tags: bool = setting(False, "Shuffle the comma-separated parts of a caption anew each time.")
    keep_tokens: int = setting(
        1, "How many leading parts of a caption stay in place when tags are shuffled.", low=0, high=100
    )
    masks: str = setting(
        "none",
        "Where the loss looks: everywhere, at what is opaque (alpha), or at what is white in <name>.mask.png, <name>-masklabel.png or mask/<name>.png (file).",
        choices=("none", "alpha", "file"),
    )
    mask_floor: float = setting(0.1, "Weight of what a mask leaves out, relative to the rest.", low=0.0, high=1.0)
    caption_dropout: float = setting(
        0.0, "Share of steps in which a picture is trained with an empty caption.", low=0.0, high=1.0
    )
    caption_column: str = setting(
        "",
        "Column of a metadata file or key of a .json that holds the captions; empty: text, caption, prompt, tags ...",
    )
    caption_lines: str = setting(
        "joined",
        "What the lines of a caption file are: one caption, alternatives of which one is drawn each time (0.5::text gives a weight), or only the first counts.",
        choices=("joined", "alternatives", "first"),
    )
    caption_encoding: str = setting(
        "auto",
        "Encoding of caption files; auto knows Unicode in all its forms and takes anything else as Windows-1252.",
        choices=("auto", "utf-8", "cp1252", "cp932", "gb18030", "big5", "euc-kr", "cp1251"),
    )
    prefix: str = setting("", "Put in front of every caption that is there, as it stands.")
    suffix: str = setting("", "Put behind every caption that is there, as it stands.")
    replace: str = setting(
        "", "Words to replace in captions, one rule a line: old => new, or /regular expression/ => new."
    )
    tag_dropout: float = setting(
        0.0, "Share of the comma-separated parts left out each time, those kept in place excepted.", low=0.0, high=1.0
    )
    wildcards: bool = setting(False, "Read {red|blue|2::green} in captions as a choice made anew each time.")
    background: str = setting("white", "Colour under what is transparent: a name or #rrggbb.")
    also_resolutions: str = setting(
        "", "More resolutions to train every picture at, separated by commas, such as 768, 1024."
    )
    aspect_buckets: bool = setting(True, "Keep the shape of pictures, in batches of one shape; off: squares.")
    min_side_px: int = setting(0, "Smallest side of a bucket; 0: one step.", low=0, high=8192)
    max_side_px: int = setting(0, "Largest side of a bucket; 0: no limit but the area.", low=0, high=8192)
    upscale: bool = setting(False, "Scale pictures up that are smaller than the resolution.")
    crop: str = setting(
        "centre",
        "What is kept of a picture longer than its bucket: the centre, places drawn anew each time, or where most is to be seen (or the mask is).",
        choices=("centre", "random", "salient"),
    )
    crops: int = setting(4, "How many places random draws from; each is encoded once.", low=1, high=64)
    loss_weight: float = setting(1.0, "Weight of this set's pictures in the loss.", low=0.0, high=100.0)
    regularization: bool = setting(
        False, "Pictures of the class beside the subject (prior preservation); their loss counts by prior.weight."
    )
    latents: str = setting(
        "mean",
        "What is trained of the VAE's answer: its mean, or a sample drawn anew each time.",
        choices=("mean", "sampled"),
    )
    split: str = setting("train", "Split of a Hugging Face dataset (folder = hf:owner/name).")
    image_column: str = setting(
        "", "Column of a Hugging Face dataset that holds the pictures; empty: the first one that does."
    )
    allow_empty_captions: bool = setting(
        False, "Train pictures on empty text where none has a caption and there is no trigger; off: they are refused."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    algorithm: str = setting(
        "lora",
        "Kind of adapter; lora with targets = conv is what is called LoCon. Every program reads lora.",
        choices=ADAPTER_KINDS,
    )
    rank: int = setting(
        16,
        "Size of the low-rank update; of oft and boft, of their blocks. More holds more detail and learns unwanted detail sooner: at 64 skin gets smooth.",
        low=1,
        high=1024,
    )
    alpha: float = setting(
        0.0, "The update is scaled by alpha / rank; 0 means alpha = rank, a scale of 1.", low=0.0, high=4096.0
    )
    conv_rank: int = setting(0, "Rank in convolutions larger than 1x1; 0 takes rank.", low=0, high=1024)
    conv_alpha: float = setting(
        0.0, "Alpha in those convolutions, where conv_rank is given; 0 means alpha = conv_rank.", low=0.0, high=4096.0
    )
    rank_stabilized: bool = setting(
        False, "Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA), which keeps large ranks learning."
    )
    dora_axis: str = setting(
        "input",
        "What DoRA's magnitudes are for: inputs, which ComfyUI, Forge and A1111 apply as trained, or outputs, as PEFT has it.",
        choices=("input", "output"),
    )
    lokr_factor: int = setting(
        0, "How LoKr splits a layer: the larger, the smaller the file; 0 splits near the root.", low=0, high=256
    )
    oft_constraint: float = setting(
        0.0,
        "How far OFT and BOFT may rotate: largest norm of a layer's rotation, divided by its outputs; 0 is no limit.",
        low=0.0,
        high=100.0,
    )
    ia3_axis: str = setting(
        "output",
        "Whose factors (IA)^3 learns: those of a layer's outputs or of its inputs.",
        choices=("output", "input"),
    )
    dropout: float = setting(0.0, "Share of an adapter's inputs set to zero in each step.", low=0.0, high=0.95)
    init: str = setting("kaiming", "How lora_down starts (lora_up starts at zero).", choices=("kaiming", "gaussian"))
    targets: str = setting(
        "attention", "Which layers get an adapter.", choices=("attention", "cross-attention", "linear", "conv", "regex")
    )
    include: str = setting(
        "", "Regular expression a layer's path must match; used with targets = regex, narrows the other choices."
    )
    exclude: str = setting("", "Regular expression of layer paths to leave alone.")
    max_norm: float = setting(
        0.0,
        "Largest norm of an update; a larger one is scaled down after each step. 1 is common, 0 is off.",
        low=0.0,
        high=1000.0,
    )
    start_from: str = setting(
        "", "LoRA file to go on from instead of starting at zero, for headless runs. Its ranks are kept."
    )
    layer_lr: str = setting(
        "",
        "Factors on the learning rate by layer, one a line: regular expression of layer names = factor; the first that fits counts.",
    )
    layer_rank: str = setting(
        "",
        "Ranks by layer, one a line: regular expression of layer names = rank; the first that fits counts, 0 leaves the layer out.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    train: bool = setting(False, "Also train a LoRA on the text encoders.")
    encoders: str = setting(
        "", "Regular expression of the text encoders to train, such as clip_l; empty: all that can be."
    )
    targets: str = setting(
        "attention", "Which of their layers get an adapter.", choices=("attention", "attention and mlp")
    )
    rank: int = setting(0, "Size of the update; 0 takes adapter.rank.", low=0, high=1024)
    alpha: float = setting(0.0, "The update is scaled by alpha / rank; 0 means alpha = rank.", low=0.0, high=4096.0)
    lr: float = setting(
        0.0,
        "Learning rate of the text encoders; 0 takes optimizer.lr. Half of it or less is common.",
        low=0.0,
        high=10.0,
    )
    weight_decay: float = setting(
        -1.0, "Weight decay of the text encoders; -1 takes optimizer.weight_decay.", low=-1.0, high=1.0
    )
    stop: float = setting(1.0, "Share of the steps after which the text encoders are frozen.", low=0.01, high=1.0)
    clip_skip: int = setting(
        1,
        "Layer that captions are read from in a headless run of Stable Diffusion 1 or 2, from the end: 1 is the last, 2 what anime models are mostly made for.",
        low=1,
        high=24,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    tokens: str = setting(
        "",
        "New words to learn, one a line: TOK, or TOK = a dog to start from words, or TOK*4 = a dog for four vectors. Empty: the dataset's trigger, or TOK.",
    )
    vectors: int = setting(1, "Vectors per token. More hold more, and take more of the prompt's 75.", low=1, high=32)
    init: str = setting(
        "",
        "Words a token starts from, where its line names none; empty: random, as spread out as the encoder's own words.",
    )
    lr: float = setting(
        0.0,
        "Learning rate of the vectors; 0 takes optimizer.lr. 1e-3 to 5e-3 alone, 3e-4 beside a LoRA.",
        low=0.0,
        high=10.0,
    )
    weight_decay: float = setting(0.0, "Weight decay of the vectors.", low=0.0, high=1.0)
    stop: float = setting(
        1.0,
        "Share of the steps after which the vectors are frozen (the pivot); 0.5 is common beside a LoRA.",
        low=0.01,
        high=1.0,
    )
    keep_norm: bool = setting(
        False, "Pull the vectors back to the spread of the encoder's own words after each step, until they are frozen."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: str = setting(
        "adamw",
        "Optimizer. prodigy finds the learning rate itself; adamw8bit, prodigy, lion, came, schedule_free and muon need a package of their own.",
        choices=("adamw", "adamw8bit", "adafactor", "prodigy", "lion", "came", "schedule_free", "muon"),
    )
    lr: float = setting(
        0.0,
        "Learning rate at full strength; 0 takes the optimizer's usual one (adamw 1e-4, prodigy 1).",
        low=0.0,
        high=10.0,
    )
    beta1: float = setting(0.9, "Decay of the gradient average.", low=0.0, high=0.9999)
    beta2: float = setting(
        0.0,
        "Decay of the squared-gradient average; 0 takes the optimizer's usual one (adamw 0.999, prodigy 0.99).",
        low=0.0,
        high=0.999999,
    )
    weight_decay: float = setting(0.01, "Decoupled weight decay.", low=0.0, high=1.0)
    eps: float = setting(1e-8, "Added to the denominator.", low=1e-16, high=1e-2)
    lora_plus_ratio: float = setting(
        1.0,
        "Learning rate of lora_up over lora_down (LoRA+, Hayou et al. 2024); 16 is common, 1 is off.",
        low=1.0,
        high=100.0,
    )
    prodigy_d_coef: float = setting(1.0, "Factor on the rate Prodigy finds.", low=0.01, high=100.0)
    prodigy_beta3: float = setting(
        0.0, "Decay of Prodigy's estimate; 0 takes the square root of beta2.", low=0.0, high=0.999999
    )
    prodigy_use_bias_correction: bool = setting(
        True,
        "Prodigy corrects its averages for their start at zero, as Adam does; its first steps are smaller without.",
    )
    prodigy_safeguard_warmup: bool = setting(
        True, "Prodigy leaves the rate of a warm-up out of its estimate, which would come out too large with it."
    )
    prodigy_decouple: bool = setting(
        True, "Prodigy's weight decay acts on the weights (as AdamW's); off: on the gradients (as Adam's)."
    )
    max_grad_norm: float = setting(
        1.0, "Gradients are scaled down to this norm; 0 turns clipping off.", low=0.0, high=1e6
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    name: str = setting(
        "constant",
        "Course of the learning rate.",
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    warmup_steps: int = setting(0, "Steps over which the learning rate rises from zero.", low=0, high=1_000_000)
    cycles: int = setting(1, "Number of restarts of cosine_with_restarts.", low=1, high=1000)
    power: float = setting(1.0, "Exponent of polynomial.", low=0.1, high=10.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    prediction: str = setting(
        "auto", "What the network predicts; auto asks the model.", choices=("auto", "epsilon", "v", "flow")
    )
    timesteps: str = setting(
        "auto",
        "How noise levels are drawn; auto is uniform for eps and v, logit-normal for flow.",
        choices=("auto", "uniform", "logit_normal"),
    )
    timestep_bias: float = setting(
        0.0, "Above 0 draws noisy levels more often, below 0 clean ones: u becomes u^(2^-bias).", low=-5.0, high=5.0
    )
    logit_mean: float = setting(0.0, "Mean of logit_normal.", low=-5.0, high=5.0)
    logit_std: float = setting(1.0, "Standard deviation of logit_normal.", low=0.05, high=5.0)
    shift: float = setting(0.0, "Time shift of flow models; 0 takes the model's own.", low=0.0, high=100.0)
    min_timestep: int = setting(0, "Smallest timestep trained, of 1000.", low=0, high=999)
    max_timestep: int = setting(1000, "One past the largest timestep trained, of 1000.", low=1, high=1000)
    weighting: str = setting(
        "none",
        "Weight of the loss by noise level. min_snr, debiased and p2 are for eps and v models and do nothing on flow models.",
        choices=("none", "min_snr", "debiased", "p2"),
    )
    min_snr_gamma: float = setting(
        5.0, "Signal-to-noise ratio above which min_snr lowers the weight.", low=0.01, high=1000.0
    )
    p2_gamma: float = setting(1.0, "Exponent of p2.", low=0.0, high=5.0)
    noise_offset: float = setting(
        0.0, "Noise added to whole channels, which lets a model learn darker and brighter pictures.", low=0.0, high=1.0
    )
    multires_iterations: int = setting(
        0, "Coarser layers added to the noise (pyramid noise); 0 turns it off.", low=0, high=16
    )
    multires_discount: float = setting(
        0.3, "Strength of each coarser layer relative to the one before.", low=0.0, high=1.0
    )
    input_perturbation: float = setting(
        0.0,
        "Extra noise on the network's input that the target does not know of (Ning et al. 2023).",
        low=0.0,
        high=1.0,
    )
    zero_terminal_snr: bool = setting(
        False, "Rescale the schedule so the last step is pure noise (v models; Lin et al. 2023)."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig:
    prompt: str = setting(
        "",
        "Class prompt, such as a dog: the class is trained beside the subject, so it stays what it was (DreamBooth).",
    )
    class_word: str = setting(
        "", "Instead of one prompt: each training caption with this word in place of the trigger, so captions match."
    )
    folder: str = setting(
        "", "Folder of real class pictures; their captions are used, or the class prompt where they have none."
    )
    count: int = setting(
        100,
        "Class pictures wanted; what the folder lacks is made by the model before it is trained, once.",
        low=0,
        high=10_000,
    )
    weight: float = setting(
        1.0, "Weight of the class pictures' loss; 0 turns prior preservation off.", low=0.0, high=10.0
    )
    steps: int = setting(25, "Sampler steps of class pictures that are made.", low=1, high=200)
    cfg: float = setting(7.0, "Guidance of class pictures that are made.", low=0.0, high=100.0)
    required: bool = setting(
        False,
        "Refuse to train without class pictures. A job that gives count means them, and has this on unless it says otherwise.",
    )

    @property
    def on(self) -> bool:
        return self.weight > 0 and bool(self.prompt or self.class_word or self.folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    every: int = setting(
        0, "Steps between validations on pictures that are not trained; 0 turns it off.", low=0, high=1_000_000
    )
    share: float = setting(0.1, "Share of the pictures held out for it, at least one.", low=0.01, high=0.5)
    folder: str = setting("", "Folder of pictures to validate on instead; then nothing is held out.")
    pictures: int = setting(16, "Pictures measured, of the held-out and as many of the trained ones.", low=1, high=1000)
    levels: int = setting(4, "Noise levels each picture is measured at.", low=1, high=100)
    patience: int = setting(
        0, "End the run after so many validations without a new best one; 0 never does.", low=0, high=10_000
    )
    restore_best: bool = setting(False, "Write the best step's weights as the result instead of the last step's.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
    disk: bool = setting(
        True, "Keep encoded pictures and captions on disk, for the next run too; off: in memory, for this run."
    )
    limit_gb: float = setting(
        20.0, "Size above which what was not used for longest is removed.", low=0.1, high=100_000.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveConfig:
    every: int = setting(250, "Steps between checkpoints.", low=1, high=1_000_000)
    keep: int = setting(
        2, "Checkpoints kept. At least 2: the last one may be in the process of being written.", low=2, high=1000
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    prompt: str = setting(
        "", "Prompt of the sample pictures; several separated by new lines. Empty: the trigger or the first caption."
    )
    negative: str = setting("", "Negative prompt of the sample pictures.")
    every: int = setting(250, "Steps between sample pictures; 0 draws none.", low=0, high=1_000_000)
    steps: int = setting(20, "Sampler steps.", low=1, high=200)
    cfg: float = setting(7.0, "Guidance scale.", low=0.0, high=100.0)
    sampler: str = setting("euler", "Sampler, by the host's name.")
    scheduler: str = setting("simple", "Noise schedule, by the host's name.")
    width_px: int = setting(0, "Width; 0 takes the training resolution.", low=0, high=8192)
    height_px: int = setting(0, "Height; 0 takes the training resolution.", low=0, high=8192)
    seed: int = setting(1, "Seed of the sample noise, the same every time.", low=0, high=2**63 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    name: str = setting("my_lora", "Name of the run and of its result file.")
    base: str = setting(
        "toy",
        "Base model of a headless run: toy, a folder in diffusers layout, or a .safetensors file. ComfyUI uses the wired model.",
    )
    base_config: str = setting(
        "",
        "Folder in diffusers layout with the configs and tokenizers of a base that is a file; empty: the Hugging Face cache.",
    )
    base_vae: str = setting(
        "",
        "Another VAE for a headless run: its folder in diffusers layout, a folder that holds it as vae, or a .safetensors file; empty: the base model's own.",
    )
    companion: str = setting(
        "",
        "Folder of the other stage of a two-stage model (Kandinsky 2.2, Würstchen): the prior of a decoder, the decoder of a prior.",
    )
    steps: int = setting(1000, "Weight updates.", low=1, high=10_000_000)
    steps_per_picture: int = setting(
        0, "Weight updates for each picture instead of steps; 0 takes steps.", low=0, high=100_000
    )
    epochs: int = setting(
        0,
        "How often every picture is shown (times its repeats), instead of steps; 0 takes steps. The number of steps is told before the first.",
        low=0,
        high=100_000,
    )
    batch_size: int = setting(1, "Pictures per forward pass.", low=1, high=1024)
    grad_accum: int = setting(
        1, "Forward passes per weight update; the effective batch is batch_size x grad_accum.", low=1, high=1024
    )
    seed: int = setting(0, "Fixes adapter start, order, captions, noise, timesteps and dropout.", low=0, high=2**63 - 1)
    precision: str = setting(
        "auto",
        "Arithmetic of the base model; adapters are always fp32. auto keeps what is loaded.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    storage: str = setting(
        "auto",
        "How the base model's linear weights lie in memory in a headless run; auto: as the file has them; fp8: in half of bf16's room, rounded.",
        choices=("auto", "fp8"),
    )
    offload: float = setting(
        0.0,
        "Share of the base model's blocks that stay in main memory in a headless run and are copied to the GPU when it is their turn.",
        low=0.0,
        high=1.0,
    )
    compile: bool = setting(
        False,
        "Compile the base model's blocks in a headless run (torch.compile): a minute or more for each shape of picture before it pays.",
    )
    auto_fit: bool = setting(
        False,
        "Run one step on the largest bucket first; where memory does not suffice turn checkpointing on, then halve the batch and accumulate instead.",
    )
    checkpointing: bool = setting(
        False, "Recompute blocks in the backward pass: about a third slower, far less memory."
    )
    recompute: str = setting(
        "all",
        "What checkpointing makes again: all of a block, or what is cheap (norms, activations), which saves less memory and costs a tenth of the time.",
        choices=("all", "cheap"),
    )
    ema_decay: float = setting(
        0.0,
        "Keep a moving average of what is trained and save that; 0.99 to 0.9999, 0 turns it off.",
        low=0.0,
        high=0.99999,
    )
    loss: str = setting(
        "mse",
        "Distance between prediction and target. huber and smooth_l1 care less about outliers.",
        choices=("mse", "l1", "huber", "smooth_l1"),
    )
    huber_delta: float = setting(
        0.1, "Error at which huber and smooth_l1 turn from square to linear.", low=1e-4, high=10.0
    )
    huber_schedule: str = setting(
        "snr", "How that error depends on the noise level.", choices=("constant", "exponential", "snr")
    )
    method: str = setting(
        "lora",
        "What is trained: a LoRA, an embedding (textual inversion), or both (pivotal tuning).",
        choices=("lora", "embedding", "pivotal"),
    )
    trackers: str = setting(
        "",
        "Experiment trackers of a headless run, separated by commas: tensorboard, wandb and others accelerate knows.",
    )
    data: DataConfig = setting(DataConfig, "")
    adapter: AdapterConfig = setting(AdapterConfig, "")
    text_encoder: TextEncoderConfig = setting(TextEncoderConfig, "")
    embedding: EmbeddingConfig = setting(EmbeddingConfig, "")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "")
    schedule: ScheduleConfig = setting(ScheduleConfig, "")
    objective: ObjectiveConfig = setting(ObjectiveConfig, "")
    prior: PriorConfig = setting(PriorConfig, "")
    validation: ValidationConfig = setting(ValidationConfig, "")
    save: SaveConfig = setting(SaveConfig, "")
    samples: SampleConfig = setting(SampleConfig, "")
    cache: CacheConfig = setting(CacheConfig, "")
    sets: tuple[DataConfig, ...] = setting((), "More folders, each with the settings of data unless it says otherwise.")

    def __post_init__(self) -> None:
        check_name("name", self.name)
        if self.epochs and self.steps_per_picture:
            raise ConfigError("length.several", field="epochs", given=["epochs", "steps_per_picture"])
        if self.objective.min_timestep >= self.objective.max_timestep:
            raise ConfigError(
                "objective.timesteps",
                field="objective.min_timestep",
                low=self.objective.min_timestep,
                high=self.objective.max_timestep,
            )
        if self.method == "embedding" and self.text_encoder.train:
            raise ConfigError("text_encoder.with_embedding", field="text_encoder.train")
        if self.optimizer.name == "schedule_free" and self.ema_decay:
            raise ConfigError("ema_decay.with_schedule_free", field="ema_decay")
        if self.method == "embedding" and self.embedding.stop < 1.0:
            raise ConfigError("embedding.stop.too_early", field="embedding.stop", stop=self.embedding.stop)

    @property
    def recomputed(self) -> Recompute:
        """What the backward pass makes again."""
        return Recompute(self.recompute) if self.checkpointing else Recompute.NONE

    def all_sets(self) -> list[DataConfig]:
        """The folders of the run: that of `data` where it has one, then `sets`."""
        return [*([self.data] if self.data.folder or not self.sets else []), *self.sets]

    @property
    def trains_lora(self) -> bool:
        return self.method != "embedding"

    @property
    def trains_tokens(self) -> bool:
        return self.method != "lora"


def parse(values: dict[str, Any], cls: type = TrainConfig, where: str = "") -> Any:
    """The config that `values` (nested dicts, as TOML gives them) describes. Raises ConfigError on the first unknown key, wrong type or bound."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError("setting.unknown", field=f"{where}{key}", allowed=fields)
    checked = {}
    for key, value in values.items():
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError("setting.no_section", field=f"{where}{key}", value=_shown.repr(value))
            checked[key] = parse(value, typing.cast(type, kind), f"{where}{key}.")
        elif typing.get_origin(kind) is tuple:
            if not isinstance(value, list | tuple) or not all(isinstance(v, dict) for v in value):
                raise ConfigError(
                    "setting.no_sections", field=f"{where}{key}", section=f"{where}{key}", value=_shown.repr(value)
                )
            checked[key] = tuple(parse(v, typing.get_args(kind)[0], f"{where}{key}[{n}].") for n, v in enumerate(value))
        else:
            checked[key] = check(f"{where}{key}", value, kind, fields[key].metadata)
    return cls(**checked)


def check(label: str, value: Any, kind: type, meta: types.MappingProxyType | dict) -> Any:
    """`value` as `kind` when it is of that type and within the bounds of `meta`; else ConfigError."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError("setting.type", field=label, kind=kind.__name__, value=_shown.repr(value))
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ConfigError("setting.long", field=label, length=len(value), limit=MAX_TEXT)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("setting.not_finite", field=label, value=value)
    low, high, choices = meta["low"], meta["high"], meta["choices"]
    if choices and value not in choices:
        raise ConfigError("setting.choice", field=label, value=_shown.repr(value), allowed=choices)
    if (low is not None and value < low) or (high is not None and value > high):
        given = value if isinstance(value, float) else _shown.repr(value)
        raise ConfigError("setting.range", field=label, value=given, low=f"{low:g}", high=f"{high:g}")
    return value


def load(path: Path) -> TrainConfig:
    """The config of a TOML job file; relative folders are taken from the job file's own folder."""
    try:
        values = read_toml(path)
    except LoomError as error:
        raise ConfigError(error.message) from error
    return from_values(values, path.parent)


def from_values(values: dict[str, Any], beside: Path) -> TrainConfig:
    """The config of a job as nested dicts; `recipe` names a job file of ours that it starts from. Relative folders are taken from `beside`."""
    values = dict(values)
    given = [key for key in LENGTHS if values.get(key)]
    if len(given) > 1:
        raise ConfigError("length.several", field=given[-1], given=given)
    name = values.pop("recipe", "")
    if not isinstance(name, str):
        raise ConfigError("recipe.type", field="recipe", value=_shown.repr(name))
    values = merged(recipe(name), values) if name else values
    prior = values.get("prior")
    if isinstance(prior, dict) and prior.get("count"):
        values["prior"] = {"required": True, **prior}
    if isinstance(values.get("sets"), list) and isinstance(common := values.get("data", {}), dict):
        values["sets"] = [
            {**common, "folder": "", **changes} if isinstance(changes, dict) else changes for changes in values["sets"]
        ]
    config = parse(values)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, folder=_beside(config.data.folder, beside)),
        sets=tuple(dataclasses.replace(s, folder=_beside(s.folder, beside)) for s in config.sets),
        prior=dataclasses.replace(config.prior, folder=_beside(config.prior.folder, beside)),
        validation=dataclasses.replace(config.validation, folder=_beside(config.validation.folder, beside)),
        base=_beside(config.base, beside) if config.base != "toy" and (beside / config.base).exists() else config.base,
        base_config=_beside(config.base_config, beside),
        base_vae=_beside(config.base_vae, beside),
        companion=_beside(config.companion, beside),
        adapter=dataclasses.replace(config.adapter, start_from=_beside(config.adapter.start_from, beside)),
    )


def _beside(place: str, folder: Path) -> str:
    if place.startswith("hf:"):
        local = folder / place[3:]
        return f"hf:{local.resolve()}" if local.exists() else place
    return str((folder / place).resolve()) if place and not place.startswith("toy:") else place


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested plain dicts, ready for JSON; `parse(as_dict(c)) == c`."""
    return dataclasses.asdict(config)
