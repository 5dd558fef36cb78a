"""The saves of a run as files of their own: which one is meant, for which base model, and what is written of it."""

from __future__ import annotations

from pathlib import Path

import torch

from ...convert import FormatError, read
from ...convert.detect import declared_family
from ...convert.families import FAMILIES, UNKNOWN
from ...convert.files.disk import header
from ...convert.metadata import BASES
from ...lora_core.config import as_dict
from ...lora_core.disk.files import write_safetensors
from ...lora_core.messages.errors import LoomError
from ...lora_core.runs import listing
from ...lora_core.runs.folders import config_of
from ...lora_core.runs.saves import Save, all_saves, chosen, weights
from .formats import exporter

EXPORTS = "exports"  # in a run folder: files written of saves


def base_of(folder: Path, state: dict[str, torch.Tensor]) -> str:
    """What the run's base model is called: as its result says, else as the names of its layers do."""
    results = listing.read_run(folder).results
    if results:
        version = header(folder / results[0])[1].get("ss_base_model_version", "")
        return next((name for name, base in BASES.items() if base.version == version), version)
    try:
        return read({k: v for k, v in state.items() if not k.startswith("token.")}).family
    except FormatError:
        return UNKNOWN


def told_of(run: listing.RunInfo, embedding: str = "embedding:") -> dict[str, str]:
    """The base model of a run in words ("" while no result says it), the name of its file, and what to write in a prompt to call what it learned.

    `embedding`: what the host wants in front of the name of one.
    """
    family = declared_family(run.about)
    base = FAMILIES[family].title if family else run.about.get("ss_base_model_version", "")
    file = run.base_file or (Path(run.base).name if run.base not in ("ComfyUI", "webui") else "")
    words = [w.strip() for w in (run.about.get("modelspec.trigger_phrase", "") or run.trigger).split(",") if w.strip()]
    files = {Path(name).stem for name in run.results if run.method != "lora"}
    return {
        "base": base or file,
        "base_file": file,
        "trigger": ", ".join(f"{embedding}{word}" if word in files else word for word in words),
    }


def saved(folder: Path, save: str | int) -> Save:
    """One save of a run by its step, or the last or best. Raises LoomError."""
    saves = all_saves(folder)
    if isinstance(save, str):
        return chosen(saves, save)[0]
    match = next((s for s in saves if s.step == save), None)
    if match is None:
        if not saves:
            raise LoomError("save.none", field="save", run=folder.name, step=save)
        raise LoomError(
            "save.no_such_step", field="save", run=folder.name, step=save, steps=[str(s.step) for s in saves]
        )
    return match


def files_of(folder: Path, save: str | int) -> list[Path]:
    """The files of a run's result, or of one of its saves, which are written first. Raises LoomError."""
    if save == "result":
        results = [folder / name for name in listing.read_run(folder).results]
        if not results:
            raise LoomError("save.no_result", field="save", run=folder.name)
        return results
    asked = saved(folder, save)
    state = weights(folder, asked)
    name = f"{folder.name}_{'best' if asked.best else f'step{asked.step}'}"
    facts = {"config": as_dict(config_of(folder)), "step": asked.step}
    made = exporter(name, base_of(folder, state))(dict(state), facts)
    (folder / EXPORTS).mkdir(exist_ok=True)
    for stem, (tensors, metadata) in made.items():
        write_safetensors(folder / EXPORTS / f"{stem}.safetensors", tensors, metadata)
    return [folder / EXPORTS / f"{stem}.safetensors" for stem in made]
