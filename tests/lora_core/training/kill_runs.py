"""Kills training processes at random moments while a second one tries to take the same run: `python kill_runs.py FOLDER PICTURES KILLS SEED`.

Prints what happened as JSON. A program of its own, because a process that has trained cannot be forked into ones that train.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.disk import files
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs import checkpoints
from lora_loom.lora_core.runs.folders import last_run
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.session import Session

sys.path.insert(0, str(Path(__file__).parents[2]))  # it is also a program of its own
from shapes import BASE, MODEL  # noqa: E402

STEPS, EVERY, NAME = 24, 2, "killed"
REFUSED, TWO_AT_ONCE = 3, 7  # exit codes
TRIES = 400


class Watch(Listener):
    """Notes what was promised, and that nobody else trains: of two that do, the second dies of it."""

    def __init__(self, root: Path):
        self._promise = os.open(root / "promise", os.O_CREAT | os.O_RDWR)
        self._alone = os.open(root / "alone", os.O_CREAT | os.O_RDWR)

    def on_start(self, first_step, steps, facts):
        try:
            fcntl.lockf(self._alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os._exit(TWO_AT_ONCE)

    def on_save(self, step, path):
        os.pwrite(self._promise, step.to_bytes(4, "little"), 0)


def product(state, facts):
    return {NAME: (state, {})}


def train(root: Path, config, backend, dataset, tries: int) -> int:
    """Trains or goes on with the run, as often as another one has it. Returns an exit code."""
    for _ in range(tries):
        try:
            begun = last_run(root, NAME)
            resume = begun is not None and bool(checkpoints.all_steps(begun / "checkpoints"))
            folder = begun or root / NAME
            folder.mkdir(exist_ok=True)
            Session(Job(config, backend, dataset, root, Watch(root)), folder, product, resume).train()
            return 0
        except LoomError as error:
            if error.message.code not in ("run.owned", "run.owned_by_somebody", "name.run_exists", "run.no_folder"):
                raise
            time.sleep(0.01)
    return REFUSED


def forked(work) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = work()
    finally:
        os._exit(code)


def promised(root: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return int.from_bytes((root / "promise").read_bytes()[:4], "little")
    return 0


def end_of(root: Path) -> str:
    place = checkpoints.folder_of(root / NAME / "checkpoints", STEPS)
    return files.sha256(place / "adapter.safetensors") + files.sha256(place / "optimizer.safetensors")


def main(root: Path, pictures: str, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    config = parse(
        {
            "name": NAME,
            "base": BASE,
            "steps": STEPS,
            "batch_size": 1,
            "seed": 5,
            "data": {"folder": pictures, "resolution": 32, "bucket_step_px": 16},
            "adapter": {"rank": 1, "targets": "attention"},
            "save": {"every": EVERY, "keep": 2},
            "samples": {"every": 0},
        }
    )
    backend, dataset, rng = DiffusersBackend(MODEL, device="cpu"), open_sets(config), random.Random(seed)
    counts: Counter[str] = Counter()

    def start(place: Path, tries: int) -> int:
        return forked(lambda: train(place, config, backend, dataset, tries))

    (root / "unbroken").mkdir(parents=True)
    began = time.monotonic()
    assert os.waitpid(start(root / "unbroken", 1), 0)[1] == 0
    whole_s, end = time.monotonic() - began, end_of(root / "unbroken")
    number = 0
    while counts["kills"] < kills:
        number += 1
        place = root / str(number)
        place.mkdir()
        while True:
            children = {start(place, TRIES) for _ in range(2)}
            while children:
                time.sleep(rng.uniform(0.05, 0.6) * whole_s)
                if counts["kills"] < kills and rng.random() < 0.8:
                    os.kill(rng.choice(sorted(children)), signal.SIGKILL)  # one that has ended does not count
                for child in sorted(children):
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        children.discard(child)
                        code = os.waitstatus_to_exitcode(status)
                        counts[
                            {0: "finished", REFUSED: "refused", TWO_AT_ONCE: "two at once", -9: "kills"}.get(
                                code, f"code {code}"
                            )
                        ] += 1
                checkpoint, broken = checkpoints.latest(place / NAME / "checkpoints")
                counts["broken"] += len(broken)
                counts["lost"] += (checkpoint.step if checkpoint else 0) < promised(place) and not children
            if checkpoint and checkpoint.step == STEPS and (place / NAME / f"{NAME}.safetensors").exists():
                break
        assert os.waitpid(start(place, 1), 0)[1] == 0  # the next start finds everything in order
        rows = [json.loads(line)["step"] for line in (place / NAME / "log.jsonl").read_text().splitlines()]
        counts["other end"] += end_of(place) != end
        counts["other log"] += rows != list(range(1, STEPS + 1))
        counts["temps"] += len(list(place.rglob(f"{files.TEMP_PREFIX}*")))
        counts["runs"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
