"""A finished run for the Hugging Face Hub: its files, its pictures and a model card, gathered in a folder. Nothing in it names a path."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import TrainConfig
from ..disk.files import make_folders, write_bytes
from ..messages.errors import LoomError
from . import listing
from .folders import config_of
from .owner import owning
from .usage import Files, films, snippet, spoken

CARD = "README.md"
_RECIPE = (
    "method", "steps", "batch_size", "grad_accum", "seed", "adapter.algorithm", "adapter.rank", "adapter.alpha",
    "adapter.targets", "optimizer.name", "optimizer.lr", "schedule.name", "data.resolution", "text_encoder.train",
    "objective.weighting", "ema_decay",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class About:
    """What a card says that no file of a run does: the base model's name on the Hub, the licence, words to prompt with, where the files will lie.

    `strength`: what its header recommends, where it was measured. `family`, `embeddings`, `words`: see `usage.Files`.
    """

    base_model: str
    license: str = ""
    triggers: tuple[str, ...] = ()
    diffusers: bool = True  # whether diffusers loads the file
    repository: str = ""
    strength: float | None = None
    family: str = ""
    embeddings: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)


def gather(run: Path, target: Path, about: About) -> list[Path]:
    """Copies what is for others from a run folder to `target` and writes the card beside it, as the run's owner.

    Raises LoomError for what is no finished run, and for one that is in use.
    """
    config = config_of(run)
    with owning(run, "gather"):
        results = sorted(run.glob("*.safetensors"))
        if not results:
            raise LoomError("run.no_result", folder=run)
        make_folders(target)
        for file in results:
            write_bytes(target / file.name, file.read_bytes())
        pictures = {name: data for name, path in _pictures(run).items() if (data := _pixels(path))}
        for name, data in pictures.items():
            write_bytes(target / name, data)
    text = card(config, about, [file.name for file in results], list(pictures))
    write_bytes(target / CARD, text.encode("utf-8", "replace"))
    return [target / name for name in (*(file.name for file in results), *pictures, CARD)]


def _pictures(run: Path) -> dict[str, Path]:
    """The newest samples of a run and its comparison, by the names they get."""
    drawn = listing.pictures(run)
    newest = {"samples.png": drawn[max(drawn)]} if max(drawn, default=0) else {}
    return {**newest, "before-after.png": run / "before-after.png"}


def _pixels(path: Path) -> bytes:
    """A picture as PNG, the pixels alone; nothing for a file that is none."""
    data = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.convert("RGB").save(data, "PNG")
    except (OSError, ValueError):
        return b""
    return data.getvalue()


def card(config: TrainConfig, about: About, files: Sequence[str], pictures: Sequence[str]) -> str:
    """A model card: the header the Hub reads, how to use the file, the settings, the pictures."""
    kind = {"lora": "lora", "embedding": "textual_inversion", "pivotal": "lora", "slider": "lora"}[config.method]
    tags = [
        task_of(config, about.family),
        "diffusers",
        kind,
        *(["textual_inversion"] if config.method == "pivotal" else []),
        "template:sd-lora",
    ]
    gallery = (
        [{"text": spoken(prompt, about.words), "output": {"url": pictures[0]}} for prompt in _prompts(config)[:1]]
        if pictures
        else None
    )
    header = {
        "base_model": about.base_model,
        "library_name": "diffusers",
        "license": about.license,
        "tags": tags,
        "instance_prompt": ", ".join(about.triggers),
        "widget": gallery,
    }
    base = f"[{about.base_model}](https://huggingface.co/{about.base_model})"
    written = [
        f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items() if value
    ]  # JSON is YAML
    lines = ["---", *written, "---", "", f"# {config.name}", "", f"Trained with LoRA Loom on {base}.", ""]
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in pictures] + [""] * bool(pictures)
    if about.triggers:
        lines += ["Write " + ", ".join(f"`{t}`" for t in about.triggers) + " in a prompt.", ""]
    if about.strength is not None:
        lines += [
            f"Strength to start from: {about.strength:g}, where the loss on pictures at fixed noise is lowest.",
            "",
        ]
    main = next((f for f in files if not f.endswith("_emb.safetensors")), "") if config.trains_lora else ""
    prompts = [spoken(prompt, about.words) for prompt in _prompts(config)]
    called = prompts[0] if prompts else ", ".join(about.triggers)
    used = Files(about.repository or "this repository", main, about.embeddings, about.words, about.family)
    edits = _shows_pictures(config)
    code = snippet(about.base_model, used, called) if about.diffusers and not edits else []
    if code:
        lines += ["```python", *code, "```", ""]
    lines += [
        f"Files: {', '.join(f'`{f}`' for f in files)}. In ComfyUI, A1111 and Forge put them where your LoRAs and embeddings are.",
        "",
    ]
    if prompts:
        lines += ["Prompts of the pictures:", "", *(f"- {p}" for p in prompts), ""]
    lines += ["| setting | value |", "|---|---|", *(f"| {key} | {_value(config, key)} |" for key in _RECIPE), ""]
    return "\n".join(lines)


def task_of(config: TrainConfig, family: str) -> str:
    """What the model is for, as the Hub calls it."""
    if _shows_pictures(config):
        return "image-to-image"
    return "text-to-video" if films(family) else "text-to-image"


def _shows_pictures(config: TrainConfig) -> bool:
    """Whether the model is shown pictures beside text, which code for text alone does not give it."""
    return config.method != "slider" and any(
        data.shows_controls or data.input_mask != "none" for data in (config.data, *config.sets)
    )


def _prompts(config: TrainConfig) -> list[str]:
    return [line.strip() for line in config.samples.prompt.splitlines() if line.strip()]


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config
