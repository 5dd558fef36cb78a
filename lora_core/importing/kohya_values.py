"""What values of sd-scripts' settings are here, where they are not the same."""

from __future__ import annotations

from collections.abc import Mapping

from .rows import (
    LYCORIS,
    Paths,
    Settings,
    Unmapped,
    Value,
    as_list,
    meaning,
    number,
    on,
    side,
    truth,
)

# kohya's word -> optimizer.name, and its library's own values where ours are others
OPTIMIZERS: Mapping[str, tuple[str, Paths]] = {
    "adamw": ("adamw", {}),
    "adamw8bit": ("adamw8bit", {}),
    "pagedadamw8bit": ("adamw8bit", {}),
    "pagedadamw": ("adamw", {}),
    "adafactor": ("adafactor", {"optimizer.weight_decay": 0.0}),
    "prodigy": (
        "prodigy",
        {
            "optimizer.weight_decay": 0.0,
            "optimizer.beta2": 0.999,
            "optimizer.prodigy_use_bias_correction": False,
            "optimizer.prodigy_safeguard_warmup": False,
        },
    ),
    "lion": ("lion", {"optimizer.weight_decay": 0.0, "optimizer.beta2": 0.99}),
    "lion8bit": ("lion", {"optimizer.weight_decay": 0.0, "optimizer.beta2": 0.99}),
    "came": ("came", {"optimizer.weight_decay": 0.0}),
    "adamwschedulefree": ("schedule_free", {"optimizer.weight_decay": 0.0}),
    "muon": ("muon", {}),
}


def optimizer(value: Value, settings: Settings) -> Paths:
    """The optimizer of a name, which may be that of a class in a package, with its library's own values."""
    name = str(value).rpartition(".")[2].lower()
    if not name:
        switches = {"use_8bit_adam": "adamw8bit", "use_lion_optimizer": "lion"}
        name = next((chosen for switch, chosen in switches.items() if on(settings, switch)), "adamw")
    if name not in OPTIMIZERS:
        raise Unmapped("import.why.value")
    ours, values = OPTIMIZERS[name]
    return {"optimizer.name": ours, **values}


def betas(value: Value, settings: Settings) -> Paths:
    """0.9,0.99 or (0.9, 0.99)."""
    figures = [number(part) for part in as_list(str(value).strip("()[]"))]
    return {"optimizer.beta1": figures[0], "optimizer.beta2": figures[1]} if len(figures) > 1 else {}


def algorithm(value: Value, settings: Settings) -> Paths:
    """LyCORIS's kind of adapter."""
    return {"adapter.algorithm": meaning(LYCORIS, str(value).lower())}


def dora(value: Value, settings: Settings) -> Paths:
    return {"adapter.algorithm": "dora"} if truth(value) else {}


def convolutions(value: Value, settings: Settings) -> Paths:
    """A rank for convolutions larger than 1x1 means that they are trained."""
    return {"adapter.conv_rank": value, "adapter.targets": "conv"} if number(value) else {}


def unless_false(value: Value, settings: Settings) -> Paths:
    """Nothing to carry over where a switch is off."""
    if str(value).lower() in ("false", "none", "0", "0.0"):
        return {}
    raise Unmapped("import.why.value")


def module(value: Value, settings: Settings) -> Paths:
    """networks.lora and its kin; LyCORIS says in its arguments what it is."""
    name = str(value).rpartition("networks.")[2] or str(value)
    if name in ("lora", "lora_flux", "lora_sd3", "lora_lumina", "lora_anima", "lora_hunyuan_image", "lora_qwen_image"):
        return {"adapter.algorithm": "lora"}
    if name in ("loha", "lokr"):
        return {"adapter.algorithm": name}
    if name in ("oft", "oft_flux"):
        return {"adapter.algorithm": "oft"}
    if "lycoris" in str(value).lower():
        return {"adapter.algorithm": "lora"}
    raise Unmapped("import.why.value")


def warmup(value: Value, settings: Settings) -> Paths:
    """Steps, or a share of all steps where it is below 1; none with the plain constant schedule, which takes no notice of them."""
    figure = number(value)
    if str(settings.get("lr_scheduler", "constant")).strip("\"'") == "constant":
        return {}
    if 0 < figure < 1:
        if settings.get("max_train_epochs") or settings.get("num_train_epochs"):
            raise Unmapped("import.why.share_of_epochs")
        figure *= number(settings.get("max_train_steps") or 1600)
    return {"schedule.warmup_steps": round(figure)}


def steps(value: Value, settings: Settings) -> Paths:
    """Of no effect where epochs are given."""
    return {} if settings.get("max_train_epochs") else {"steps": value}


def rate(value: Value, settings: Settings) -> Paths:
    """That of the UNET where it has one of its own."""
    return {} if settings.get("unet_lr") else {"optimizer.lr": value}


def text_rate(value: Value, settings: Settings) -> Paths:
    """One rate for all text encoders; the first of several. 0 trains none."""
    if settings.get("network_train_unet_only") is not None and on(settings, "network_train_unet_only"):
        return {}
    rates = [number(part) for part in as_list(value)]
    return {"text_encoder.train": False} if not any(rates) else {"text_encoder.lr": next(r for r in rates if r)}


def text_encoders(value: Value, settings: Settings) -> Paths:
    return {} if settings.get("token_string") else {"text_encoder.train": not truth(value)}


def noise_levels(value: Value, settings: Settings) -> Paths:
    """How the flow scripts draw noise levels, in our words."""
    name = str(value)
    spread: Paths = {"objective.timesteps": "logit_normal", "objective.logit_mean": 0.0}
    spread["objective.logit_std"] = settings.get("sigmoid_scale", 1.0)
    if name == "uniform":
        return {"objective.timesteps": "uniform", "objective.shift": 1.0}
    if name == "sigmoid":
        return {**spread, "objective.shift": 1.0}
    if name == "shift":
        return {**spread, "objective.shift": settings.get("discrete_flow_shift", 3.0)}
    if name == "flux_shift":
        return spread
    if name == "sigma":
        kind = "logit_normal" if settings.get("weighting_scheme") == "logit_normal" else "uniform"
        return {"objective.timesteps": kind, "objective.shift": settings.get("discrete_flow_shift", 3.0)}
    raise Unmapped("import.why.value")


def scheme(value: Value, settings: Settings) -> Paths:
    """How noise levels are drawn where `timestep_sampling` leaves it open."""
    if str(value) not in ("logit_normal", "uniform", "none"):
        raise Unmapped("import.why.value")
    kind = "logit_normal" if value == "logit_normal" else "uniform"
    return {"objective.timesteps": kind} if settings.get("timestep_sampling", "sigma") == "sigma" else {}


def weighting(value: Value, settings: Settings) -> Paths:
    return {"objective.weighting": "min_snr", "objective.min_snr_gamma": value} if number(value) else {}


def separator(value: Value, settings: Settings) -> Paths:
    if value in ("|||", ""):
        return {}
    raise Unmapped("import.why.separator")


def lines(value: Value, settings: Settings) -> Paths:
    """With wildcards the lines of a caption file are alternatives; without, the first one counts."""
    return {"wildcards": truth(value), "caption_lines": "alternatives" if truth(value) else "first"}


def several(value: Value, settings: Settings) -> Paths:
    """--resolution 512,768 has as many pixels as the square of this side."""
    return {"resolution": side(value)}


def images(value: Value, settings: Settings) -> Paths:
    return {"regularization": truth(value)}


def extension(value: Value, settings: Settings) -> Paths:
    word = f".{str(value).lstrip('.')}"
    if word not in (".txt", ".caption"):
        raise Unmapped("import.why.extension")
    return {"captions": word}


def masked(value: Value, settings: Settings) -> Paths:
    return {"masks": "alpha"} if truth(value) else {}
