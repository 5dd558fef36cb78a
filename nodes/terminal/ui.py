"""lora-loom ui: the page in a browser: pictures in, a LoRA out, on models that job files can name. Or the folder of a Space that shows it."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

from ...lora_core.messages.message import LANGUAGES
from . import DONE
from .arguments import add_threads

PORT = 7860  # gradio's own, and that of a Space
PASSWORD = "LORA_LOOM_PASSWORD"
SHORTEST = 8  # characters of a password


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # fmt: off
    parser.add_argument("--out", type=Path, default=Path("lora_loom"), help="where runs and results go (default: lora_loom)")
    parser.add_argument("--base", action="append", default=[], metavar="NAME", help="a model to offer: toy, a folder in diffusers layout, a .safetensors file")
    parser.add_argument(
        "--models", action="append", default=[], type=Path, metavar="FOLDER", help="a folder whose models are offered"
    )
    parser.add_argument("--loras", type=Path, help="where LoRAs are listed (default: loras in --out)")
    parser.add_argument("--embeddings", type=Path, help="where embeddings are listed (default: embeddings in --out)")
    parser.add_argument("--listen", nargs="?", const="0.0.0.0", default="127.0.0.1", metavar="ADDRESS", help="be reached from other machines; needs a password")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default: {PORT}); 0 takes a free one")
    parser.add_argument("--password", default="", help=f"what visitors must know; better given as ${PASSWORD}, which no list of programs shows")
    parser.add_argument("--token", action="store_true", help="make a password up, and print the link that holds it")
    parser.add_argument("--language", default="", choices=("", *LANGUAGES), help="of the page (default: that of this system)")
    parser.add_argument("--space", type=Path, metavar="FOLDER", help="write a Space for Hugging Face with this page into a new folder, and end")
    # fmt: on
    add_threads(parser)


def execute(args: argparse.Namespace) -> int:
    from ...lora_core.backends.threads import use_threads
    from ...lora_core.events import Control
    from ..jobs.publishing import Shelf
    from ..ui.alone import TOY, AloneHost, bases_below
    from ..ui.serving import bound, serve
    from ..ui.space import write_space
    from .running import stopping_on_signal

    if args.space is not None:
        write_space(args.space)
        sys.stdout.write(f"{args.space}\n")
        return DONE
    password = password_of(args)
    use_threads(args.threads)
    bases = [*args.base, *(base for folder in args.models for base in bases_below(folder))]
    shelf = Shelf(args.loras or args.out / "loras", args.embeddings or args.out / "embeddings")
    alone = AloneHost(args.out, shelf, list(dict.fromkeys([*bases, TOY])), args.language or language_here())
    place = bound(args.listen, args.port)
    link = _link(args.listen, place.getsockname()[1], password if args.token else "")
    with stopping_on_signal(Control()) as received:
        serve(alone, place, password, link)
    return 128 + received[0] if received else DONE


def password_of(args: argparse.Namespace) -> str:
    """What visitors must know; "" where only this machine reaches the page. Raises LoomError where it must not be so."""
    from ...lora_core.messages.errors import LoomError
    from ..ui.guard import is_of_this_machine

    password = args.password or os.environ.get(PASSWORD, "") or (secrets.token_urlsafe(18) if args.token else "")
    if not password and not is_of_this_machine(args.listen):
        raise LoomError("ui.no_password", field="--listen", address=args.listen, variable=PASSWORD)
    if password and len(password) < SHORTEST:
        raise LoomError("ui.short_password", field="--password", shortest=SHORTEST)
    return password


def language_here() -> str:
    """That of this system, where we speak it."""
    named = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return next((language for language in LANGUAGES if named.lower().startswith(language)), LANGUAGES[0])


def _link(address: str, port: int, token: str) -> str:
    """What to open in a browser on this machine."""
    reached = "127.0.0.1" if address in ("0.0.0.0", "::") else address
    host = f"[{reached}]" if ":" in reached else reached
    return f"http://{host}:{port}/" + (f"?token={token}" if token else "")
