"""A stage of training that any interruption leaves resumable: weights, their running average, optimizer and step in one file."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

log = logging.getLogger(__name__)
WARM_UP_STEPS = 200
DECAY_SHARE = 0.25  # the last part of the steps, over which the rate falls to nothing
SAVE_EVERY_S = 120.0
AVERAGE_DECAY = 0.999
BEGUN_STEPS = "steps.json"  # in the folder of a model to go on from: module -> steps


def device() -> torch.device:
    """Where stages train: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rate_at(step: int, steps: int) -> float:
    """Share of the full learning rate: a warm-up, a plateau, then a straight fall to zero at the end. More steps only move the fall."""
    fall = max(1.0, steps * DECAY_SHARE)
    return min(1.0, (step + 1) / WARM_UP_STEPS, max(0.0, (steps - step) / fall))


def steps_in(path: Path) -> int:
    """How many steps a stage's save has seen; 0 without one."""
    return int(torch.load(path, weights_only=True, map_location="cpu")["step"]) if path.exists() else 0


def write_steps(folder: Path, steps: Mapping[str, int]) -> None:
    """Notes in a model's folder how many steps each of its parts has seen, for another training to go on from."""
    (folder / BEGUN_STEPS).write_text(json.dumps(steps) + "\n", encoding="utf-8")


def _begin(modules: Mapping[str, nn.Module], begun: Path) -> int:
    """The steps that a model's parts have seen, whose weights are put into the modules; 0 where it has not all of these modules.

    What has no folder of its own is part of one that has been read.
    """
    table = json.loads((begun / BEGUN_STEPS).read_text(encoding="utf-8"))
    if not table.keys() >= modules.keys():
        return 0
    for name, module in modules.items():
        for file in (begun / name).glob("*.safetensors"):
            module.load_state_dict(load_file(file))
    return min(int(table[name]) for name in modules)


class Stage:
    """`modules` trained together for `steps` steps by AdamW; goes on where `path` ends. Between steps it waits while `pause` exists.

    `begun`: the folder of a model made earlier, from which it goes on where there is no save.
    """

    def __init__(
        self,
        path: Path,
        modules: Mapping[str, nn.Module],
        lr: float,
        steps: int,
        pause: Path | None = None,
        begun: Path | None = None,
    ):
        self.path, self.modules, self.lr, self.steps, self.pause = path, modules, lr, steps, pause
        self.step = _begin(modules, begun) if begun is not None and not path.exists() else 0
        self._weights = [p for m in modules.values() for p in m.parameters()]
        self._weights = [p for p in self._weights if p.requires_grad]
        self._average = [p.detach().clone() for p in self._weights]
        self._optimizer = torch.optim.AdamW(self._weights, lr=lr, weight_decay=1e-3, betas=(0.9, 0.99), foreach=True)
        if path.exists():
            self._read()

    def _read(self) -> None:
        saved = torch.load(self.path, weights_only=True, map_location=self._weights[0].device)
        self.step, self._average = saved["step"], saved["average"]
        self._optimizer.load_state_dict(saved["optimizer"])
        for name, module in self.modules.items():
            module.load_state_dict(saved["modules"][name])

    def save(self) -> None:
        """Writes the file anew; a kill at any moment leaves the old one or the new one."""
        state = {
            "step": self.step,
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
        }
        unfinished = self.path.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(self.path)

    def learn(self, loss_of: Callable[[int], torch.Tensor], report_every: int = 50) -> None:
        """Takes the steps that are left; `loss_of(step)` draws what it needs from the step alone. Ends with the averaged weights in the modules."""
        began, seen, saved = time.time(), 0.0, time.time()
        while self.step < self.steps:
            self._wait()
            seen += self._take(loss_of(self.step))
            if self.step % report_every == 0:
                pace = (time.time() - began) / report_every
                log.info(
                    "%s %d/%d loss %.5f %.2f s/step", self.path.stem, self.step, self.steps, seen / report_every, pace
                )
                began, seen = time.time(), 0.0
            if time.time() - saved > SAVE_EVERY_S or self.step == self.steps:
                self.save()
                saved = time.time()
        if not self.path.exists():  # nothing was left to do
            self.save()
        self.use_average()

    def use_average(self) -> None:
        """Puts the running average of the weights into the modules."""
        with torch.no_grad():
            for weight, average in zip(self._weights, self._average):
                weight.copy_(average)

    def _take(self, loss: torch.Tensor) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr * rate_at(self.step, self.steps)
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, [w.detach() for w in self._weights], 1 - decay)
        return float(loss.detach())

    def _wait(self) -> None:
        while self.pause is not None and self.pause.exists():
            time.sleep(5)
