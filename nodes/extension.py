"""The list of nodes, and what happens when the host loads us."""

from __future__ import annotations

import functools

from . import train_embedding, train_lora, trials
from .check_dataset import CheckDataset
from .checked import checked
from .combine import ExtractLora, MergeIntoCheckpoint, MergeLoras, ResizeLora
from .convert_format import ConvertEmbedding, ConvertLora, Inspect
from .dataset import LoadFolder, LoadHubDataset
from .dataset_editor import DatasetEditor
from .datasets import DATASET_NODES
from .host.access.api import ComfyExtension, io
from .host.web.dataset_routes import add_dataset_routes
from .host.web.live import add_routes
from .host.web.message_routes import add_message_routes, telling
from .host.web.panel_routes import add_panel_routes
from .host.web.plan_routes import add_plan_routes
from .host.web.run_routes import add_run_routes
from .host.web.upload_routes import add_upload_routes
from .import_settings import ImportSettings
from .jobs.exports import told_of
from .planning import planned
from .run_checkpoints import RUN_NODES, SaveSettings, export_run
from .save import SaveEmbedding, SaveLora
from .settings import SETTINGS_NODES
from .toy import LoadToyModel
from .train_embedding import TrainEmbedding
from .train_lora import TrainLora
from .trials import CheckTraining, FindLearningRate
from .widgets import widget_names
from .zip_loras import ZipLoras

NODES: list[type[io.ComfyNode]] = [
    telling(checked(node))
    for node in (
        LoadFolder,
        TrainLora,
        SaveLora,
        LoadToyModel,
        ConvertLora,
        Inspect,
        MergeLoras,
        ResizeLora,
        ExtractLora,
        MergeIntoCheckpoint,
        SaveEmbedding,
        ConvertEmbedding,
        ZipLoras,
        TrainEmbedding,
        CheckTraining,
        FindLearningRate,
        LoadHubDataset,
        *DATASET_NODES,
        CheckDataset,
        DatasetEditor,
        *SETTINGS_NODES,
        *RUN_NODES,
        ImportSettings,
    )
]
SETTINGS_BY_ID = {node.NODE_ID: node for node in [*SETTINGS_NODES, SaveSettings]}
WIDGET_NAMES = widget_names(
    [train_lora.INPUTS, train_embedding.INPUTS, trials.SHARED, *(node.ROWS for node in [*SETTINGS_NODES, SaveSettings])]
)


class LoraLoomExtension(ComfyExtension):
    async def on_load(self) -> None:
        add_routes()
        add_dataset_routes()
        add_run_routes(export_run, told_of)
        add_panel_routes()
        add_message_routes()
        add_plan_routes(functools.partial(planned, settings_nodes=SETTINGS_BY_ID))
        add_upload_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
