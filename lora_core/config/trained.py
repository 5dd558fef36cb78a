"""The settings of what is trained: adapters, text encoders, new tokens."""

from __future__ import annotations

import dataclasses

from ..algebra import NAMES as ADAPTER_KINDS
from .settings import path_setting, setting


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
        0.0,
        "The update is scaled by alpha / rank; 0 means alpha = rank, a scale of 1.",
        low=0.0,
        high=4096.0,
        zero="rank",
    )
    conv_rank: int = setting(0, "Rank in convolutions larger than 1x1; 0 takes rank.", low=0, high=1024, zero="rank")
    conv_alpha: float = setting(
        0.0,
        "Alpha in those convolutions, where conv_rank is given; 0 means alpha = conv_rank.",
        low=0.0,
        high=4096.0,
        zero="conv_rank",
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
        0,
        "How LoKr splits a layer: the larger, the smaller the file; 0 splits near the root.",
        low=0,
        high=256,
        zero="auto",
    )
    oft_constraint: float = setting(
        0.0,
        "How far OFT and BOFT may rotate: largest norm of a layer's rotation, divided by its outputs; 0 is no limit.",
        low=0.0,
        high=100.0,
        zero="no_limit",
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
        zero="off",
    )
    start_from: str = path_setting(
        "", "LoRA file to go on from instead of starting at zero, for headless runs. Its ranks are kept."
    )
    fixed: str = path_setting(
        "",
        "LoRA file that acts on the model in training alone, not in samples and not in the result: the training adapter (de-distill) of a distilled base.",
    )
    fixed_strength: float = setting(1.0, "How strongly that LoRA acts.", low=-4.0, high=4.0)
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
    rank: int = setting(0, "Size of the update; 0 takes adapter.rank.", low=0, high=1024, zero="rank")
    alpha: float = setting(
        0.0, "The update is scaled by alpha / rank; 0 means alpha = rank.", low=0.0, high=4096.0, zero="rank"
    )
    lr: float = setting(
        0.0,
        "Learning rate of the text encoders; 0 takes optimizer.lr. Half of it or less is common.",
        low=0.0,
        high=10.0,
        zero="learning_rate",
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
        zero="learning_rate",
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
