"""The door for the terminal: `lora-loom train`, `demo`, and the commands on files. Also `python __main__.py` from a bare checkout."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Exit codes: 0 done, 1 the input needs a change, 2 wrong usage, 130 or 143 stopped by a signal with the work kept."""
    from .lora_core.messages.blame import first_line, is_foreign
    from .lora_core.messages.errors import Problem, is_memory, message_of
    from .lora_core.messages.message import Message
    from .lora_core.messages.secrets import without_secrets
    from .nodes.terminal import COMMANDS, FAILED, STEPPING, in_words, module_name

    words = sys.argv[1:] if argv is None else argv
    name = next((word for word in words if not word.startswith("-")), "")
    parser = argparse.ArgumentParser(prog="lora-loom", description="Train LoRAs. The same engine runs inside ComfyUI.")
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {command: commands.add_parser(command, help=line) for command, line in COMMANDS.items()}
    command = importlib.import_module(f".nodes.terminal.{module_name(name)}", __package__) if name in COMMANDS else None
    if command is not None:
        command.add_arguments(parsers[name])
    args = parser.parse_args(words)
    assert command is not None  # argparse has refused everything else
    from .lora_core.backends.threads import wait_passively

    wait_passively()
    if name in STEPPING:
        from .lora_core.backends.memory import keep_pages

        keep_pages()

    try:
        return command.execute(args)
    except Problem as error:
        sys.stderr.write(f"lora-loom: {in_words(error.message)}\n")
        return FAILED
    except BaseException as error:
        if not is_foreign(error):
            raise
        if is_memory(error):
            sys.stderr.write(f"lora-loom: {in_words(message_of(error))}\n")
            return FAILED
        # A fault of ours, told with all we know but the secrets it may repeat.
        unforeseen = Message.of("cli.unexpected", command=f"lora-loom {name}", reason=first_line(error))
        sys.stderr.write(f"{without_secrets(traceback.format_exc())}lora-loom: {unforeseen}\n")
        return FAILED


if __name__ == "__main__":
    if not __package__:  # started by path: load the checkout as the package it is
        import importlib.util

        root = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location(
            "lora_loom", root / "__init__.py", submodule_search_locations=[str(root)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["lora_loom"] = package
        spec.loader.exec_module(package)
        sys.path[:] = [
            p for p in sys.path if Path(p or ".").resolve() != root
        ]  # our nodes/ must not shadow the host's nodes.py
        from lora_loom.__main__ import main as main_of_package

        sys.exit(main_of_package())
    sys.exit(main())
