"""How the code reads, where a rule can be counted: steps inside others, and names that do not say what they hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

FOLDERS = ("lora_core", "convert", "nodes", "scripts", "benchmarks", ".ci")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
RIDDLES = {"found", "told", "own", "there", "worn", "given", "wanted", "here"}  # whatever was: name what it holds


@pytest.fixture(scope="module")
def trees(root):
    """Path -> the parsed file, for all code that is not a test."""
    files = [root / "__init__.py", root / "__main__.py"]
    for folder in FOLDERS:
        files += sorted((root / folder).rglob("*.py"))
    return {file.relative_to(root).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def conditional_inside(tree: ast.AST) -> Iterator[int]:
    """Lines of comprehensions that hold another one, where either has a condition."""
    for outer in ast.walk(tree):
        if isinstance(outer, COMPREHENSIONS):
            family = [node for node in ast.walk(outer) if isinstance(node, COMPREHENSIONS)]
            conditions = [condition for node in family for loop in node.generators for condition in loop.ifs]
            if len(family) > 1 and conditions:
                yield outer.lineno


def ternaries_inside(tree: ast.AST) -> Iterator[int]:
    for outer in ast.walk(tree):
        if isinstance(outer, ast.IfExp) and sum(isinstance(node, ast.IfExp) for node in ast.walk(outer)) > 1:
            yield outer.lineno


def riddles(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Variables, parameters and functions with a name of RIDDLES, with or without underscores around it."""
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, FUNCTIONS):
            name = node.name
        if name.strip("_") in RIDDLES:
            yield node.lineno, name


def test_no_comprehension_with_conditions_is_inside_another(trees):
    assert [f"{file}:{line}" for file, tree in trees.items() for line in conditional_inside(tree)] == []


def test_no_ternary_is_inside_another(trees):
    assert [f"{file}:{line}" for file, tree in trees.items() for line in ternaries_inside(tree)] == []


def test_names_say_what_they_hold(trees):
    assert [f"{file}:{line} {name}" for file, tree in trees.items() for line, name in riddles(tree)] == []


def test_kinds_are_those_of_adapters(trees):
    """One meaning for the name, wherever a module has it."""
    files = []
    for file, tree in trees.items():
        names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
        files += [file] if "KINDS" in names else []
    assert files == ["lora_core/algebra/kinds.py"]


def test_words_of_the_engine_have_one_meaning(trees):
    """A run is a training run, a fit is how a picture lies in its bucket, what is shown is what the network sees beside the noise."""
    answers = {"run": "no function", "fit": "Fit", "shown": "Shown"}
    functions = [
        (f"{file}:{node.lineno} {node.name}", answers[node.name], ast.unparse(node.returns) if node.returns else "None")
        for file, tree in trees.items()
        if file.startswith(("lora_core/", "convert/", "nodes/"))
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS) and node.name in answers
    ]
    assert len(functions) >= 4
    assert [place for place, meaning, answer in functions if answer != meaning] == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("[a for a in x if any(b in a for b in y)]", 1),
        ("[[b for b in a if b] for a in x]", 1),
        ("[[b for b in a] for a in x]", 0),
        ("[b for a in x for b in a if b]", 0),
    ],
)
def test_what_counts_as_inside_a_comprehension(code, count):
    assert len(list(conditional_inside(ast.parse(code)))) == count


@pytest.mark.parametrize(("code", "count"), [("a if b else c if d else e", 1), ("[a if b else c, d if e else f]", 0)])
def test_what_counts_as_inside_a_ternary(code, count):
    assert len(list(ternaries_inside(ast.parse(code)))) == count


@pytest.mark.parametrize(
    "code", ["found = 1", "def told(): ...", "def f(own): ...", "for _there in x: ...", "lambda given: 1"]
)
def test_what_counts_as_a_riddle(code):
    assert len(list(riddles(ast.parse(code)))) == 1
    assert list(riddles(ast.parse("result.found = f(own=1)"))) == []
