"""What values of OneTrainer's settings are here, where they are not the same, and the rows that several settings have alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .rows import (
    Paths,
    Row,
    Settings,
    Unmapped,
    Value,
    meaning,
    no_counterpart,
    number,
    on,
    otherwise,
    side,
    truth,
    whole,
)

NARROW = ("FLOAT_8", "INT_8", "NFLOAT_4")


def frames(value: Value, settings: Settings) -> Paths:
    """Every configuration has them; they count for models of films alone."""
    if not str(settings.get("model_type", "")).upper().startswith("HUNYUAN_VIDEO"):
        return {}
    return {"data.frames": str(number(value)).removesuffix(".0")}


def dora_axis(value: Value, settings: Settings) -> Paths:
    """Along which axis the magnitudes of DoRA lie; nothing where there are none."""
    if not on(settings, "lora_decompose"):
        return {}
    return {"adapter.dora_axis": "output" if truth(value) else "input"}


def method(value: Value, settings: Settings) -> Paths:
    names = {"LORA": "lora", "EMBEDDING": "embedding"}
    return {"method": meaning(names, str(value), "import.why.adapters_only")}


def sizes(value: Value, settings: Settings) -> Paths:
    """512, "512,768" for several, "512x768" for a shape."""
    several = [side(part) for part in str(value).split(",") if part.strip()]
    if not several:
        raise Unmapped("import.why.value")
    more: Paths = {"data.also_resolutions": ", ".join(map(str, several[1:]))} if several[1:] else {}
    return {"data.resolution": several[0], **more}


def warmup(value: Value, settings: Settings) -> Paths:
    """Steps, or a share of all steps up to 1."""
    figure = number(value)
    if 0 < figure <= 1:
        raise Unmapped("import.why.share_of_epochs")
    return {"schedule.warmup_steps": round(figure)}


def average(value: Value, settings: Settings) -> Paths:
    return {"ema_decay": settings.get("ema_decay", 0.999)} if str(value) != "OFF" else {}


def loss(name: str) -> Row:
    """The strength of one loss; ours is one of them at full strength."""
    return otherwise("loss", "import.why.one_loss", lambda value, settings: {"loss": name} if number(value) else {})


def weighting(value: Value, settings: Settings) -> Paths:
    strength = settings.get("loss_weight_strength", 5.0)
    ways: Mapping[str, Paths] = {
        "CONSTANT": {"objective.weighting": "none"},
        "MIN_SNR_GAMMA": {"objective.weighting": "min_snr", "objective.min_snr_gamma": strength},
        "DEBIASED_ESTIMATION": {"objective.weighting": "debiased"},
        "P2": {"objective.weighting": "p2", "objective.p2_gamma": strength},
    }
    return meaning(ways, str(value))


def level(path: str) -> Row:
    """A share of the noise levels as a timestep of 1000."""
    return otherwise(path, "import.why.written", lambda value, settings: {path: round(1000 * number(value))})


def distribution(value: Value, settings: Settings) -> Paths:
    names = {"UNIFORM": "uniform", "LOGIT_NORMAL": "logit_normal"}
    if str(value) not in names:
        raise Unmapped("import.why.value")
    out: Paths = {"objective.timesteps": names[str(value)]}
    if names[str(value)] == "logit_normal":
        weight = number(settings.get("noising_weight", 0.0))
        out |= {"objective.logit_mean": number(settings.get("noising_bias", 0.0)), "objective.logit_std": weight + 1.0}
    return out


def shift(value: Value, settings: Settings) -> Paths:
    return {} if on(settings, "dynamic_timestep_shifting") else {"objective.shift": number(value)}


def every(path: str) -> Row:
    """How often something is done, where it is counted in steps."""

    def convert(value: Value, settings: Settings) -> Paths:
        unit = str(settings.get(f"{path}_unit", UNITS[path]))
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


def layers(value: Value, settings: Settings) -> Paths:
    """Parts of the names of layers, separated by commas, or a regular expression."""
    text = str(value)
    names = (
        text
        if on(settings, "layer_filter_regex")
        else "|".join(re.escape(part.strip()) for part in text.split(",") if part.strip())
    )
    return {"adapter.include": names}


def storage(value: Value, settings: Settings) -> Paths:
    if str(value) in NARROW:
        return {"storage": "fp8"}
    return {}


def pictures(value: Value, settings: Settings) -> Paths:
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


def tokens(value: Value, settings: Settings) -> Paths:
    return {"embedding.tokens": str(value)} if settings.get("training_method") == "EMBEDDING" else {}


def if_embedding(path: str) -> Row:
    return otherwise(
        path,
        "import.why.if_tokens",
        lambda value, settings: {path: value} if settings.get("training_method") == "EMBEDDING" else {},
    )


def if_text(path: str, key: str) -> Row:
    """A setting of a text encoder's LoRA, where it is trained."""
    return otherwise(
        path, "import.why.if_trained", lambda value, settings: {path: value} if on(settings, f"{key}.train") else {}
    )


def unless_unset(value: Value, settings: Settings) -> Paths:
    """Nothing to carry over where it is off or zero. Raises Unmapped."""
    return {} if str(value).lower() in ("false", "0", "0.0") else no_counterpart()


def captions(value: Value, settings: Settings) -> Paths:
    """Text files whose lines are alternatives, the file's name, or one text for all."""
    names: Mapping[str, Paths] = {
        "sample": {"captions": ".txt", "caption_lines": "alternatives"},
        "filename": {"captions": "file name"},
        "concept": {"captions": "none"},
    }
    return meaning(names, str(value))


def kind(value: Value, settings: Settings) -> Paths:
    names: Mapping[str, Paths] = {"STANDARD": {}, "PRIOR_PREDICTION": {"regularization": True}}
    return meaning(names, str(value), "import.why.validation_concept")
