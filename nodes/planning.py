"""What a train node of a graph will do, from the graph as the page has it: nothing is run but our own nodes that only name things."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ..lora_core.config import DataConfig
from ..lora_core.messages.errors import LoomError, Problem
from . import train_both_experts, train_embedding, train_lora, train_slider
from .dataset import LoadFolder
from .datasets import CombineDatasets, DatasetOptions
from .host.access.paths import model_file, runs_root
from .jobs.datasets import PictureSets
from .jobs.plan import UnloadedBase, base_of_file, plan, refused
from .settings import SettingsNode, SettingsSocket
from .widgets import rows

MOST_NODES, DEEPEST = 5000, 60
_LOADERS = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models"}  # widget of a loader -> kind of its files
_TOY = UnloadedBase("sd1", 128, "toy")
TRAINS = {
    "LoraLoomTrainLora": train_lora,
    "LoraLoomTrainEmbedding": train_embedding,
    "LoraLoomTrainBothExperts": train_both_experts,
    "LoraLoomTrainSlider": train_slider,
}
WITHOUT_PICTURES = ("LoraLoomTrainSlider",)  # where a dataset may be wired, and need not
_DATA = {field.name for field in dataclasses.fields(DataConfig)}
_THROUGH = ("LoraLoomDatasetEditor", "LoraLoomCheckDataset")  # hand on the dataset they are given


class Unknown(Exception):
    """Something that shows only when the graph runs."""


class Graph:
    """A graph in the host's API form, id -> {"class_type", "inputs"}; links are [id, slot]."""

    def __init__(self, prompt: Mapping[str, Any], settings_nodes: Mapping[str, type[SettingsNode]]):
        if len(prompt) > MOST_NODES:
            raise LoomError("request.graph_large", limit=MOST_NODES)
        self._prompt, self._settings = prompt, settings_nodes

    def node(self, name: Any) -> tuple[str, dict[str, Any]]:
        """(class, inputs). Raises Unknown."""
        entry = self._prompt.get(name) if isinstance(name, str) else None
        if not isinstance(entry, dict) or not isinstance(entry.get("inputs"), dict):
            raise Unknown
        return str(entry.get("class_type")), entry["inputs"]

    def base(self, link: Any) -> UnloadedBase:
        """The model file behind a MODEL wire, through whatever hands a model on. Raises Unknown, Problem."""
        for _ in range(DEEPEST):
            kind, inputs = self.node(_source(link))
            if kind == "LoraLoomLoadToyModel":
                return _TOY
            for widget, files in _LOADERS.items():
                if isinstance(inputs.get(widget), str):
                    return base_of_file(model_file(files, inputs[widget]))
            link = inputs.get("model")
        raise Unknown

    def dataset(self, link: Any, depth: int = 0) -> PictureSets:
        """The folders behind a DATASET wire. Raises Unknown, Problem."""
        kind, inputs = self.node(_source(link))
        if depth > DEEPEST:
            raise Unknown
        if kind == "LoraLoomLoadFolder":
            return LoadFolder.sets(**_data(inputs))
        if kind in _THROUGH:
            return self.dataset(inputs.get("dataset"), depth + 1)
        if kind == "LoraLoomDatasetOptions":
            return DatasetOptions.changed(self.dataset(inputs.get("dataset"), depth + 1), **_data(inputs))
        if kind == "LoraLoomCombineDatasets":
            wires = [inputs[name] for name in sorted(inputs) if name.startswith("dataset_")]
            return CombineDatasets.joined([self.dataset(wire, depth + 1) for wire in wires])
        raise Unknown

    def settings(self, link: Any, depth: int = 0) -> SettingsSocket | None:
        """The settings behind a wire. Raises Unknown, Problem."""
        if link is None:
            return None
        kind, inputs = self.node(_source(link))
        node = self._settings.get(kind)
        if node is None or depth > DEEPEST:
            raise Unknown
        before = self.settings(inputs.get("settings"), depth + 1)
        return node.collected(before, _values({n: v for n, v in inputs.items() if n != "settings"}))


def planned(prompt: Mapping[str, Any], node: str, settings_nodes: Mapping[str, type[SettingsNode]]) -> dict[str, Any]:
    """What the train node `node` of a graph will do; {} where that shows only when the graph runs."""
    try:
        graph = Graph(prompt, settings_nodes)
        kind, inputs = graph.node(node)
        module = TRAINS.get(kind)
        if module is None:
            raise Unknown
        base, wire = graph.base(inputs.get("model", inputs.get("model_high"))), inputs.get("dataset")
        sets = None if wire is None and kind in WITHOUT_PICTURES else graph.dataset(wire)
        settings = graph.settings(inputs.get("settings"))
        defaults = {row.name: row.default for row in rows(module.INPUTS)}
        widgets = {**defaults, **{name: value for name, value in inputs.items() if not isinstance(value, list)}}
        make: Callable[..., Any] = module.config_from
        config, pictures = make(widgets, sets, base, settings)
        return plan(config, pictures, base, _sources(module.INPUTS, widgets, settings), runs_root())
    except Unknown:
        return {}
    except Problem as error:
        return refused(error)


def _sources(table: Any, widgets: Mapping[str, Any], settings: SettingsSocket | None) -> dict[str, str]:
    """Config path -> who decides what a widget may leave open."""
    out = {}
    for row in rows(table):
        if settings and row.path in settings.values:
            out[row.path] = "settings"
        elif not row.automatic or widgets[row.name] != row.default:
            out[row.path] = "you"
        else:
            out[row.path] = "model" if row.path == "data.resolution" else "preset"
    return out


def _source(link: Any) -> str:
    """The node at the other end of a wire. Raises Unknown where there is no wire."""
    if isinstance(link, list) and link and isinstance(link[0], str | int):
        return str(link[0])
    raise Unknown


def _data(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The widgets that say how pictures are read; whatever else a page has put into a node is none. Raises Unknown."""
    return _values({name: value for name, value in inputs.items() if name in _DATA})


def _values(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A node's widgets. Raises Unknown where one is wired, whose value shows only when the graph runs."""
    if any(isinstance(value, list) for value in inputs.values()):
        raise Unknown
    return dict(inputs)
