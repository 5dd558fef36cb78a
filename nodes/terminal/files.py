"""What the commands on files share: which files, where the results go, one line for each, a bar for what takes time."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...convert import FormatError
from ...convert.files import jobs
from ...convert.merge import Progress
from ...lora_core.messages.message import Message
from ..jobs.options import TOOLS
from ..jobs.tools import ACTS, FOLDER
from . import DONE, FAILED, in_words


def expanded(patterns: Sequence[str]) -> list[Path]:
    """Files and folders for paths and patterns, in order, each once. A pattern that fits nothing is an error."""
    out: list[Path] = []
    for pattern in patterns:
        paths = [Path(pattern)] if Path(pattern).exists() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not paths:
            raise FormatError("file.missing", file=pattern)
        out += [p for p in paths if p not in out]
    return out


def weighted_files(texts: Sequence[str]) -> list[tuple[Path, float]]:
    """FILE or FILE=WEIGHT; a file whose own name ends so is taken as it is."""
    out = []
    for text in texts:
        name, equals, number = text.rpartition("=")
        if Path(text).exists() or not equals:
            out.append((Path(text), 1.0))
            continue
        try:
            out.append((Path(name), float(number)))
        except ValueError:
            raise FormatError("merge.weight", text=text, number=repr(number)) from None
    for path, _ in out:
        if not path.exists():
            raise FormatError("file.missing", file=path)
    return out


def with_suffix(path: Path) -> Path:
    return path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")


class Targets:
    """Where each of several files goes; no two of one run go to the same place."""

    def __init__(self, out: Path | None, files: Sequence[Path], word: str):
        self._out, self._many, self._word, self._taken = out, len(files) > 1, word, set[Path]()

    def __call__(self, file: Path, suffix: str = ".safetensors") -> Path:
        stem = file.name if file.is_dir() else file.stem
        if self._out is None:
            path = file.with_name(f"{stem}-{self._word}{suffix}")
        elif self._many or self._out.is_dir():
            path = self._out / f"{stem}{suffix}"
        else:
            path = with_suffix(self._out) if suffix else self._out
        if path in self._taken:
            raise FormatError("file.written_twice", file=file, path=path)
        self._taken.add(path)
        return path


def on_each(name: str, args: argparse.Namespace, word: str, label: str = "") -> int:
    """A tool on each of the files; `word`: what new names end in. `label`: a code, of the bar where it takes time."""
    files = expanded(args.files)
    targets = Targets(args.out, files, word)

    def one(file: Path) -> Sequence[jobs.Written]:
        with Bar(label) as progress:
            return ACTS[name]([(file, 1.0)], lambda kind: targets(file, _suffix(kind)), vars(args), progress)

    return each(files, one)


def on_all(name: str, args: argparse.Namespace, label: str) -> int:
    """A tool on all of the files at once, into --out."""
    single = [(getattr(args, files.name), 1.0) for files in TOOLS[name].files if not files.many]
    files = [*single, *(weighted_files(args.files) if "files" in args else [])]
    with Bar(label) as progress:
        for written in ACTS[name](files, lambda kind: _named(args.out, kind), vars(args), progress):
            say(written)
    return DONE


def _suffix(kind: str) -> str:
    return "" if kind == FOLDER else ".safetensors"


def _named(path: Path, kind: str) -> Path:
    return path if kind == FOLDER else with_suffix(path)


def each(files: Sequence[Path], act: Callable[[Path], Sequence[jobs.Written]]) -> int:
    """Does it to every file, also after one that fails. Returns the exit code."""
    failed = 0
    for n, file in enumerate(files, 1):
        count = f"[{n}/{len(files)}] " if len(files) > 1 else ""
        try:
            for written in act(file):
                say(written, f"{count}{file.name} -> ")
        except FormatError as error:
            failed += 1
            about = "" if file.name in error.message.values.values() else f"{file.name}: "
            sys.stderr.write(f"lora-loom: {count}{about}{in_words(error.message)}\n")
    return FAILED if failed else DONE


def say(written: jobs.Written, before: str = "") -> None:
    """The file that was written, and what there is to say about it."""
    sys.stdout.write(f"{before}{written.path}\n" + "".join(f"  {in_words(note)}\n" for note in written.notes))


class Bar:
    """A progress bar on the terminal, made when the first step is known."""

    def __init__(self, label: str):
        self._label = label
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self._show

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, done: int, total: int, name: str) -> None:
        if self._bar is None:
            from tqdm import tqdm

            label = in_words(Message.of(self._label)) if self._label else ""
            self._bar = tqdm(total=total, desc=label, unit="layer", disable=not sys.stderr.isatty())
        self._bar.update(done - self._bar.n)
