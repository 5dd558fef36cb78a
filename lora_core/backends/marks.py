"""What files and folders tell of a base model without their weights being read: empty tensors, headers, scheduler configs, names."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..messages.errors import LoomError
from ..messages.figures import figure
from ..messages.message import Message
from .base_model import PREFIXES, Expert, Strength, Witness

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}  # our word for each of diffusers'
_HEADER_WORDS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v", "v_prediction": "v"}  # of modelspec.prediction_type
_V_NAME = re.compile(r"(vpred|(?<![a-z])v[-_ ]pred)(iction)?(?![a-z])")
_EPS_NAME = re.compile(r"(?<![a-z])eps(ilon)?[-_ ]?pred(iction)?(?![a-z])")
_DISTILLED_WORDS = {
    "turbo", "lightning", "schnell", "lcm", "dmd", "dmd2", "hypersd", "distill", "distilled", "fewstep", "lightx2v",
}  # fmt: skip
_STEPS_WORD = re.compile(r"\d{1,2}[-_ ]?steps?(?![a-z0-9])")
_ANIME = re.compile(
    r"anime|anything|novelai|(?<![a-z])nai(?![a-z])|counterfeit|orangemix|(?<![a-z])aom\d|meina|pastel[-_ ]?mix|anylora|cetus|hassaku"
)
_FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
_EDM_KEYS = ("edm_mean", "edm_vpred.sigma_max", "edm_vpred.sigma_min")  # Playground v2.5, CosXL
WAN_BOUNDARY, WAN_I2V_BOUNDARY = 0.875, 0.9  # sigma at which Wan 2.2 passes from one network to the other
_SD2_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SD2_V_SPREAD = 0.09  # standard deviation above which ComfyUI takes an SD2 model for one that predicts v
_SD2_WIDTH = ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 1024)


@dataclasses.dataclass(frozen=True)
class Marks:
    """What a file or a folder tells: its own word and guesses on the prediction; signs of distillation; the expert it is."""

    witnesses: tuple[Witness, ...] = ()
    distilled: Message | None = None
    expert: Expert | None = None
    anime: str | None = None  # the name by which it looks like an anime model of Stable Diffusion 1


def marks_of_name(*names: str) -> Marks:
    """What the names of a model say: of its file, its folder, its header's title. Guesses, all of it."""
    spoken = next(((name, kind) for name in names if (kind := _prediction_in(name.lower()))), None)
    witnesses: tuple[Witness, ...] = ()
    if spoken:
        name, kind = spoken
        witnesses = (Witness(Message.of("base.source.name", name=repr(name)), kind, strength=Strength.GUESS),)
    few = next((name for name in names if _few_steps(name.lower())), None)
    sign = None if few is None else Message.of("base.sign.name", name=repr(few))
    anime = next((name for name in names if _ANIME.search(name.lower())), None)
    return Marks(witnesses, sign, next(filter(None, map(_expert, names)), None), anime)


def _prediction_in(name: str) -> str:
    if _EPS_NAME.search(name):
        return "epsilon"
    return "v" if _V_NAME.search(name) else ""


def _few_steps(name: str) -> bool:
    words = set(re.split(r"[^a-z0-9]+", name))
    if "klein" in words:  # Flux.2 klein is distilled, its base model has the word in its name
        return "base" not in words
    return bool(words & _DISTILLED_WORDS) or bool(_STEPS_WORD.search(name))


def _expert(name: str) -> Expert | None:
    """Of Wan 2.2, whose two networks have one shape."""
    match = re.search(r"(high|low)[-_ ]?noise", name.lower())
    if match is None or "wan" not in name.lower():
        return None
    boundary = WAN_I2V_BOUNDARY if "i2v" in name.lower() else WAN_BOUNDARY
    if match[1] == "high":
        return Expert("expert.high_noise", boundary, 1.0)
    return Expert("expert.low_noise", 0.0, boundary)


def marks_of_file(file: Path) -> Marks:
    """Of a .safetensors file, by its names, its header and its smallest tensors; of anything else by its name."""
    try:
        with safe_open(file, "pt") as opened:
            names, header = set(opened.keys()), opened.metadata() or {}
            marks = [*_empty_tensors(file, names), *_header(file, header)]
            guesses = _sd2_guess(file, names, opened) if not marks else []
    except (SafetensorError, OSError):
        return marks_of_name(file.stem)
    named = marks_of_name(file.stem, header.get("modelspec.title", ""))
    return dataclasses.replace(named, witnesses=(*marks, *guesses, *named.witnesses))


def _empty_tensors(file: Path, names: Collection[str]) -> list[Witness]:
    """The tensors without values by which merges and trainers mark SDXL models that predict v."""
    if "v_pred" not in names:
        return []
    keys = [key for key in ("v_pred", "ztsnr") if key in names]
    source = Message.of("base.source.tensors", file=file.name, keys=keys)
    return [Witness(source, "v", True if "ztsnr" in names else None, Strength.WEIGHTS)]


def _header(file: Path, header: Mapping[str, str]) -> list[Witness]:
    """modelspec.prediction_type, and what the Kohya scripts write of a training."""
    zero = True if header.get("ss_zero_terminal_snr", "").lower() == "true" else None
    for key in ("modelspec.prediction_type", "ss_v_parameterization"):
        word = header.get(key, "").lower()
        kind = _HEADER_WORDS.get(word) if key.startswith("modelspec") else {"true": "v"}.get(word)
        if kind:
            return [Witness(Message.of("base.source.header", file=file.name, key=key), kind, zero, Strength.WEIGHTS)]
    return []


def _sd2_guess(file: Path, names: Collection[str], opened: Any) -> list[Witness]:
    """SD2's eps and v models have one shape; one bias is spread further in the v models, as ComfyUI tells them apart."""
    for prefix in PREFIXES:
        width, bias = prefix + _SD2_WIDTH[0], prefix + _SD2_BIAS
        if width in names and bias in names and opened.get_slice(width).get_shape()[1] == _SD2_WIDTH[1]:
            spread = float(opened.get_tensor(bias).float().std(correction=0))
            kind = "v" if spread > _SD2_V_SPREAD else "epsilon"
            source = Message.of("base.source.numbers", file=file.name, key=bias, spread=figure(spread))
            return [Witness(source, kind, strength=Strength.GUESS)]
    return []


def require_discrete_file(file: Path, names: Collection[str]) -> None:
    """Refuses a checkpoint of the SD family that was trained on continuous noise levels, which a table of betas does not give. Raises LoomError."""
    marks = [key for key in _EDM_KEYS if key in names]
    if marks:
        raise LoomError("base.edm", field="base", file=file.name, mark=marks[0])


def require_discrete_scheduler(folder: Path, config: Mapping[str, Any]) -> None:
    """The same for a folder, by its scheduler_config.json. Raises LoomError."""
    kind = str(config.get("_class_name", ""))
    if kind.startswith(("EDM", "CosineDPM")) or "sigma_data" in config:
        raise LoomError("base.edm", field="base", file=folder.name, mark=kind)
    if kind.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        raise LoomError("base.flow_scheduler", field="base", file=folder.name, scheduler=kind)


def require_flow_scheduler(folder: Path) -> None:
    """Refuses a folder whose scheduler has no time shift to train a flow model with. Raises LoomError."""
    config = scheduler_config(folder)
    if config and "shift" not in config:
        kind = str(config.get("_class_name", ""))
        raise LoomError("base.no_flow_scheduler", field="base", file=folder.name, scheduler=kind)


def marks_of_folder(folder: Path) -> Marks:
    """Of a folder in diffusers layout: its name, or that of the repository whose snapshot it is; and the class of its scheduler."""
    named = marks_of_name(_repository(folder))
    kind = scheduler_config(folder).get("_class_name", "")
    if named.distilled is None and kind in _FEW_STEP_SCHEDULERS:
        named = dataclasses.replace(named, distilled=Message.of("base.sign.scheduler", scheduler=kind))
    return named


def _repository(folder: Path) -> str:
    """The folder's name; of a snapshot in the Hub's cache that of the repository."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def scheduler_config(folder: Path) -> dict[str, Any]:
    """What scheduler_config.json of a model folder holds; nothing where there is none."""
    try:
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def scheduler_witness(config: Mapping[str, Any]) -> Witness:
    """What a scheduler's config says of the prediction. `config`: of a diffusers scheduler with a table of betas. Raises LoomError for one we do not train."""
    word = config.get("prediction_type", "epsilon")
    if word not in PREDICTIONS:
        raise LoomError("base.prediction_type", field="base", type=repr(word), allowed=PREDICTIONS)
    source = Message.of("base.source.scheduler")
    return Witness(source, PREDICTIONS[word], bool(config.get("rescale_betas_zero_snr")))
