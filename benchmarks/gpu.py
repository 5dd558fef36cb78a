"""Times full-size models with random weights on a GPU: ours and a minimal loop, milliseconds a step, pictures a second, utilisation, peak memory.

    python benchmarks/gpu.py [--only sdxl] [--steps 10] [--rounds 3]

Utilisation is counted operations of one step (torch's flop counter, without the LoRA branches' own) over the time and the rate that a large bf16
matrix product reaches on the same GPU. Each row runs in a process of its own. Without a GPU nothing is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import engines
from engines import Case, Headless, Minimal

CASES = {
    "SD1.5 512 px, batch 1": ("sd15", 512, 1), "SD1.5 512 px, batch 8": ("sd15", 512, 8), "SDXL 1024 px, batch 1": ("sdxl", 1024, 1),
    "SDXL 1024 px, batch 4": ("sdxl", 1024, 4), "Flux.1 1024 px, batch 1": ("flux", 1024, 1),
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {}, "cheap recomputed": {"checkpointing": True, "recompute": "cheap"}, "all recomputed": {"checkpointing": True},
    "compiled": {"compile": True}, "fp8 base": {"storage": "fp8"}, "fp8 base, all recomputed": {"storage": "fp8", "checkpointing": True},
    "half offloaded, all recomputed": {"offload": 0.5, "checkpointing": True},
}  # fmt: skip


def case_of(name: str, way: str) -> Case:
    model, px, batch = CASES[name]
    return Case(model, px, batch, "bf16", "cuda", 16, WAYS.get(way, {}))


def row(name: str, way: str, steps: int, rounds: int) -> dict[str, Any]:
    """One row; `way` may be minimal."""
    import torch

    case = case_of(name, way)
    engine: Any = Minimal(case) if way == "minimal" else Headless(case)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        engine.step()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / steps)
    seconds, peak = sorted(times)[len(times) // 2], torch.cuda.max_memory_allocated()
    return {
        "case": name,
        "way": way,
        "ms": round(seconds * 1e3, 1),
        "pictures_per_s": round(case.batch / seconds, 2),
        "peak_gb": round(peak / 1e9, 2),
    }


def operations(name: str) -> dict[str, Any]:
    """Counted floating-point operations of a step of the minimal loop on the meta device: forward, and backward through frozen weights."""
    import dataclasses

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    engine = Minimal(dataclasses.replace(case_of(name, "minimal"), device="meta"))
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        engine.forward_backward()
    return {"case": name, "tflop": round(counted.get_total_flops() / 1e12, 3)}


def rate() -> dict[str, Any]:
    """TFLOP/s of a large bf16 matrix product on this GPU."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return {"bf16_tflops": round(20 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the name of the cases to run")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    engines.enter_package()
    if args.one:
        kind, *what = args.one
        found = {
            "row": lambda: row(*what, args.steps, args.rounds),
            "operations": lambda: operations(*what),
            "rate": rate,
        }[kind]()
        sys.stdout.write("ROW " + json.dumps(found) + "\n")
        return
    import torch

    if not torch.cuda.is_available():
        sys.stdout.write("no GPU here: nothing was timed, nothing written\n")
        return

    def one(*what: str) -> dict[str, Any]:
        """The row, or what went wrong with it; out of memory is a result too."""
        command = [sys.executable, __file__, "--one", *what, "--steps", str(args.steps), "--rounds", str(args.rounds)]
        done = subprocess.run(command, capture_output=True, text=True)
        rows = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
        found = (
            json.loads(rows[0])
            if rows
            else {
                "case": what[1],
                "way": what[-1],
                "failed": (done.stderr.strip().splitlines() or ["no word"])[-1][:200],
            }
        )
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        return found

    measured = one("rate")
    rows = []
    for name in (n for n in CASES if args.only in n):
        counted = one("operations", name)
        for way in ("minimal", *WAYS):
            found = one("row", name, way)
            if "ms" in found and "tflop" in counted:
                found["utilisation"] = round(counted["tflop"] / found["ms"] * 1e3 / measured["bf16_tflops"], 3)
            rows.append({**found, "tflop": counted.get("tflop")})
    engines.written(
        "gpu", "one training step, bf16 base, rank 16 on attention, cached latents and text", rate=measured, steps=rows
    )


if __name__ == "__main__":
    main()
