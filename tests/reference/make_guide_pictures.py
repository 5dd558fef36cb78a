"""Writes docs/guide/*.webp: what a training broken on purpose draws, below what the right one draws for the same prompts and seeds.

lora-loom sweep broken_on_purpose && python tests/reference/make_guide_pictures.py runs/broken-results
"""

from __future__ import annotations

import sys
from pathlib import Path

from lora_loom.lora_core.pictures.plots import grid
from lora_loom.lora_core.training.comparing import drawn_in, rows_in

PLACE = Path(__file__).resolve().parents[2] / "docs" / "guide"
RIGHT = "right"


def main() -> None:
    results = Path(sys.argv[1])
    drawn = {row["variant"].removeprefix("broken_"): drawn_in(results, row) for row in rows_in(results)}
    for variant, pictures in drawn.items():
        if variant != RIGHT:
            both = [*drawn[RIGHT], *pictures]
            sheet = grid([image for _, image in both], [prompt for prompt, _ in both], columns=len(pictures))
            sheet.save(PLACE / f"{variant}.webp", quality=88, method=6)


if __name__ == "__main__":
    main()
