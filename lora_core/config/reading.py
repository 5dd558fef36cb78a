"""A job file becomes a config: keys, types and bounds checked, recipes filled in, paths taken from beside the file."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

from ..messages.errors import LoomError
from ..messages.message import Setting
from ..recipes import LENGTHS, merged, read_toml, recipe
from .data import DataConfig
from .job import AS_SET, BY_AUTO, BY_MEMORY, TrainConfig
from .settings import ConfigError, check, short


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
                raise ConfigError("setting.no_section", field=f"{where}{key}", value=short.repr(value))
            checked[key] = parse(value, typing.cast(type, kind), f"{where}{key}.")
        elif typing.get_origin(kind) is tuple:
            if not isinstance(value, list | tuple) or not all(isinstance(v, dict) for v in value):
                raise ConfigError(
                    "setting.no_sections", field=f"{where}{key}", section=f"{where}{key}", value=short.repr(value)
                )
            checked[key] = tuple(parse(v, typing.get_args(kind)[0], f"{where}{key}[{n}].") for n, v in enumerate(value))
        else:
            checked[key] = check(f"{where}{key}", value, kind, fields[key].metadata)
    return cls(**checked)


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
    names = [key for key in LENGTHS if values.get(key)]
    if len(names) > 1:
        raise ConfigError("length.several", field=names[-1], given=[Setting(key) for key in names])
    name = values.pop("recipe", "")
    if not isinstance(name, str):
        raise ConfigError("recipe.type", field="recipe", value=short.repr(name))
    names = [key for key in BY_MEMORY if key in values]
    values = merged(recipe(name), values) if name else values
    if names and (values.get("memory", AS_SET) != AS_SET or values.get("auto")):
        values["memory_keeps"] = ", ".join(filter(None, [str(values.get("memory_keeps", "")), *names]))
    if mine := [path for path in (*BY_AUTO, *LENGTHS[1:]) if values.get("auto") and _is_given(path, values)]:
        values["auto_keeps"] = ", ".join(filter(None, [str(values.get("auto_keeps", "")), *mine]))
    prior = values.get("prior")
    if isinstance(prior, dict) and prior.get("count"):
        values["prior"] = {"required": True, **prior}
    if isinstance(values.get("sets"), list) and isinstance(common := values.get("data", {}), dict):
        values["sets"] = [
            {**common, "folder": "", "control_path": "", **changes} if isinstance(changes, dict) else changes
            for changes in values["sets"]
        ]
    config = parse(values)
    return dataclasses.replace(
        config,
        data=_set_beside(config.data, beside),
        sets=tuple(_set_beside(s, beside) for s in config.sets),
        prior=dataclasses.replace(config.prior, folder=_beside(config.prior.folder, beside)),
        validation=dataclasses.replace(config.validation, folder=_beside(config.validation.folder, beside)),
        base=_beside(config.base, beside) if config.base != "toy" and (beside / config.base).exists() else config.base,
        base_config=_beside(config.base_config, beside),
        base_vae=_beside(config.base_vae, beside),
        companion=_beside(config.companion, beside),
        adapter=dataclasses.replace(
            config.adapter,
            start_from=_beside(config.adapter.start_from, beside),
            fixed=_beside(config.adapter.fixed, beside),
        ),
    )


def _is_given(path: str, values: dict[str, Any]) -> bool:
    """Whether a job says this setting; a length of 0 and a learning rate of 0 say nothing."""
    section, _, leaf = path.rpartition(".")
    place = values.get(section, {}) if section else values
    return isinstance(place, dict) and leaf in place and (bool(place[leaf]) or path not in (*LENGTHS, "optimizer.lr"))


def _set_beside(data: DataConfig, folder: Path) -> DataConfig:
    controls = "\n".join(_beside(place, folder) for place in data.control_folders)
    return dataclasses.replace(data, folder=_beside(data.folder, folder), control_path=controls)


def _beside(place: str, folder: Path) -> str:
    if place.startswith("hf:"):
        local = folder / place[3:]
        return f"hf:{local.resolve()}" if local.exists() else place
    return str((folder / place).resolve()) if place and not place.startswith("toy:") else place


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested plain dicts, ready for JSON; `parse(as_dict(c)) == c`."""
    return dataclasses.asdict(config)
