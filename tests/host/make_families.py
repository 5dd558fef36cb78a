"""Measures every model class of the host: trained, with the error of its gradients against plain autograd, or refused, with what is said.

    ~/comfy/venv/bin/python tests/host/make_families.py [NAME ...]

Writes tests/reference/families.json (of the rows named, else of all), from which tests/reference/make_families.py makes docs/families.md. The rows are
tiny random models, `architectures.py`; some minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tests" / "reference" / "families.json"


def prepare() -> None:
    """The host and this checkout among what can be imported, as conftest.py does it."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "host")]
    host = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
    sys.path.insert(0, str(host))
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401 - reads sys.argv once
    import conftest  # noqa: F401 - loads the package


def errors(name: str, batch: Any, opened: Any) -> tuple[float, float]:
    """Of the adapters' gradients, plain and checkpointed: the norm of the difference from plain autograd over the norm. Raises LoomError."""
    import architectures
    import test_gradients
    import torch
    from lora_loom.lora_core.config import Recompute

    usual, test_gradients.opened = test_gradients.opened, opened
    writes, test_gradients.WRITES_IN_INFERENCE_MODE = test_gradients.WRITES_IN_INFERENCE_MODE, (name,)
    try:
        with torch.inference_mode(False):
            backend = opened(name, architectures.build(name))
            layers, adapters = test_gradients.make_adapters(backend)
            got = []
            for recompute in (Recompute.NONE, Recompute.ALL):
                with backend.training(layers, adapters, recompute, tuple(batch.latents.shape)):
                    got.append(test_gradients.loss_and_gradients(backend, adapters, batch)[1])
            _, wanted = test_gradients.reference(name, batch)
    finally:
        test_gradients.opened, test_gradients.WRITES_IN_INFERENCE_MODE = usual, writes
    whole = torch.cat([v.flatten() for v in wanted.values()]).norm()
    plain, checkpointed = (float(torch.cat([(g[k] - wanted[k]).flatten() for k in wanted]).norm() / whole) for g in got)
    return plain, checkpointed


def shown_beside(name: str, batch: Any, use: Any) -> Any:
    """The batch with what its model is shown: a first frame, or control pictures, or what a mask leaves."""
    import test_controls

    if use.behind is None:
        return test_controls.with_controls(name, batch)
    clips = batch.latents.repeat(1, 1, 3, 1, 1)  # of which one frame may be given
    return dataclasses.replace(batch, latents=clips, shown=[use.example(clip[None]) for clip in clips])


def measured(name: str) -> dict[str, Any]:
    """What becomes of one row: trained on text, on control pictures too where it reads such, or refused."""
    import architectures
    import test_gradients
    from lora_loom.convert.families import known_family
    from lora_loom.convert.loaders import cell_of
    from lora_loom.convert.loaders import measured as programs
    from lora_loom.lora_core.adapters import choose_targets
    from lora_loom.lora_core.config import AdapterConfig
    from lora_loom.lora_core.messages.errors import LoomError
    from lora_loom.lora_core.messages.message import Message
    from lora_loom.nodes.host.engine.backend import HostBackend
    from lora_loom.nodes.host.engine.base_model import further_input
    from stand_ins import NoVae, RandomClip

    def unwired(name: str, patcher: Any) -> HostBackend:
        return HostBackend(patcher, RandomClip(name), NoVae(patcher))

    cls, batch = architectures.row_of(name)[0], test_gradients.make_batch(name)
    backend = test_gradients.opened(name, architectures.build(name))
    shows, further = backend.model.use is not None, further_input(backend.model.base)
    row: dict[str, Any] = {"class": cls, "trains": True, "family": backend.family}
    try:
        if further is None or not shows:
            row["plain"], row["checkpointed"] = errors(name, batch, test_gradients.opened)
        if shows:
            with_controls = shown_beside(name, batch, backend.model.use)
            row["controls"], row["controls_checkpointed"] = errors(name, with_controls, unwired)
    except LoomError as error:
        return {"class": cls, "trains": False, "why": error.message.as_json()}
    offered = backend.layers()
    try:
        usual = choose_targets(offered, AdapterConfig())
    except LoomError:
        usual = []
    first = backend.file_name(next(iter(offered)))
    form = "kohya" if first.startswith("lora_") else "comfyui" if first.startswith("diffusion_model.") else "diffusers"
    known = known_family(backend.family)
    cells = {program: cell_of(program, known, form) for program in programs()}
    row["readers"] = [p for p, cell in cells.items() if cell and 0 < cell["layers"][0] == cell["layers"][1]]
    row |= {"layers": len(offered), "attention": len(usual), "name": first}
    row["beside"] = "" if further is None else Message.of(further.needs).text()
    return {key: float(f"{value:.1e}") if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    asked = sys.argv[1:]
    prepare()
    import architectures
    import comfy.supported_models
    import comfyui_version

    old = json.loads(PLACE.read_text(encoding="utf-8")) if PLACE.is_file() else {"rows": {}}
    rows = {}
    for name in dict.fromkeys(name for table in architectures.TABLES for name in table):
        if asked and name not in asked:
            if name in old["rows"]:
                rows[name] = old["rows"][name]
            continue
        try:
            rows[name] = measured(name)
        except Exception as error:  # noqa: BLE001 - told, and the other rows go on
            print(f"{name}: {type(error).__name__}: {error}"[:300], flush=True)
            continue
        print(name, rows[name], flush=True)
    classes = [cls.__name__ for cls in comfy.supported_models.models]
    table = {"host": comfyui_version.__version__, "classes": classes, "rows": rows}
    PLACE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
