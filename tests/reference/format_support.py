"""How many layers ComfyUI and diffusers read of each spelling of each family: kept as format_support.json, measured by the tests of the same name. The other
programs, and these two layer by layer, are measured in tests/convert/programs.

    LOOM_UPDATE=1 python -m pytest tests/convert/test_format_table.py     (diffusers; with the host's Python: tests/host/test_format_table.py)

A cell is [read, of] for a file over the layers inside blocks, and again for one over all layers.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

HERE = Path(__file__).resolve()
FILE = HERE.with_suffix(".json")

Cell = list[list[int]]


def in_block(name: str) -> bool:
    """Whether a canonical layer name lies inside a numbered or middle block."""
    return (
        bool(re.search(r"(blocks?|layers|refiner)\.\d+\.|mid_block", name)) and "distilled_guidance_layer" not in name
    )


def check(program: str, measured: dict[str, dict[str, Cell]]) -> None:
    """Compares what was measured with the kept figures; with LOOM_UPDATE set, keeps it instead."""
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("LOOM_UPDATE"):
        FILE.write_text(json.dumps({**kept, program: measured}, indent=1) + "\n")
        return
    assert measured == kept[program]
