"""The list of nodes, and what happens when the host loads us."""

from __future__ import annotations

import functools

from . import train_both_experts, train_embedding, train_lora, train_slider, trials
from .caption_pictures import CaptionPictures
from .check_dataset import CheckDataset
from .checked import checked
from .combine import ExtractLora, MergeIntoCheckpoint, MergeLoras, ResizeLora
from .compare_checkpoints import CompareCheckpoints
from .convert_format import ConvertEmbedding, ConvertLora, Inspect
from .dataset import LoadFolder, LoadHubDataset
from .dataset_editor import DatasetEditor
from .datasets import DATASET_NODES
from .host.access.api import ComfyExtension, io
from .host.web.dataset_routes import add_dataset_routes
from .host.web.live import add_routes
from .host.web.message_routes import add_message_routes, telling
from .host.web.panel import PANELS
from .host.web.panel_routes import add_panel_routes
from .host.web.plan_routes import add_plan_routes
from .host.web.run_routes import add_run_routes
from .host.web.upload_routes import add_upload_routes
from .import_settings import ImportSettings
from .jobs.exports import told_of
from .jobs.queueing import Queueing
from .needed_blocks import NeededBlocks
from .planning import TRAINS, planned
from .run_checkpoints import RunCheckpoints, SaveSettings
from .run_export import export_run
from .save import SaveEmbedding, SaveLora
from .settings import SETTINGS_NODES
from .toy import LoadToyModel
from .train_both_experts import TrainBothExperts
from .train_embedding import TrainEmbedding
from .train_lora import TrainLora
from .train_slider import TrainSlider
from .trials import CheckTraining, FindLearningRate
from .widgets import rows, widget_names
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
        CaptionPictures,
        *SETTINGS_NODES,
        RunCheckpoints,
        CompareCheckpoints,
        NeededBlocks,
        SaveSettings,
        ImportSettings,
        TrainBothExperts,
        TrainSlider,
    )
]
SETTINGS_BY_ID = {node.NODE_ID: node for node in [*SETTINGS_NODES, SaveSettings]}
# Node id -> the rows of its widgets that stand for settings; the nodes where a setting is usually set come first.
TABLES = {
    "LoraLoomTrainLora": rows(train_lora.INPUTS),
    **{name: rows(node.ROWS) for name, node in SETTINGS_BY_ID.items()},
    "LoraLoomTrainEmbedding": rows(train_embedding.INPUTS),
    "LoraLoomTrainBothExperts": rows(train_both_experts.INPUTS),
    "LoraLoomTrainSlider": rows(train_slider.INPUTS),
    "LoraLoomCheck": rows(trials.SHARED),
    "LoraLoomFindLearningRate": rows(trials.SHARED),
}
WIDGET_NAMES = widget_names(TABLES.values())


class LoraLoomExtension(ComfyExtension):
    async def on_load(self) -> None:
        plan = functools.partial(planned, settings_nodes=SETTINGS_BY_ID)
        add_routes()
        add_dataset_routes()
        add_run_routes(export_run, told_of, Queueing(plan, PANELS.running, TRAINS).rows)
        add_panel_routes()
        add_message_routes()
        add_plan_routes(plan)
        add_upload_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
