"""The rooms of the code and the one direction of their imports: `python .ci/rooms.py` names every import that runs against it.

A room is a folder; `lora_core` and `convert` also have files that are rooms of their own. Imports inside functions and imports for type
checkers count like any other.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom: a room imports only rooms of later lines, and of its own line none but itself.
ORDER = [
    "door",
    "nodes nodes/terminal nodes/webui",
    "nodes/ui",
    "nodes/host/web nodes/webui/engine nodes/page",
    "nodes/host/engine nodes/host/access nodes/host nodes/jobs",
    "convert/files",
    "convert convert/report convert/card",
    "convert/results convert/loaders",
    "convert/writers",
    "convert/readers convert/metadata",
    "convert/detect convert/embedding convert/fuse convert/merge convert/peft convert/serialize",
    "convert/name_patterns",
    "convert/families convert/lora",
    "convert/forms convert/keys convert/origin convert/patterns convert/scales",
    "lora_core/training",
    "lora_core/runs lora_core/backends",
    "lora_core/borrowing lora_core/captioning",
    "lora_core/optim lora_core/losses lora_core/events",
    "lora_core/adapters lora_core/data lora_core/objectives lora_core/importing",
    "lora_core/config lora_core/pictures lora_core/rng lora_core/toy",
    "lora_core/algebra lora_core/recipes lora_core/names lora_core/disk lora_core/processes",
    "lora_core/compat lora_core/matching lora_core/transfer",
    "lora_core lora_core/durable lora_core/messages",
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms.split()}
# What convert may import of the engine:
SHARED = ("lora_core/messages", "lora_core/matching", "lora_core/algebra", "lora_core/durable")
HOST = ("comfy", "comfy_api", "comfy_extras", "execution", "folder_paths", "nodes", "server")  # ComfyUI's own modules
WEBUI = ("backend", "modules", "modules_forge", "networks")  # those of A1111, Forge and reForge
PAGE = ("gradio", "fastapi", "starlette", "uvicorn")


class Arrow(NamedTuple):
    """One import: the importing file without `.py`, its line, and the file of ours it names, or the top module where it is foreign."""

    source: str
    line: int
    target: str
    relative: bool
    foreign: bool

    def __str__(self) -> str:
        return f"{self.source}.py:{self.line} imports {self.target}"


def read(root: Path) -> dict[str, str]:
    """The files that ship: path without `.py` -> text."""
    packages = [path.parent for path in root.glob("*/__init__.py")]
    paths = [
        root / "__init__.py",
        root / "__main__.py",
        *(path for package in packages for path in package.rglob("*.py")),
    ]
    return {
        path.relative_to(root).with_suffix("").as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)
    }


parsed = functools.cache(ast.parse)


def arrows(files: dict[str, str], package: str = "lora_loom") -> list[Arrow]:
    """Every import in `files` (path without `.py` -> text), relative or by the name of the package."""
    return sorted({arrow for source, text in files.items() for arrow in _imports(source, parsed(text), files, package)})


def _imports(source: str, tree: ast.AST, files: dict[str, str], package: str) -> Iterator[Arrow]:
    for node in ast.walk(tree):
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        if isinstance(node, ast.Import):
            paths = [name.name.split(".") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [package, *source.split("/")[: -node.level]] if relative else []
            paths = [[*start, *(node.module or "").split("."), name.name] for name in node.names]
        else:
            continue
        for path in paths:
            parts = [part for part in path if part]
            target = _file(parts[1:], files) if parts[0] == package else None
            yield Arrow(source, node.lineno, target or parts[0], relative, target is None)


def _file(parts: list[str], files: dict[str, str]) -> str | None:
    """The file that `a.b.name` means: a/b/name, a/b/name/__init__, or where `name` is no file what stands in a/b."""
    for path in ("/".join(parts), "/".join(parts[:-1])):
        for name in (path, f"{path}/__init__".lstrip("/")):
            if name in files:
                return name
    return None


def room(file: str) -> str:
    """The room a file belongs to."""
    parts = file.split("/")
    if len(parts) == 1:
        return "door"
    alone = len(parts) == 2 and parts[0] in ("lora_core", "convert") and parts[1] != "__init__"
    return file if alone else "/".join(parts[:-1])


def between(everything: Iterable[Arrow]) -> set[tuple[str, str]]:
    """(importing room, imported room) of all arrows that leave a room."""
    pairs = {(room(arrow.source), room(arrow.target)) for arrow in everything if not arrow.foreign}
    return {(source, target) for source, target in pairs if source != target}


def circle(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """One circle among the pairs (importer, imported), its first name again at its end; empty where there is none."""
    graph: dict[str, list[str]] = {}
    for source, target in sorted(pairs):
        graph.setdefault(source, []).append(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return []


def faults(files: dict[str, str]) -> list[str]:
    """A line for each import against the direction, each circle, and each room that ORDER does not name or names in vain."""
    rooms, everything = {room(file) for file in files}, arrows(files)
    out = [f"{name}: a new room; give it its place in ORDER of .ci/rooms.py" for name in sorted(rooms - set(LEVEL))]
    out += [f"{name}: ORDER of .ci/rooms.py names a room that has no file" for name in sorted(set(LEVEL) - rooms)]
    out += [f"{arrow}: {why}" for arrow in everything if (why := _against(arrow))]
    ours = {(arrow.source, arrow.target) for arrow in everything if not arrow.foreign and arrow.source != arrow.target}
    for kind, pairs in (("files", ours), ("rooms", between(everything))):
        if names := circle(pairs):
            out.append(f"a circle of {kind}: {' -> '.join(names)}")
    return out


def _against(arrow: Arrow) -> str:
    """Why an import may not be; empty where it may."""
    if arrow.foreign:
        if arrow.target in HOST and not arrow.source.startswith("nodes/host/"):
            return "only nodes/host imports the host"
        if arrow.target in WEBUI and not arrow.source.startswith("nodes/webui/"):
            return "only nodes/webui imports the WebUIs"
        if arrow.target in PAGE and not arrow.source.startswith(("nodes/webui/", "nodes/page/", "nodes/ui/")):
            return "only nodes/page and what stands around it import a web framework"
        return "no such file of ours" if arrow.relative or arrow.target in ("lora_core", "convert") else ""
    if not arrow.relative and arrow.source != "__main__":  # which finds itself by name when it was started by path
        return "files of ours are imported by relative imports"
    source, target = room(arrow.source), room(arrow.target)
    wing = source.split("/")[0]
    if (
        wing in ("lora_core", "convert")
        and target.split("/")[0] != wing
        and not (wing == "convert" and target in SHARED)
    ):
        return f"{wing} imports no other part of ours" + (f" than {' and '.join(SHARED)}" if wing == "convert" else "")
    if source == target or source not in LEVEL or target not in LEVEL or LEVEL[source] < LEVEL[target]:
        return ""
    return f"{target} does not stand below {source}"


def main() -> int:
    problems = faults(read(ROOT))
    print("\n".join(problems) or f"{len(LEVEL)} rooms, every import points down, no circle.")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
