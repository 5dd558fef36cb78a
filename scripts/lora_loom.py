"""The door for A1111, Forge, reForge and Forge classic: their script loader runs this file by path. It loads the folder it lies in as the package lora_loom."""

import importlib.util
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
if "lora_loom" not in sys.modules:  # it outlives "Reload UI", and so does a run
    spec = importlib.util.spec_from_file_location(
        "lora_loom", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["lora_loom"] = package
    spec.loader.exec_module(package)

from lora_loom.nodes.webui import extension  # noqa: E402

extension.register()
