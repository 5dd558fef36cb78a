"""Trains the emoji model from nothing: `python -m lora_loom.lora_core.toy.build --package DIR --state DIR`.

`--package` is the unpacked npm package `emoji-datasource-google`. Every stage goes on where an interruption left it. `--stages export judge` beside a running
training writes and measures what it has so far. The model lies in `DIR/export` of the state: diffusers layout, fp16.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

import torch

from . import export, judge, learn_text, learn_vae
from .scenes import World
from .world import read_emoji

log = logging.getLogger(__name__)
STAGES = ("vae", "decoder", "latents", "unet", "export", "judge")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long each stage trains and on how many pictures a step: some six hours of one core."""

    vae_steps: int = 3000
    vae_batch: int = 2
    decoder_steps: int = 4800
    decoder_batch: int = 4
    unet_steps: int = 5700
    unet_batch: int = 32


def build(
    package: Path,
    state: Path,
    plan: Plan,
    stages: tuple[str, ...] = STAGES,
    pause: Path | None = None,
    begun: Path | None = None,
) -> None:
    """Takes the stages in their order, each from its last save, else from the weights in `begun`."""
    emoji = read_emoji(package)
    world = World(package, emoji)
    seen = [e for e in emoji if not e.held_out and not e.tone]
    state.mkdir(parents=True, exist_ok=True)
    if "vae" in stages:
        learn_vae.train_whole(package, seen, state, plan.vae_steps, plan.vae_batch, pause, begun)
    if "decoder" in stages:
        learn_vae.train_decoder(package, seen, state, plan.decoder_steps, plan.decoder_batch, pause, begun)
    if "latents" in stages:
        learn_text.keep_latents(world, state)
    if "unet" in stages:
        learn_text.train_unet(world, state, plan.unet_steps, plan.unet_batch, pause, begun)
    if "export" in stages:
        export.write_model(state, state / "export")
    if "judge" in stages:
        judge.report(world, emoji, state / "export", state / "judged")


def main() -> None:
    plan = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="the unpacked package emoji-datasource-google")
    parser.add_argument("--state", type=Path, required=True, help="where saves and the finished model go")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--pause", type=Path, help="while this file exists, training waits between two steps")
    parser.add_argument(
        "--begun",
        type=Path,
        help="a model made earlier, to go on from where the state has no save: lora_core/toy/model",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for field in dataclasses.fields(Plan):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=getattr(plan, field.name))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    plan = Plan(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Plan)})
    build(args.package, args.state, plan, tuple(args.stages), args.pause, args.begun)


if __name__ == "__main__":
    main()
