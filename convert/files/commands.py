"""The terminal's commands on files: convert, inspect, merge, resize, extract, bake. Thin: arguments in, one call, one line for each file out."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...lora_core.messages.message import Message
from ..embedding import Embedding
from ..lora import FormatError
from ..merge import Progress
from ..report import Report, difference, embedding_lines, inspect
from . import jobs
from .arguments import FLAGS

DONE, FAILED = 0, 1
Draw = Callable[[Report], Any]
_EMBEDDING_TARGETS = {"universal": "webui", "kohya": "webui", "comfyui": "comfyui", "diffusers": "diffusers", "peft": "diffusers"}


def run(args: argparse.Namespace, draw: Draw) -> int:
    """Runs one of the commands; several files go on after one that fails. Exit code 0, or 1 when a file failed."""
    return {"convert": _convert, "inspect": _inspect, "merge": _merge, "resize": _resize, "extract": _extract, "bake": _bake}[args.command](args, draw)


def expanded(patterns: Sequence[str]) -> list[Path]:
    """Files and folders for paths and patterns, in order, each once. A pattern that fits nothing is an error."""
    out: list[Path] = []
    for pattern in patterns:
        found = [Path(pattern)] if Path(pattern).exists() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not found:
            raise FormatError("file.missing", file=pattern)
        out += [p for p in found if p not in out]
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


def _each(files: Sequence[Path], act: Callable[[Path], list[jobs.Written]]) -> int:
    failed = 0
    for n, file in enumerate(files, 1):
        count = f"[{n}/{len(files)}] " if len(files) > 1 else ""
        try:
            for written in act(file):
                _say(written, f"{count}{file.name} -> ")
        except FormatError as error:
            failed += 1
            name = "" if file.name in error.message.values.values() else f"{file.name}: "
            sys.stderr.write(f"lora-loom: {count}{name}{error.message.named(FLAGS)}\n")
    return FAILED if failed else DONE


def _say(written: jobs.Written, before: str = "") -> None:
    sys.stdout.write(f"{before}{written.path}\n" + "".join(f"  {note.named(FLAGS)}\n" for note in written.notes))


def _in_words(line: Message | str) -> str:
    return line if isinstance(line, str) else str(line.named(FLAGS))


class _Targets:
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
            path = _with_suffix(self._out) if suffix else self._out
        if path in self._taken:
            raise FormatError("file.written_twice", file=file, path=path)
        self._taken.add(path)
        return path


def _options(args: argparse.Namespace) -> jobs.Options:
    names = {f.name for f in dataclasses.fields(jobs.Options)}
    return jobs.Options(target=args.to, **{k: v for k, v in vars(args).items() if k in names})


def _convert(args: argparse.Namespace, draw: Draw) -> int:
    files, blocks = expanded(args.files), _blocks(args.block)
    targets = _Targets(args.out, files, args.to)

    def one(file: Path) -> list[jobs.Written]:
        found = jobs.open_file(file, args.family, args.drop_unknown)
        if isinstance(found, Embedding):
            return [jobs.write_embedding_file(found, targets(file), _EMBEDDING_TARGETS[args.to], args.overwrite, args.dtype)]
        target = targets(file, "" if args.to == "peft" else ".safetensors")
        return jobs.convert(file, target, _options(args), args.family, args.scale, blocks, embed=args.embed)

    return _each(files, one)


def _blocks(texts: Sequence[str]) -> dict[str, float]:
    out = {}
    for text in texts:
        block, _, number = text.rpartition("=")
        try:
            out[block] = float(number)
        except ValueError:
            raise FormatError("block.unreadable", text=text) from None
    return out


def _inspect(args: argparse.Namespace, draw: Draw) -> int:
    files = expanded(args.files)
    if args.diff:
        if len(files) != 2:
            raise FormatError("diff.two_files", count=len(files))
        apart = difference(*(jobs.open_lora(f, args.family) for f in files))
        worst = sorted(apart.items(), key=lambda item: -item[1])
        sys.stdout.write(f"{len(apart)} modules, {sum(v == 0 for v in apart.values())} equal, largest relative difference {worst[0][1]:.3g}\n")
        sys.stdout.write("".join(f"  {value:8.3g}  {name}\n" for name, value in worst[:20] if value))
        return DONE
    failed = 0
    for file in files:
        try:
            found = jobs.inspected(file, args.family)
        except FormatError as error:
            failed += 1
            sys.stderr.write(f"lora-loom: {error.message.named(FLAGS)}\n")
            continue
        if isinstance(found, Embedding):
            lines = [*map(_in_words, embedding_lines(found, file.stem))]
            sys.stdout.write(json.dumps({"file": file.name, "facts": lines}) + "\n" if args.json else "\n".join([file.name, *lines]) + "\n")
            continue
        report = inspect(found)
        if args.json:
            facts = {**dataclasses.asdict(report), "problems": [str(p.named(FLAGS)) for p in report.problems]}
            sys.stdout.write(json.dumps({"file": file.name, **facts}, ensure_ascii=False) + "\n")
        else:
            sys.stdout.write("\n".join([file.name, *map(_in_words, report.messages()), *report.bars()]) + "\n")
        if args.picture:
            try:
                draw(report).save(args.picture)
            except (OSError, ValueError, KeyError) as error:
                raise FormatError("picture.unwritten", file=args.picture, reason=error) from error
    return FAILED if failed else DONE


def _merge(args: argparse.Namespace, draw: Draw) -> int:
    with _Bar("merging") as progress:
        written = jobs.merge_files(weighted_files(args.files), _with_suffix(args.out), _options(args), args.rank, args.family, progress)
    _say(written)
    return DONE


def _resize(args: argparse.Namespace, draw: Draw) -> int:
    files = expanded(args.files)
    targets = _Targets(args.out, files, f"rank{args.rank}")

    def one(file: Path) -> list[jobs.Written]:
        with _Bar("resizing") as progress:
            return [jobs.resize_file(file, targets(file), _options(args), args.rank, args.conv_rank, args.energy, args.family, progress)]

    return _each(files, one)


def _extract(args: argparse.Namespace, draw: Draw) -> int:
    with _Bar("extracting") as progress:
        written = jobs.extract_file(
            args.base, args.tuned, _with_suffix(args.out), _options(args), args.rank, args.conv_rank, args.energy, not args.no_text_encoders, progress
        )
    _say(written)
    return DONE


def _bake(args: argparse.Namespace, draw: Draw) -> int:
    target = args.out if args.checkpoint.is_dir() else _with_suffix(args.out)
    with _Bar("baking") as progress:
        written = jobs.bake_file(args.checkpoint, weighted_files(args.files), target, args.overwrite, progress)
    _say(written)
    return DONE


def _with_suffix(path: Path) -> Path:
    return path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")


class _Bar:
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

            self._bar = tqdm(total=total, desc=self._label, unit="layer", disable=not sys.stderr.isatty())
        self._bar.update(done - self._bar.n)
