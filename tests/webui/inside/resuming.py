"""Runs inside a WebUI's process: one that is stopped after every step and goes on each time, beside one that is not."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.modules.pop("proof", None)  # the file may have changed since the host was asked last

import proof  # noqa: E402


def stopped_after_every_step(steps, packages=(), **config):
    """Losses and the hash of the file of both; how often the second one was stopped. `packages`: where further ones are found."""
    sys.path += [place for place in packages if place not in sys.path]
    events = proof.package("lora_core.events")
    config = proof.config_of(steps=steps, **config)

    class StopsAtOnce(events.Listener):
        def __init__(self, control):
            self._control = control

        def on_step(self, report):
            self._control.stop_and_keep()

    with proof.locked():
        _, whole, losses = proof.trained(config)
        root, joined, outcomes = Path(tempfile.mkdtemp(prefix="loom_resumed_")), [], []
        for n in range(steps):
            control = events.Control()
            _, part, added = proof.trained(config, root, control, StopsAtOnce(control), resume=n > 0)
            joined += added
            outcomes.append(part.outcome)
        return {
            "losses": losses, "joined": joined, "stops": outcomes.count("stopped"), "whole": proof._tensors(whole.file), "parts": proof._tensors(part.file),
        }  # fmt: skip
