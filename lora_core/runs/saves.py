"""The saves of a run as a file or a sampler takes them, read without the model: which there are, their weights, their loss on held-out pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..config import TrainConfig
from ..messages.errors import LoomError
from ..messages.message import Message
from ..optim.ema import PREFIX as EMA_PREFIX
from ..optim.groups import first_match, lines
from . import checkpoints, listing
from .bounded import as_number, read_json
from .folders import config_of

MAX_STATE_BYTES = 256 << 20
WHICH = ("all", "last", "best", "every nth")
_RANK_OF = {"lora_down": 0, "hada_w1_b": 0, "lokr_w2_b": 0}  # the parameter and axis that tell an adapter's rank


@dataclasses.dataclass(frozen=True)
class Save:
    """The weights after `step`. `best`: the ones kept as the best on held-out pictures. `held_out`: their loss there, None where it was not measured."""

    step: int
    path: Path
    best: bool = False
    held_out: float | None = None

    @property
    def title(self) -> Message:
        return Message.of("save.best_step" if self.best else "save.step", step=self.step)

    @property
    def label(self) -> str:
        """The title in English, for pictures and wires."""
        return str(self.title)


def all_saves(folder: Path) -> list[Save]:
    """The saves of a run, oldest first; where the best weights are those of a checkpoint too, they are listed once, as the best."""
    place, run = folder / "checkpoints", listing.read_run(folder)
    steps, best, losses = run.saves, run.best_save, _measured(folder, run.saves)
    saves = [Save(step, checkpoints.folder_of(place, step), False, losses.get(step)) for step in steps if step != best]
    if best is not None:
        saves.append(Save(best, place / f"best-{best:08d}.safetensors", True, losses.get(best)))
    return sorted(saves, key=lambda save: save.step)


def _measured(folder: Path, steps: Sequence[int]) -> dict[int, float]:
    """Step -> loss on held-out pictures; a checkpoint knows that of step 0 too, which the log does not."""
    facts = (
        read_json(checkpoints.folder_of(folder / "checkpoints", steps[-1]) / "state.json", MAX_STATE_BYTES)
        if steps
        else None
    )
    inner = facts.get("facts") if isinstance(facts, dict) else None
    rows = inner.get("validation") if isinstance(inner, dict) else None
    losses: dict[int, float] = {}
    for row in rows if isinstance(rows, list) else []:
        step, loss = map(as_number, row[:2]) if isinstance(row, list) and len(row) > 1 else (None, None)
        if step is not None and loss is not None:
            losses[int(step)] = loss
    return {**losses, **listing.held_out(folder)}


def loss_without(folder: Path) -> float | None:
    """The loss on held-out pictures before the first step."""
    return _measured(folder, listing.read_run(folder).saves).get(0)


def chosen(saves: Sequence[Save], which: str, nth: int = 1) -> list[Save]:
    """Those to use. Raises LoomError when there is none."""
    if not saves:
        raise LoomError("run.no_save_yet", field="run")
    if which == "last":
        return [saves[-1]]
    if which == "every nth":
        return list(saves[::-1][:: max(1, nth)])[::-1]  # counted from the last one, which is always wanted
    if which == "best":
        marked, measured = [s for s in saves if s.best], [s for s in saves if s.held_out is not None]
        if not marked and not measured:
            raise LoomError("saves.no_best", field="saves")
        return marked or [min(measured, key=lambda s: s.held_out or 0.0)]
    return list(saves)


def weights(folder: Path, save: Save) -> dict[str, torch.Tensor]:
    """The run's own state at a save, averages in place of the raw weights, with `<layer>.alpha`: what `convert.products` takes.

    Raises LoomError for a save that is damaged or whose scale the run folder does not tell.
    """
    config = config_of(folder)
    if save.best:
        try:
            tensors = load_file(save.path)
        except (OSError, SafetensorError) as error:
            raise LoomError("save.unreadable", save=save.path.name) from error
        untouched = _untouched(folder)
    else:
        if config.optimizer.name == "schedule_free":
            raise LoomError("saves.schedule_free", run=folder.name)
        checkpoint = checkpoints.read(save.path)
        if checkpoint is None:
            raise LoomError("save.damaged", save=save.path.name)
        tensors, untouched = finished(checkpoint.adapter), checkpoint.facts.get("untouched", [])
    tensors = checkpoints.without_layers(tensors, untouched)
    return tensors if any(key.endswith(".alpha") for key in tensors) else {**tensors, **alphas_of_0_1(config, tensors)}


def _untouched(folder: Path) -> list[str]:
    """The layers that had no gradient until the newest checkpoint of a run."""
    for place in checkpoints.all_steps(folder / "checkpoints")[:1]:
        state = read_json(place / "state.json", MAX_STATE_BYTES)
        facts = state.get("facts") if isinstance(state, dict) else None
        names = facts.get("untouched") if isinstance(facts, dict) else None
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return []


def finished(adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The values to sample with out of a checkpoint's: the moving averages where it kept some."""
    plain = {k: v for k, v in adapter.items() if not k.startswith(EMA_PREFIX)}
    return {
        **plain,
        **{
            k.removeprefix(EMA_PREFIX): v
            for k, v in adapter.items()
            if k.removeprefix(EMA_PREFIX) in plain and k.startswith(EMA_PREFIX)
        },
    }


def alphas_of_0_1(config: TrainConfig, adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`<layer>.alpha` of a save of 0.1.0, which did not store them: the settings say alpha / rank, whatever the layer's rank."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in adapter.items():
        if not key.startswith("token."):
            name, _, part = key.rpartition(".")
            layers.setdefault(name, {})[part] = value
    rules = lines("adapter.layer_rank", config.adapter.layer_rank)
    alphas = {f"{name}.alpha": _alpha_of_0_1(config, name, parts, rules) for name, parts in layers.items()}
    return {key: torch.tensor(alpha) for key, alpha in alphas.items() if alpha is not None}


def _alpha_of_0_1(config: TrainConfig, name: str, parts: Mapping[str, torch.Tensor], rules: list) -> float | None:
    rank = next((parts[part].shape[axis] for part, axis in _RANK_OF.items() if part in parts), None)
    if rank is None:  # LoKr with two full factors: readers ignore alpha
        return None
    a, t = config.adapter, config.text_encoder
    general, ranks = (a.rank, a.alpha), {a.rank}
    if name.startswith(("lora_te", "text_encoder")):
        general = (t.rank or a.rank, t.alpha or (0.0 if t.rank else a.alpha))
        ranks = {general[0]}
    elif a.conv_rank and "lora_down" in parts:
        if max(parts["lora_down"].shape[2:], default=1) > 1:
            general, ranks = (a.conv_rank, a.conv_alpha), {a.conv_rank}
    elif a.conv_rank:  # LoHa and LoKr do not keep the kernel's shape; the rank tells the two apart, where it can
        if a.conv_rank == a.rank and (a.conv_alpha or a.conv_rank) != (a.alpha or a.rank):
            raise LoomError("save.unknown_alpha", name=name)
        general = (a.conv_rank, a.conv_alpha) if rank == a.conv_rank else general
        ranks = {a.conv_rank, a.rank}
    ruled = first_match(rules, name, -1.0)
    if rank not in ({int(ruled)} if ruled >= 0 else ranks):
        raise LoomError("save.other_rank", name=name, rank=rank)
    return (general[1] or general[0]) / general[0] * rank * (rank**0.5 if a.rank_stabilized else 1.0)
