"""What has to be the same when a run goes on: settings, base, encoders, pictures, arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..backends.base import UNKNOWN_ENCODER, ShowsFirstFrames
from ..config import AS_SET, TrainConfig, as_dict, parse
from ..messages.errors import LoomError
from ..messages.message import Message
from ..runs import checkpoints
from ..toy.model import OF_0_1_0
from .auto import as_stored
from .fitting import as_chosen
from .run import Run

# May differ between a run and its continuation.
CHANGEABLE = (
    "steps",
    "save",
    "samples",
    "name",
    "auto_fit",
    "memory",
    "memory_keeps",
    "cache",
    "trackers",
    "auto",
    "auto_keeps",
)


def as_fitted(config: TrainConfig, folder: Path) -> TrainConfig:
    """The job with what its run settled on: memory free today, or a rate found anew, must not change a run that goes on."""
    checkpoint, _ = checkpoints.latest(folder / "checkpoints")
    if checkpoint is None:
        return config
    then = parse(checkpoint.facts["config"])
    if config.auto:
        config = as_stored(config, then)
    return dataclasses.replace(as_chosen(config, then), auto_fit=False, memory=AS_SET)


def identity_of(run: Run) -> dict[str, Any]:
    """What must be the same when the run goes on: base, encoders, pictures, arithmetic, number of processes."""
    backend = run.backend
    identity = {"base": backend.fingerprint(), "data": run.batches.fingerprint(), "dtype": str(backend.dtype)}
    if run.class_batches:
        identity["prior"] = run.class_batches.fingerprint()
    identity["text"] = backend.text_fingerprint()
    if not (pictures := backend.picture_fingerprint()).startswith(UNKNOWN_ENCODER):
        identity["vae"] = pictures
    if isinstance(backend, ShowsFirstFrames) and (seen_by := backend.frame_fingerprint()):
        identity["vision"] = seen_by
    if run.material.fixed:
        identity["fixed"] = run.material.fixed["sha256"]
    if run.processes.size > 1:
        identity["processes"] = str(run.processes.size)
    return identity


def _without_demands(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the settings that only say what is refused or measured: they change nothing that is trained."""
    plain = {**config, "prior": {k: v for k, v in config["prior"].items() if k != "required"}}
    measures = ("calibrate", "concepts", "each_picture")
    plain["validation"] = {k: v for k, v in config["validation"].items() if k not in measures}
    plain["adapter"] = {k: v for k, v in config["adapter"].items() if k != "fixed"}  # told by what is in it
    return {**plain, **{part: _allowed(config[part]) for part in ("data", "sets")}}


def _allowed(part: Any) -> Any:
    if isinstance(part, list | tuple):
        return [_allowed(one) for one in part]
    return {k: v for k, v in part.items() if k != "allow_empty_captions"}


def refuse_changes(config: TrainConfig, facts: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises LoomError when anything that would change the continued run differs from the saved one."""
    now, then = (_without_demands(as_dict(c)) for c in (config, parse(facts["config"])))
    settings = [k for k in now if k not in (*CHANGEABLE, "data", "sets", "base")]
    changed = [message for k in settings for message in _differing(k, then[k], now[k])]
    if len(now["sets"]) != len(then["sets"]):
        changed.append(_then_and_now("sets", len(then["sets"]), len(now["sets"])))
    labels = ("data", *(f"sets[{n}]" for n in range(len(now["sets"]))))
    for label, mine, old in zip(labels, (now["data"], *now["sets"]), (then["data"], *then["sets"])):
        others_of = {k: v for k, v in old.items() if k != "folder"}
        changed += _differing(label, others_of, {k: v for k, v in mine.items() if k != "folder"})
    gone = OF_0_1_0.get(facts.get("base", ""))
    if gone and identity["base"] != facts["base"]:
        raise LoomError("resume.changed", changes=[Message.of(gone)])
    others = {
        "base": "resume.other_base",
        "prior": "resume.other_prior",
        "vae": "resume.other_vae",
        "vision": "resume.other_vision",
        "text": "resume.other_text",
        "fixed": "resume.other_fixed",
    }
    changed += [Message.of(code) for part, code in others.items() if identity.get(part) != facts.get(part)]
    if identity.get("processes", "1") != facts.get("processes", "1"):
        changed.append(
            Message.of("resume.processes", then=facts.get("processes", "1"), now=identity.get("processes", "1"))
        )
    if identity["dtype"] != facts.get("dtype"):
        changed.append(Message.of("resume.dtype", then=facts.get("dtype"), now=identity["dtype"]))
    if identity["data"] != facts["data"]:
        changed.append(Message.of("resume.other_data"))
    if changed:
        raise LoomError("resume.changed", changes=changed)


def _differing(setting: str, then: Any, now: Any) -> list[Message]:
    """A message for each single setting below `setting` that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [m for k in {**then, **now} for m in _differing(f"{setting}.{k}", then.get(k), now.get(k))]
    return [] if then == now else [_then_and_now(setting, then, now)]


def _then_and_now(setting: str, then: Any, now: Any) -> Message:
    return Message.of("resume.setting", field=setting, then=repr(then), now=repr(now))
