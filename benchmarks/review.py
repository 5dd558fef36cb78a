"""How the code reads, in numbers: ours by wing, and any other source folder beside it, as a Markdown table.

    python benchmarks/review.py                            ours
    python benchmarks/review.py --root OTHER_CHECKOUT      the same of another checkout of ours
    python benchmarks/review.py PEFT=path/to/peft ...      other packages beside it

No number is a limit. Tests, benchmarks, examples and scripts are left out. Lengths are in lines as they stand in the file; a function's includes its
docstring. Complexity is McCabe's, counted as ruff's C901 does. A rate is a number in 1,000 lines.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import statistics
import sys
import tokenize
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("tests", "test", "benchmarks", "examples")  # wherever they stand
LEFT_OUT_ON_TOP = ("docs", "scripts", "runs", "build", "setup.py")
WIDTH = 120
Function = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class File:
    """One parsed file."""

    def __init__(self, text: str) -> None:
        self.lines, self.tree = text.splitlines(), ast.parse(text)
        self.nodes = list(ast.walk(self.tree))
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        self.comments = [token.string for token in tokens if token.type == tokenize.COMMENT]

    def all(self, *kinds: type) -> list[ast.AST]:
        return [node for node in self.nodes if isinstance(node, kinds)]

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in self.nodes if isinstance(node, Function)]

    @cached_property
    def documented(self) -> list[bool]:
        """For each public function and method, whether it has a docstring."""
        return [ast.get_docstring(f) is not None for f in self.functions if not f.name.startswith("_")]

    @cached_property
    def docstring_lines(self) -> set[int]:
        out: set[int] = set()
        for node in self.all(ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None  # type: ignore[attr-defined]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                out |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
        return out

    @cached_property
    def long_lines(self) -> dict[str, int]:
        """Lines over WIDTH: in docstrings, those that a sentence makes long, and the rest."""
        counts = {"docstring": 0, "sentence": 0, "code": 0}
        strings = [
            n
            for n in self.nodes
            if isinstance(n, ast.JoinedStr) or isinstance(n, ast.Constant) and isinstance(n.value, str)
        ]
        for number, line in enumerate(self.lines, 1):
            if len(line) > WIDTH:
                texts = [n.end_col_offset - n.col_offset for n in strings if n.lineno == n.end_lineno == number]
                longest = max(texts, default=0)
                kind = "sentence" if longest >= 40 and len(line) - longest <= WIDTH else "code"
                counts["docstring" if number in self.docstring_lines else kind] += 1
        return counts


class Source:
    """The files of a package, by path without `.py`."""

    def __init__(self, files: dict[str, str], package: str) -> None:
        self.texts, self.package = files, package
        self.files = {name: File(text) for name, text in files.items()}

    @cached_property
    def lines(self) -> int:
        return sum(len(file.lines) for file in self.files.values())

    @cached_property
    def functions(self) -> list[Function]:
        return [function for file in self.files.values() for function in file.functions]

    def count(self, of: Callable[[File], int]) -> int:
        return sum(of(file) for file in self.files.values())

    def rate(self, of: Callable[[File], int]) -> str:
        return f"{1000 * self.count(of) / max(1, self.lines):.1f}"


def read(folder: Path, below: str = "") -> dict[str, str]:
    """The text of every Python file of `folder`, or of those `below` a part of it, that is not left out."""
    out = {}
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        hidden = place.parts[0].startswith(".") or place.parts[0] in LEFT_OUT_ON_TOP or set(place.parts) & set(LEFT_OUT)
        if not hidden and place.as_posix().startswith(below):
            out[place.with_suffix("").as_posix()] = path.read_text(encoding="utf-8", errors="replace")
    return out


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


def parameters(function: Function) -> int:
    """How many values a caller can give, self and cls apart."""
    a = function.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def complexity(body: list[ast.stmt]) -> int:
    """Decisions in these statements, those of functions inside them too; a function's complexity is one more."""
    total = 0
    for node in body:
        parts = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
        total += sum(complexity(part) for part in parts)
        if isinstance(node, ast.If | Function):
            total += 1
        elif isinstance(node, ast.For | ast.AsyncFor | ast.While):
            total += 1 + bool(node.orelse)
        elif isinstance(node, ast.Try):
            total += len(node.handlers) + bool(node.orelse) + sum(complexity(handler.body) for handler in node.handlers)
        elif isinstance(node, ast.Match):
            total += len(node.cases) + sum(complexity(case.body) for case in node.cases)
    return total


def depth(body: list[ast.stmt]) -> int:
    """How deep blocks stand in blocks; `elif` is no step."""
    deepest = 0
    for node in body:
        if isinstance(node, Function | ast.ClassDef):
            continue
        inner = [getattr(node, "body", []), getattr(node, "finalbody", [])]
        inner += [part.body for part in (*getattr(node, "handlers", []), *getattr(node, "cases", []))]
        orelse = getattr(node, "orelse", [])
        chained = isinstance(node, ast.If) and len(orelse) == 1 and isinstance(orelse[0], ast.If)
        deepest = max([deepest, depth(orelse) if chained else 0, *(1 + depth(part) for part in inner if part)])
        if orelse and not chained:
            deepest = max(deepest, 1 + depth(orelse))
    return deepest


def broad(handler: ast.AST) -> bool:
    assert isinstance(handler, ast.ExceptHandler)
    names = [n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)] if handler.type else ["BaseException"]
    return bool({"Exception", "BaseException"} & set(names))


def nested(file: File, conditions: bool) -> int:
    """Comprehensions with several `for`, or with another comprehension inside; with `conditions` only those that also have an `if` somewhere."""
    total = 0
    for outer in file.all(*COMPREHENSIONS):
        family = [node for node in ast.walk(outer) if isinstance(node, COMPREHENSIONS)]
        loops = [loop for node in family for loop in node.generators]
        total += len(loops) > 1 and (not conditions or any(loop.ifs for loop in loops))
    return total


def inside_ternary(file: File) -> int:
    """Ternaries inside a ternary."""
    return len(
        {
            node
            for outer in file.all(ast.IfExp)
            for node in ast.walk(outer)
            if isinstance(node, ast.IfExp) and node is not outer
        }
    )


def uses_of_any(file: File) -> int:
    return sum(
        isinstance(n, ast.Name) and n.id == "Any" or isinstance(n, ast.Attribute) and n.attr == "Any"
        for n in file.nodes
    )


def is_note(comment: str) -> bool:
    """A comment for people, not for a tool."""
    return not comment.lstrip("# ").startswith(("noqa", "type:", "fmt:", "pragma", "!"))


def circles(source: Source) -> int:
    """Groups of files that import each other in a circle, type-only and late imports included."""
    spec = importlib.util.spec_from_file_location("rooms", ROOT / ".ci" / "rooms.py")
    assert spec
    assert spec.loader
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    targets: dict[str, set[str]] = {name: set() for name in source.texts}
    for arrow in rooms.arrows(source.texts, source.package):
        if not arrow.foreign and arrow.source != arrow.target:
            targets[arrow.source].add(arrow.target)
    reach = {name: set(reached(name, targets)) for name in targets}

    def circle(name: str) -> frozenset[str]:
        return frozenset(other for other in reach[name] if name in reach[other])

    return len({circle(name) for name in reach if name in reach[name]})


def reached(start: str, targets: dict[str, set[str]]) -> Iterator[str]:
    """Every name that an arrow, or several after another, lead to."""
    seen, waiting = set(), list(targets[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            yield name
            waiting += targets[name]


def spread_of(values: list[int]) -> str:
    """Median / 95th percentile / largest."""
    ranked = sorted(values) or [0]
    return f"{statistics.median_low(ranked)} / {ranked[min(len(ranked) - 1, len(ranked) * 95 // 100)]} / {ranked[-1]}"


def long_lines(source: Source) -> str:
    counts = {kind: source.count(lambda f, k=kind: f.long_lines[k]) for kind in ("code", "sentence", "docstring")}  # type: ignore[misc]
    share = 100 * sum(counts.values()) / max(1, source.lines)
    return f"{share:.1f} % ({counts['code']} / {counts['sentence']} / {counts['docstring']})"


def docstrings(source: Source) -> str:
    known = [has for file in source.files.values() for has in file.documented]
    return f"{100 * sum(known) / max(1, len(known)):.0f} %"


def above(values: list[int], *limits: int) -> str:
    return " / ".join(str(sum(value > limit for value in values)) for limit in limits)


ROWS: list[tuple[str, Callable[[Source], str]]] = [
    ("files / lines", lambda s: f"{len(s.files)} / {s.lines:,}"),
    ("file length: median / 95 % / longest", lambda s: spread_of([len(f.lines) for f in s.files.values()])),
    ("function length: median / 95 % / longest", lambda s: spread_of([length(f) for f in s.functions])),
    ("functions over 60 / 100 lines", lambda s: above([length(f) for f in s.functions], 60, 100)),
    ("classes over 300 lines", lambda s: above([length(c) for f in s.files.values() for c in f.all(ast.ClassDef)], 300)),
    ("functions of complexity over 10 / 20", lambda s: above([1 + complexity(f.body) for f in s.functions], 10, 20)),
    ("functions nested 5 deep or more", lambda s: above([depth(f.body) for f in s.functions], 4)),
    ("functions with 7 parameters or more", lambda s: above([parameters(f) for f in s.functions], 6)),
    ("`type: ignore`", lambda s: str(s.count(lambda f: sum("type: ignore" in c for c in f.comments)))),
    ("broad except", lambda s: str(s.count(lambda f: sum(map(broad, f.all(ast.ExceptHandler)))))),
    ("comments, rate", lambda s: s.rate(lambda f: sum(map(is_note, f.comments)))),
    ("public functions with a docstring", docstrings),
    ("`fmt: skip`", lambda s: str(s.count(lambda f: sum("fmt: skip" in c for c in f.comments)))),
    (f"lines over {WIDTH} (code / sentence / docstring)", long_lines),
    ("ternaries, rate", lambda s: s.rate(lambda f: len(f.all(ast.IfExp)))),
    ("ternaries inside a ternary", lambda s: str(s.count(inside_ternary))),
    ("nested comprehensions, rate", lambda s: s.rate(lambda f: nested(f, False))),
    ("nested comprehensions with conditions, rate", lambda s: s.rate(lambda f: nested(f, True))),
    ("`Any`, imports apart", lambda s: str(s.count(uses_of_any))),
    ("import circles", lambda s: str(circles(s))),
]  # fmt: skip


def table(sources: dict[str, Source]) -> str:
    lines = [["", *sources], ["---"] * (1 + len(sources)), *([name, *map(row, sources.values())] for name, row in ROWS)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How the code reads, in numbers, as a Markdown table.")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout of ours to measure")
    parser.add_argument(
        "others", nargs="*", metavar="NAME=FOLDER", help="a package to stand beside it, by the folder that is imported"
    )
    args = parser.parse_args(argv)
    sources = {"ours": Source(read(args.root), "lora_loom")}
    for wing in ("lora_core", "nodes", "convert"):
        sources[wing] = Source(read(args.root, f"{wing}/"), "lora_loom")
    for other in args.others:
        name, _, folder = other.rpartition("=")
        sources[name or Path(folder).name] = Source(read(Path(folder)), Path(folder).resolve().name)
    sys.stdout.write(table(sources))


if __name__ == "__main__":
    main()
