"""Where pictures come from before they lie in a folder: bundled sets, Hugging Face datasets, pictures and latents of other nodes.

Whatever comes in is written once to a folder named by its content, so everything behind it (captions, caches, the editor, resume) sees files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..config import DataConfig, TrainConfig
from ..disk import files
from ..messages.errors import LoomError, reason_of
from ..pictures.encoded import as_png
from ..pictures.reading import EXTENSIONS
from ..toy.model import resolve_set
from .companions import CONDITION_ENDINGS
from .dataset import LATENT, Dataset
from .folder import open_sets
from .imported import Parts, brought
from .metadata import COLUMNS, TABLES, control_columns, target_column

IMPORTED = "imported"
HUB = "hf:"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SUFFIX = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
}


def brought_in(config: TrainConfig, place: Path) -> tuple[TrainConfig, Dataset]:
    """(the job with every source as a folder, its pictures). What has to be written goes below `place`."""
    config = dataclasses.replace(
        config, data=as_folder(config.data, place), sets=tuple(as_folder(s, place) for s in config.sets)
    )
    return config, open_sets(config)


def as_folder(data: DataConfig, place: Path) -> DataConfig:
    """The same set with a folder that is one: toy:NAME and hf:owner/name looked up. Raises LoomError."""
    if data.folder.startswith(HUB):
        folder = from_hub(
            data.folder.removeprefix(HUB), data.split, data.image_column, data.caption_column, place / IMPORTED
        )
        return dataclasses.replace(data, folder=str(folder), caption_column="")
    return dataclasses.replace(data, folder=resolve_set(data.folder))


def is_local_copy(folder: Path) -> bool:
    """Whether a folder is a Hugging Face dataset on this machine that keeps its pictures inside parquet files."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.name not in TABLES}
    return ".parquet" in suffixes and not suffixes & EXTENSIONS


def from_hub(name: str, split: str, image_column: str, caption_column: str, place: Path) -> Path:
    """The folder a dataset of the Hugging Face Hub, or a local copy of one, was written to: its picture files as they are, and metadata.jsonl.

    Needs the package `datasets`. Code that comes with a dataset is never run.
    """
    try:
        import datasets
    except ImportError as error:
        raise LoomError("dataset.needs_package", field="data.folder", name=f"{HUB}{name}") from error
    if not (name and files.is_folder(Path(name))) and not _REPO.fullmatch(name):
        raise LoomError("dataset.no_name", field="data.folder", name=f"{HUB}{name}")
    try:
        safe = (
            {"trust_remote_code": False} if int(datasets.__version__.split(".")[0]) < 4 else {}
        )  # later versions cannot run any
        rows = datasets.load_dataset(name, split=split, **safe)
    except Exception as error:  # noqa: BLE001 - the library raises what it likes; the reader needs one sentence
        reason = reason_of(error)
        raise LoomError(
            "dataset.unreadable", field="data.folder", name=f"{HUB}{name}", split=split, reason=reason
        ) from error
    pictures = [c for c, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if (image_column or "no column") not in pictures and (image_column or not pictures):
        raise LoomError(
            "data.image_column.no_pictures",
            field="data.image_column",
            name=name,
            column=image_column or "image",
            columns=rows.column_names,
        )
    picture = image_column or target_column(pictures)
    if picture is None:
        raise LoomError("data.image_column.several", field="data.image_column", name=name, columns=pictures)
    controls = [column for column in control_columns(pictures) if column != picture]
    texts = [c for c in rows.column_names if c not in pictures]
    caption = caption_column or next((c for c in COLUMNS if c in texts), "")
    if caption_column and caption_column not in texts:
        raise LoomError(
            "data.caption_column.missing",
            field="data.caption_column",
            name=name,
            column=repr(caption_column),
            columns=rows.column_names,
        )
    for column in (picture, *controls):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    made_from = " ".join([name, rows._fingerprint, picture, caption, *controls])
    target = place / hashlib.sha256(made_from.encode()).hexdigest()[:24]
    if not len(rows):
        raise LoomError("dataset.empty", field="data.folder", name=f"{HUB}{name}", split=split)
    inside = Path(name) if Path(name).is_dir() else Path(datasets.config.HF_CACHE_HOME)

    def parts() -> Parts:
        lines = []
        for n, row in enumerate(rows):
            data = _bytes_of(row[picture], inside)
            if data is None:
                continue
            file = f"{n:06}{_suffix(data)}"
            yield file, data
            line = {"file_name": file, "text": row.get(caption, "") if caption else ""}
            controls_bytes = [bytes_ for column in controls if (bytes_ := _bytes_of(row[column], inside)) is not None]
            for m, data in enumerate(controls_bytes):
                control = f"{n:06}.control_{m}{_suffix(data)}"
                yield control, data
                line[f"control_path_{m}"] = control
            lines.append(json.dumps(line, ensure_ascii=False))
        yield "metadata.jsonl", "\n".join(lines).encode("utf-8", "replace")

    return brought(target, parts)


def from_images(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    masks: Sequence[Image.Image],
    place: Path,
    controls: Sequence[Image.Image] = (),
) -> Path:
    """The folder that pictures of other nodes were written to, as PNG without loss, with their captions, masks and control pictures where there are some."""
    written, white, control_files = ([as_png(image, 1) for image in of] for of in (images, masks, controls))
    digest = hashlib.sha256("\x1f".join(captions).encode("utf-8", "replace"))
    for data in (*written, *white, *([b"controls"] if control_files else []), *control_files):
        digest.update(hashlib.sha256(data).digest())

    def parts() -> Parts:
        for n, data in enumerate(written):
            yield f"{n:04}.png", data
            if n < len(captions) and captions[n]:
                yield f"{n:04}.txt", captions[n].encode("utf-8", "replace")
            if n < len(white):
                yield f"{n:04}.mask.png", white[n]
            if n < len(control_files):
                yield f"{n:04}{CONDITION_ENDINGS[0]}.png", control_files[n]

    return brought(place / IMPORTED / digest.hexdigest()[:24], parts)


def from_latents(
    latents: Sequence[torch.Tensor], texts: Sequence[tuple[dict[str, torch.Tensor], Any]], step_px: int, place: Path
) -> Path:
    """The folder that latents (1, C, [T,] h, w) and encoded texts (tensors, the rest as JSON) of other nodes were written to."""
    encoded = []
    for latent, (tensors, plain) in zip(latents, texts, strict=True):
        whole = {
            "samples": latent.detach().float().cpu().contiguous(),
            **{f"text.{k}": v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        }
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
        for name in sorted(whole):
            digest.update(
                f"{name}{tuple(whole[name].shape)}".encode()
                + whole[name].reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        name = digest.hexdigest()[:24]
        height, width = (side * step_px for side in latent.shape[-2:])
        encoded.append(
            (
                whole,
                {
                    "width_px": str(width),
                    "height_px": str(height),
                    "caption": f"wired text {name}",
                    "text": json.dumps(plain),
                },
                name,
            )
        )
    target = place / IMPORTED / hashlib.sha256("".join(name for *_, name in encoded).encode()).hexdigest()[:24]

    def parts() -> Parts:
        for n, (tensors, facts, _) in enumerate(encoded):
            yield f"{n:04}{LATENT}", files.as_safetensors(tensors, facts)

    return brought(target, parts)


def _bytes_of(cell: Any, inside: Path) -> bytes | None:
    """The picture file in a cell. A path is followed only below `inside`: a dataset may not name files of this machine."""
    if not isinstance(cell, dict):
        return None
    if cell.get("bytes"):
        return cell["bytes"]
    path = Path(cell.get("path") or "").resolve()
    return path.read_bytes() if path.is_file() and path.is_relative_to(inside.resolve()) else None


def _suffix(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _SUFFIX.get(image.format or "", ".png")
    except (OSError, ValueError):
        return ".png"  # the scan will name it
