"""What waits in the host's queue, in its order: each training with its name, and how long it takes as far as that was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from .panel import Panel

MOST_ROWS = 200
FRESH_S = 30.0  # a plan is made anew after this time: a run that ended meanwhile may tell its cost
Item = Sequence[Any]  # number, id, prompt, extra data, ids of the outputs
Planned = Callable[[Mapping[str, Any], str], dict[str, Any]]


class Queueing:
    """Rows of the queue. `planned`: what a train node of a graph will do; `running`: the panel of the node that runs; `trains`: classes of such nodes."""

    def __init__(
        self,
        planned: Planned,
        running: Callable[[str], Panel | None],
        trains: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._planned, self._running, self._trains, self._clock = planned, running, trains, clock
        self._plans: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}

    def rows(self, running: Iterable[Item], waiting: Iterable[Item]) -> list[dict[str, Any]]:
        """In the order in which they are run. `seconds`: what is left of it, None where nobody can say; work that is no training has no name."""
        out: list[dict[str, Any]] = []
        for item, goes_on in [
            *((i, True) for i in running),
            *((i, False) for i in sorted(waiting, key=lambda i: i[0])),
        ]:
            trainings = _trainings(item, self._trains)
            rows = [self._row(item, node, goes_on) for node in trainings]
            out += rows or [
                {"id": str(item[1]), "name": "", "running": goes_on, "step": None, "steps": None, "seconds": None}
            ]
        self._forget({row["id"] for row in out})
        return out[:MOST_ROWS]

    def _row(self, item: Item, node: str, goes_on: bool) -> dict[str, Any]:
        panel = self._running(node) if goes_on else None
        plan = self._plan(item, node)
        steps = next((row["value"] for row in plan.get("rows", ()) if row["path"] == "steps"), None)
        row = {
            "id": str(item[1]),
            "name": str(item[2][node]["inputs"].get("name", "")),
            "running": goes_on,
            "step": None,
            "steps": steps,
            "seconds": (plan.get("cost") or {}).get("seconds"),
        }
        if panel is not None and panel.steps:
            heart = panel.heart()
            row |= {"name": panel.run or row["name"], "step": panel.step, "steps": panel.steps}
            row["seconds"] = row["seconds"] if heart["left_s"] is None else heart["left_s"]
        return row

    def _plan(self, item: Item, node: str) -> dict[str, Any]:
        key, now = (str(item[1]), node), self._clock()
        made, plan = self._plans.get(key, (None, {}))
        if made is None or now - made > FRESH_S:
            plan = self._planned(item[2], node)
            self._plans[key] = now, plan
        return plan

    def _forget(self, ids: set[str]) -> None:
        self._plans = {key: plan for key, plan in self._plans.items() if key[0] in ids}


def _trainings(item: Item, trains: Collection[str]) -> list[str]:
    """The train nodes that an item of the queue comes to: those its outputs depend on, in the order of their ids."""
    prompt, waiting, seen = item[2], [str(output) for output in item[4]], set[str]()
    while waiting:
        node = waiting.pop()
        entry = prompt.get(node)
        if node in seen or not isinstance(entry, dict):
            continue
        seen.add(node)
        waiting += [str(value[0]) for value in entry.get("inputs", {}).values() if isinstance(value, list) and value]
    return sorted(
        (node for node in seen if prompt[node].get("class_type") in trains), key=lambda node: (len(node), node)
    )
