"""The texts of our nodes as ComfyUI serves them: what locales, help pages and tests are held against. Needs ComfyUI; run it with the host's own Python."""

from __future__ import annotations

from typing import Any


def texts(schema: Any) -> dict[str, Any]:
    """A node's texts in the form of ComfyUI's nodeDefs.json: inputs by name, outputs by position."""
    inputs = {i.id: {"name": i.display_name or i.id, "tooltip": i.tooltip} for i in schema.inputs}
    outputs = {str(n): {"name": o.display_name or o.id, "tooltip": o.tooltip} for n, o in enumerate(schema.outputs)}
    return {"display_name": schema.display_name, "description": schema.description, "inputs": inputs, "outputs": outputs}


def all_texts() -> dict[str, dict[str, Any]]:
    """Node id -> its texts, in the order of the ids."""
    from lora_loom.nodes.extension import NODES

    found = {schema.node_id: texts(schema) for schema in (node.GET_SCHEMA() for node in NODES)}
    return dict(sorted(found.items()))
