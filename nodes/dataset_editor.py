"""Dataset Editor: the pictures of a dataset as a grid in the node, with captions to edit, search and replace, pictures to leave out, and undo."""

from __future__ import annotations

from .host.access.api import io, schema
from .host.web.dataset_routes import open_session
from .jobs.datasets import PictureSets
from .sockets import CATEGORY, count_output, dataset_input, dataset_output


class DatasetEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomDatasetEditor",
            display_name="Dataset Editor",
            category=CATEGORY,
            description="Run it to see the pictures here. Captions are written to the .txt files beside them, pictures left out are remembered in the folder; "
            "nothing is deleted, and every edit can be undone.",
            search_aliases=["caption editor", "tag editor", "search and replace", "exclude images"],
            is_output_node=True,
            inputs=[dataset_input()],
            outputs=[dataset_output(), count_output()],
        )

    @classmethod
    def execute(cls, dataset: PictureSets) -> io.NodeOutput:
        opened = dataset.opened()
        return io.NodeOutput(dataset, len(opened.pictures), ui={"loom_dataset": (open_session(dataset.sets),)})
