"""Times one training step of a full-size random SD1.5 inside AUTOMATIC1111, Forge and reForge on the CPU, and the memory it takes.

    python benchmarks/step_webui.py [--steps 5] [--host A1111]

256 px, batch 1, rank 16 on attention, latents and text cached, AdamW, one thread. Needs the hosts with their environments as tests/webui do, and makes the
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


def known() -> dict[str, dict[str, Any]]:
    """What was found of each host before."""
    file = engines.RESULTS / f"{NAME}.json"
    return json.loads(file.read_text())["hosts"] if file.is_file() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--host", choices=KINDS, action="append")
    args = parser.parse_args()
    hosts = known()
    for name in args.host or KINDS:
        if reason := KINDS[name].missing():
            print(reason, file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as data:
            for server in running(KINDS[name], Path(data), family="full"):
                hosts[name] = server.inside("step", file="cost.py", steps=args.steps)
        print(name, hosts[name])
    engines.written(NAME, "one training step of full-size random SD1.5 inside WebUIs, 256 px, batch 1, rank 16 attention, one thread", hosts=hosts)  # fmt: skip


if __name__ == "__main__":
    main()
