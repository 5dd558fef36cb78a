"""What a resume needs, on disk: adapter, optimizer, counters. A checkpoint is a folder that appears by one rename and proves itself by hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as safetensors_load

from ..disk import files
from ..messages.errors import LoomError

FORMAT = 1
MANIFEST = "manifest.json"
PARTS = ("adapter.safetensors", "optimizer.safetensors", "state.json")
_FOLDER = re.compile(r"step-(\d{8,12})")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory: `step` updates are done."""

    step: int
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    facts: dict[str, Any]


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def save(
    root: Path, step: int, adapter: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> Path:
    """Writes checkpoint `step` below `root` in one piece: files, fsync, manifest with their sha256 last, rename. Returns its folder."""
    target = folder_of(root, step)
    if target.exists():
        if read(target, verify_only=True):
            return target
        try:
            files.remove_folder(target)
        except OSError as error:
            raise files.unwritten(target, error) from error
    tensors, plain = _flatten(optimizer.state_dict())
    with files.folder_in_one_piece(target) as temp:
        files.write_safetensors(temp / "adapter.safetensors", adapter)
        files.write_safetensors(temp / "optimizer.safetensors", tensors)
        files.write_json(temp / "state.json", {"format": FORMAT, "step": step, "optimizer": plain, "facts": facts})
        hashes = {path.name: files.sha256(path) for path in sorted(temp.iterdir())}
        files.write_json(temp / MANIFEST, hashes)
    return target


def read(folder: Path, verify_only: bool = False) -> Checkpoint | None:
    """The checkpoint in `folder`, or None when any file is missing, cut or changed."""
    try:
        hashes = _table((folder / MANIFEST).read_bytes())
        data = {name: (folder / name).read_bytes() for name in PARTS}
    except OSError:
        return None
    if any(hashes.get(name) != _sha(content) for name, content in data.items()):
        return None
    state = _table(data["state.json"])
    if not isinstance(state.get("facts"), dict):
        return None
    if state.get("format") != FORMAT:
        raise LoomError("checkpoint.format", folder=folder, format=state.get("format"), known=FORMAT)
    if verify_only:
        return Checkpoint(state["step"], {}, {}, state["facts"])
    optimizer = _unflatten(safetensors_load(data["optimizer.safetensors"]), state["optimizer"])
    return Checkpoint(state["step"], safetensors_load(data["adapter.safetensors"]), optimizer, state["facts"])


def without_layers(adapter: Mapping[str, torch.Tensor], layers: Collection[str]) -> dict[str, torch.Tensor]:
    """The values of a run without those of `layers`; all of them where nothing would be left."""
    rest = {key: value for key, value in adapter.items() if key.rpartition(".")[0] not in layers}
    return rest or dict(adapter)


def all_steps(root: Path) -> list[Path]:
    """Checkpoint folders below `root`, newest first, whether whole or not."""
    folders = [p for p in root.glob("step-*") if _FOLDER.fullmatch(p.name) and p.is_dir()]
    return sorted(folders, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step that the name of a checkpoint folder tells."""
    return int(folder.name.removeprefix("step-"))


def latest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint below `root` and the names of broken ones passed over."""
    broken: list[str] = []
    for folder in all_steps(root):
        checkpoint = read(folder)
        if checkpoint:
            return checkpoint, broken
        broken.append(folder.name)
    return None, broken


def prune(root: Path, keep: int) -> None:
    """Removes all but the `keep` newest whole checkpoints, none of which is ever seen half deleted. Raises OSError."""
    whole = [folder for folder in all_steps(root) if (folder / MANIFEST).is_file()]
    for folder in whole[max(2, keep) :]:
        files.remove_folder(folder)


def _table(data: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for everything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Optimizer state_dict -> (tensors by "param.key" or "param.key/key", the rest as JSON)."""
    tensors, plain = {}, {}

    def sort(name: str, value: Any) -> None:
        if torch.is_tensor(value):
            tensors[name] = value.detach().cpu()
        elif isinstance(value, dict):
            for key, inner in value.items():
                sort(f"{name}/{key}", inner)
        else:
            plain[name] = value

    for index, entries in state["state"].items():
        for key, value in entries.items():
            sort(f"{index}.{key}", value)
    return tensors, {"entries": _plain(plain), "param_groups": _plain(state["param_groups"])}


def _unflatten(tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **_from_plain(plain["entries"])}.items():
        index, key = name.split(".", 1)
        *outer, leaf = key.split("/")
        place = state.setdefault(int(index), {})
        for part in outer:
            place = place.setdefault(part, {})
        place[leaf] = value
    return {"state": state, "param_groups": _from_plain(plain["param_groups"])}


def _plain(value: Any) -> Any:
    """As JSON can hold it: tuples, and numbers that are not finite (Prodigy starts from infinity), get a name."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        inner = [_plain(v) for v in value]
        return inner if isinstance(value, list) else {"tuple": inner}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_plain(v) for v in value]
    if isinstance(value, dict):
        if value.keys() == {"tuple"}:
            return tuple(_from_plain(v) for v in value["tuple"])
        return float(value["float"]) if value.keys() == {"float"} else {k: _from_plain(v) for k, v in value.items()}
    return value
