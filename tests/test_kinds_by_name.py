"""An adapter kind is asked by its object: outside its own file no code chooses by the name of one."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from lora_loom.lora_core.algebra import NAMES

ROOMS = ("lora_core", "convert", "nodes")
SUBJECTS = (
    "lora_core/algebra/",  # the kinds themselves
    "lora_core/importing/",  # what other programs call theirs
)
PARTS = ("parts", "p")  # tables of an adapter's parts, of which one is called like a kind: "dora", the magnitudes
METHOD = "a method of training: a LoRA, an embedding, both, a slider"
PARAMETER = "a parameter of a layer"
ALLOWED = {
    ("convert/__init__.py", "lora"): "a file of convert",
    ("convert/embedding.py", "lora"): "a word in the keys of a file",
    ("convert/writers.py", "dora"): "the part of that name, as diffusers calls it",
    ("lora_core/adapters/targets.py", "lora"): "the kind where a caller names none",
    ("lora_core/borrowing/guards.py", "bias"): PARAMETER,
    ("lora_core/borrowing/guards.py", "norm"): "a word in the class of a layer",
    ("lora_core/runs/hub.py", "lora"): METHOD,
    ("lora_core/training/calibration.py", "full"): "the whole strength",
    ("nodes/jobs/exports.py", "lora"): METHOD,
    ("nodes/page/library.py", "lora"): "a sort of file",
    ("nodes/jobs/publishing.py", "lora"): "a word of A1111's prompts",
}


def _strings(node: ast.AST | None) -> set[str]:
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def _held(node: ast.AST) -> set[str]:
    """The strings of a tuple, a list or a set, also inside a call such as frozenset."""
    if isinstance(node, ast.Call):
        return set().union(*map(_held, node.args))
    return set().union(*map(_strings, node.elts)) if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else set()


def _is_parts(node: ast.AST) -> bool:
    return getattr(node, "id", getattr(node, "attr", "")) in PARTS


def _compared(node: ast.Compare) -> set[str]:
    sides = [node.left, *node.comparators]
    if not isinstance(node.ops[0], (ast.In, ast.NotIn)):
        return set().union(*map(_strings, sides))
    return _held(sides[-1]) | (set() if _is_parts(sides[-1]) else _strings(sides[0]))


def _chosen(node: ast.AST) -> set[str]:
    """The strings that this piece of code chooses by."""
    if isinstance(node, ast.Compare):
        return _compared(node)
    if isinstance(node, ast.MatchValue):
        return _strings(node.value)
    if isinstance(node, ast.Dict):
        return set().union(*map(_strings, node.keys))
    if isinstance(node, ast.Subscript):
        return set() if _is_parts(node.value) else _strings(node.slice)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Module":
        return set().union(*map(_strings, node.args[:1]))
    if isinstance(node, ast.arguments):
        return set().union(*map(_strings, [*node.defaults, *node.kw_defaults]))
    several = _held(node) & {*NAMES}
    return several if len(several) > 1 else set()


def by_name(text: str) -> list[tuple[int, str]]:
    """(line, name of a kind) of every choice by such a name."""
    return sorted({(line, name) for line, found in _choices(ast.parse(text)) for name in found & {*NAMES}})


def _choices(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    for node in ast.walk(tree):
        found = _chosen(node)
        if found:
            yield next((n.lineno for n in ast.walk(node) if hasattr(n, "lineno")), 0), found


@pytest.fixture(scope="module")
def found(root):
    files = [file for room in ROOMS for file in sorted((root / room).rglob("*.py"))]
    named = {file.relative_to(root).as_posix(): file for file in files}
    texts = {name: file.read_text(encoding="utf-8") for name, file in named.items() if not name.startswith(SUBJECTS)}
    return {(name, kind): line for name, text in texts.items() for line, kind in by_name(text)}


def test_no_code_chooses_by_the_name_of_a_kind(found):
    assert [f"{name}:{line} {kind}" for (name, kind), line in found.items() if (name, kind) not in ALLOWED] == []


def test_every_allowance_is_still_needed(found):
    assert [place for place in ALLOWED if place not in found] == []


@pytest.mark.parametrize(
    "line",
    [
        'if module.kind == "loha": pass',
        'if "loha" != kind.name: pass',
        'if kind in ("loha", "other"): pass',
        'if kind not in frozenset({"loha"}): pass',
        'if "loha" in kinds: pass',
        'WAYS = {"loha": 1}',
        'way = KINDS["loha"]',
        'Module("loha", parts)',
        'FLAT = ("loha", "lokr")',
        'def way(kind="loha"): pass',
        'match kind:\n    case "loha": pass',
    ],
)
def test_a_choice_by_name_is_noticed(line):
    assert (2 if "case" in line else 1, "loha") in by_name(line)


@pytest.mark.parametrize(
    "line", ['if "dora" in module.parts: pass', 'm = p["dora"]', 'field = "lora"', "LOHA.name == kind"]
)
def test_what_names_no_kind_is_left_alone(line):
    assert by_name(line) == []
