"""Results of runs where a host lists such files, and what to write in a prompt to call them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...convert import FormatError
from ...convert.detect import declared_family
from ...convert.embedding import is_embedding
from ...convert.files.disk import header
from ...convert.files.jobs import free_path, write_card
from ...convert.metadata import recommended_strength
from ...convert.report import triggers
from ...convert.results import token_stems
from ...lora_core.adapters.tokens import wanted_tokens
from ...lora_core.config import TrainConfig
from ...lora_core.disk.files import make_folders, sha256, sweep_temps, write_bytes, write_json
from ...lora_core.events import Listener
from ...lora_core.messages.errors import LoomError, Problem
from ...lora_core.messages.message import Message
from ...lora_core.pictures.previews import write_preview
from ...lora_core.runs.bounded import read_json
from ...lora_core.training.calibration import AS_TRAINED
from .panel import Panel

log = logging.getLogger(__name__)
RECORD = "published.json"  # in a run folder: what was published -> the hash it had


@dataclasses.dataclass(frozen=True)
class Shelf:
    """The folders in which a host lists what runs write."""

    loras: Path
    embeddings: Path

    def publish(self, file: Path) -> Path:
        """Copies a run's result here. A file that is not an earlier result of this run is never overwritten."""
        record, data = file.parent / RECORD, file.read_bytes()
        earlier, now = _record(record), hashlib.sha256(data).hexdigest()
        embedding = is_embedding(header(file)[0])
        place = self.embeddings if embedding else self.loras

        def is_a_strangers(path: Path) -> bool:
            return path.exists() and sha256(path) not in (earlier.get(path.name), now)

        target = free_path(place, file.stem, taken=is_a_strangers)
        make_folders(target.parent)
        sweep_temps(target.parent)
        written = _strength(target) if target.exists() else 0.0
        write_bytes(target, data)
        try:
            write_json(record, {**earlier, target.name: now})
        except LoomError:  # the next result of this run gets a number behind its name
            log.exception("What was published could not be noted in %s", record)
        _dress(target, file.parent, not embedding, written)
        return target

    def publish_all(self, files: Sequence[Path], panel: Panel | None) -> list[Path]:
        """Copies files of a run here, and tells its panel."""
        paths = [self.publish(file) for file in files]
        if panel is not None and paths:
            panel.result = prompts_for(paths)
        return paths

    def holds(self, name: str, config: TrainConfig, trigger: str) -> bool:
        """Whether a file lies here that a run called `name` would write."""
        tokens = (
            [token.placeholder for token in wanted_tokens(config.embedding, trigger)] if config.trains_tokens else []
        )
        stems = [*([name] if config.trains_lora else []), *token_stems(name, tokens, config.trains_lora).values()]
        return any(
            (place / f"{stem}.safetensors").exists() for place in (self.loras, self.embeddings) for stem in stems
        )


class Publisher(Listener):
    """A save on request is listed by the loaders at once."""

    def __init__(self, shelf: Shelf, panel: Panel | None):
        self._shelf, self._panel = shelf, panel

    def on_result(self, step: int, files: list[Path]) -> None:
        try:
            paths = self._shelf.publish_all(files, self._panel)
        except (OSError, Problem):
            log.exception("What was saved after step %s stays in the run folder", step)
            return
        if self._panel is not None:
            self._panel.say(Message.of("run.saved", step=step, files=[p.name for p in paths]))


def _record(path: Path) -> dict[str, str]:
    """What a run has published: name -> hash. Nothing where the note of it is damaged."""
    value = read_json(path)
    return {k: v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}


def prompts_for(published: Sequence[Path]) -> dict[str, Any]:
    """What to tell of published files: their names, the trigger, and what to write in ComfyUI and in A1111."""
    comfy_words: list[str] = []
    a1111_words: list[str] = []
    trigger: list[str] = []
    strength = AS_TRAINED
    for path in published:
        tensors, metadata = header(path)
        if is_embedding(tensors):
            comfy_words.append(f"embedding:{path.stem}")
            a1111_words.append(path.stem)
        else:
            trigger = list(triggers(metadata))[:1]
            strength = recommended_strength(metadata) or AS_TRAINED
            a1111_words.append(f"<lora:{path.stem}:{strength:g}>")
    words = [] if comfy_words else trigger  # the trigger of a pivotal tuning is its embedding
    return {
        "files": [path.name for path in published],
        "sizes": {path.name: path.stat().st_size for path in published},
        "lora": any(word.startswith("<lora:") for word in a1111_words),
        "strength": strength,
        "trigger": ", ".join(trigger),
        "comfyui": ", ".join([*words, *comfy_words]),
        "a1111": ", ".join([*words, *a1111_words]),
    }


def _strength(file: Path) -> float:
    """What a file's header recommends, else what it was trained at; 0 for a file that cannot be read."""
    try:
        return recommended_strength(header(file)[1]) or AS_TRAINED
    except (FormatError, OSError):
        return 0.0


def _dress(target: Path, folder: Path, card: bool, written: float) -> None:
    """What galleries show beside a file: the card with its trigger words and strength, and the latest sample as its picture where there is none.

    `written`: the strength of the file that lay there before.
    """
    try:
        if card:
            metadata = header(target)[1]
            weight = recommended_strength(metadata) or AS_TRAINED
            write_card(target, declared_family(metadata), triggers(metadata), weight, written=written)
        picture = target.with_suffix(".preview.png")
        samples = sorted((folder / "samples").glob("*.png"), key=lambda p: p.stat().st_mtime_ns)
        if samples and not picture.exists():
            write_preview(picture, Image.open(samples[-1]))
    except (FormatError, LoomError, OSError):
        log.exception("%s is written, but not its card or picture", target)
