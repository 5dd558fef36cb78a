"""Runs inside a WebUI's process: pictures that are asked for while a run goes on, and how long they wait."""

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.modules.pop("proof", None)  # the file may have changed since the host was asked last

import proof  # noqa: E402


def pictures_asked_for(count=3, steps=60):
    """Of each picture: the steps that ended while it waited and while it was drawn, its seconds; those of one alone, and of a step."""
    from modules.call_queue import queue_lock

    turns, events = proof.package("nodes.webui.turns"), proof.package("lora_core.events")
    ended, drawn = [], []  # moments of steps; (asked, began, done, hash) of pictures

    class Clock(events.Listener):
        def on_step(self, report):
            ended.append(time.monotonic())

    def draw():
        asked = time.monotonic()
        with queue_lock:  # as the host's page and API do
            began = time.monotonic()
            name = proof.picture()[1]
        drawn.append((asked, began, time.monotonic(), name))

    def ask():
        for n in range(count):
            while len(ended) < 4 + 10 * n:
                time.sleep(0.003)
            draw()

    draw()
    draw()
    _, began, done, alone = drawn[1]  # the first one finishes some parts of the model
    alone_s = done - began
    drawn.clear()
    asking, control = threading.Thread(target=ask), events.Control()
    with turns.turn("task(loom-proof)"):
        lent = proof.lend()
        listener = events.Listeners([Clock(), turns.Courtesy(lent.given_back, control)])
        asking.start()
        losses = proof.losses_of(lent.backend, proof.config_of(steps=steps), Path(tempfile.mkdtemp()), control, listener)[1]  # fmt: skip
    asking.join()
    between = lambda first, last: sum(first < moment < last for moment in ended)
    step_s = statistics.median(b - a for a, b in zip(ended, ended[1:]))
    return {
        "steps": len(losses), "same": [name == alone for *_, name in drawn], "alone_s": round(alone_s, 3), "step_s": round(step_s, 3),
        "waited": [between(asked, began) for asked, began, _, _ in drawn], "disturbed": [between(began, done) for _, began, done, _ in drawn],
        "wait_s": [round(began - asked, 3) for asked, began, _, _ in drawn], "drawing_s": [round(done - began, 3) for _, began, done, _ in drawn],
    }  # fmt: skip
