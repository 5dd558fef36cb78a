"""A Space for Hugging Face with the page in it: a folder to upload as it is, with the package inside, so that nothing has to be found elsewhere."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from ...lora_core.disk.files import write_bytes
from ...lora_core.messages.errors import LoomError

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("__init__.py", "__main__.py", "py.typed", "convert", "js", "locales", "lora_core", "nodes")
LEFT_OUT = ("__pycache__", "docs", "tsconfig.json")  # docs: help pages of nodes
GRADIO = "6.31.0"  # the newest the page was driven in, see tests/nodes/ui

APP = '''"""LoRA Loom as a Space. Settings of the Space: the secret LORA_LOOM_PASSWORD, and BASE_MODEL, the repository of the model to train on."""

import os
import sys
from pathlib import Path

from huggingface_hub import snapshot_download
from lora_loom.__main__ import main

BASE_MODEL = os.environ.get("BASE_MODEL", "")
KEPT = Path("/data")  # of a Space with storage that outlives it
OUT = KEPT / "lora_loom" if os.access(KEPT, os.W_OK) else Path("lora_loom_runs")
WANTED = ["*.json", "*.txt", "*.safetensors", "*.model"]

if __name__ == "__main__":
    os.environ.setdefault("LORA_LOOM_HOSTS", os.environ.get("SPACE_HOST", "*.hf.space"))
    bases = ["--base", snapshot_download(BASE_MODEL, allow_patterns=WANTED)] if BASE_MODEL else []
    sys.exit(main(["ui", "--listen", "0.0.0.0", "--port", "7860", "--out", str(OUT), *bases]))
'''

CARD = """---
title: LoRA Loom
emoji: 🧵
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
pinned: false
license: apache-2.0
short_description: Drop pictures, train a LoRA, watch it learn
suggested_hardware: t4-small
---

# LoRA Loom

Drop pictures, give a trigger word, press *Train*: chart and samples as it goes, then a LoRA that ComfyUI, diffusers and WebUIs read.

Before it starts, set in *Settings* of this Space:

- the secret `LORA_LOOM_PASSWORD`: what visitors must know, eight characters or more. Without it the Space refuses to start: anyone could use it.
- the variable `BASE_MODEL`: a repository in diffusers layout, such as `stabilityai/stable-diffusion-xl-base-1.0`. Without it only the bundled toy model is
  there, which trains on a CPU in a minute or two.
- hardware with a GPU for anything but the toy, and persistent storage (`/data`) to keep runs when the Space sleeps.
"""


def write_space(folder: Path) -> None:
    """Writes the Space into a new or an empty folder. Raises LoomError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LoomError("ui.space_exists", field="--space", folder=folder)
    try:
        for part in PARTS:
            source, target = ROOT / part, folder / "lora_loom" / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
            else:
                shutil.copyfile(source, target)
    except OSError as error:
        raise LoomError("ui.space_unwritten", field="--space", folder=folder, reason=error.strerror or error) from error
    texts = {"app.py": APP, "README.md": CARD.format(gradio=GRADIO), "requirements.txt": "\n".join(packages()) + "\n"}
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())


def packages() -> list[str]:
    """What the Space installs besides gradio, which its card names: what this program itself needs."""
    listed = ROOT / "requirements.txt"  # a checkout has it, an installed package says it
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8").splitlines()
    else:
        lines = importlib.metadata.requires("lora-loom") or []
    stripped = [line.strip() for line in lines]
    return [line for line in stripped if line and not line.startswith("#") and "extra ==" not in line]
