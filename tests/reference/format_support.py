"""How many layers each program reads of each spelling of each family: kept as format_support.json, measured by the tests of the same name.

    LOOM_UPDATE=1 python -m pytest tests/convert/test_format_table.py     (diffusers; with the host's Python: tests/host/test_format_table.py)
    python tests/reference/format_support.py                              writes the table into convert/README.md

A cell is [read, of] for a file over the layers inside blocks, and again for one over all layers.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

HERE = Path(__file__).resolve()
FILE, README = HERE.with_suffix(".json"), HERE.parents[2] / "convert" / "README.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
FORMS = ("kohya", "comfyui", "diffusers", "peft")

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


def agrees(said: str, cell: Cell) -> bool:
    """Whether the words of `convert.loaders` are true of the figures."""
    (inside, of_inside), (every, of_every) = cell
    if said == "all":
        return (inside, every) == (of_inside, of_every)
    if said == "nothing":
        return inside == every == 0
    if "inside blocks" in said or "whole blocks" in said:
        return inside == of_inside and every < of_every
    if "all but" in said:
        return inside == of_inside and every < of_every
    return 0 < every < of_every


def table() -> str:
    from lora_loom.convert.families import FAMILIES
    from lora_loom.convert.loaders import PROGRAMS, READS

    kept = json.loads(FILE.read_text())
    rows = [["Model", "Form", *PROGRAMS], ["---"] * (2 + len(PROGRAMS))]
    for family, forms in READS.items():
        info = FAMILIES[family]
        for form in FORMS:
            cells = []
            for program, said in zip(PROGRAMS, forms[form]):
                cell = kept.get(program, {}).get(family, {}).get(form)
                cells.append(
                    said.replace("nothing (does not run this model)", "-")
                    + (f" ({cell[1][0]}/{cell[1][1]})" if cell else "")
                )
            rows.append(
                [info.title if form == FORMS[0] else "", form + (" *" if form == info.universal else ""), *cells]
            )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    text = README.read_text()
    README.write_text(text[: text.index(BEGIN) + len(BEGIN)] + "\n" + table() + "\n" + text[text.index(END) :])


if __name__ == "__main__":
    main()
