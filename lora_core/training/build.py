"""From a config to what is trained: adapters on the chosen layers of model and text encoders, and the vectors of new tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..adapters.base import MODEL, TEXT_ENCODER, Adapter, KindAdapter
from ..adapters.set import AdapterSet
from ..adapters.targets import choose_targets, choose_text_targets
from ..adapters.tokens import TokenSet, TokenVectors, wanted_tokens
from ..algebra.kind import Kind, Shape
from ..algebra.kinds import KINDS, trained_as
from ..algebra.walk import weight_shape
from ..backends.base import Backend
from ..config import TrainConfig
from ..messages.errors import LoomError
from ..messages.message import Message
from ..optim.groups import first_match, lines, unused
from .fixed import Fixed


def make_adapters(
    config: TrainConfig,
    backend: Backend,
    trigger: str = "",
    start: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> tuple[dict[str, nn.Module], AdapterSet]:
    """(layers, what is trained) by file name, for what the config selects; adapters named in `start` begin there, with the rank and scale they have.

    Raises LoomError when the model lacks what the config asks for, or `start` does not fit it.
    """
    layers: dict[str, nn.Module] = {}
    members: dict[str, Adapter] = {}
    if config.trains_lora:
        a, (denoiser, texts) = config.adapter, chosen_layers(config, backend)
        kind = _kind(config)
        rules = lines("adapter.layer_rank", a.layer_rank)
        for field, those in (("layer_rank", rules), ("layer_lr", lines("adapter.layer_lr", a.layer_lr))):
            if idle := unused(those, [*denoiser, *texts]):
                raise LoomError(
                    "adapter.rule_unmatched",
                    field=f"adapter.{field}",
                    rule=repr(idle[0]),
                    count=len(denoiser) + len(texts),
                    example=next(iter(denoiser)),
                )
        for part, names in ((MODEL, denoiser), (TEXT_ENCODER, texts)):
            device = backend.text_device if part == TEXT_ENCODER and names else backend.device
            for name, layer in names.items():
                tensors = (start or {}).get(name)
                shape = (
                    _shape(config, part, name, layer, rules)
                    if tensors is None
                    else _given_shape(config, layer, tensors)
                )
                if shape.rank or tensors is not None:
                    parts = None if tensors is None else _given_parts(kind, name, shape, tensors)
                    layers[name] = layer
                    members[name] = KindAdapter(kind, name, layer, shape, config.seed, device, backend.weight, parts)
                    members[name].part = part
        if start and (lost := sorted(start.keys() - members.keys())):
            of_text = "te" in lost[0].split("_")[:2] or "text_encoder" in lost[0]
            code = "lora.text_layers_untrained" if of_text else "lora.layers_untrained"
            raise LoomError(code, field="lora", count=len(lost), layers=len(start), layer=lost[0])
        if not members:
            raise LoomError("adapter.layer_rank.nothing_left", field="adapter.layer_rank")
    return layers, AdapterSet(members, _tokens(config, backend, trigger))


def with_fixed(
    layers: Mapping[str, nn.Module], adapters: AdapterSet, backend: Backend, fixed: Fixed
) -> tuple[dict[str, nn.Module], AdapterSet, list[str]]:
    """(layers, what is trained above what is fixed, names of the text encoders' layers of the LoRA, which are left out). Raises LoomError."""
    offered, members = backend.layers(), {}
    named = {backend.file_name(path): layer for path, layer in offered.items()}
    for name, tensors in fixed.parts.items():
        if name in named:
            members[name] = _fixed_adapter(name, named[name], tensors, backend, fixed.strength)
    if not members:
        raise LoomError("fixed.no_layers", field="adapter.fixed", file=fixed.name)
    carried = {**layers, **{name: named[name] for name in members}}
    return carried, adapters.with_fixed(members), sorted(fixed.parts.keys() - members.keys())


def _fixed_adapter(
    name: str, layer: nn.Module, tensors: Mapping[str, torch.Tensor], backend: Backend, strength: float
) -> KindAdapter:
    try:
        kind = kind_of(name, tensors)
        shape = Shape(weight_shape(layer), 0, float(tensors["alpha"]) if "alpha" in tensors else 0.0)
        parts = _given_parts(kind, name, shape, tensors)
        adapter = KindAdapter(kind, name, layer, shape, 0, backend.device, backend.weight, parts)
    except LoomError as error:
        raise LoomError(error.message.about("adapter.fixed")) from error
    if strength != 1.0 and not adapter.proportional:
        raise LoomError(
            "strength.undefined", field="adapter.fixed_strength", strength=f"{strength:g}", kinds=adapter.title
        )
    adapter.scale *= strength
    return adapter


def chosen_layers(config: TrainConfig, backend: Backend) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """(layers of the model, layers of its text encoders) that the config selects for adapters, by file name."""
    offered = backend.layers()
    layers = {backend.file_name(path): offered[path] for path in choose_targets(offered, config.adapter)}
    if not config.text_encoder.train:
        return layers, {}
    texts = backend.text_layers()
    return layers, {
        backend.file_name(path): texts[path]
        for path in choose_text_targets(texts, config.text_encoder, config.adapter.algorithm)
    }


def _shape(config: TrainConfig, part: str, name: str, layer: nn.Module, rules: list) -> Shape:
    """Size and scale of one adapter: the text encoders' own, the convolutions' own, or the general ones; a rule by layer goes before all."""
    a, t, weight = config.adapter, config.text_encoder, weight_shape(layer)
    rank, alpha = a.rank, a.alpha
    if part == TEXT_ENCODER:
        rank, alpha = t.rank or a.rank, t.alpha or (0.0 if t.rank else a.alpha)
    elif len(weight) > 2 and max(weight[2:]) > 1 and a.conv_rank:
        rank, alpha = a.conv_rank, a.conv_alpha
    ruled = first_match(rules, name, -1.0)
    if ruled >= 0:
        if ruled != int(ruled):
            raise LoomError("adapter.layer_rank.not_whole", field="adapter.layer_rank", rank=f"{ruled:g}", layer=name)
        rank, alpha = int(ruled), alpha * ruled / rank  # the same scale at another rank
    return Shape(weight, rank, alpha or float(rank), a.dropout, a.rank_stabilized, vars(a))


def _kind(config: TrainConfig) -> Kind:
    """The kind of adapter of a run. Raises LoomError for settings it cannot follow."""
    kind = KINDS[config.adapter.algorithm]
    if config.adapter.dropout and not kind.drops_inputs:
        raise LoomError("adapter.dropout.no_inputs", field="adapter.dropout", kind=kind.name)
    return kind


def _given_shape(config: TrainConfig, layer: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Shape:
    """The size of an adapter to start from: its tensors say the rank, its file the alpha."""
    alpha = float(tensors["alpha"]) if "alpha" in tensors else 0.0
    return Shape(weight_shape(layer), 0, alpha, config.adapter.dropout, False, vars(config.adapter))


def kind_of(name: str, tensors: Mapping[str, torch.Tensor]) -> Kind:
    """The kind that a run must train to go on from these parts of layer `name`. Raises LoomError when there is none."""
    kind = trained_as(_by_formula(tensors))
    if kind is None:
        raise LoomError("lora.untrainable_kind", field="lora", name=name, parts=sorted(tensors))
    return kind


def _by_formula(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parts by the names that the kinds' formulas have for them, without alpha."""
    names = {part.parameter: part.name for kind in KINDS.values() for part in kind.parts}
    return {names.get(key, key): value for key, value in tensors.items() if key != "alpha"}


def _given_parts(kind: Kind, name: str, shape: Shape, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What an adapter of this kind begins with, by the names of its formulas. Raises LoomError where that is of another kind or for another layer."""
    parts, other = _by_formula(tensors), kind_of(name, tensors)
    if other is not kind:
        held = Message.of("held.kind", title=other.title, algorithm=other.name)
        raise LoomError("lora.other_algorithm", field="lora", name=name, parts=held, wanted=kind.name)
    if not kind.problem(parts) and kind.fits(parts, shape.weight):
        return parts
    sizes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items() if key != "alpha")
    raise LoomError("lora.other_sizes", field="lora", name=name, sizes=sizes, weight=shape.weight)


def _tokens(config: TrainConfig, backend: Backend, trigger: str) -> TokenSet:
    if not config.trains_tokens:
        return TokenSet()
    tables: Mapping = backend.token_tables()
    if not tables:
        raise LoomError("method.no_text_encoder", field="method")
    return TokenSet(
        TokenVectors(token, tables, config.seed, backend.text_device)
        for token in wanted_tokens(config.embedding, trigger)
    )
