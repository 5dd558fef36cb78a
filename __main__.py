"""The door for the terminal: `lora-loom train`, `demo`, and the commands on files. Also `python __main__.py` from a bare checkout."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lora_core.config import TrainConfig
    from .lora_core.trainer import Result

DONE, FAILED = 0, 1


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Exit codes: 0 done, 1 the input needs a change, 2 wrong usage, 130 or 143 stopped by a signal with the work kept."""
    parser = argparse.ArgumentParser(prog="lora-loom", description="Train LoRAs. The same engine runs inside ComfyUI.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train from a job file")
    train.add_argument("job", type=Path, help="TOML job file")
    train.add_argument("--resume", action="store_true", help="continue the latest run of this name")
    demo = commands.add_parser("demo", help="train on the bundled toy model and pictures, and show what it learned")
    demo.add_argument("--set", default="object", help="bundled picture set: object, style, pair or word")
    for command in (train, demo):
        command.add_argument("--out", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
        command.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    from .convert.commands import add_commands

    add_commands(commands)
    args = parser.parse_args(argv)

    from .convert import FormatError
    from .lora_core.errors import LoomError

    try:
        if args.command in ("train", "demo"):
            return _train(args) if args.command == "train" else _demo(args)
        return _on_files(args)
    except (LoomError, FormatError) as error:
        sys.stderr.write(f"lora-loom: {error}\n")
        return FAILED


def _on_files(args: argparse.Namespace) -> int:
    from .convert.commands import run
    from .lora_core.plots import bars

    return run(args, lambda report: bars([(block.name, block.norm) for block in report.blocks], "norm of the change, by block"))


def _train(args: argparse.Namespace) -> int:
    from .lora_core.config import load

    result, code = run_job(load(args.job), args)
    sys.stdout.write(f"{result.outcome} after step {result.step}: {result.file}\n")
    return code


def _demo(args: argparse.Namespace) -> int:
    """Trains a bundled concept and writes the LoRA, the loss plot and a before/after grid."""
    from .lora_core.config import parse
    from .lora_core.errors import LoomError
    from .lora_core.toy.concepts import CONCEPTS
    from .lora_core.toy.recipes import demo_job

    if args.set not in CONCEPTS:
        raise LoomError(f"--set: {args.set!r} is not a bundled picture set; allowed are {', '.join(CONCEPTS)}.")
    result, code = run_job(parse(demo_job(args.set)), args)
    where = {"LoRA in WebUI form": result.file, "loss plot": result.folder / "loss.png", "before and after": result.folder / "before-after.png"}
    for label, path in where.items():
        sys.stdout.write(f"{label:20} {path}\n")
    return code


def run_job(config: TrainConfig, args: argparse.Namespace) -> tuple[Result, int]:
    """Trains `config` headless below `args.out`; a signal stops after the current step and keeps the result. Returns (result, exit code)."""
    import torch

    from .convert import products
    from .lora_core.backends.diffusers_backend import DiffusersBackend
    from .lora_core.data.folder import scan
    from .lora_core.errors import LoomError
    from .lora_core.events import Control, Listeners
    from .lora_core.reports import FileLog, ProgressBar
    from .lora_core.rundirs import last_run, new_run, remove_if_untrained
    from .lora_core.toy.model import MODEL, resolve_set
    from .lora_core.trainer import train

    if args.threads:
        torch.set_num_threads(args.threads)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, folder=resolve_set(config.data.folder)))
    dataset = scan(config.data)
    sys.stdout.write(dataset.summary() + "\n")
    backend = DiffusersBackend(MODEL if config.base == "toy" else Path(config.base), config.precision)
    resume = getattr(args, "resume", False)
    folder = last_run(args.out, config.name) if resume else new_run(args.out, config.name)
    if folder is None:
        raise LoomError(f"name: there is no run {config.name!r} in {args.out} to continue; start it without --resume.")

    def export(state: dict[str, torch.Tensor], facts: dict[str, Any]) -> dict[str, Any]:
        return products(state, config.name, backend.family, facts)

    control, received = Control(), []

    def on_signal(number: int, frame: Any) -> None:
        received.append(number)
        control.stop_and_keep()
        signal.signal(number, before[number])  # a second one ends the program at once

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with FileLog(folder / "run.log") as log, ProgressBar() as bar:
            result = train(config, backend, dataset, folder, export, Listeners([log, bar]), control, resume)
    except BaseException:
        if not resume:
            remove_if_untrained(folder)
        if received:
            sys.stderr.write("lora-loom: stopped\n")
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return result, 128 + received[0] if received else DONE


if __name__ == "__main__":
    if not __package__:  # started by path: load the checkout as the package it is
        import importlib.util

        root = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location("lora_loom", root / "__init__.py", submodule_search_locations=[str(root)])
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["lora_loom"] = package
        spec.loader.exec_module(package)
        sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != root]  # our nodes/ must not shadow the host's nodes.py
        from lora_loom.__main__ import main
    sys.exit(main())
