"""From a config to what is trained: adapters on the chosen layers of model and text encoders, and the vectors of new tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..adapters import ADAPTERS, Adapter, AdapterSet, Shape
from ..adapters.base import MODEL, TEXT_ENCODER
from ..adapters.targets import choose_targets, choose_text_targets, weight_shape
from ..adapters.tokens import TokenSet, TokenVectors, wanted_tokens
from ..backends.base import Backend
from ..config import TrainConfig
from ..messages.errors import LoomError
from ..optim.groups import first_match, lines, unused


def make_adapters(
    config: TrainConfig, backend: Backend, trigger: str = "", start: Mapping[str, Mapping[str, torch.Tensor]] | None = None
) -> tuple[dict[str, nn.Module], AdapterSet]:
    """(layers, what is trained) by file name, for what the config selects; adapters named in `start` begin there, with the rank and scale they have.

    Raises LoomError when the model lacks what the config asks for, or `start` does not fit it.
    """
    layers: dict[str, nn.Module] = {}
    members: dict[str, Adapter] = {}
    if config.trains_lora:
        a, (own, texts) = config.adapter, chosen_layers(config, backend)
        rules = lines("adapter.layer_rank", a.layer_rank)
        for field, those in (("layer_rank", rules), ("layer_lr", lines("adapter.layer_lr", a.layer_lr))):
            if idle := unused(those, [*own, *texts]):
                raise LoomError(
                    "adapter.rule_unmatched",
                    field=f"adapter.{field}",
                    rule=repr(idle[0]),
                    count=len(own) + len(texts),
                    example=next(iter(own)),
                )
        for part, names in ((MODEL, own), (TEXT_ENCODER, texts)):
            device = backend.text_device if part == TEXT_ENCODER and names else backend.device
            for name, layer in names.items():
                given = (start or {}).get(name)
                shape = _shape(config, part, name, layer, rules) if given is None else _given_shape(config, layer, given)
                if shape.rank:
                    layers[name] = layer
                    members[name] = ADAPTERS[a.algorithm](name, layer, shape, config.seed, device, backend.weight)
                    members[name].part = part
                    if given is not None:
                        _begin_from(members[name], name, given)
        if start and (lost := sorted(start.keys() - members.keys())):
            of_text = "te" in lost[0].split("_")[:2] or "text_encoder" in lost[0]
            code = "lora.text_layers_untrained" if of_text else "lora.layers_untrained"
            raise LoomError(code, field="lora", count=len(lost), layers=len(start), layer=lost[0])
        if not members:
            raise LoomError("adapter.layer_rank.nothing_left", field="adapter.layer_rank")
    return layers, AdapterSet(members, _tokens(config, backend, trigger))


def chosen_layers(config: TrainConfig, backend: Backend) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """(layers of the model, layers of its text encoders) that the config selects for adapters, by file name."""
    found = backend.layers()
    own = {backend.file_name(path): found[path] for path in choose_targets(found, config.adapter)}
    if not config.text_encoder.train:
        return own, {}
    texts = backend.text_layers()
    return own, {backend.file_name(path): texts[path] for path in choose_text_targets(texts, config.text_encoder)}


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
    return Shape(weight, rank, alpha or float(rank), a.dropout, a.init, a.rank_stabilized, a.dora_axis, a.lokr_factor)


def _given_shape(config: TrainConfig, layer: nn.Module, given: Mapping[str, torch.Tensor]) -> Shape:
    """The size of an adapter to start from, as its tensors say."""
    rank = next((len(given[key]) for key in ("lora_down", "hada_w1_b", "lokr_w2_b") if key in given), config.adapter.rank)
    alpha = float(given["alpha"]) if "alpha" in given else float(rank)
    split = (given["lokr_w1"].shape[0], given["lokr_w1"].shape[1]) if "lokr_w1" in given else None
    weight = weight_shape(layer)
    if split and (weight[0] % split[0] or weight[1] % split[1]):
        raise LoomError("lora.lokr_split", field="lora", split=split, layer=weight[:2])
    full = "lokr_w2" in given if split else None
    axis = "input" if "dora_scale" in given and given["dora_scale"].shape[0] == 1 else "output"
    return Shape(weight, rank, alpha, config.adapter.dropout, config.adapter.init, False, axis, 0, split, full)


@torch.no_grad()
def _begin_from(adapter: Adapter, name: str, given: Mapping[str, torch.Tensor]) -> None:
    own = dict(adapter.named_parameters())
    if own.keys() != given.keys() - {"alpha"}:
        raise LoomError("lora.other_algorithm", field="lora", name=name, parts=sorted(given), wanted=sorted(own))
    for key, p in own.items():
        if p.numel() != given[key].numel() or len(p) != len(given[key]):
            raise LoomError(
                "lora.other_shape",
                field="lora",
                layer=name,
                part=key,
                shape=tuple(given[key].shape),
                wanted=tuple(p.shape),
            )
        p.copy_(given[key].reshape(p.shape))


def _tokens(config: TrainConfig, backend: Backend, trigger: str) -> TokenSet:
    if not config.trains_tokens:
        return TokenSet()
    tables: Mapping = backend.token_tables()
    if not tables:
        raise LoomError("method.no_text_encoder", field="method")
    return TokenSet(TokenVectors(token, tables, config.seed, backend.text_device) for token in wanted_tokens(config.embedding, trigger))
