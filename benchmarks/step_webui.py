"""Times one training step of a full-size random SD1.5 inside AUTOMATIC1111 on the CPU, beside the least it can be there, and the memory it takes.

    python benchmarks/step_webui.py [--steps 5]

256 px, batch 1, rank 16 on attention, latents and text cached, AdamW, one thread. Needs A1111 with its environment as tests/webui do, and makes the
checkpoint (2 GB) in the same place the first time. "Minimal loop" is A1111's own network with two products a layer and AdamW.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import engines

sys.path.insert(0, str(engines.ROOT / "tests" / "webui"))

from live_webui import A1111, running  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps
    if reason := A1111.missing():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as data:
        for server in running(A1111, Path(data), family="full"):
            found = server.inside("step", file="cost.py", steps=steps)
    what = (
        "one training step of full-size random SD1.5 in AUTOMATIC1111, 256 px, batch 1, rank 16 attention, one thread"
    )
    engines.written("step_webui", what, **found)


if __name__ == "__main__":
    main()
