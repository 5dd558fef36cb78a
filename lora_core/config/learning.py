"""The settings of how it learns: optimizer, schedule, objective, prior preservation."""

from __future__ import annotations

import dataclasses

from .settings import path_setting, setting


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
        zero="auto",
    )
    beta1: float = setting(0.9, "Decay of the gradient average.", low=0.0, high=0.9999)
    beta2: float = setting(
        0.0,
        "Decay of the squared-gradient average; 0 takes the optimizer's usual one (adamw 0.999, prodigy 0.99).",
        low=0.0,
        high=0.999999,
        zero="auto",
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
        0.0,
        "Decay of Prodigy's estimate; 0 takes the square root of beta2.",
        low=0.0,
        high=0.999999,
        zero="auto",
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
        1.0, "Gradients are scaled down to this norm; 0 turns clipping off.", zero="off", low=0.0, high=1e6
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    name: str = setting(
        "constant",
        "How the learning rate changes during the run.",
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
        "How noise levels are sampled; auto is uniform for eps and v, logit-normal for flow.",
        choices=("auto", "uniform", "logit_normal"),
    )
    timestep_bias: float = setting(
        0.0, "Above 0 samples noisy levels more often, below 0 clean ones: u becomes u^(2^-bias).", low=-5.0, high=5.0
    )
    logit_mean: float = setting(0.0, "Mean of logit_normal.", low=-5.0, high=5.0)
    logit_std: float = setting(1.0, "Standard deviation of logit_normal.", low=0.05, high=5.0)
    shift: float = setting(0.0, "Time shift of flow models; 0 takes the model's own.", low=0.0, high=100.0, zero="auto")
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
        0,
        "Coarser layers added to the noise (pyramid noise); 0 turns it off.",
        low=0,
        high=16,
        zero="off",
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
    folder: str = path_setting(
        "", "Folder of real class pictures; their captions are used, or the class prompt where they have none."
    )
    count: int = setting(
        100,
        "Class pictures wanted; what the folder lacks is made by the model before it is trained, once.",
        low=0,
        high=10_000,
    )
    weight: float = setting(
        1.0, "Weight of the class pictures' loss; 0 turns prior preservation off.", zero="off", low=0.0, high=10.0
    )
    steps: int = setting(25, "Sampler steps of class pictures that are made.", low=1, high=200)
    cfg: float = setting(7.0, "Guidance of class pictures that are made.", low=0.0, high=100.0)
    required: bool = setting(
        False,
        "Refuse to train without class pictures. A job that gives count means them, and has this on unless it says otherwise.",
    )
    held_by: str = setting(
        "pictures",
        "What holds the class: pictures of it, or predictions, which need none: what the frozen model says of the training pictures by class captions.",
        choices=("pictures", "predictions"),
    )

    @property
    def on(self) -> bool:
        return self.weight > 0 and bool(self.prompt or self.class_word or self.folder)

    @property
    def without_pictures(self) -> bool:
        """Whether the frozen model's own predictions hold the class."""
        return self.on and self.held_by == "predictions"
