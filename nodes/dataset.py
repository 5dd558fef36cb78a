"""Load Training Folder and Load Hugging Face Dataset: pictures with captions become a dataset, with a preview grid and everything worth a warning."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import torch

from ..lora_core.config import DataConfig
from ..lora_core.data.sources import HUB, as_folder, is_local_copy
from ..lora_core.messages.errors import LoomError
from ..lora_core.messages.message import Message
from ..lora_core.pictures.plots import grid
from ..lora_core.pictures.reading import PictureError
from ..lora_core.pictures.thumbnails import thumbnail, with_controls
from .host.access.api import io, make_input, make_output, schema, ui
from .host.access.paths import folder_refused, is_hub_name, runs_root, training_folder, training_folders
from .jobs.datasets import PictureSets
from .settings import NO_FOLDER
from .sockets import CATEGORY, count_output, dataset_output, in_english, in_words, report_output
from .widgets import widget

CLIPS = ("clips", "clip_count", "clip_stride", "clip_lengths", "scene_change")
PREVIEWED = 24
THUMB_PX = 192


def outputs() -> list:
    return [
        dataset_output(),
        make_output(io.Image, "preview", tooltip="The first pictures in a grid."),
        report_output("How many pictures were found, their sizes and captions, and what was left out and why."),
        count_output(),
    ]


def with_pictures(cls: type[io.ComfyNode], socket: PictureSets) -> io.NodeOutput:
    """What every node that makes a dataset gives: the dataset, a grid of its first pictures, the report, how many there are."""
    socket, dataset = socket.read()
    images, labels, broken = [], [], []
    for picture in dataset.pictures[:PREVIEWED]:
        if picture.is_latent:
            continue
        try:
            small = thumbnail(picture.path, THUMB_PX, picture.data.background)
            images.append(with_controls(small, picture.controls, picture.data.background))
            labels.append(picture.caption)
        except PictureError as error:
            broken.append(Message.of("data.skipped", name=picture.name, reason=error))
    lines = [*dataset.messages(), *broken]
    sheet = (
        torch.from_numpy(np.asarray(grid(images, labels), np.float32) / 255.0)[None]
        if images
        else torch.zeros(1, 64, 64, 3)
    )
    shown_there = in_words(lines, **ui.PreviewImage(sheet, cls=cls).as_dict())
    return io.NodeOutput(socket, sheet, in_english(lines), len(dataset.pictures), ui=shown_there)


def folder_fingerprint(folder: str | os.PathLike[str]) -> str:
    """Changes whenever a file below the folder does."""
    digest = hashlib.sha256()
    for place, folders, files in os.walk(os.fspath(folder)):
        folders.sort()
        for name in sorted(files):
            facts = os.lstat(os.path.join(place, name))
            digest.update(f"{place}/{name} {facts.st_size} {facts.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class LoadFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomLoadFolder",
            display_name="Load Training Folder",
            category=CATEGORY,
            description="Reads pictures, films and captions from a folder in ComfyUI's input folder: plain, Kohya (12_name), booru, or with a metadata file.",
            search_aliases=[
                "dataset",
                "training images",
                "train",
                "kohya",
                "captions",
                "dreambooth",
                "imagefolder",
                "booru",
                "finetune",
                "image folder",
                "video",
                "films",
            ],
            is_output_node=True,
            inputs=[
                make_input(
                    io.Combo,
                    "folder",
                    options=training_folders(),
                    tooltip="A folder of pictures inside ComfyUI's input folder, or a bundled toy set.",
                ),
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
                widget("data.caption_column", advanced=True, optional=True),
                widget("data.caption_lines", advanced=True, optional=True),
                widget("data.caption_encoding", advanced=True, optional=True),
                widget("data.frames", advanced=True, optional=True),
                widget("data.frame_rate", advanced=True, optional=True),
                *(widget(f"data.{n}", advanced=True, optional=True) for n in CLIPS),
                widget("data.controls", advanced=True, optional=True),
                make_input(
                    io.Combo,
                    "control_path",
                    options=[NO_FOLDER, *training_folders()],
                    default=NO_FOLDER,
                    tooltip="A folder of control pictures with the names of their targets, inside ComfyUI's input folder.",
                    advanced=True,
                    optional=True,
                ),
                widget("data.control_resolution", advanced=True, optional=True),
                widget("data.input_mask", advanced=True, optional=True),
                widget("data.input_masks", advanced=True, optional=True),
                widget("data.first_frame", advanced=True, optional=True),
                widget("data.last_frame", advanced=True, optional=True),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, folder: Any, control_path: Any = NO_FOLDER) -> bool | str:
        """A folder that is not among the choices is told where it belongs; the host alone would list the choices."""
        refused = folder_refused(folder)
        if refused is not True or control_path == NO_FOLDER:
            return refused
        return folder_refused(control_path, "control_path")

    @classmethod
    def fingerprint_inputs(cls, folder: Any, control_path: Any = NO_FOLDER, **_) -> str:
        folders = [str(one) for one in (folder, control_path) if one not in (None, NO_FOLDER)]
        return " ".join(folder_fingerprint(training_folder(one)) for one in folders)

    @classmethod
    def sets(cls, folder: str, trigger: str = "", control_path: str = NO_FOLDER, **options: Any) -> PictureSets:
        """How the folder is read, by the node's widgets; those an older workflow lacks keep their default."""
        place = training_folder(str(folder))
        if control_path != NO_FOLDER:
            options["control_path"] = str(training_folder(str(control_path)))
        config = DataConfig(
            folder=f"{HUB}{place}" if is_local_copy(place) else str(place), trigger=trigger.strip(), **options
        )
        return PictureSets.of(as_folder(config, runs_root()))

    @classmethod
    def execute(cls, folder: str, trigger: str, **options: Any) -> io.NodeOutput:
        return with_pictures(cls, cls.sets(folder, trigger, **options))


class LoadHubDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomLoadHubDataset",
            display_name="Load Hugging Face Dataset",
            category=CATEGORY,
            description="Downloads pictures from the Hugging Face Hub, once. Needs the package datasets; code that comes with a dataset is never run.",
            search_aliases=["huggingface", "datasets", "hub", "dataset_name"],
            is_output_node=True,
            inputs=[
                make_input(io.String, "name", default="", tooltip="Name on the Hub, such as owner/name."),
                widget("data.split"),
                widget("data.image_column"),
                widget("data.caption_column"),
                widget("data.trigger"),
                widget("data.limit"),
                widget("data.flip", advanced=True),
                widget("data.shuffle_tags", advanced=True),
                widget("data.caption_dropout", advanced=True),
                widget("data.controls", advanced=True, optional=True),
            ],
            outputs=outputs(),
        )

    @classmethod
    def execute(cls, name: str, trigger: str, **options) -> io.NodeOutput:
        if not is_hub_name(name.strip()):
            raise LoomError("dataset.no_hub_name", field="name", name=repr(name))
        config = DataConfig(folder=f"{HUB}{name.strip()}", trigger=trigger.strip(), **options)
        return with_pictures(cls, PictureSets.of(as_folder(config, runs_root())))
