"""lora-loom push: what of a finished run is for others, with a model card, and its upload where a repository is named."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...lora_core.messages.message import Message
from . import DONE, put

if TYPE_CHECKING:
    from ...lora_core.runs.hub import About


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--base-model",
        required=True,
        help="name of the base model on the Hub, such as stabilityai/stable-diffusion-xl-base-1.0",
    )
    parser.add_argument("--repo", default="", help="owner/name to upload to; without it the files are only gathered")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--license", default="", help="licence of the files, such as creativeml-openrail-m")
    parser.add_argument(
        "--trigger", action="append", help="word to prompt with; by default what the file's header names"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="where files are gathered (default: hub in the run folder)"
    )


def execute(args: argparse.Namespace) -> int:
    from ...convert.report import triggers
    from ...lora_core.runs.hub import gather

    heads = _headers(args.run)
    words = triggers(next(iter(heads.values()))[1]) if heads else ()
    target = args.out or args.run / "hub"
    files = gather(args.run, target, _about(args, heads, tuple(args.trigger or words)))
    put(Message.of("terminal.gathered", count=len(files), folder=target))
    if args.repo:
        sys.stdout.write(f"{_uploaded(target, args.repo, args.private)}\n")
    return DONE


def _headers(run: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Stem -> (keys, header) of the run's results."""
    from ...convert.files.disk import header

    heads = {file.stem: header(file) for file in sorted(run.glob("*.safetensors"))}
    return {stem: (list(entries), metadata) for stem, (entries, metadata) in heads.items()}


def _about(
    args: argparse.Namespace, heads: dict[str, tuple[list[str], dict[str, str]]], words: tuple[str, ...]
) -> About:
    """What the card says of the files: which are embeddings, which word of the captions each stands for, whose base model it is."""
    from ...convert.detect import declared_family
    from ...convert.loaders import reads_most
    from ...convert.metadata import recommended_strength
    from ...convert.results import token_stems
    from ...lora_core.adapters.tokens import wanted_tokens
    from ...lora_core.runs.folders import config_of
    from ...lora_core.runs.hub import About
    from ...lora_core.runs.usage import TOYS

    config = config_of(args.run)
    embeddings = {
        stem: keys
        for stem, (keys, metadata) in heads.items()
        if metadata.get("modelspec.architecture", "").endswith("/textual-inversion")
    }
    placeholders = (
        [token.placeholder for token in wanted_tokens(config.embedding, config.data.trigger)]
        if config.trains_tokens
        else []
    )
    stems = token_stems(config.name, placeholders, config.trains_lora)
    names = {placeholder: stem for placeholder, stem in stems.items() if stem in embeddings}
    family = next((declared_family(metadata) for _, metadata in heads.values()), "")
    strengths = (recommended_strength(metadata) for _, metadata in heads.values())
    return About(
        args.base_model,
        args.license,
        words,
        repository=args.repo,
        strength=next((strength for strength in strengths if strength is not None), None),
        diffusers=family in TOYS or reads_most("diffusers", family),
        family=family,
        embeddings=embeddings,
        words=names,
    )


def _uploaded(folder: Path, repo: str, private: bool) -> str:
    """Uploads a folder and returns its address. The token is the one huggingface_hub knows (login or HF_TOKEN); it is never read here."""
    from ...lora_core.compat import needed
    from ...lora_core.messages.errors import LoomError, reason_of

    hub, errors = needed("huggingface_hub"), needed("huggingface_hub.utils")
    api = hub.HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=url.repo_id, commit_message="LoRA trained with LoRA Loom")
    except errors.LocalTokenNotFoundError as error:
        raise LoomError("hub.no_login", field="--repo") from error
    except Exception as error:  # noqa: BLE001 - the library raises what it likes; the reader needs one sentence
        raise LoomError("hub.not_uploaded", field="--repo", repo=repo, reason=reason_of(error)) from error
    return str(url)
