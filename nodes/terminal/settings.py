"""A job as it is typed: a file, with the changes of --set over it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...lora_core.config import TrainConfig, from_values
from ...lora_core.messages.errors import LoomError
from ...lora_core.recipes import merged, parse_toml, read_toml


def job_of(args: argparse.Namespace) -> TrainConfig:
    """The job a command was given."""
    return from_values(values_of(args.job, args.changes), args.job.parent)


def values_of(path: Path, changes: Sequence[str]) -> dict[str, Any]:
    """A job file's values with those of --set over them."""
    values = read_toml(path)
    for change in changes:
        key, sign, value = change.partition("=")
        try:
            if not sign:
                raise ValueError(change)
            values = merged(values, _as_toml(key, value))
        except ValueError as error:
            raise LoomError("cli.set", field="--set", change=repr(change)) from error
    return values


def _as_toml(key: str, value: str) -> dict[str, Any]:
    """One setting as TOML reads it; a plain word needs no quotes. Raises ValueError."""
    try:
        return parse_toml(f"{key} = {value}")
    except ValueError:
        return parse_toml(f"{key} = {json.dumps(value)}")
