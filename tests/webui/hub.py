"""A hub cache with what A1111 asks of CLIP-L, made of what other checkouts on this machine have: nothing is fetched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILES = ("merges.txt", "vocab.json", "special_tokens_map.json", "tokenizer_config.json")
LONGEST = 77  # tokens; ComfyUI's tokenizer says another number, since it cuts texts itself
REVISION = "0" * 40
WIDTHS = {
    "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072, "layer_norm_eps": 1e-5, "max_position_embeddings": 77,
    "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768, "vocab_size": 49408, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip


def made_hub(folder: Path, places: Sequence[Path]) -> str:
    """Writes the cache where it is missing, with the first tokenizer of `places`; why it cannot, or an empty string."""
    model = folder / "hub" / "models--openai--clip-vit-large-patch14"
    whole = model / "refs" / "main"
    if whole.is_file():
        return ""
    tokenizer = next((place for place in places if all((place / file).is_file() for file in FILES)), None)
    if tokenizer is None:
        looked = ", ".join(str(place) for place in places)
        return f"no tokenizer of CLIP-L for A1111 at {folder}, and none to make it of in {looked}; set WEBUI_HF_HOME"
    snapshot = model / "snapshots" / REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in FILES[:-1]:
        shutil.copyfile(tokenizer / file, snapshot / file)
    settings: dict[str, Any] = json.loads((tokenizer / FILES[-1]).read_text(encoding="utf-8"))
    _write(snapshot / FILES[-1], {**settings, "model_max_length": LONGEST})
    text = {"model_type": "clip_text_model", **WIDTHS}
    _write(snapshot / "config.json", {"model_type": "clip", "projection_dim": 768, "text_config": text})
    whole.parent.mkdir(exist_ok=True)
    whole.write_text(REVISION)  # last: what is there is whole
    return ""


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2), encoding="utf-8")
