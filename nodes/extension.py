"""The list of nodes, and what happens when the host loads us."""

from __future__ import annotations

from .dataset import LoadFolder
from .host.api import ComfyExtension, io
from .host.live import add_routes
from .save import SaveLora
from .toy import LoadToyModel
from .train_lora import TrainLora

NODES: list[type[io.ComfyNode]] = [LoadFolder, TrainLora, SaveLora, LoadToyModel]


class LoraLoomExtension(ComfyExtension):
    async def on_load(self) -> None:
        add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
