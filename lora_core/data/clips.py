"""Clips of films: which frames make one, which sizes they have, their pixels and their masks. A clip is decoded when its turn comes, one at a time."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..config import DataConfig
from ..messages.errors import LoomError
from ..pictures.films import Film, frame_files, frames_of, opacity_of, read_film, scenes
from ..pictures.reading import PictureError
from .buckets import Fit, apply, fits, whole_number
from .dataset import Dataset, Picture

MAX_LENGTH = 1024  # frames of a clip
MAX_CLIPS = 1000  # of a film
Clip = tuple[int, ...]  # numbers of the film's frames, one for each frame of the clip
_CHUNK = 2**20


def lengths(config: DataConfig) -> list[int]:
    """Those a set's clips have, rising; none where it trains pictures alone. Raises LoomError for what is not a list of numbers."""
    out = set()
    for part in filter(None, (part.strip() for part in config.frames.strip(" []").split(","))):
        length = whole_number(part, 1, MAX_LENGTH)
        if length is None:
            raise LoomError("data.frames.unreadable", field="data.frames", part=repr(part[:40]), limit=MAX_LENGTH)
        out.add(length)
    return sorted(out)


def cuts_of(path: Path, film: Film, config: DataConfig) -> tuple[int, ...]:
    """Numbers of the frames before which the scene of a film changes. Raises PictureError."""
    return scenes(path, film, config.scene_change)


def clips_of(film: Film, cuts: Sequence[int], config: DataConfig) -> list[Clip]:
    """The clips of a film that is cut before the frames `cuts`: none lies across a cut. Raises PictureError for a film too short for any."""
    allowed, frames = lengths(config), film.at_rate(config.frame_rate)
    edges, out = [0, *cuts, len(film.times_s)], []
    longest_scene = 0
    for start, end in itertools.pairwise(edges):
        scene = [n for n in frames if start <= n < end]
        longest_scene = max(longest_scene, len(scene))
        fitting = [length for length in allowed if length <= len(scene)]
        for length in fitting[-1:] if config.clip_lengths == "longest" else fitting:
            out += [tuple(scene[at : at + length]) for at in _starts(len(scene) - length, length, config)]
    if not out:
        raise PictureError("film.short", frames=longest_scene, needed=allowed[0])
    if len(out) > MAX_CLIPS:
        raise PictureError("film.many_clips", clips=len(out), limit=MAX_CLIPS)
    return out


def _starts(room: int, length: int, config: DataConfig) -> Sequence[int]:
    """Where clips of `length` begin in a scene that has `room` frames more."""
    if config.clips == "head":
        return [0]
    if config.clips == "spread":
        count = min(config.clip_count, room + 1)
        return [round(n * room / max(1, count - 1)) for n in range(count)]
    stride = length if config.clips == "all" else config.clip_stride or max(1, length // 2)
    return range(0, room + 1, stride)


def shapes_of(picture: Picture) -> list[tuple[int, int, int]]:
    """(width px, height px, frames) of each batch that a picture has a place in; a still picture has one frame."""
    buckets = [how.bucket for how in fits(picture.width_px, picture.height_px, picture.data)]
    counts = [1] if picture.film is None else [len(clip) for clip in picture.clips]
    return [(*bucket, count) for count in counts for bucket in buckets]


def shape_text(width_px: int, height_px: int, frames: int = 1) -> str:
    """512 x 320, and 512 x 320 x 33 for clips."""
    return f"{width_px} x {height_px}" + (f" x {frames}" if frames > 1 else "")


def require_lengths(datasets: Sequence[Dataset], nearest: Callable[[int], tuple[int, int]] | None) -> None:
    """Refuses clip lengths that a model does not take. `nearest`: a length -> the allowed ones at most and at least as long; None for pictures alone.

    Raises LoomError.
    """
    pictures = (p for dataset in datasets for p in (*dataset.pictures, *dataset.class_pictures))
    films = [p for p in pictures if p.film is not None]
    for length in sorted({len(clip) for picture in films for clip in picture.clips}):
        if nearest is None:
            if length > 1:
                raise LoomError("data.frames.pictures_alone", field="data.frames", frames=length)
            continue
        below, above = nearest(length)
        if length not in (below, above):
            near = f"{below}, {above}" if below else f"{above}"
            some = ", ".join(map(str, _allowed(nearest, 8)))
            raise LoomError("data.frames.not_allowed", field="data.frames", frames=length, near=near, allowed=some)


def _allowed(nearest: Callable[[int], tuple[int, int]], count: int) -> list[int]:
    """The first allowed lengths."""
    out: list[int] = []
    while len(out) < count:
        out.append(nearest(out[-1] + 1 if out else 1)[1])
    return out


def digest_of(path: Path) -> bytes:
    """Hash of a film's bytes, or of all its frames'; read in pieces. Raises PictureError."""
    digest = hashlib.sha256()
    try:
        for file in frame_files(path) if path.is_dir() else [path]:
            with file.open("rb") as data:
                while piece := data.read(_CHUNK):
                    digest.update(piece)
            digest.update(b"\0")
    except OSError as error:
        raise PictureError("picture.unopened", reason=error.strerror) from error
    return digest.digest()


def opened(picture: Picture, clip: Clip) -> Image.Image:
    """The first frame of a clip, of the size the scan found. Raises PictureError."""
    assert picture.film is not None
    return next(frames_of(picture.path, picture.film, clip[:1], picture.data.background))


def pixels_of(picture: Picture, clip: Clip, how: Fit, flipped: bool) -> np.ndarray:
    """(frames, H, W, 3) uint8, each frame scaled and cut as soon as it is decoded. Raises PictureError."""
    assert picture.film is not None
    out = np.empty((len(clip), how.bucket[1], how.bucket[0], 3), np.uint8)
    for n, frame in enumerate(frames_of(picture.path, picture.film, clip, picture.data.background)):
        if frame.size != (picture.width_px, picture.height_px):
            raise PictureError("picture.changed")
        out[n] = np.asarray(_cut(frame, how, flipped))
    return out


def mask_of(picture: Picture, clip: Clip, how: Fit, flipped: bool) -> np.ndarray | None:
    """Shares of white (frames or 1, H, W) float32, cut as the clip is; None without a mask. A still mask counts for every frame. Raises PictureError."""
    if picture.data.masks == "alpha":
        frames: Iterator[Image.Image | None] = opacity_of(picture.path, clip)
    elif picture.data.masks == "file" and picture.mask is not None:
        frames = _mask_frames(picture, clip)
    else:
        return None
    size, out = (picture.width_px, picture.height_px), []
    for frame in frames:
        if frame is None:
            return None
        whole = frame.convert("L").resize(size, Image.Resampling.BILINEAR) if frame.size != size else frame
        out.append(np.asarray(_cut(whole.convert("L"), how, flipped), np.float32) / 255.0)
    return np.stack(out)


def _mask_frames(picture: Picture, clip: Clip) -> Iterator[Image.Image]:
    """Those of a film of the same length, or the one of a picture."""
    assert picture.mask is not None
    assert picture.film is not None
    try:
        mask = read_film(picture.mask)
        count = len(mask.times_s)
        if count not in (1, len(picture.film.times_s)):
            raise PictureError("film.mask_length", frames=count, length=len(picture.film.times_s))
        yield from frames_of(picture.mask, mask, clip if count > 1 else (0,))
    except PictureError as error:
        raise PictureError("mask.unreadable", mask=picture.mask.name, reason=error) from error


def mask_on_latent(mask: np.ndarray, latent: torch.Tensor, frames: int) -> torch.Tensor | None:
    """Shares of white (1, 1, T or 1, h, w) for a latent (1, C, T, h, w) of a clip of `frames`; None when all white.

    Averaged over what each latent pixel stands for: the first latent frame is the first frame, each further one stands for as many frames as the
    others, as the VAEs of films have it. Raises PictureError for a mask that leaves nothing.
    """
    values = torch.from_numpy(mask)  # (frames or 1, H, W)
    if values.min() == 1.0:
        return None
    small = F.interpolate(values[:, None], latent.shape[-2:], mode="area")[:, 0]
    if not (small > 0).any():
        raise PictureError("mask.black")
    count = latent.shape[2]
    if len(small) > 1 and count < frames:
        rest = F.adaptive_avg_pool1d(small[1:].flatten(1).T[None], max(1, count - 1))[0].T if count > 1 else None
        first = small[:1] if rest is not None else small.mean(0, keepdim=True)
        small = first if rest is None else torch.cat([first, rest.reshape(count - 1, *small.shape[1:])])
    return small[None, None]


def _cut(frame: Image.Image, how: Fit, flipped: bool) -> Image.Image:
    cut = apply(frame, how)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else cut
