"""How a step's time and memory grow with rank, resolution, number of adapters, batch and pictures; full-size random SD1.5, headless, on the CPU.

    python benchmarks/scaling.py [--steps 3]

Each row runs in a process of its own and is given beside the first of its kind, in CPU seconds on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import engines
from engines import Case, Headless, peak_above, timed

ROWS: dict[str, list[dict[str, Any]]] = {
    "rank": [{"rank": r} for r in (4, 16, 64, 128)],
    "resolution": [{"px": px} for px in (256, 384, 512)],
    "targets": [{"job": {"adapter": {"targets": t}}} for t in ("attention", "linear", "conv")],
    "batch": [{"batch": b} for b in (1, 2, 4)],
}
PICTURES = (10, 1000, 10_000)


def step(changes: dict[str, Any], steps: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    engine = Headless(Case(**changes))
    above = peak_above(engine.rss_loaded, lambda: timed(engine, 2))
    cpu = statistics.median(c for c, _ in timed(engine, steps))
    return {
        "adapters": engine.adapters,
        "trained_values": engine.trained,
        "cpu_s": round(cpu, 2),
        "peak_above_gb": round(above / 1e9, 2),
    }


def pictures(count: int) -> dict[str, Any]:
    """Cost of the pictures themselves: what a folder of `count` cached ones adds to a step of the toy, and to memory."""
    import torch
    from lora_loom.lora_core.config import parse
    from lora_loom.lora_core.data.batches import Batches
    from lora_loom.lora_core.data.encoder import Encoder
    from lora_loom.lora_core.data.folder import scan
    from lora_loom.lora_core.data.latents import LatentCache
    from lora_loom.lora_core.data.store import Disk
    from PIL import Image

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        folder.mkdir()
        for n in range(count):
            Image.new("RGB", (64, 64), (n % 256, n // 256 % 256, 7)).save(folder / f"{n:05}.png")
        config = parse(
            {"batch_size": 1, "data": {"folder": str(folder), "trigger": "zog", "resolution": 64, "bucket_step_px": 8}}
        )
        encoder = Encoder(lambda pixels: torch.zeros(1, 4, 8, 8), "none")
        before = engines.rss()
        began = time.perf_counter()
        cache = LatentCache(scan(config.data), encoder, lambda n, of: None, Disk(Path(place) / "cache", 20.0))
        start, batches = time.perf_counter() - began, Batches(cache, config, "cpu")
        began = time.process_time()
        for n in range(500):
            batches.at(n, 0)
        each = (time.process_time() - began) / 500
        return {
            "pictures": count,
            "first_start_s": round(start, 2),
            "batch_us": round(each * 1e6),
            "memory_mb": round((engines.rss() - before) / 1e6, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    engines.enter_package()
    if args.one:
        kind, what = args.one
        sys.stdout.write(
            "ROW "
            + json.dumps(pictures(int(what)) if kind == "pictures" else step(json.loads(what), args.steps))
            + "\n"
        )
        return

    def one(kind: str, what: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, __file__, "--one", kind, what, "--steps", str(args.steps)], capture_output=True, text=True
        )
        rows = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
        if not rows:
            raise SystemExit(done.stderr[-3000:])
        sys.stdout.write(f"{what} {rows[0]}\n")
        sys.stdout.flush()
        return json.loads(rows[0])

    tables = {
        name: [{"changed": changes, **one("step", json.dumps(changes))} for changes in rows]
        for name, rows in ROWS.items()
    }
    for rows in tables.values():
        for row in rows:
            row["time_ratio"] = round(row["cpu_s"] / rows[0]["cpu_s"], 2)
    tables["pictures"] = [one("pictures", str(n)) for n in PICTURES]
    engines.written("scaling", "a training step of full-size random SD1.5, headless, one thread", **tables)


if __name__ == "__main__":
    main()
