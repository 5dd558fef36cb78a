"""What the parts of the page are made of: inputs by the kind of their value, and answers that tell what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gradio as gr

from ...lora_core.messages.errors import Problem, message_of
from .words import Words

COLUMNS = 3
Answer = Callable[[Mapping[str, Any]], str]


def answering(words: Words, answer: Answer, paths: Collection[str]) -> Callable[..., str]:
    """`answer`, called with the values of inputs by `paths`; what it raises is told in its place."""

    def called(*values: Any) -> str:
        try:
            return answer(dict(zip(paths, values, strict=True)))
        except (Problem, OSError, ValueError) as error:
            return words.sentence(message_of(error), "error")

    return called


def in_rows(inputs: Sequence[Any]) -> list[Sequence[Any]]:
    """As many beside each other as can be read."""
    return [inputs[start : start + COLUMNS] for start in range(0, len(inputs), COLUMNS)]


def input_for(kind: type, value: Any, choices: Sequence[str], texts: Mapping[str, str], lines: int = 1) -> Any:
    """The input for a value of this kind; a text of more than one of `lines` may have as many as a person writes."""
    if choices:
        return gr.Dropdown([*choices], value=value, **texts)
    if kind is bool:
        return gr.Checkbox(value, **texts)
    if kind in (int, float):
        return gr.Number(value, precision=0 if kind is int else None, **texts)
    return gr.Textbox(value, lines=lines, **texts)
