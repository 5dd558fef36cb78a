"""What known tricks gain on a CPU, each against the plain headless step in processes of their own, taking turns: full-size random SD1.5, 256 px.

python benchmarks/tricks.py [--rounds 2] [--steps 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

import engines
from engines import Case, Headless, Minimal, timed

TRICKS = {  # name -> number types it is tried on
    "allocation": ("fp32", "bf16"), "channels_last": ("fp32", "bf16"),
    "bf16 products on fp32 storage": ("fp32",), "one product for q, k and v": ("fp32", "bf16"),
}  # fmt: skip


def one(trick: str, dtype: str, steps: int) -> dict[str, Any]:
    """Median CPU seconds of a step on one thread."""
    from lora_loom.lora_core.backends.memory import keep_pages

    if trick == "allocation":
        assert keep_pages()
    import torch

    torch.set_num_threads(1)
    case = Case(dtype=dtype)
    engine: Any = Minimal(case) if "q, k and v" in trick else Headless(case)
    if trick == "channels_last":
        engine._run.backend.network.to(memory_format=torch.channels_last)
    if trick == "bf16 products on fp32 storage":
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    if trick == "one product for q, k and v":
        shared(engine)
    timed(engine, 2)
    return {"cpu_s": statistics.median(cpu for cpu, _ in timed(engine, steps))}


def shared(engine: Any) -> None:
    """In the minimal loop, the adapters of q, k and v (k and v in cross-attention) read their input in one product with all their factors."""
    import torch
    import torch.nn.functional as F

    attentions = [m for m in engine._network.modules() if hasattr(m, "to_q") and hasattr(m, "to_k")]
    trained: list[Any] = []
    for attention in attentions:
        alike = (
            attention.to_q.in_features == attention.to_k.in_features
            and attention.cross_attention_dim == attention.to_q.in_features
        )
        groups = [("to_q", "to_k", "to_v")] if alike else [("to_q",), ("to_k", "to_v")]
        for group in groups:
            layers = [getattr(attention, name) for name in group]
            downs = [torch.nn.Parameter(torch.randn(16, layer.in_features) / 16) for layer in layers]
            ups = [torch.nn.Parameter(torch.zeros(layer.out_features, 16)) for layer in layers]
            trained += downs + ups
            products: dict[str, Any] = {}

            def forward(x, n=0, layer=None, downs=downs, ups=ups, products=products):
                if n == 0:
                    products["hidden"] = F.linear(x, torch.cat(downs).to(x.dtype)).chunk(len(downs), -1)
                plain = F.linear(x, layer.weight, layer.bias)
                return plain + F.linear(products["hidden"][n], ups[n].to(x.dtype))

            for n, layer in enumerate(layers):
                layer.forward = lambda x, n=n, layer=layer, forward=forward: forward(x, n, layer)
        out = attention.to_out[0]
        down, up = (
            torch.nn.Parameter(torch.randn(16, out.in_features) / 16),
            torch.nn.Parameter(torch.zeros(out.out_features, 16)),
        )
        trained += [down, up]
        out.forward = lambda x, out=out, down=down, up=up: (
            F.linear(x, out.weight, out.bias) + F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))
        )
    engine._params = trained
    engine._optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--again", default="", help="time only tricks with this in their name; keep the others")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    engines.enter_package()
    if args.one:
        sys.stdout.write("ROW " + json.dumps(one(*args.one, args.steps)) + "\n")
        return

    def run(trick: str, dtype: str) -> float:
        command = [sys.executable, __file__, "--one", trick, dtype, "--steps", str(args.steps)]
        done = subprocess.run(command, capture_output=True, text=True)
        rows = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
        if not rows:
            raise SystemExit(done.stderr[-3000:])
        return json.loads(rows[0])["cpu_s"]

    file = engines.RESULTS / "tricks.json"
    earlier = json.loads(file.read_text())["tricks"] if args.again and file.exists() else []
    rows = []
    for trick, dtypes in TRICKS.items():
        for dtype in dtypes:
            if earlier and args.again not in trick:
                rows.append(next(r for r in earlier if (r["trick"], r["dtype"]) == (trick, dtype)))
                continue
            plain = "q, k and v apart" if "q, k and v" in trick else "plain"
            pairs = [(run(plain, dtype), run(trick, dtype)) for _ in range(args.rounds)]
            before, after = (statistics.median(column) for column in zip(*pairs))
            rows.append(
                {
                    "trick": trick,
                    "dtype": dtype,
                    "plain_s": round(before, 3),
                    "with_s": round(after, 3),
                    "gain": round(before / after, 3),
                }
            )
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
    engines.written("tricks", "one headless step of full-size random SD1.5, 256 px, batch 1, one thread", tricks=rows)


if __name__ == "__main__":
    main()
