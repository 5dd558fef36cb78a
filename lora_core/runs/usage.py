"""How to use a run's files with diffusers, as the code of a model card: embeddings loaded before the LoRA, the prompt in the words that call them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

TOYS = ("emoji", "toy")
_UNETS = ("sd1", "sd2", "sdxl", *TOYS)
_FILMS = ("wan", "ltxv", "ltxav", "hunyuanvideo", "kandinsky5")
STEPS = 25
# key in an embedding file -> (text encoder, tokenizer) of a pipeline whose loader takes embeddings
_PLACES = {
    "sd1": {"emb_params": ""},
    "sd2": {"emb_params": ""},
    "emoji": {"emb_params": ""},
    "toy": {"emb_params": ""},
    "sdxl": {"clip_l": "", "clip_g": "_2"},
    "flux1": {"clip_l": "", "t5xxl": "_2"},
}


@dataclasses.dataclass(frozen=True)
class Files:
    """What of a repository is loaded. `embeddings`: stem, which is the word that calls it -> the keys in the file. `words`: placeholder of the captions
    -> stem. `family`: of the base model, "" where it is not known.
    """

    repository: str
    lora: str = ""
    embeddings: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    family: str = ""


def films(family: str) -> bool:
    """Whether a model of this family makes clips."""
    return family in _FILMS


def spoken(prompt: str, words: Mapping[str, str]) -> str:
    """A prompt with each placeholder as the word that calls its embedding."""
    if not words:
        return prompt
    longest_first = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return re.sub(rf"(?<!\w)(?:{longest_first})(?!\w)", lambda match: words[match[0]], prompt)


def snippet(base_model: str, files: Files, prompt: str) -> list[str]:
    """Lines of Python that draw `prompt`; [] where diffusers has no reader for the embeddings of this family."""
    places = _PLACES.get(files.family, {})
    if any(key not in places for keys in files.embeddings.values() for key in keys):
        return []
    is_unet = files.family in _UNETS
    lines = [
        "import torch",
        f"from diffusers import DiffusionPipeline{', DPMSolverMultistepScheduler' if is_unet else ''}",
    ]
    if films(files.family):
        lines.append("from diffusers.utils import export_to_video")
    if files.embeddings:
        lines += ["from huggingface_hub import hf_hub_download", "from safetensors.torch import load_file"]
    dtype = "float16" if is_unet else "bfloat16"
    lines += [
        "",
        f'pipe = DiffusionPipeline.from_pretrained("{base_model}", torch_dtype=torch.{dtype}).to("cuda")',
    ]
    if is_unet:
        lines.append("pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)")
    for stem, keys in files.embeddings.items():
        lines.append(f'vectors = load_file(hf_hub_download("{files.repository}", "{stem}.safetensors"))')
        lines += [
            f'pipe.load_textual_inversion(vectors["{key}"], token="{stem}", text_encoder=pipe.text_encoder{places[key]}, tokenizer=pipe.tokenizer{places[key]})'
            for key in keys
        ]
    if files.lora:
        lines.append(f'pipe.load_lora_weights("{files.repository}", weight_name="{files.lora}")')
    steps = f", num_inference_steps={STEPS}" if is_unet else ""
    quoted = prompt.replace("\\", "\\\\").replace('"', '\\"')
    if films(files.family):
        return [*lines, f'export_to_video(pipe("{quoted}").frames[0], "film.mp4")']
    return [*lines, f'image = pipe("{quoted}"{steps}).images[0]']
