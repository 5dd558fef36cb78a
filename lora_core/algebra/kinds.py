"""The table of kinds by name, and which of them given parts are."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from . import NAMES
from .kind import BIAS_PART, MAGNITUDES, Kind, Parts

KINDS: Mapping[str, Kind] = {name: importlib.import_module(f".{name}", __package__).KIND for name in NAMES}
UP_PARAMETERS = frozenset(part.parameter for kind in KINDS.values() for part in kind.parts if part.up)


def recognised(parts: Parts) -> Kind | None:
    """The kind of one layer's parts in a file, by their names and shapes; None when it is none of ours."""
    return next((kind for kind in KINDS.values() if not kind.form and kind.signed(parts)), None)


def trained_as(parts: Parts) -> Kind | None:
    """The kind a run trains that has just such parts; None where training knows none, as for a LoHa with DoRA magnitudes."""
    fitting = [kind for kind in KINDS.values() if kind.signed(parts) and kind.needed <= parts.keys() <= kind.allowed]
    fitting.sort(
        key=lambda kind: not kind.form
    )  # a kind that training tells apart goes before the one it is written as
    carried = {part.name for part in (MAGNITUDES, BIAS_PART) if part.name in parts}
    for kind in fitting[:1]:
        if carried <= (kind.needed | ({BIAS_PART.name} if kind.trains_bias else set())):
            return kind
    return None
