"""Nodes between a folder and training: options, several datasets as one, pictures and latents from other nodes, and back to native types."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..lora_core.config import DataConfig
from ..lora_core.data.buckets import apply, fits
from ..lora_core.data.latents import ahead
from ..lora_core.data.masks import open_trained, placed
from ..lora_core.data.sources import from_images, from_latents
from ..lora_core.messages.errors import LoomError
from ..lora_core.pictures.previews import as_picture
from ..lora_core.pictures.reading import PictureError
from .dataset import outputs, with_pictures
from .host.access.api import io, make_input, make_output, schema
from .host.access.paths import runs_root
from .host.engine.texts import literal, split
from .host.web.live import layer_progress
from .jobs.datasets import PictureSets
from .sockets import CATEGORY, count_output, dataset_input, dataset_output
from .widgets import widget

LATENT_STEP_PX = 8
MOST_SETS = 8
_OPTIONS = (
    "repeats", "loss_weight", "regularization", "prefix", "suffix", "replace", "shuffle_tags", "keep_tokens",
    "tag_dropout", "caption_dropout", "wildcards", "flip", "crop", "crops", "aspect_buckets", "also_resolutions",
    "min_side_px", "max_side_px", "upscale", "background", "latents", "limit",
)  # fmt: skip
_LINES = frozenset({"replace"})


class DatasetOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        lines: dict[str, Any] = {"multiline": True}
        shown_first = {"repeats", "loss_weight", "regularization", "prefix", "suffix", "replace"}
        return schema(
            node_id="LoraLoomDatasetOptions",
            display_name="Dataset Options",
            category=CATEGORY,
            description="How a dataset is used: weight, caption edits, crop, sizes. What you leave as it is stays as the nodes before have it.",
            search_aliases=[
                "buckets",
                "repeats",
                "regularization",
                "caption prefix",
                "search and replace",
                "tag dropout",
                "crop",
            ],
            inputs=[
                dataset_input(),
                *(
                    widget(f"data.{n}", advanced=n not in shown_first, **(lines if n in _LINES else {}))
                    for n in _OPTIONS
                ),
                widget("data.allow_empty_captions", advanced=True, optional=True),
            ],
            outputs=[dataset_output("The same pictures, used as set here.")],
        )

    @classmethod
    def changed(cls, dataset: PictureSets, **options: Any) -> PictureSets:
        """What is left as it is here stays as the node before has it."""
        usual = DataConfig()
        return dataset.changed(**{name: value for name, value in options.items() if value != getattr(usual, name)})

    @classmethod
    def execute(cls, dataset: PictureSets, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(cls.changed(dataset, **options))


class CombineDatasets(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomCombineDatasets",
            display_name="Combine Datasets",
            category=CATEGORY,
            description="Several datasets as one. Each keeps its own repeats, weight and caption settings.",
            search_aliases=["join datasets", "multiple concepts", "regularization images"],
            is_output_node=True,
            inputs=[
                dataset_input(f"dataset_{n}", n > 2, "One of the datasets to train on together.")
                for n in range(1, MOST_SETS + 1)
            ],
            outputs=outputs(),
        )

    @classmethod
    def joined(cls, datasets: Sequence[PictureSets]) -> PictureSets:
        sets = tuple(data for dataset in datasets for data in dataset.sets)
        return PictureSets(sets, tuple(scan for dataset in datasets for scan in dataset.scans))

    @classmethod
    def execute(cls, **datasets: PictureSets | None) -> io.NodeOutput:
        inputs = [datasets.get(f"dataset_{n}") for n in range(1, MOST_SETS + 1)]
        return with_pictures(cls, cls.joined([dataset for dataset in inputs if dataset is not None]))


class DatasetFromImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomDatasetFromImages",
            display_name="Dataset from Images",
            category=CATEGORY,
            description="Pictures of other nodes as a dataset: loaded, generated, captioned. Captions and masks are taken in the order of the pictures.",
            search_aliases=["image list", "captioner", "wd14", "florence", "image batch to dataset"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                make_input(io.Image, "images", tooltip="One picture, a batch, or a list of either."),
                make_input(
                    io.String,
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="One for each picture, or one for all.",
                ),
                make_input(
                    io.Mask, "masks", optional=True, tooltip="Where the loss looks: white counts. One for each picture."
                ),
                widget("data.trigger"),
                widget("data.repeats", advanced=True),
                widget("data.flip", advanced=True),
                make_input(
                    io.Image,
                    "controls",
                    optional=True,
                    tooltip="Control pictures, which an edit or control model is shown: from Canny or a depth estimator, or before an edit. "
                    "One for each picture.",
                ),
            ],
            outputs=outputs(),
        )

    @classmethod
    def execute(
        cls,
        images: list,
        trigger: list,
        repeats: list,
        flip: list,
        captions: list | None = None,
        masks: list | None = None,
        controls: list | None = None,
    ) -> io.NodeOutput:
        pictures = [as_picture(picture) for batch in images for picture in batch]
        texts = captions or [""]
        texts = texts * len(pictures) if len(texts) == 1 else texts
        whites = [mask for batch in masks or [] for mask in (batch if batch.ndim == 3 else batch[None])]
        beside = [as_picture(picture) for batch in controls or [] for picture in batch]
        _require_one_each("captions.count", "captions", texts, pictures)
        _require_one_each("masks.count", "masks", whites, pictures)
        _require_one_each("controls.count", "controls", beside, pictures)
        data = DataConfig(trigger=trigger[0].strip(), repeats=repeats[0], flip=flip[0])
        white = [as_picture(mask[..., None]) for mask in whites]
        folder = from_images(pictures, [str(t) for t in texts], white, runs_root(), beside)
        data = dataclasses.replace(data, masks="file" if white else "none", controls="auto" if beside else "none")
        return with_pictures(cls, PictureSets.of(dataclasses.replace(data, folder=str(folder))))


def _require_one_each(code: str, field: str, items: Sequence[Any], pictures: Sequence[Any]) -> None:
    """Raises LoomError with this code where anything is wired to `field`, and not just one for each picture."""
    if items and len(items) != len(pictures):
        raise LoomError(code, field=field, **{field: len(items)}, pictures=len(pictures))


class DatasetFromLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomDatasetFromLatents",
            display_name="Dataset from Latents",
            category=CATEGORY,
            description="Latents and conditioning that other nodes have encoded (Make Training Dataset, Load Training Dataset) as a dataset.",
            search_aliases=["make training dataset", "cached latents", "conditioning list"],
            is_input_list=True,
            inputs=[
                make_input(
                    io.Latent, "latents", tooltip="One latent, a batch, or a list of either, from this model's VAE."
                ),
                make_input(
                    io.Conditioning,
                    "conditioning",
                    tooltip="One for each latent, or one for all, from this model's CLIP.",
                ),
                widget("data.repeats", advanced=True),
            ],
            outputs=[dataset_output(), count_output()],
        )

    @classmethod
    def execute(cls, latents: list, conditioning: list, repeats: list) -> io.NodeOutput:
        samples = [one[None] for latent in latents for one in latent["samples"]]
        texts = conditioning * len(samples) if len(conditioning) == 1 else conditioning
        if len(texts) != len(samples):
            raise LoomError("conditioning.count", field="conditioning", conditioning=len(texts), latents=len(samples))
        packed = [split(text) for text in texts]
        if any(p is None for p in packed):
            raise LoomError("conditioning.more_than_text", field="conditioning")
        folder = from_latents(samples, [p for p in packed if p is not None], LATENT_STEP_PX, runs_root())
        return io.NodeOutput(PictureSets.of(DataConfig(folder=str(folder), repeats=repeats[0])), len(samples))


class EncodeDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomEncodeDataset",
            display_name="Encode Dataset",
            category=CATEGORY,
            description="A dataset as lists of LATENT and CONDITIONING for native nodes (Save Training Dataset). Our own train nodes encode by themselves.",
            search_aliases=["make training dataset", "native train lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                dataset_input(),
                make_input(io.Vae, "vae", tooltip="The VAE of the base model."),
                make_input(io.Clip, "clip", tooltip="The text encoder of the base model."),
                widget("data.resolution", step=8),
                widget("data.bucket_step_px"),
            ],
            outputs=[
                make_output(io.Latent, "latents", is_output_list=True, tooltip="One encoded picture each."),
                make_output(
                    io.Conditioning, "conditioning", is_output_list=True, tooltip="One encoded caption for each latent."
                ),
                make_output(io.Image, "images", is_output_list=True, tooltip="The pictures as they are cut."),
            ],
        )

    @classmethod
    def execute(cls, dataset: PictureSets, vae: Any, clip: Any, resolution: int, bucket_step_px: int) -> io.NodeOutput:
        opened = dataset.changed(resolution=resolution, bucket_step_px=bucket_step_px).opened()
        progress = layer_progress(cls.hidden.unique_id)
        latents, texts, images = [], [], []
        for n, (picture, pixels) in enumerate(ahead(_cut, opened.pictures)):
            progress(n, len(opened.pictures), picture.name)
            if pixels is None:
                continue
            image = torch.from_numpy(pixels.astype(np.float32) / 255.0)[None]
            latents.append({"samples": vae.encode(image)})
            texts.append(clip.encode_from_tokens_scheduled(clip.tokenize(literal(picture.caption, clip))))
            images.append(image)
        if not images:
            raise LoomError("dataset.none_opened", field="dataset")
        return io.NodeOutput(latents, texts, images)


def _cut(picture: Any) -> np.ndarray | None:
    """(H, W, 3) uint8 as it is trained; None for a picture that is damaged. Runs in a thread."""
    try:
        image, mask = open_trained(picture)
        return np.asarray(
            apply(image, placed(image, mask, fits(picture.width_px, picture.height_px, picture.data)[0], picture.data))
        )
    except PictureError:
        return None


DATASET_NODES: Sequence[type[io.ComfyNode]] = (
    DatasetOptions,
    CombineDatasets,
    DatasetFromImages,
    DatasetFromLatents,
    EncodeDataset,
)
