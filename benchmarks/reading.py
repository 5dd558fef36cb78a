"""How long reading takes that must never hold a person up: folders of many pictures, large sheets of captions, the largest table of tensors, absurd keys.

python benchmarks/reading.py        about half a minute
"""

from __future__ import annotations

import io
import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engines


def seconds(work: Callable[[], Any]) -> float:
    """The shortest of three."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return round(min(times), 3)


def folder_of(place: Path, count: int, words: int = 2) -> Path:
    """`count` captioned pictures of 64 px."""
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (64, 64)).save(data, "PNG")
    place.mkdir()
    for n in range(count):
        (place / f"{n:05}.png").write_bytes(data.getvalue())
        (place / f"{n:05}.txt").write_text("word " * words)
    return place


def pictures(place: Path) -> list[dict[str, Any]]:
    from lora_loom.lora_core.config import DataConfig
    from lora_loom.lora_core.data.edits import listed
    from lora_loom.lora_core.data.folder import scan
    from lora_loom.lora_core.data.lint import look
    from lora_loom.lora_core.data.sheet import sheet

    many, wordy = folder_of(place / "many", 10_000), folder_of(place / "wordy", 6, 2000)
    config, few = (DataConfig(folder=str(folder), resolution=64, bucket_step_px=32) for folder in (many, wordy))
    report = look(scan(few), None, lambda n, of: None)
    return [
        {"what": "a folder of 10,000 captioned pictures scanned", "s": seconds(lambda: scan(config))},
        {"what": "the same listed in the editor", "s": seconds(lambda: listed(many, config))},
        {"what": "a sheet of captions of 2,000 words", "s": seconds(lambda: sheet(report))},
    ]


def files(place: Path) -> list[dict[str, Any]]:
    import torch
    from lora_loom.convert import FormatError, read
    from lora_loom.convert.files.disk import MAX_TENSORS, load

    header = json.dumps(
        {str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(MAX_TENSORS)}
    ).encode()
    path = place / "many.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)

    def refused() -> None:
        for key in ("a" * 1_000_000, "module." * 150_000 + "x.lora_up.weight", ".A" * 500_000, "_lora.down" * 100_000):
            try:
                read({key: torch.ones(1)})
            except FormatError:
                continue
            raise SystemExit("a key of a million characters was read")

    return [
        {"what": f"a file of {MAX_TENSORS:,} tensors read", "s": seconds(lambda: load(path))},
        {"what": "four keys of a million characters refused", "s": seconds(refused)},
    ]


def main() -> None:
    engines.enter_package()
    with tempfile.TemporaryDirectory() as place:
        rows = pictures(Path(place)) + files(Path(place))
    for row in rows:
        sys.stdout.write(f"{row}\n")
    engines.written("reading", "shortest of three, one process", rows=rows)


if __name__ == "__main__":
    main()
