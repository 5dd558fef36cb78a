"""PEFT adapter directories: the scale rules of `adapter_config.json`, and the config for a set of modules. Checked against peft itself."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from ..lora_core.algebra.kinds import KINDS
from .lora import APPROXIMATE, FormatError, Module, as_lora, multiplied
from .name_patterns import FILE, NamePatterns

_UNSUPPORTED = ("modules_to_save", "trainable_token_indices", "layer_replication")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
_KINDS = frozenset(kind.peft for kind in KINDS.values() if kind.peft)
HEADER = "lora_adapter_metadata"


class Scales:
    """The scale rules of one `adapter_config.json`. Raises FormatError where it holds what are no patterns."""

    def __init__(self, config: Mapping[str, Any]):
        self._config = config
        self._alphas = NamePatterns(config.get("alpha_pattern") or {})
        self._ranks = NamePatterns(config.get("rank_pattern") or {})

    def scaled(self, name: str, module: Module) -> Module:
        """The module with the alpha its config gives it: `alpha_pattern` before `lora_alpha`, times sqrt(rank) for rsLoRA (Kalajdzievski 2023)."""
        config = self._config
        if module.alpha is not None or not config:
            return module
        alpha = self._alphas.value(name, config.get("lora_alpha", config.get("alpha")))
        if alpha is None:
            return module
        if not isinstance(alpha, (int, float)) or abs(alpha) > 1e9 or not math.isfinite(alpha):
            raise FormatError("peft.alpha", field=FILE, alpha=str(alpha)[:40])
        if not module.rank:  # a LoKr of two full matrices; PEFT scales it all the same
            rank = self._ranks.value(name, config.get("r"))
            known = module.algebra is not None and module.algebra.peft and isinstance(rank, int) and rank > 0
            return multiplied(module, alpha / rank) if known else module
        if alpha == 0:
            return multiplied(module, 0.0)
        alpha = float(alpha) * math.sqrt(module.rank) if config.get("use_rslora") else float(alpha)
        return Module(module.kind, module.parts, alpha)


def header_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Component -> config from the copy that diffusers keeps in a file's header; {} when there is none. "" -> that of a file of one component, whose keys
    do not name it.
    """
    try:
        flat = json.loads(metadata.get(HEADER, "{}"))
    except (ValueError, RecursionError):
        raise FormatError("peft.header", field="header", header=HEADER) from None
    out: dict[str, dict[str, Any]] = {}
    if isinstance(flat, dict):
        for key, value in flat.items():
            prefix, _, field = key.rpartition(".")
            out.setdefault(prefix, {})[field] = value
    for config in out.values():
        _require_whole_base(config)
    return {prefix: config for prefix, config in out.items() if "lora_alpha" in config or "alpha" in config}


def _require_whole_base(config: Mapping[str, Any]) -> None:
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_BASE):
        raise FormatError("peft.init", field=FILE, init=start[:40])


def require_supported(config: Mapping[str, Any]) -> None:
    """Raises FormatError for parts of PEFT that no other LoRA format can hold."""
    kind = str(config.get("peft_type", "LORA")).rpartition(".")[2].upper()
    if kind not in _KINDS:
        raise FormatError("peft.type", field=FILE, type=kind)
    _require_whole_base(config)
    for field in _UNSUPPORTED:
        if config.get(field):
            raise FormatError("peft.option", field=FILE, option=field)
    if config.get("fan_in_fan_out"):
        raise FormatError("peft.fan_in", field=FILE)


def config_for(modules: Mapping[str, Module], model_names: Collection[str]) -> dict[str, Any]:
    """The adapter_config for modules named by their path in the model: the commonest rank and alpha as defaults, the rest by pattern.

    `model_names`: paths of the model's layers, `*` for numbers, to tell a layer from others whose path ends like it.
    """
    for name, module in modules.items():
        if module.algebra is None or module.algebra.peft_config([module.parts], 0.0) is None:
            raise FormatError("peft.kind", name=name, kind=module.kind, way=as_lora(module))
    kinds = {module.kind: module.algebra for module in modules.values()}
    if len(kinds) != 1:
        raise FormatError("peft.several_kinds", approximate=APPROXIMATE)
    (kind,) = kinds.values()
    alphas = {name: m.scale * m.rank for name, m in modules.items()}
    rank, alpha = (
        Counter(m.rank for m in modules.values()).most_common(1)[0][0],
        Counter(alphas.values()).most_common(1)[0][0],
    )
    dora = {name for name, m in modules.items() if m.magnitudes is not None}
    if dora and len(dora) < len(modules):
        raise FormatError("peft.some_dora", name=min(modules.keys() - dora))

    def ends_another(name: str) -> bool:  # PEFT matches names by their ending
        return any(other.endswith(f".{name}") for other in model_names)

    namesakes = set(filter(ends_another, modules))
    exact = {n: f"^{n}" if n in namesakes else n for n in modules}
    assert kind is not None
    return {
        "peft_type": kind.peft,
        "r": rank,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "target_modules": "|".join(re.escape(n) for n in sorted(modules)) if namesakes else sorted(modules),
        "rank_pattern": {exact[n]: m.rank for n, m in modules.items() if m.rank != rank},
        "alpha_pattern": {exact[n]: a for n, a in alphas.items() if a != alpha},
        **(kind.peft_config([module.parts for module in modules.values()], alpha) or {}),
    }
