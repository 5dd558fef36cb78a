"""Between a run and the files it writes or begins from: the engine knows no file format, the formats know no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...convert import FormatError, Lora, products
from ...convert.families import UNKNOWN, known_family
from ...convert.results import starting_point
from ...lora_core.backends.base import Backend
from ...lora_core.config import TrainConfig
from ...lora_core.messages.errors import LoomError
from ...lora_core.training.build import chosen_layers
from ...lora_core.training.fixed import Fixed
from ...lora_core.training.run import Start
from ...lora_core.training.trainer import Export, Product


def exporter(name: str, family: str) -> Export:
    """Makes the files of a run called `name` on a model of `family`, in the form that ComfyUI and diffusers both read."""

    def export(state: dict[str, torch.Tensor], facts: dict[str, Any]) -> dict[str, Product]:
        return products(state, name, family, facts)

    return export


def start_of(opened: Callable[[str], Lora], backend: Backend, family: str, config: TrainConfig) -> Start:
    """A LoRA as what the adapters of a run begin from. `opened(family)`: the LoRA, read as one of that family."""
    layers, text_layers = chosen_layers(config, backend)
    return by_layer(opened, family, [*layers, *text_layers], config.adapter.algorithm)


def fixed_of(opened: Callable[[str], Lora], backend: Backend, config: TrainConfig) -> Fixed:
    """The LoRA that adapter.fixed names, as `opened` reads it, for a run on this model. Raises LoomError for one that is not for it."""
    names = [backend.file_name(path) for path in (*backend.layers(), *backend.text_layers())]
    file = Path(config.adapter.fixed).name
    try:
        parts = by_layer(opened, backend.family, names)
    except FormatError as error:
        if error.message.code != "lora.layer_untrained":
            raise LoomError(error.message.about("adapter.fixed")) from error
        layer = error.message.values["layer"]
        raise LoomError("fixed.other_model", field="adapter.fixed", file=file, layer=layer) from error
    return Fixed(file, parts, config.adapter.fixed_strength)


def by_layer(opened: Callable[[str], Lora], family: str, names: Sequence[str], algorithm: str = "") -> Start:
    """A LoRA by the layers of a model, which are called `names` in files, brought into the form `algorithm` (its own by default).

    A model without a table, or of unusual shape, has layers under names of its own.
    """
    try:
        lora = opened(known_family(family))
    except FormatError:
        lora = opened(UNKNOWN)
    return starting_point(lora, names, algorithm)
