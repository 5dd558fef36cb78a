"""What the host checks of a widget it checks of typed values alone; one that comes by a wire is held to the same bounds here, before a node sees it."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from ..lora_core.config import MAX_TEXT
from ..lora_core.config.settings import HALF
from ..lora_core.messages.errors import LoomError
from .host.access.api import Widget, widgets_of

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def checked(node: Any) -> Any:
    """The node, whose `execute` gets only values that its own widgets allow; others are refused in a sentence about the widget."""
    execute = node.execute.__func__
    names = [name for name, p in inspect.signature(execute).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]

    @functools.wraps(execute)
    def bounded(cls: Any, *args: Any, **kwargs: Any) -> Any:
        values = {**dict(zip(names, args, strict=False)), **kwargs}
        return execute(cls, **allowed(widgets_of(cls), values, getattr(node, "LONG_TEXTS", {})))

    node.execute = classmethod(bounded)
    return node


def allowed(widgets: Iterable[Widget], values: Mapping[str, Any], long_texts: Mapping[str, int]) -> dict[str, Any]:
    """`values` with whole numbers as int and others as float. `long_texts`: characters that single texts may have. Raises LoomError naming the widget."""
    out = dict(values)
    for widget in widgets:
        value = out.get(widget.name)
        if value is None:
            continue
        limit = long_texts.get(widget.name, MAX_TEXT)
        if widget.listed:
            out[widget.name] = [_allowed(widget, member, limit) for member in value]
        else:
            out[widget.name] = _allowed(widget, value, limit)
    return out


def _allowed(widget: Widget, value: Any, limit: int) -> Any:
    if widget.kind in ("INT", "FLOAT"):
        return _number(widget, value)
    if widget.kind == "BOOLEAN":
        if not isinstance(value, bool | numbers.Integral):
            raise LoomError("setting.type", field=widget.name, kind="bool", value=_short.repr(value))
        return bool(value)
    if not isinstance(value, str):
        raise LoomError("setting.type", field=widget.name, kind="str", value=_short.repr(value))
    if widget.kind == "COMBO":
        if value not in widget.options:
            raise LoomError("setting.choice", field=widget.name, value=_short.repr(value), allowed=widget.options)
    elif len(value) > limit:
        raise LoomError("setting.long", field=widget.name, length=len(value), limit=limit)
    elif half := HALF.search(value):
        raise LoomError("setting.half_character", field=widget.name, place=half.start() + 1)
    return value


def _number(widget: Widget, value: Any) -> int | float:
    whole = widget.kind == "INT"
    if not isinstance(value, numbers.Real):
        kind = "int" if whole else "float"
        raise LoomError("setting.type", field=widget.name, kind=kind, value=_short.repr(value))
    number: int | float = int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(number, float) and not math.isfinite(number):
        raise LoomError("setting.not_finite", field=widget.name, value=number)
    if not widget.low <= number <= widget.high:
        low, high = f"{widget.low:g}", f"{widget.high:g}"
        raise LoomError("setting.range", field=widget.name, value=_short.repr(number), low=low, high=high)
    if whole and number != int(number):
        raise LoomError("setting.type", field=widget.name, kind="int", value=_short.repr(number))
    return int(number) if whole else float(number)
