"""How far the captioning of a dataset is, for whoever shows it."""

from __future__ import annotations

import threading
from typing import Any

from ...lora_core.messages.message import Message

MOST_TOLD = 20


class Captioning:
    """How far the captioning of a dataset is. `status`: waiting, running, finished, stopped, failed; `stop`: ends it after its picture."""

    def __init__(self) -> None:
        self.status, self.done, self.total, self.written = "waiting", 0, 0, 0
        self.name = ""
        self.notes: list[Message] = []
        self.error: Message | None = None
        self.stop = threading.Event()

    def as_json(self) -> dict[str, Any]:
        """For a page."""
        return {
            "status": self.status,
            "done": self.done,
            "total": self.total,
            "written": self.written,
            "name": self.name,
            "notes": [note.as_json() for note in self.notes[:MOST_TOLD]],
            "error": self.error and self.error.as_json(),
        }

    def messages(self) -> list[Message]:
        """What came of it."""
        said = "captioning.stopped" if self.status == "stopped" else "captioning.done"
        messages = [Message.of(said, written=self.written, total=self.total), *self.notes[:MOST_TOLD]]
        if len(self.notes) > MOST_TOLD:
            messages.append(Message.of("lint.more", count=len(self.notes) - MOST_TOLD))
        return messages
