"""lora-loom import: the settings of another trainer as a job file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import DONE

if TYPE_CHECKING:
    from ...lora_core.importing.programs import Text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads a diffusers or kohya command line, a kohya .toml, an OneTrainer .json, an ai-toolkit .yaml or a SimpleTuner config, writes a job file, and "
        "says of every setting what became of it."
    )
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        help="the configuration, and the files that go with it (dataset config, concepts, data backends); - reads the terminal's input",
    )
    parser.add_argument("--command", default="", help="a command line as text, in quotes")
    parser.add_argument("--out", type=Path, help="job file to write (default: the job goes to the terminal)")


def execute(args: argparse.Namespace) -> int:
    from ...lora_core.disk.files import write_bytes
    from ...lora_core.importing.programs import Text, imported
    from ...lora_core.importing.result import require_job
    from ...lora_core.messages.errors import LoomError

    texts = [Text("--command", args.command)] if args.command else []
    texts += [_read(path) for path in args.files]
    folders = [path.parent for path in args.files if str(path) != "-"] or [Path()]

    def beside(name: str) -> str | None:
        """The text of a file that a configuration names: as the path stands, or beside a file that was given."""
        last = name.replace("\\", "/").rpartition("/")[2]
        places = [Path(name), *(folder / part for folder in folders for part in (name, last))]
        path = next((place for place in places if place.is_file()), None)
        return None if path is None else _read(path).text

    result = imported(texts, beside)
    for message in result.messages():
        sys.stderr.write(f"{message}\n")
    require_job(result, args.out.parent if args.out else Path())
    if args.out is None:
        sys.stdout.write(result.toml())
        return DONE
    if args.out.exists():
        raise LoomError("import.exists", field="--out", file=args.out)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(args.out, result.toml().encode("utf-8", "replace"))
    sys.stdout.write(f"{args.out}\n")
    return DONE


def _read(path: Path) -> Text:
    """The text of a file, or of the terminal's input. Raises LoomError."""
    from ...lora_core.data.captions import decoded
    from ...lora_core.importing.programs import Text
    from ...lora_core.importing.texts import MAX_TEXT
    from ...lora_core.messages.errors import LoomError

    if str(path) == "-":
        return Text("stdin", sys.stdin.read(MAX_TEXT + 1))
    try:
        with path.open("rb") as file:
            return Text(path.name, decoded(file.read(4 * MAX_TEXT + 4))[0])
    except OSError as error:
        raise LoomError("file.unreadable", file=path, reason=error.strerror) from error
