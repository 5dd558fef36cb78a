"""Writes the sections Inputs and Outputs of js/docs/<NodeId>.md from the schemas, so that a page names everything its node has.

Run it with ComfyUI's own Python when a node's inputs change: python tests/reference/make_docs.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "js" / "docs"
PLACES = frozenset({"folder", "file", "file_1", "file_2", "file_3", "file_4", "checkpoint", "base", "tuned", "destination"})  # what is there differs by machine


def cell(text: str) -> str:
    """A text as Markdown inside a table: angle brackets and bars are shown, not read."""
    return re.sub(r"(\S*[<{]\S*[>}][^\s,;)]*?)([.,;)]?)(?=\s|$)", r"`\1`\2", text).replace("|", "\\|")


def value(default: Any) -> str:
    if default is None or default == "":
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def number(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


def meaning(item: Any) -> str:
    """Tooltip, then the choices or the range."""
    text, options = cell(item.tooltip), getattr(item, "options", None)
    low, high = getattr(item, "min", None), getattr(item, "max", None)
    if options and item.id not in PLACES:
        text += " Choices: " + ", ".join(f"`{option}`" for option in options) + "."
    if low is not None and high is not None and item.id != "seed":
        text += f" From {number(low)} to {number(high)}."
    return text


def kind(item: Any) -> str:
    marks = [mark for mark, has in (("optional", getattr(item, "optional", False)), ("advanced", getattr(item, "advanced", False))) if has]
    return f"**{item.id}**" + (f" ({', '.join(marks)})" if marks else "")


def sections(schema: Any) -> str:
    """Both sections as Markdown, each without its last line's end."""
    rows = [f"| {kind(i)} | {value(getattr(i, 'default', None))} | {meaning(i)} |" for i in schema.inputs]
    inputs = ["| input | default | what it does |", "|---|---|---|", *rows] if rows else ["None."]
    outputs = ["| output | what it is |", "|---|---|", *(f"| **{o.display_name}** | {cell(o.tooltip)} |" for o in schema.outputs)]
    return "\n".join(["## Inputs", "", *inputs, "", "## Outputs", "", *outputs])


def page(text: str, schema: Any) -> str:
    """The page with both sections as they should be, at its end."""
    return text.partition("\n## Inputs\n")[0].rstrip() + "\n\n" + sections(schema) + "\n"


def main() -> None:
    from make_locales import start_host

    start_host()
    from lora_loom.nodes.extension import NODES

    for schema in (node.GET_SCHEMA() for node in NODES):
        path = DOCS / f"{schema.node_id}.md"
        path.write_text(page(path.read_text(encoding="utf-8"), schema), encoding="utf-8")


if __name__ == "__main__":
    main()
