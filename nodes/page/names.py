"""What settings are called on the page: the label of the field, in the page's language, with its section behind it."""

from __future__ import annotations

import functools

from ...lora_core.messages.message import LANGUAGES
from ...lora_core.messages.message import table as sentences
from ...lora_core.messages.naming import Rows, display_name
from ..jobs.options import TOOLS
from .fields import BASE, FIRST, Field, fields, section_of, translated

SECTIONS = {
    FIRST: "tab.section_training", "data": "tab.section_data", "adapter": "tab.section_adapter",
    "text_encoder": "tab.section_text_encoder", "embedding": "tab.section_embedding",
    "optimizer": "tab.section_optimizer", "schedule": "tab.section_schedule", "objective": "tab.section_objective",
    "prior": "tab.section_prior", "slider": "tab.section_slider", "validation": "tab.section_validation",
    "save": "tab.section_save", "samples": "tab.section_samples", "cache": "tab.section_cache",
    BASE: "tab.section_base",
}  # fmt: skip
# What the page asks in its first rows, and what other doors call otherwise.
ASKED = {
    "base": "tab.base", "model": "tab.base", "name": "tab.name", "data.folder": "tab.folder", "folder": "tab.folder",
    "dataset": "tab.folder", "data.trigger": "tab.trigger", "preset": "tab.preset", "steps": "tab.zip_steps",
    "samples.prompt": "tab.prompt", "checkpointing": "tab.memory", "runs": "tab.variants", "text": "tab.config",
    "more": "tab.config_files", "test_steps": "tab.test_steps", "files": "tool.files", "first": "tab.zip_first",
    "second": "tab.zip_second", "blocks": "option.block", "target": "option.to", "optimizer": "tab.section_optimizer",
}  # fmt: skip


def as_shown(name: str, language: str) -> str:
    """The field of a setting as the page shows it; what has no field keeps its name."""
    return display_name(table(language), name)


@functools.cache
def table(language: str) -> Rows:
    """Setting or option -> one row: nobody in particular, the title of its section, its label."""
    texts = sentences(language if language in LANGUAGES else LANGUAGES[0])
    options = {option.name: option.label for tool in TOOLS.values() for option in tool.options}
    files = {one.name: one.label for tool in TOOLS.values() for one in tool.files}
    rows = {name: ["", "", texts[code]] for name, code in {**options, **files, **ASKED}.items()}
    rows |= {one.path: ["", texts[SECTIONS[section_of(one)]], label(one, language)] for one in fields()}
    return {name: [row] for name, row in rows.items()}


def label(field: Field, language: str) -> str:
    """What the setting is called: as on the nodes, in the page's language."""
    words, leaf = translated(language) if language != LANGUAGES[0] else {}, field.path.rpartition(".")[2]
    return words.get(leaf, leaf) if words.get(leaf, leaf) != leaf else words.get(field.label, field.label)
