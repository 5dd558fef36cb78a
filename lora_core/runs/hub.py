"""A finished run for the Hugging Face Hub: its files, its pictures and a model card, gathered in a folder. Nothing in it names a path."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import TrainConfig
from ..messages.errors import LoomError
from .folders import config_of

CARD = "README.md"
_RECIPE = (
    "method", "steps", "batch_size", "grad_accum", "seed", "adapter.algorithm", "adapter.rank", "adapter.alpha", "adapter.targets", "optimizer.name",
    "optimizer.lr", "schedule.name", "data.resolution", "text_encoder.train", "objective.weighting", "ema_decay",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class About:
    """What a card says that no file of a run does: the base model's name on the Hub, the licence, words to prompt with."""

    base_model: str
    license: str = ""
    triggers: tuple[str, ...] = ()
    diffusers: bool = True  # whether diffusers loads the file


def gather(run: Path, target: Path, about: About) -> list[Path]:
    """Copies what is for others from a run folder to `target` and writes the card beside it. Raises LoomError for what is no finished run."""
    config = config_of(run)
    results = sorted(run.glob("*.safetensors"))
    if not results:
        raise LoomError("run.no_result", folder=run)
    target.mkdir(parents=True, exist_ok=True)
    files = [Path(shutil.copyfile(file, target / file.name)) for file in results]
    pictures = []
    newest = max((run / "samples").glob("step-*.png"), key=lambda p: int(p.stem.rpartition("-")[2]), default=None)
    for name, source in (("samples.png", newest), ("before-after.png", run / "before-after.png")):
        if source is not None and source.is_file():
            Image.open(source).convert("RGB").save(target / name)  # the pixels alone
            pictures.append(name)
    (target / CARD).write_text(card(config, about, [f.name for f in results], pictures), encoding="utf-8")
    return [*files, *(target / name for name in pictures), target / CARD]


def card(config: TrainConfig, about: About, files: Sequence[str], pictures: Sequence[str]) -> str:
    """A model card: the header the Hub reads, how to use the file, the settings, the pictures."""
    kind = {"lora": "lora", "embedding": "textual_inversion", "pivotal": "lora"}[config.method]
    tags = [
        "text-to-image",
        "diffusers",
        kind,
        *(["textual_inversion"] if config.method == "pivotal" else []),
        "template:sd-lora",
    ]
    shown = [{"text": prompt, "output": {"url": pictures[0]}} for prompt in _prompts(config)[:1]] if pictures else None
    header = {
        "base_model": about.base_model,
        "library_name": "diffusers",
        "license": about.license,
        "tags": tags,
        "instance_prompt": ", ".join(about.triggers),
        "widget": shown,
    }
    base = f"[{about.base_model}](https://huggingface.co/{about.base_model})"
    written = [
        f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items() if value
    ]  # JSON is YAML
    lines = ["---", *written, "---", "", f"# {config.name}", "", f"Trained with LoRA Loom on {base}.", ""]
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in pictures] + [""] * bool(pictures)
    if about.triggers:
        lines += ["Write " + ", ".join(f"`{t}`" for t in about.triggers) + " in a prompt.", ""]
    if config.trains_lora and about.diffusers:
        main = next((f for f in files if not f.endswith("_emb.safetensors")), files[0])
        lines += [
            "```python",
            "from diffusers import AutoPipelineForText2Image",
            f'pipe = AutoPipelineForText2Image.from_pretrained("{about.base_model}")',
        ]
        lines += [f'pipe.load_lora_weights("this repository", weight_name="{main}")', "```", ""]
    lines += [
        f"Files: {', '.join(f'`{f}`' for f in files)}. In ComfyUI, A1111 and Forge put them where your LoRAs and embeddings are.",
        "",
    ]
    if _prompts(config):
        lines += ["Prompts of the pictures:", "", *(f"- {p}" for p in _prompts(config)), ""]
    lines += ["| setting | value |", "|---|---|", *(f"| {key} | {_value(config, key)} |" for key in _RECIPE), ""]
    return "\n".join(lines)


def _prompts(config: TrainConfig) -> list[str]:
    return [line.strip() for line in config.samples.prompt.splitlines() if line.strip()]


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config
