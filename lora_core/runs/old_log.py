"""How a run of 0.1.0 ended. It wrote no run.json; the last beginning or ending stands in the log it kept for people."""

from __future__ import annotations

import re
from pathlib import Path

from .bounded import as_text, tail
from .state import Ending

_OUTCOMES = {"finished": "finished", "stopped": "stopped", "stopped early": "stopped early", "paused": "paused"}
_CANCELS = ("InterruptProcessingException", "KeyboardInterrupt", "SystemExit", "GeneratorExit")
_MARK = re.compile(
    rf"^\d\S+ [\d:.]+ (?:(?P<begun>training steps) \d+ to |(?P<outcome>{'|'.join(_OUTCOMES)}) after step (?P<step>\d{{1,12}})\r?$|"
    r"ended by (?P<error>\w+): ?(?P<said>.*))",
    re.MULTILINE,
)


def ending(log: Path) -> Ending:
    """What the last line of its kind says; "running" where the log tells of no ending."""
    marks = list(_MARK.finditer(tail(log).decode("utf-8", "replace")))
    last = marks[-1] if marks else None
    if last and last["outcome"]:
        return Ending(_OUTCOMES[last["outcome"]], int(last["step"]))
    if last and last["error"] in _CANCELS:
        return Ending("cancelled")
    if last and last["error"]:
        return Ending("failed", error={"text": as_text(last["said"])})
    return Ending("running")
