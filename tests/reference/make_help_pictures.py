"""Takes the pictures of the help pages and the README anew, on a page of a real ComfyUI: the toy is trained twice for it, some ten minutes on a CPU.

    COMFYUI_DIR=… PLAYWRIGHT_CORE=… ~/comfy/venv/bin/python tests/reference/make_help_pictures.py OUT [training runs compare dataset probes files saves]

They go to OUT, to be looked at; `--keep OUT` makes those of js/docs/img from them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "host")]
PLACE = ROOT / "js" / "docs" / "img"
JPEG_SIDE_PX = 1200
AS_JPEG = ("graph", "viewer", "compare-runs", "dataset-editor", "run-checkpoints", "compare-checkpoints", "result-card")


def take(out: Path, parts: list[str]) -> None:
    from live_server import running

    out.mkdir(parents=True, exist_ok=True)
    for link in (out / "base" / "custom_nodes").glob("*"):  # of an earlier go, whose runs are still there
        link.unlink()
    with running(out / "base") as server:
        for source in sorted((ROOT / "lora_core" / "toy" / "sets" / "face").glob("*/*")):  # a folder of the user's own
            (out / "base" / "input" / "koala" / source.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, out / "base" / "input" / "koala" / source.parent.name)
        driver = Path(__file__).with_suffix("").with_name("help_pictures.mjs")
        command = ["node", str(driver), f"http://127.0.0.1:{server.port}", str(out), *parts]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=3600).stdout
        seen = json.loads(told.splitlines()[-1])
        sys.stdout.write(json.dumps(seen, indent=1) + "\n")


def keep(out: Path) -> None:
    from PIL import Image

    for source in sorted(out.glob("*.png")):
        with Image.open(source) as opened:
            picture = opened.convert("RGB")
        if source.stem in AS_JPEG:
            picture.thumbnail((JPEG_SIDE_PX, JPEG_SIDE_PX))
            picture.save(PLACE / f"{source.stem}.jpg", quality=86)
        elif (PLACE / source.name).exists():
            picture.quantize(256).save(PLACE / source.name, optimize=True)


if __name__ == "__main__":
    if sys.argv[1] == "--keep":
        keep(Path(sys.argv[2]))
    else:
        take(Path(sys.argv[1]), sys.argv[2:])
