"""Load Training Folder: a folder of pictures with captions becomes a dataset, with a preview grid and everything worth a warning."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import torch

from ..lora_core.config import DataConfig
from ..lora_core.data.folder import scan
from ..lora_core.data.pictures import PictureError, open_rgb
from ..lora_core.plots import grid
from .host.api import io, make_input, make_output, schema, ui
from .host.paths import training_folder, training_folders
from .sockets import CATEGORY, Dataset, DatasetSocket, widget

SHOWN = 24
SMALLEST_STEP_PX = 8


class LoadFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomLoadFolder",
            display_name="Load Training Folder",
            category=CATEGORY,
            description="Reads pictures and captions from a folder inside ComfyUI's input folder. Kohya folders named 12_name count each picture 12 times.",
            search_aliases=["dataset", "training images", "kohya", "captions", "dreambooth"],
            is_output_node=True,
            inputs=[
                make_input(io.Combo, "folder", options=training_folders(), tooltip="A folder of pictures inside ComfyUI's input folder, or a bundled toy set."),
                widget("data.trigger"),
                widget("data.captions"),
                widget("data.repeats", advanced=True),
                widget("data.recursive", advanced=True),
                widget("data.flip", advanced=True),
                widget("data.shuffle_tags", advanced=True),
                widget("data.keep_tokens", advanced=True),
                widget("data.caption_dropout", advanced=True),
                widget("data.masks", advanced=True, optional=True),
                widget("data.mask_floor", advanced=True, optional=True),
            ],
            outputs=[
                make_output(Dataset, "dataset"),
                make_output(io.Image, "preview", tooltip="The first pictures in a grid."),
                make_output(io.String, "report"),
                make_output(io.Int, "count"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_) -> str:
        digest = hashlib.sha256()
        for here, folders, files in os.walk(training_folder(folder)):
            folders.sort()
            for name in sorted(files):
                facts = os.lstat(os.path.join(here, name))
                digest.update(f"{here}/{name} {facts.st_size} {facts.st_mtime_ns}".encode())
        return digest.hexdigest()

    @classmethod
    def execute(cls, folder: str, trigger: str, **options) -> io.NodeOutput:
        config = DataConfig(folder=str(training_folder(folder)), trigger=trigger.strip(), resolution=16, bucket_step_px=SMALLEST_STEP_PX, **options)
        found = scan(config)
        images, labels, broken = [], [], []
        for picture in found.pictures[:SHOWN]:
            try:
                images.append(open_rgb(picture.path))
                labels.append(picture.caption)
            except PictureError as error:
                broken.append(f"skipped {picture.name}: {error}")
        report = "\n".join([found.summary(), *broken])
        sheet = torch.from_numpy(np.asarray(grid(images, labels), np.float32) / 255.0)[None] if images else torch.zeros(1, 64, 64, 3)
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), "text": (report,)}
        return io.NodeOutput(DatasetSocket(config), sheet, report, len(found.pictures), ui=shown)
