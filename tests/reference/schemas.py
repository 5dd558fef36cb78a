"""The schemas of our nodes without ComfyUI: what their texts, help pages and workflows are made from.

ComfyUI's modules are stood in for while ours are imported. `comfy_api` records what an input or output is given; whatever else a module of the
host has is a class without content, which is enough for our imports and base classes. A host test compares the result with the real schemas.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOST = (
    "aiohttp",
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_kitchen",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "server",
)


class Blank(type):
    """A class whose attributes are classes like it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Blank(name, (), {})


class Item:
    """An input or output as its node declares it; keywords it was not given are None."""

    def __init__(self, id: str = "", **keywords: Any):
        self.id = id
        self.__dict__.update(keywords)

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def socket(name: str) -> type:
    """A type of wire or widget; its inputs and outputs know it by `kind`, the name in workflows such as LORA_MODEL."""
    kind: dict[str, Any] = {
        "Input": type("Input", (Item,), {"kind": name}),
        "Output": type("Output", (Item,), {"kind": name}),
    }
    return type(name, (), kind)


class Sockets(types.ModuleType):
    """`comfy_api.latest.io`: every name in it that we do not give a meaning is a type of wire."""

    class ComfyNode:
        hidden = None

        @classmethod
        def GET_SCHEMA(cls) -> Any:  # noqa: N802 - as the host spells it
            return cls.define_schema()

    class Schema(Item):
        def __init__(self, **keywords: Any):
            super().__init__(**keywords)

    Hidden, NodeOutput = Blank("Hidden", (), {}), Blank("NodeOutput", (), {})

    @staticmethod
    def Custom(name: str) -> type:  # noqa: N802 - as the host spells it
        return socket(name)

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return socket("*" if name == "AnyType" else re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper())


class StandIn(types.ModuleType):
    """A module of the host."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Blank(name, (), {})


class Finder:
    """Finds a stand-in for every module of the host."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in HOST else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = StandIn(spec.name)
        if spec.name == "comfy_api.latest":
            module.io, module.ui, module.ComfyExtension = Sockets("io"), Blank("ui", (), {}), object
        if spec.name == "folder_paths":
            empty = tempfile.gettempdir() + "/lora-loom-without-host"
            module.get_input_directory = module.get_output_directory = module.get_user_directory = lambda: empty
            module.models_dir = empty
            module.get_folder_paths = module.get_filename_list = lambda kind: []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


@contextlib.contextmanager
def without_host() -> Iterator[None]:
    """The host's modules stood in for, and our own imported anew inside; afterwards every module is as before."""
    before, finder = dict(sys.modules), Finder()
    for name in [name for name in sys.modules if name.partition(".")[0] in HOST or name.startswith("lora_loom.nodes")]:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [
            name for name in sys.modules if name.partition(".")[0] in HOST or name.startswith("lora_loom.nodes")
        ]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


def load_package() -> None:
    """This checkout as the package `lora_loom`, whatever its folder is called."""
    if "lora_loom" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "lora_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["lora_loom"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.path[:] = [
            p for p in sys.path if p and Path(p).resolve() != ROOT
        ]  # our nodes/ must not shadow the host's nodes.py


def schemas() -> dict[str, Any]:
    """Node id -> schema, in the order the nodes are listed."""
    load_package()
    with without_host():
        nodes = importlib.import_module("lora_loom.nodes.extension").NODES
        listed = [node.GET_SCHEMA() for node in nodes]
    return {schema.node_id: schema for schema in listed}
