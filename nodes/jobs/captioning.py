"""Captions that a model writes for a dataset open in an editor: streamed into its files, stopped at any time, taken back as one edit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...lora_core.captioning.base import LONGEST_SIDE_PX, Captioner
from ...lora_core.captioning.tagger import GENERAL_BAR
from ...lora_core.captioning.wording import Wording
from ...lora_core.config import DataConfig
from ...lora_core.data.edits import MAX_CAPTION, Editable
from ...lora_core.messages.errors import LoomError, message_of
from ...lora_core.messages.message import Message
from ...lora_core.pictures.reading import PictureError
from ...lora_core.pictures.thumbnails import whole_picture
from .caption_state import Captioning
from .editing import Editors
from .requests import Refused

EMPTY_ONES, ALL = WHICH = ("empty ones", "all")
FLUSH_S = 2.0  # seconds between two writings, at least; ten times as long as a writing takes
FLUSH_SHARE = 10
MOST_TOKENS = 2000
TEXTS = ("instruction", "leave_out", "prepend", "append")
Show = Callable[[int, int, str], None]  # done, of how many, name of the picture


@dataclasses.dataclass(frozen=True)
class CaptionOrder:
    """What a person asks for. `which`: one of WHICH; `bar`: share from which a tagger's tag counts; `max_tokens`: the longest answer."""

    captioner: str
    wording: Wording = Wording()
    which: str = EMPTY_ONES
    bar: float = GENERAL_BAR
    max_tokens: int = 200

    def __post_init__(self) -> None:
        """Raises LoomError for what is out of bounds."""
        if self.which not in WHICH:
            raise LoomError("setting.choice", field="which", value=repr(self.which), allowed=list(WHICH))
        if isinstance(self.bar, bool) or not isinstance(self.bar, int | float) or not 0.01 <= self.bar <= 1:
            raise LoomError("tool.number", field="bar", value=repr(self.bar), low=0.01, high=1)
        if not isinstance(self.max_tokens, int) or not 1 <= self.max_tokens <= MOST_TOKENS:
            raise LoomError("tool.number", field="max_tokens", value=repr(self.max_tokens), low=1, high=MOST_TOKENS)


def order_in(values: Mapping[str, Any]) -> CaptionOrder:
    """An order that came from a page. Raises LoomError for what it does not allow."""
    texts = {name: values.get(name, "") for name in (*TEXTS, "captioner")}
    texts |= {"subject": values.get("subject", "everything"), "which": values.get("which", EMPTY_ONES)}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise LoomError("setting.type", field=name, kind="str", value=repr(value)[:80])
    wording = Wording(texts["subject"], **{name: texts[name] for name in TEXTS})
    bar, max_tokens = values.get("bar", GENERAL_BAR), values.get("max_tokens", 200)
    return CaptionOrder(texts["captioner"], wording, texts["which"], bar, max_tokens)


def waiting_for(editors: Editors, key: str) -> Captioning:
    """A captioning that has not begun, as the editors show it. Raises Refused for one that goes on."""
    session = editors.named(key)
    if session.captioning is not None and session.captioning.status == "running":
        raise Refused(409, "captioning.goes_on")
    session.captioning = Captioning()
    return session.captioning


def captioned(
    editors: Editors, key: str, order: CaptionOrder, opened: Callable[[], Captioner], show: Show
) -> Captioning:
    """Captions what the order asks for in the dataset open under `key`, with the model that `opened` gives when there is something to do.

    What is written stays, however it ends: with the last picture, by `stop`, by what `show` raises, by an error. Raises LoomError, Refused.
    """
    now = waiting_for(editors, key)
    writer = _Writer(editors, key, now)
    try:
        now.status = "running"
        work = [(data, item) for data, item in editors.listed(key) if _is_due(item, order, now)]
        now.total = len(work)
        if work:
            _caption_each(work, order, opened(), now, writer, show)
        writer.flush()
        now.status = "stopped" if now.stop.is_set() else "finished"
    except BaseException as error:
        try:
            writer.flush()
        finally:
            now.error = message_of(error) if isinstance(error, Exception) else None
            now.status = (
                "failed" if isinstance(error, Exception) else "stopped"
            )  # last: whoever reads it then reads the rest
        raise
    return now


def _caption_each(
    work: list[tuple[DataConfig, Editable]],
    order: CaptionOrder,
    captioner: Captioner,
    now: Captioning,
    writer: _Writer,
    show: Show,
) -> None:
    finish, instruction = order.wording.finisher(captioner.writes_tags), order.wording.asked()
    for data, item in work:
        if now.stop.is_set():
            return
        now.name = item.name
        show(now.done, now.total, item.name)
        try:
            image = whole_picture(item.picture.path, data.background)
            image.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
            text = finish(captioner.caption(image, instruction))[:MAX_CAPTION]
        except PictureError as error:
            now.notes.append(Message.of("picture.of", name=item.name, error=error))
            text = ""
        else:
            if text:
                writer.add(item, text)
            else:
                now.notes.append(Message.of("captioning.nothing_said", name=item.name))
        now.done += 1
    show(now.done, now.total, "")


def _is_due(item: Editable, order: CaptionOrder, now: Captioning) -> bool:
    """Whether a picture gets a caption: not one that is left out, and only an empty one unless all were asked for."""
    if item.excluded or (item.caption and order.which != ALL):
        return False
    if item.locked:
        now.notes.append(Message.of("editor.locked", name=item.name, reason=item.locked))
        return False
    return True


class _Writer:
    """Writes captions a few at a time: a folder's list of edits is written anew each time."""

    def __init__(self, editors: Editors, key: str, now: Captioning):
        self._editors, self._key, self._now = editors, key, now
        self._waiting: dict[str, tuple[str, str]] = {}
        self._names: dict[str, str] = {}
        self._number, self._due = time.time_ns(), time.monotonic() + FLUSH_S

    def add(self, item: Editable, text: str) -> None:
        self._waiting[item.id] = (item.caption, text)
        self._names[item.id] = item.name
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """What was changed by others meanwhile stays as they have it, and is told."""
        if not self._waiting:
            return
        began = time.monotonic()
        captions = {item.id: item.caption for _, item in self._editors.listed(self._key)}
        mine = {key: pair for key, pair in self._waiting.items() if captions.get(key) == pair[0] and pair[0] != pair[1]}
        same = sum(pair[0] == pair[1] for pair in self._waiting.values())
        self._now.notes += [
            Message.of("captioning.changed_meanwhile", name=self._names[key])
            for key, pair in self._waiting.items()
            if captions.get(key) != pair[0]
        ]
        self._waiting = {}
        if self._editors.newest(self._key) != self._number:
            self._number = time.time_ns()  # somebody has edited since: what comes is an edit after theirs
        self._now.written += same + (self._editors.edit(self._key, (mine, {}), self._number) if mine else 0)
        self._due = time.monotonic() + max(FLUSH_S, FLUSH_SHARE * (time.monotonic() - began))
