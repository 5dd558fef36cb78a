"""Times one training step of a full-size random SD1.5 on both backends beside a minimal hand-written loop, and the memory it takes.

    python benchmarks/step_sd15.py [--dtypes fp32 bf16] [--threads 1 2] [--steps 4] [--rounds 3]

256 px, batch 1, rank 16 on attention, latents and text cached, AdamW. The host backend needs a ComfyUI checkout ($COMFYUI_DIR, else
~/comfy/ComfyUI) and its Python environment with diffusers; without it only the headless one is timed. CPU seconds are the process's own,
so other load on the machine disturbs them less than wall time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import engines
from engines import Case, Headless, InHost, Minimal, peak_above, timed, turns

BACKENDS = {"host": InHost, "headless": Headless}
WAYS: dict[str, dict[str, Any]] = {
    "nothing": {}, "cheap": {"checkpointing": True, "recompute": "cheap"}, "all": {"checkpointing": True, "recompute": "all"},
}  # fmt: skip


def compare(dtype: str, threads: int, steps: int, rounds: int) -> dict[str, Any]:
    """Ours on each backend and the minimal loop, taking turns in one process."""
    import torch

    torch.set_num_threads(threads)
    case = Case(dtype=dtype)
    engines_here = {name: kind(case) for name, kind in BACKENDS.items() if name != "host" or engines.host_is_there()}
    minimal = Minimal(case)
    assert {engine.trained for engine in engines_here.values()} == {minimal.trained}
    median = turns({**engines_here, "minimal": minimal}, steps, rounds)
    return {
        "dtype": dtype,
        "threads": threads,
        "trained_values": minimal.trained,
        **{
            f"{name}_{unit}_s": round(value, 3)
            for name, pair in median.items()
            for unit, value in zip(("cpu", "wall"), pair)
        },
        **{
            f"{name}_{unit}_ratio": round(median[name][n] / median["minimal"][n], 3)
            for name in engines_here
            for n, unit in enumerate(("cpu", "wall"))
        },
    }


def memory(dtype: str, backend: str, way: str) -> dict[str, Any]:
    """Peak resident memory above the loaded model over three steps, in a process of its own."""
    import torch

    torch.set_num_threads(1)
    engine = BACKENDS[backend](Case(dtype=dtype, job=WAYS[way]))
    above = peak_above(engine.rss_loaded, lambda: timed(engine, 3))
    return {
        "dtype": dtype,
        "backend": backend,
        "recomputed": way,
        "loaded_gb": round(engine.rss_loaded / 1e9, 2),
        "peak_above_gb": round(above / 1e9, 2),
    }


def recompute(dtype: str, backend: str, way: str, steps: int, rounds: int) -> dict[str, Any]:
    """How much longer a step with checkpointing takes."""
    import torch

    torch.set_num_threads(1)
    made = {name: BACKENDS[backend](Case(dtype=dtype, job=WAYS[name])) for name in ("nothing", way)}
    median = turns(made, steps, rounds)
    return {
        "dtype": dtype,
        "backend": backend,
        "recomputed": way,
        "time_ratio": round(median[way][0] / median["nothing"][0], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--again", default="", help="time only rows with this in their name, such as 'speed bf16 2'; keep the others"
    )
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    engines.enter_host() if engines.host_is_there() else engines.enter_package()
    if args.one:
        kind, *what = args.one
        if kind == "speed":
            row = compare(what[0], int(what[1]), args.steps, args.rounds)
        else:
            row = memory(*what) if kind == "memory" else recompute(*what, args.steps, args.rounds)
        sys.stdout.write("ROW " + json.dumps(row) + "\n")
        return

    def one(*what: Any) -> dict[str, Any]:
        command = [
            sys.executable,
            __file__,
            "--one",
            *map(str, what),
            "--steps",
            str(args.steps),
            "--rounds",
            str(args.rounds),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        rows = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
        if not rows:
            raise SystemExit(done.stderr[-3000:])
        sys.stdout.write(rows[0] + "\n")
        sys.stdout.flush()
        return json.loads(rows[0])

    ways = [
        (b, w)
        for b in BACKENDS
        for w in WAYS
        if (b, w) != ("host", "cheap") and (b != "host" or engines.host_is_there())
    ]
    rows: dict[str, list[tuple[Any, ...]]] = {
        "speed": [(d, t) for d in args.dtypes for t in args.threads],
        "memory": [(d, b, w) for d in args.dtypes for b, w in ways],
        "recompute": [("fp32", b, w) for b, w in ways if w != "nothing"],
    }
    file = engines.RESULTS / "step_sd15.json"
    before = json.loads(file.read_text()) if args.again and file.exists() else {}

    def row(kind: str, number: int, what: tuple[Any, ...]) -> dict[str, Any]:
        return one(kind, *what) if args.again in " ".join(map(str, (kind, *what))) else before[kind][number]

    engines.written(
        "step_sd15",
        "one training step of full-size random SD1.5, 256 px, batch 1, rank 16 attention, cached latents and text",
        **{kind: [row(kind, n, what) for n, what in enumerate(whats)] for kind, whats in rows.items()},
    )


if __name__ == "__main__":
    main()
