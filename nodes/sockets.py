"""Our socket types, and the inputs and outputs that several nodes share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..convert import FormatError, Lora, write
from ..convert.embedding import Embedding as Vectors
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.message import Message
from .host.access.api import io, make_input, make_output
from .host.access.shown import as_shown

CATEGORY = "training/LoRA Loom"
Dataset = io.Custom("LORALOOM_DATASET")  # PictureSets
Embedding = io.Custom("LORALOOM_EMBEDDING")


@dataclasses.dataclass(frozen=True)
class EmbeddingSocket:
    """What travels on a LORALOOM_EMBEDDING wire: the vectors for each text encoder."""

    embedding: Vectors


def plain_errors(field: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turns an error about a file into one about the widget it came in by, unless it names another itself."""

    def decorate(execute: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(execute)
        def guarded(cls: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return execute(cls, *args, **kwargs)
            except FormatError as error:
                message = error.message
                raise LoomError(message if message.field else message.about(field)) from error

        return guarded

    return decorate


class LoraWeights(dict):
    """A LORA_MODEL (dict of tensors, as every host node expects) that also remembers where it comes from."""

    def __init__(self, tensors: dict, base: str, facts: dict[str, Any]):
        super().__init__(tensors)
        self.base, self.facts = base, facts


def on_the_wire(lora: Lora) -> LoraWeights:
    """A LoRA as a LORA_MODEL value, in a form this ComfyUI reads; empty for the few that have no such form."""
    for form in ("universal", "comfyui", "kohya"):
        with contextlib.suppress(FormatError):
            return LoraWeights(write(lora, form), lora.family, {})
    return LoraWeights({}, lora.family, {})


_PICTURES = "Pictures and captions, from Load Training Folder or another dataset node."


def dataset_input(name: str = "dataset", optional: bool = False, tooltip: str = _PICTURES) -> Any:
    return make_input(Dataset, name, optional=optional, tooltip=tooltip)


def dataset_output(
    tooltip: str = "The pictures with their captions, for Train LoRA, Train Embedding or another dataset node.",
) -> Any:
    return make_output(Dataset, "dataset", tooltip=tooltip)


def in_words(lines: Sequence[Message | str], **more: Any) -> dict[str, Any]:
    """What a node shows: English for every page, and messages for ours, which says them in the reader's language."""
    as_data = [line.as_json(as_shown) if isinstance(line, Message) else {"text": line} for line in lines]
    return {**more, "text": (in_english(lines),), "loom_messages": tuple(as_data)}


def in_english(lines: Sequence[Message | str]) -> str:
    """The same as one text, for a wire."""
    return "\n".join(line.text(names=as_shown) if isinstance(line, Message) else line for line in lines)


def lora_output(tooltip: str = "The LoRA's weights, for Save LoRA, Zip LoRAs or ComfyUI's own Load LoRA Model.") -> Any:
    return make_output(io.LoraModel, "lora", tooltip=tooltip)


def loss_output() -> Any:
    return make_output(io.LossMap, "loss_map", tooltip="The loss of every step, for ComfyUI's own Plot Loss Graph.")


def path_output() -> Any:
    return make_output(io.String, "path", tooltip="The written file.")


def report_output(tooltip: str = "What the node has to say, as it stands on the node.") -> Any:
    return make_output(io.String, "report", tooltip=tooltip)


def count_output() -> Any:
    return make_output(io.Int, "count", tooltip="How many pictures there are.")
