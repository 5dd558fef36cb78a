"""The settings of a job: its own, and a section for each part of it."""

from __future__ import annotations

import dataclasses
import enum

from ..messages.message import Setting
from ..names import check_name
from .data import DataConfig
from .kept import CacheConfig, SampleConfig, SaveConfig, ValidationConfig
from .learning import ObjectiveConfig, OptimizerConfig, PriorConfig, ScheduleConfig
from .settings import ConfigError, path_setting, setting
from .slider import SliderConfig, lines_of
from .trained import AdapterConfig, EmbeddingConfig, TextEncoderConfig

AS_SET, MEASURE = "as set", "measure"
MEMORY = (AS_SET, MEASURE, "8 GB", "12 GB", "16 GB", "24 GB or more")
BY_MEMORY = (
    "checkpointing",
    "recompute",
    "batch_size",
    "grad_accum",
    "storage",
    "offload",
    "auto_fit",
)  # what it decides
BY_AUTO = (
    "memory",
    "steps",
    "validation.every",
    "validation.share",
    "validation.patience",
    "validation.restore_best",
    "optimizer.lr",
    "validation.calibrate",
)  # what auto decides


class Recompute(str, enum.Enum):
    """What of a block the backward pass makes again instead of keeping it."""

    NONE = ""
    CHEAP = "cheap"  # all but matrix products, convolutions and attention
    ALL = "all"

    def __str__(self) -> str:
        return self.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    name: str = setting("my_lora", "Name of the run and of its result file.")
    base: str = path_setting(
        "toy",
        "Base model of a headless run: toy, a folder in diffusers layout, or a .safetensors file. ComfyUI uses the wired model.",
    )
    base_config: str = path_setting(
        "",
        "Folder in diffusers layout with the configs and tokenizers of a base that is a file; empty: the Hugging Face cache.",
    )
    base_vae: str = path_setting(
        "",
        "Another VAE for a headless run: its folder in diffusers layout, a folder that holds it as vae, or a .safetensors file; empty: the base model's own.",
    )
    companion: str = path_setting(
        "",
        "Folder of the other stage of a two-stage model (Kandinsky 2.2, Würstchen): the prior of a decoder, the decoder of a prior.",
    )
    steps: int = setting(1000, "Weight updates.", low=1, high=10_000_000)
    steps_per_picture: int = setting(
        0,
        "Weight updates for each picture instead of steps; 0 takes steps.",
        low=0,
        high=100_000,
        zero="steps",
    )
    epochs: int = setting(
        0,
        "How often every picture is shown (times its repeats), instead of steps; 0 takes steps. The number of steps is told before the first.",
        low=0,
        high=100_000,
        zero="steps",
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
        "Compile the model's blocks (torch.compile): some minutes at the start, then faster steps; in ComfyUI where their weights lie ready on the GPU.",
    )
    memory: str = setting(
        AS_SET,
        "What the GPU has: decides checkpointing and how batches are split (headless also fp8 and offload) where you leave them open. measure: tries one step.",
        choices=MEMORY,
    )
    memory_keeps: str = setting(
        "", "Settings that memory leaves as they are, separated by commas; those that a job gives itself always are."
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
        zero="off",
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
        "What is trained: a LoRA, an embedding (textual inversion), both (pivotal tuning), or a LoRA from prompts alone (slider).",
        choices=("lora", "embedding", "pivotal", "slider"),
    )
    switch_every: int = setting(
        0,
        "Steps after which the other expert is trained, where a run trains both networks of Wan 2.2 in turn; 0: a run of one model. More spares loading.",
        low=0,
        high=100_000,
    )
    auto: bool = setting(
        False,
        "Decide by measuring what is left open: memory, length, validation and the end at the turn, learning rate, the strength to start from.",
    )
    auto_keeps: str = setting(
        "", "Settings that auto leaves as they are, separated by commas; those that a job gives itself always are."
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
    slider: SliderConfig = setting(SliderConfig, "")
    validation: ValidationConfig = setting(ValidationConfig, "")
    save: SaveConfig = setting(SaveConfig, "")
    samples: SampleConfig = setting(SampleConfig, "")
    cache: CacheConfig = setting(CacheConfig, "")
    sets: tuple[DataConfig, ...] = setting((), "More folders, each with the settings of data unless it says otherwise.")

    def __post_init__(self) -> None:
        check_name("name", self.name)
        if self.epochs and self.steps_per_picture:
            raise ConfigError("length.several", field="epochs", given=[Setting("epochs"), Setting("steps_per_picture")])
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
        clocked = self.optimizer.name if self.optimizer.name in ("prodigy", "schedule_free") else ""
        if self.switch_every and (clocked or self.ema_decay):
            raise ConfigError("experts.clock", field="switch_every", name=clocked or Setting("ema_decay"))
        if self.method == "embedding" and self.embedding.stop < 1.0:
            raise ConfigError("embedding.stop.too_early", field="embedding.stop", stop=self.embedding.stop)
        if self.validation.calibrate and self.method == "embedding":
            raise ConfigError("strength.embedding", field="validation.calibrate")
        if self.auto and self.switch_every:
            raise ConfigError("auto.experts", field="auto")
        if self.prior.without_pictures:
            self._check_predictions()
        if self.trains_slider:
            self._check_slider()

    def _check_predictions(self) -> None:
        """What the frozen model's predictions cannot hold the class with. Raises ConfigError."""
        if self.prior.folder:
            raise ConfigError("prior.held_by.folder", field="prior.held_by")
        if self.method == "embedding":
            raise ConfigError("prior.held_by.embedding", field="prior.held_by")

    def _check_slider(self) -> None:
        """What prompts a slider needs, and what of a run with pictures it cannot have. Raises ConfigError."""
        slider = self.slider
        slider.previewed()
        if slider.erases and not lines_of(slider.target):
            raise ConfigError("slider.target.missing", field="slider.target")
        if slider.of_pairs:
            for name in ("positive", "negative", "across"):
                if lines_of(getattr(slider, name)):
                    raise ConfigError("slider.pairs.prompts", field=f"slider.{name}")
        elif not slider.erases and not lines_of(slider.positive):
            raise ConfigError("slider.positive.missing", field="slider.positive")
        counts = {name: len(lines_of(getattr(slider, name))) for name in ("target", "positive", "negative")}
        most = max(counts.values())
        for name, count in counts.items():
            if count not in (0, 1, most):
                raise ConfigError("slider.lines", field=f"slider.{name}", count=count, most=most)
        unfit = {
            "text_encoder.train": self.text_encoder.train,
            "validation.every": bool(self.validation.every),
            "validation.calibrate": self.validation.calibrate,
            "auto": self.auto,
            "prior.prompt": self.prior.on,
        }
        if not self.needs_pictures:
            unfit |= {"epochs": bool(self.epochs), "steps_per_picture": bool(self.steps_per_picture)}
        for field, is_set in unfit.items():
            if is_set:
                raise ConfigError("slider.without", field=field)

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
    def trains_slider(self) -> bool:
        return self.method == "slider"

    @property
    def needs_pictures(self) -> bool:
        """Whether it cannot run without a folder."""
        return not self.trains_slider or self.slider.of_pairs or any(data.folder for data in self.all_sets())

    @property
    def trains_tokens(self) -> bool:
        return self.method in ("embedding", "pivotal")
