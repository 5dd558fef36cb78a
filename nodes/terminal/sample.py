"""lora-loom sample: prompts drawn with the base model, then with each LoRA or save of a run at each strength, on one sheet."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...lora_core.messages.message import Message
from . import DONE, put
from .arguments import add_threads

if TYPE_CHECKING:
    from ...lora_core.backends.headless import Headless
    from ...lora_core.training.sampling import Worn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="*", help="LoRA and embedding files, run folders")
    parser.add_argument(
        "--base", default="toy", help="toy, a folder in diffusers layout, or a .safetensors file (default: toy)"
    )
    parser.add_argument(
        "--base-config",
        default="",
        help="folder in diffusers layout with the configs and tokenizers of a base that is a file",
    )
    parser.add_argument("--companion", default="", help="folder of the other stage of a two-stage model")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--prompt", action="append", help="a row of the sheet; give it several times for several rows")
    parser.add_argument("--negative", default="")
    parser.add_argument("--strength", type=float, nargs="+", default=[1.0], help="strengths of each LoRA (default: 1)")
    parser.add_argument("--width", type=int, default=0, help="0: what the base draws by itself")
    parser.add_argument("--height", type=int, default=0, help="0: as the width")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=7.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="the sheet (default: samples.png)")
    add_threads(parser)


def execute(args: argparse.Namespace) -> int:
    from ...lora_core.backends.base import SampleJob
    from ...lora_core.backends.threads import use_threads
    from ...lora_core.config import SampleConfig, TrainConfig, check
    from ...lora_core.messages.errors import LoomError
    from ...lora_core.training.sampling import drawn, sheet
    from ..jobs.headless import open_base

    if not args.prompt or not args.files:
        raise LoomError("sample.nothing_given", field="sample")
    for strength in args.strength:
        check("--strength", strength, float, {"low": -10.0, "high": 10.0, "choices": ()})
    use_threads(args.threads)
    backend = open_base(
        TrainConfig(base=args.base, companion=args.companion, precision=args.precision, base_config=args.base_config)
    )
    missing = [path for path in args.files if not path.exists()]
    if missing:
        raise LoomError("sample.file_missing", field="sample", file=missing[0])
    config = SampleConfig(negative=args.negative, steps=args.steps, cfg=args.cfg, seed=args.seed)
    width = args.width or backend.side_px
    jobs = [SampleJob(prompt, width, args.height or width, config) for prompt in args.prompt]
    columns = drawn(_opened(args.files, backend), args.strength, jobs, backend)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(columns, args.prompt).save(args.out)
    put(Message.of("terminal.sheet", size=f"{len(columns)} x {len(args.prompt)}", file=args.out))
    return DONE


def _opened(files: Sequence[Path], backend: Headless) -> list[Worn]:
    """LoRAs and saves of runs, each with all embeddings; the embeddings alone where there is nothing else."""
    from ...convert.embedding import is_embedding, read_embedding
    from ...convert.files.disk import load_any
    from ...lora_core.training.sampling import of_run, of_start
    from ..jobs.headless import lora_of

    tensors = {path: load_any(path)[0] for path in files if path.is_file()}
    words = [path for path, data in tensors.items() if is_embedding(data)]
    embeddings = {path.stem: read_embedding(tensors[path]).vectors for path in words}
    out: list[Worn] = []
    for path in (p for p in files if p not in words):
        out += (
            of_run(path, backend)
            if path.is_dir()
            else [of_start(path.stem, backend, lora_of(path, backend), embeddings)]
        )
    return out or [of_start(", ".join(embeddings), backend, {}, embeddings)]
