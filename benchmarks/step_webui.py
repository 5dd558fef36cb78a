"""Times one training step of random SD1.5 inside AUTOMATIC1111, Forge and reForge on the CPU: at full size, with the memory it takes, and so narrow that
what it costs besides arithmetic is left.

    python benchmarks/step_webui.py [--steps 5] [--host A1111] [--sizes full narrow]

Full: 256 px, rank 16 on attention. Narrow: all layers of SD1.5 at a tenth of the width, 64 px, rank 4. Batch 1, latents and text cached, AdamW, one
thread. Needs the hosts with their environments as tests/webui do, and makes the
checkpoint (2 GB) in the same place the first time. "Minimal loop" is the host's own network with two products a layer and AdamW; it and ours take turns. A
host that is asked for alone keeps what is known of the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import engines

sys.path.insert(0, str(engines.ROOT / "tests" / "webui"))

from live_webui import KINDS, running  # noqa: E402

NAME = "step_webui"
SIZES: dict[str, tuple[str, dict[str, int]]] = {  # checkpoint of the tests, how it is asked
    "full": ("full", {"rounds": 2, "px": 256, "rank": 16}),
    "narrow": ("sd1", {"rounds": 6, "px": 64, "rank": 4}),
}


def known() -> dict[str, dict[str, Any]]:
    """What was found of each host before."""
    file = engines.RESULTS / f"{NAME}.json"
    return json.loads(file.read_text())["hosts"] if file.is_file() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--host", choices=KINDS, action="append")
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=list(SIZES))
    args = parser.parse_args()
    hosts = known()
    for name in args.host or KINDS:
        if reason := KINDS[name].missing():
            print(reason, file=sys.stderr)
            continue
        for size in args.sizes:
            checkpoint, how = SIZES[size]
            with tempfile.TemporaryDirectory() as data:
                for server in running(KINDS[name], Path(data), family=checkpoint):
                    result = server.inside("step", file="cost.py", steps=args.steps, **how)
            hosts.setdefault(name, {})[size] = result
            print(name, size, result)
    engines.written(NAME, "one training step of random SD1.5 inside WebUIs, batch 1, one thread", hosts=hosts)


if __name__ == "__main__":
    main()
