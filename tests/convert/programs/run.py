"""Measures one program with its real loader, in a process of its own: python tests/convert/programs/run.py a1111 results/a1111.json [family,family].

With families named, these alone are measured, and take the place of what the file says of them."""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
if "lora_loom" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "lora_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["lora_loom"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["lora_loom"])
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() not in (HERE, ROOT)]


def by_file(name: str):
    """A file beside this one as a module, without this folder among the places where the programs' imports look."""
    spec = importlib.util.spec_from_file_location(f"loom_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


NEEDED = {
    "lycoris_kohya": ["sd_scripts"], "sdnext": ["diffusers_models"], "onetrainer": ["diffusers_models"], "diffusers_own": ["diffusers_models"],
    "ai_toolkit": ["diffusers_models"],
    "peft_own": ["diffusers_models", "diffusers_own"],
}  # fmt: skip


def main(name: str, out: str, only: str = "") -> None:
    import torch

    torch.set_num_threads(1)
    by_file("small_models")
    harness = by_file("harness")
    for needed in NEEDED.get(name, []):
        by_file(needed)
    program = by_file(name)
    families = harness.measured(program, only.split(",") if only else program.FAMILIES)
    with tempfile.TemporaryDirectory() as temp:
        embeddings = harness.embeddings(program, Path(temp)) if hasattr(program, "embedding") else {}
    result = {
        "program": program.TITLE,
        "version": getattr(program, "VERSION", "") or harness.commit(harness.folder(program.FOLDER)),
        "date": datetime.date.today().isoformat(),
        "families": families,
        "embeddings": embeddings,
        "absent": harness.absent(program),
        "not_run": getattr(program, "NOT_RUN", {}),
    }
    if only and Path(out).exists():
        kept = json.loads(Path(out).read_text(encoding="utf-8"))
        together = {**kept["families"], **families}
        result["families"] = {family: together[family] for family in program.FAMILIES if family in together}
    Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
