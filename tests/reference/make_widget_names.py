"""Writes which widget stands for which setting, from the nodes' own tables: nodes/host/access/places.json for sentences, js/widget_names.js for marks in the graph."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from schemas import ROOT, load_package, without_host  # noqa: E402

PLACE = ROOT / "js" / "widget_names.js"
ZEROS = ROOT / "js" / "zeros.js"
PLACES = ROOT / "nodes" / "host" / "access" / "places.json"
HEAD = """// @ts-check
// Widgets of config fields that are not called like the field. Made from the nodes by tests/reference/make_texts.py.

/** @type {Record<string, string[]>} */
"""
HEAD_OF_ZEROS = """// @ts-check
// What 0 stands for in a widget where it is no amount. Made from the nodes by tests/reference/make_texts.py.

/** By node, by widget: a word of zero.* in js/locales. @type {Record<string, Record<string, string>>} */
"""
KINDS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
TRAIN = (
    "LoraLoomTrainLora",
    "LoraLoomTrainEmbedding",
    "LoraLoomCheck",
    "LoraLoomFindLearningRate",
    "LoraLoomTrainSlider",
)
DATASETS = ("LoraLoomLoadFolder", "LoraLoomLoadHubDataset", "LoraLoomDatasetOptions", "LoraLoomDatasetFromImages")
# Options of file tools whose widgets have other names.
OPTIONS = {
    "bar": "threshold",
    "approximate": "approximate_rank",
    "blocks": "block_weights",
    "family": "base_model",
    "target": "form",
}
# What a whole node stands for, and settings whose place no table of rows knows.
BESIDE = {
    "base": [[node, "model"] for node in TRAIN],
    "companion": [[node, "model"] for node in TRAIN],
    "base_vae": [[node, "vae"] for node in TRAIN],
    "embedding": [["LoraLoomSaveEmbedding", "embedding"]],
    "method": [["LoraLoomPivotalSettings", ""], ["LoraLoomTrainSlider", ""]],
    "optimizer": [["LoraLoomOptimizerSettings", "name"]],
    "prior.folder": [["LoraLoomPriorSettings", "folder"]],
    "text_encoder.train": [["LoraLoomTextEncoderSettings", ""]],
    "validation.folder": [["LoraLoomValidationSettings", "folder"]],
}
# Settings no widget is for: only the configuration of another trainer sets them in a graph.
IMPORTED = "LoraLoomImportSettings"


def text() -> str:
    """The module as it should be."""
    load_package()
    with without_host():
        names = importlib.import_module("lora_loom.nodes.extension").WIDGET_NAMES
    others = {path: widgets for path, widgets in sorted(names.items()) if widgets != (path.rpartition(".")[2],)}
    rows = "".join(f"  {json.dumps(path)}: {json.dumps(list(widgets))},\n" for path, widgets in others.items())
    return f"{HEAD}export const WIDGET_NAMES = {{\n{rows}}};\n"


def places(schemas: Mapping[str, Any]) -> str:
    """places.json as it should be: setting or input -> [node id, widget], those with a table of rows first."""
    load_package()
    with without_host():
        tables = importlib.import_module("lora_loom.nodes.extension").TABLES
        by_path = {node: {entry.path: entry.name for entry in rows} for node, rows in tables.items()}
        paths, carried = settings_and_imported()
    out: dict[str, list[list[str]]] = {path: [*rows] for path, rows in BESIDE.items()}
    for node, widgets in by_path.items():
        for path, widget in widgets.items():
            out.setdefault(path, []).append([node, widget])
    for node in DATASETS:
        for row in schemas[node].inputs:
            if row.kind in KINDS and not row.force_input and f"data.{row.id}" in paths:
                out.setdefault(f"data.{row.id}", []).append([node, row.id])
    for node, schema in schemas.items():
        for row in schema.inputs:
            for name in [row.id, *(option for option, widget in OPTIONS.items() if widget == row.id)]:
                if [node, row.id] not in out.setdefault(name, []):
                    out[name].append([node, row.id])
    for path in carried - out.keys() - {"sets"}:
        out[path] = [[IMPORTED, path.rpartition(".")[2]]]
    rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(out[name])}" for name in sorted(out))
    return f"{{\n{rows}\n}}\n"


def zeros(schemas: Mapping[str, Any]) -> str:
    """zeros.js as it should be."""
    rows = ""
    for node, schema in schemas.items():
        words = {row.id: row.zero for row in schema.inputs if row.kind in ("INT", "FLOAT") and row.zero}
        if words:
            inner = "".join(f"    {json.dumps(name)}: {json.dumps(word)},\n" for name, word in words.items())
            rows += f"  {json.dumps(node)}: {{\n{inner}  }},\n"
    return f"{HEAD_OF_ZEROS}export const ZEROS = {{\n{rows}}};\n"


def settings_and_imported() -> tuple[set[str], set[str]]:
    """(every path of a job, those that Import Settings passes on)."""
    config = importlib.import_module("lora_loom.lora_core.config")
    elsewhere = importlib.import_module("lora_loom.nodes.import_settings").OF_NODES
    paths = set(_paths(config.as_dict(config.TrainConfig(base="x"))))
    return paths, {path for path in paths if not path.startswith(elsewhere)}


def _paths(values: Mapping[str, Any], above: str = "") -> list[str]:
    out: list[str] = []
    for name, value in values.items():
        out += _paths(value, f"{above}{name}.") if isinstance(value, dict) else [f"{above}{name}"]
    return out


def write(schemas: Mapping[str, Any]) -> None:
    PLACE.write_text(text(), encoding="utf-8")
    ZEROS.write_text(zeros(schemas), encoding="utf-8")
    PLACES.write_text(places(schemas), encoding="utf-8")
