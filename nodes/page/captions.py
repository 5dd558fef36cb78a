"""Captions written for a dataset that a page has open: one of the page's jobs, on a tagger or captioner in the folders of its host."""

from __future__ import annotations

from pathlib import Path

import torch

from ...lora_core.captioning.shelf import captioners, known_roots, opened
from ...lora_core.events import Control
from ...lora_core.messages.errors import LoomError
from ...lora_core.messages.message import Message
from ..jobs.captioning import CaptionOrder, captioned, order_in
from ..jobs.panel import Panel
from .desk import Desk, Order
from .host import Host


def captioner_places(host: Host) -> dict[str, Path]:
    """Name -> place of the taggers and captioners in the host's folders of models."""
    return captioners(known_roots(host.model_folders()))


def caption_order(desk: Desk, order: Order) -> tuple[str, CaptionOrder]:
    """(session of the editor, what is asked for). Raises LoomError, Refused."""
    captioning = order_in(order.more)
    if captioning.captioner not in (places := captioner_places(desk.host)):
        known = list(places)[:20]
        raise LoomError("captioning.unknown", field="captioner", captioner=repr(captioning.captioner), known=known)
    session = order.more.get("session")
    desk.editors.listed(session)  # which says what is not open or not the reader's to change
    return str(session), captioning


def caption(desk: Desk, order: Order, loan: None, panel: Panel, control: Control) -> str:
    """Writes the captions an order asks for; ends after a picture when the job is to stop."""
    session, captioning = caption_order(desk, order)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    character = captioning.wording.subject != "character"

    def show(done: int, total: int, name: str) -> None:
        panel.changed(doing=Message.of("progress.captioning", done=done, total=total).as_json())
        if control.stopping:
            desk.editors.named(session).captioning.stop.set()  # type: ignore[union-attr]

    places = captioner_places(desk.host)
    now = captioned(
        desk.editors,
        session,
        captioning,
        lambda: opened(captioning.captioner, places, device, captioning.max_tokens, captioning.bar, character),
        show,
    )
    panel.changed(result={**panel.result, "lines": [line.as_json() for line in now.messages()]})
    return "stopped" if now.status == "stopped" else "finished"
