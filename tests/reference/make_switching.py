"""Writes docs/switching.md: what each setting of other trainers becomes, from the tables that the import itself uses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from schemas import ROOT  # noqa: E402

PLACE = ROOT / "docs" / "switching.md"
HEAD = """# Coming from another trainer

`lora-loom import` reads the configuration of another trainer, writes a job file and says of every setting what became of it:

```
lora-loom import train.sh --out job.toml                                   # a diffusers or kohya command line, with its variables
lora-loom import config.toml dataset.toml --out job.toml                   # kohya's config and dataset config
lora-loom import "preset.json" concepts.json --out job.toml                # OneTrainer
lora-loom import train_lora_flux_24gb.yaml --out job.toml                  # ai-toolkit
lora-loom import config.json multidatabackend.json --out job.toml          # SimpleTuner
```

Files that a configuration names are read where they are found. *Import Settings* does the same in ComfyUI. Where a program takes something else than we do and the
configuration says nothing, its own value is written into the job, so that the job does what it did there. Keys that are in none of these tables are listed as
unknown.

The tables below are made from the data the import uses. *(default x)*: what the program takes where it is not given, and a job of ours would not.
"""


def text() -> str:
    """The page as it should be."""
    from lora_loom.lora_core.importing.programs import PROGRAMS

    out = [HEAD]
    for program in PROGRAMS.values():
        out += [f"## {program.title}", "", "| setting there | becomes |", "|---|---|", *lines(program.rows)]
        if program.set_rows:
            out += ["", "For each folder of pictures (in `[data]`, or in `[[sets]]` where there are several):", ""]
            out += ["| setting there | becomes |", "|---|---|", *lines(program.set_rows)]
        out.append("")
    return "\n".join(out).rstrip() + "\n"


def lines(rows: dict) -> list[str]:
    """A line for each row; those without a counterpart of one reason together, at the end."""
    from lora_loom.lora_core.messages.message import Message

    out, nothing = [], {}
    for key, row in rows.items():
        why = str(Message.of(row.why)) if row.why else ""
        if row.convert is None:
            nothing.setdefault(why, []).append(f"`{key}`")
            continue
        to = ", ".join(f"`{path}`" for path in row.paths)
        default = f" *(default {row.default})*" if row.default is not None else ""
        out.append(
            f"| `{key}`{default} | {'; '.join(part for part in (to, why) if part)} |".replace("|||", "\\|\\|\\|")
        )
    return out + [
        f"| {', '.join(keys)} | nothing: {why} |".replace("|||", "\\|\\|\\|") for why, keys in nothing.items()
    ]


def write() -> None:
    PLACE.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    write()
