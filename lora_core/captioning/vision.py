"""Captioners in the layout of transformers, from a folder on disk: safetensors alone, no code of theirs, nothing from the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..compat import needed
from ..messages.errors import LoomError, is_memory, reason_of
from ..rng import preserved_rng

CONFIG = "config.json"
PREPARES = ("preprocessor_config.json", "processor_config.json")  # one of them says how a picture is prepared
FLORENCE_TASK = "<DETAILED_CAPTION>"
MAX_CONFIG_BYTES = 5_000_000


def looks_like_one(folder: Path) -> bool:
    """Whether a folder holds a model that takes pictures and says something, by its configuration."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in PREPARES)


def config_in(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises LoomError."""
    try:
        file = folder / CONFIG
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise LoomError("captioning.config_large", file=folder.name, limit=MAX_CONFIG_BYTES // 10**6)
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoomError("captioning.no_model", file=folder.name, reason=reason_of(error)) from error
    if not isinstance(config, dict):
        raise LoomError("captioning.config_no_table", file=folder.name)
    return config


class VisionModel:
    """Fulfils base.Captioner. A transformers model that writes text for pictures, with its processor, on `device`."""

    writes_tags = False

    def __init__(self, folder: Path, device: torch.device, max_tokens: int = 200):
        """Opens the folder. Raises LoomError for what would need code or pickles of its own, and for what does not load."""
        config = config_in(folder)
        _require_safe(folder)
        transformers = needed("transformers")
        auto = getattr(transformers, "AutoModelForImageTextToText", None) or transformers.AutoModelForVision2Seq
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._kind, self._max_tokens, self._device = str(config.get("model_type", "")), max_tokens, device
        try:
            with preserved_rng(0):
                self._processor = _processor(transformers, folder, options)
                model = auto.from_pretrained(str(folder), use_safetensors=True, **options)
            self._model: Any = (model.float() if device.type == "cpu" else model).to(device).eval()
        except LoomError:
            raise
        except Exception as error:  # of other people's code: any
            if is_memory(error):
                raise LoomError("captioning.no_memory", file=folder.name) from error
            if codes := [
                name for name in (CONFIG, "tokenizer_config.json", *PREPARES) if _asks_for_code(folder / name)
            ]:
                raise LoomError("captioning.own_code", file=folder.name, names=codes) from error
            raise LoomError("captioning.no_model", file=folder.name, reason=reason_of(error)) from error

    def caption(self, image: Image.Image, instruction: str) -> str:
        try:
            with torch.inference_mode(), preserved_rng(0):
                return self._said(image, instruction)
        except Exception as error:  # of other people's code: any
            if is_memory(error):
                raise LoomError("captioning.no_memory", file=self._kind) from error
            raise LoomError("captioning.failed", reason=reason_of(error)) from error

    def _said(self, image: Image.Image, instruction: str) -> str:
        text = self._text(instruction)
        inputs = self._processor(images=image, return_tensors="pt", **({"text": text} if text else {}))
        kind = next(self._model.parameters()).dtype
        placed = {
            name: value.to(self._device, kind if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }
        ids = self._model.generate(**placed, max_new_tokens=self._max_tokens, do_sample=False, num_beams=1)
        prompt = placed.get("input_ids")
        if prompt is not None and text and not getattr(self._model.config, "is_encoder_decoder", False):
            repeats = ids.shape[1] >= prompt.shape[1] and bool((ids[:, : prompt.shape[1]] == prompt).all())
            ids = ids[:, prompt.shape[1] :] if repeats else ids
        decoder = getattr(self._processor, "tokenizer", self._processor)
        return str(decoder.batch_decode(ids, skip_special_tokens=True)[0])

    def _text(self, instruction: str) -> str:
        """What the model is asked: by its own template for a talk where it has one; nothing where it only captions."""
        if self._kind.startswith("florence"):
            return FLORENCE_TASK
        if not getattr(self._processor, "chat_template", None):
            return ""
        talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}]
        return str(self._processor.apply_chat_template(talk, add_generation_prompt=True))


class _Parts:
    """A picture's preparation and a tokenizer that come without a processor of both."""

    def __init__(self, pictures: Any, tokenizer: Any):
        self._pictures, self.tokenizer = pictures, tokenizer

    def __call__(self, images: Image.Image, return_tensors: str) -> Any:
        return self._pictures(images=images, return_tensors=return_tensors)


def _processor(transformers: Any, folder: Path, options: dict[str, Any]) -> Any:
    """What prepares pictures and reads tokens."""
    processor = transformers.AutoProcessor.from_pretrained(str(folder), **options)
    if hasattr(processor, "tokenizer"):
        return processor
    pictures = transformers.AutoImageProcessor.from_pretrained(str(folder), **options)
    return _Parts(pictures, transformers.AutoTokenizer.from_pretrained(str(folder), **options))


def _require_safe(folder: Path) -> None:
    """Raises LoomError for a folder that has weights as pickles alone, or leans on files elsewhere."""
    root = folder.resolve()
    if not any(folder.glob("*.safetensors")):
        raise LoomError("captioning.no_safetensors", file=folder.name)
    if (folder / "adapter_config.json").exists():
        raise LoomError("captioning.adapter", file=folder.name)
    outside = [path.name for path in folder.iterdir() if not path.resolve().is_relative_to(root.parent.parent)]
    if outside:
        raise LoomError("captioning.links_outside", file=folder.name, names=outside[:3])


def _asks_for_code(file: Path) -> bool:
    """Whether a file names code that comes along; a library that knows the model itself does not look at it."""
    try:
        return "auto_map" in json.loads(file.read_text(encoding="utf-8")) if file.is_file() else False
    except (OSError, ValueError, RecursionError, TypeError):
        return False
