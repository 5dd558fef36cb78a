"""Pictures and clips encoded once: pictures decoded and cut in threads, clips one at a time, encoded on the caller's thread, kept in a store by content."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as safetensors_load

from ..config.data import ALWAYS, AUTO
from ..messages.blame import blamed
from ..messages.errors import LoomError
from ..messages.message import Message
from ..pictures.reading import PictureError
from .buckets import Fit, apply, crops, fits
from .clips import Clip, digest_of, mask_of, mask_on_latent, opened, pixels_of
from .dataset import Dataset, Picture
from .input_masks import drawn
from .masks import on_latent, open_input_mask, open_trained, placed
from .shown import (
    DIGEST,
    NOTHING,
    OfFrames,
    Showing,
    Shown,
    control_fit,
    cut_control,
    kept,
    kept_masked,
    kept_of_clip,
    open_control,
    shown_of,
)
from .store import Memory, Store, Tensors, key_of

THREADS = min(4, os.cpu_count() or 1)
DRAWN = 1  # counted up when random input masks are drawn another way
TRANSFORM = 1  # counted up when the same file would be decoded, scaled or cut another way
GUIDED = 1  # counted up when something else is kept of the frames that a clip is shown
Item = TypeVar("Item")
Done = TypeVar("Done")


class View(NamedTuple):
    """One way to look at an entry: which of its crops, mirrored or not."""

    entry: int
    crop: int = 0
    flipped: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture, or a clip of a film, in one bucket: one Fit and one pair of store keys (plain, mirrored) for each crop.

    `pixels`: hash of what is trained, and of what is shown beside it. `shape`: of its latents, without the batch.
    """

    picture: Picture
    fits: tuple[Fit, ...]
    keys: tuple[tuple[str, ...], ...]
    shape: tuple[int, ...]
    pixels: bytes

    @property
    def moves(self) -> bool:
        """Whether it is a clip of several latent frames."""
        return len(self.shape) == 4 and self.shape[1] > 1


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What makes latents of pictures. `picture`: (1, H, W, 3) float32 in [0, 1] -> (1, C, [T,] h, w) in the model's units.

    For clips (frames, H, W, 3). `identity` names it in the cache. `spread`: the same -> (mean, standard deviation); `beside`: what else the network
    is told about a picture; `wired`: latents as other nodes have them -> the model's units; `shown`: a control picture as `picture` takes it ->
    (1, C, [T,] h, w) as the network is shown it, in the way that `showing` says; `guide`: a clip, and whether its last frame is shown too -> what the
    network is shown of it. None where the model has no such thing.
    """

    picture: Callable[[torch.Tensor], torch.Tensor]
    identity: str = ""
    spread: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    beside: Callable[[torch.Tensor], torch.Tensor] | None = None
    wired: Callable[[torch.Tensor], torch.Tensor] | None = None
    shown: Callable[[torch.Tensor], torch.Tensor] | None = None
    showing: Showing | None = None
    guide: Callable[[torch.Tensor, bool], OfFrames] | None = None


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A picture cut to one view: `pixels` (H, W, 3) uint8, `mask` as 8-bit grey or None, `controls` (H, W, 3) uint8, each of its own size.

    What a clip shows is decoded later.
    """

    key: str
    fit: Fit
    pixels: np.ndarray | None
    mask: Image.Image | None
    controls: tuple[np.ndarray, ...] = ()
    flipped: bool = False
    input_masks: tuple[np.ndarray, ...] = ()


class _Beside(NamedTuple):
    """What is shown of a picture: its `controls`; for an inpainting model its `input_mask`, or the `seed` that some are drawn by."""

    controls: tuple[Image.Image, ...] = ()
    input_mask: Image.Image | None = None
    seed: bytes = b""

    def masks(self, how: Fit, flipped: bool, count: int) -> tuple[np.ndarray, ...]:
        """(H, W) uint8 each, for a picture that is cut so."""
        if self.input_mask is not None:
            return (cut_control(self.input_mask, how, flipped),)
        seeds = (self.seed + f"{dataclasses.astuple(how)} {flipped} {n}".encode() for n in range(count))
        return tuple(drawn(seed, how.bucket) for seed in seeds)


class _Crop(NamedTuple):
    """One crop in one bucket: (key, the cut picture unless the store has it) plain and mirrored. `clip`: the frames it is of."""

    fit: Fit
    views: list[tuple[str, _Cut | None]]
    clip: Clip = ()


_Views = list[_Crop]


class LatentCache:
    """The latents of a dataset in a store, whatever was not there encoded now. Pictures that break are left out and named in `skipped`."""

    def __init__(
        self, dataset: Dataset, encoder: Encoder, progress: Callable[[int, int], None], store: Store | None = None
    ):
        self.entries: list[Entry] = []
        self.skipped: list[tuple[str, Message]] = []
        self.crowded = [
            p.name for p in dataset.pictures if encoder.showing is not None and len(p.controls) > encoder.showing.limit
        ]  # with more control pictures than the model takes
        self.masked = self.unmasked = 0  # masks that change something, masks that are white everywhere
        self._store, self._encoder = store if store is not None else Memory(), encoder
        pictures = dataset.pictures
        require_shown([picture for picture in pictures if not picture.is_latent], encoder.showing)
        progress(0, len(pictures))
        for done, (picture, cuts) in enumerate(ahead(self._prepared, pictures), 1):
            try:
                if isinstance(cuts, PictureError):
                    raise cuts
                self.entries += self._encoded(picture, cuts)
            except PictureError as error:
                self.skipped.append((picture.name, error.message))
            progress(done, len(pictures))
        if not self.entries:
            name, reason = self.skipped[0]
            raise LoomError("data.folder.none_opened", field="data.folder", name=name, reason=reason)
        self.pictures = [
            one.picture for n, one in enumerate(self.entries) if not n or one.picture is not self.entries[n - 1].picture
        ]

    def __getitem__(self, view: View) -> Tensors:
        """latent, and where there are: spread, mask, beside. Raises LoomError when the cache was emptied meanwhile."""
        entry = self.entries[view.entry]
        tensors = self._store.get(entry.keys[view.crop][view.flipped])
        if tensors is None:
            raise LoomError("cache.gone", name=entry.picture.name)
        return tensors

    def shown(self, view: View, draw: float = 0.0) -> Shown:
        """What is shown of a view; `draw` in [0, 1) chooses among its input masks, or says whether a clip is shown its first frame this time."""
        showing = self._encoder.showing
        if showing is None or not showing.of_film:
            return shown_of(self[view], draw)
        unshown = draw >= showing.share(self.entries[view.entry].picture.data)
        return NOTHING if unshown else shown_of(self[view])

    def all_shown(self, views: Sequence[View], draws: Sequence[float] = ()) -> list[Shown]:
        """The same of several; an empty list where it is nothing for all."""
        shown = [self.shown(view, draw) for view, draw in zip(views, draws or [0.0] * len(views), strict=True)]
        return shown if any(one.identity for one in shown) else []

    def fit(self, view: View) -> Fit:
        how = self.entries[view.entry].fits[view.crop]
        return how.mirrored() if view.flipped else how

    def _prepared(self, picture: Picture) -> _Views | PictureError:
        """Runs in a thread."""
        try:
            return self._prepare(picture)
        except PictureError as error:
            return error

    def _prepare(self, picture: Picture) -> _Views:
        """For every crop in every bucket of a picture: its fit, and (key, the cut picture unless the store has the entry) plain and mirrored.

        Raises PictureError.
        """
        if picture.film is not None:
            return self._prepare_clips(picture)
        data, config = _bytes(picture.path), picture.data
        of_mask = hashlib.sha256(_bytes(picture.mask)).digest() if picture.mask else config.masks == "alpha"
        made_from: list[Any] = [
            TRANSFORM,
            hashlib.sha256(data).digest(),
            of_mask,
            config.background,
            config.latents,
            self._encoder.identity,
            self._encoder.beside is not None,
        ]
        if picture.is_latent:
            key = key_of(*made_from)
            whole = _whole(picture)
            cut = None if self._store.get(key) else _Cut(key, whole, np.frombuffer(data, np.uint8), None)
            return [_Crop(whole, [(key, cut)])]
        controls = self._controls_of(picture)
        made_from += self._of_shown(picture, controls)
        cuts, image, mask, beside = [], None, None, _Beside()
        for base in fits(picture.width_px, picture.height_px, config):
            for how in crops(base, picture.name, config):
                keys = [
                    key_of(*made_from, dataclasses.astuple(how), config.crop == "salient", f)
                    for f in ((False, True) if config.flip else (False,))
                ]
                stored = [self._store.get(key) for key in keys]
                if any(k is None for k in stored) and image is None:
                    image, mask = open_trained(picture, data)
                    beside = self._beside(picture, controls, data)
                first = next((k for k in stored if k is not None), None)
                if first is not None:
                    where = _as_stored(how, first)
                else:
                    assert image is not None
                    where = placed(image, mask, how, config)
                views: list[tuple[str, _Cut | None]] = []
                for flipped, (key, latent) in enumerate(zip(keys, stored, strict=True)):
                    views.append(
                        (
                            key,
                            None
                            if latent is not None or image is None
                            else self._cut(_cut(key, image, mask, where, bool(flipped)), picture, beside),
                        )
                    )
                cuts.append(_Crop(where, views))
        return cuts

    def _controls_of(self, picture: Picture) -> tuple[Path, ...]:
        """As many of its control pictures as the model takes. Raises PictureError where it needs one and there is none."""
        showing = self._encoder.showing
        if showing is None or showing.filled:
            return ()
        if showing.of_film and showing.needed:
            raise PictureError("picture.no_first_frame")
        if showing.needed and not picture.controls:
            raise PictureError("picture.no_control")
        return picture.controls[: showing.limit]

    def _of_shown(self, picture: Picture, controls: Sequence[Path]) -> list[Any]:
        """What a store's entry is made from beside the target; nothing for pictures without."""
        showing, config = self._encoder.showing, picture.data
        if showing is not None and showing.filled:
            of_mask = digest_of(picture.mask) if picture.mask and config.input_mask == "file" else ""
            return ["filled", DRAWN, config.input_mask, config.input_masks, of_mask]
        if not controls or showing is None:
            return []
        contents = [hashlib.sha256(_bytes(path)).digest() for path in controls]
        return ["shown", contents, picture.data.control_resolution, showing.as_target, showing.to_text]

    def _beside(self, picture: Picture, controls: Sequence[Path], data: bytes) -> _Beside:
        """What is shown of a picture, opened. Raises PictureError."""
        showing, config = self._encoder.showing, picture.data
        if showing is None or not showing.filled:
            return _Beside(tuple(open_control(path, config.background) for path in controls))
        seed = hashlib.sha256(data).digest()
        return _Beside((), None if config.input_mask == "random" else open_input_mask(picture, data), seed)

    def _cut(self, cut: _Cut, picture: Picture, beside: _Beside) -> _Cut:
        """A cut picture with what is shown of it, cut and mirrored as it is."""
        showing, how, flipped = self._encoder.showing, cut.fit, cut.flipped
        if showing is None:
            return cut
        if showing.filled:
            return dataclasses.replace(cut, input_masks=beside.masks(how, flipped, picture.data.input_masks))
        fitted = [(c, control_fit(c.size, how, picture.data, showing.as_target)) for c in beside.controls]
        return dataclasses.replace(cut, controls=tuple(cut_control(c, fit, flipped) for c, fit in fitted))

    def _prepare_clips(self, picture: Picture) -> _Views:
        """The same for each clip of a film; none is decoded but, for a salient crop, its first frame."""
        config, out = picture.data, []
        of_mask = digest_of(picture.mask) if picture.mask else config.masks == "alpha"
        made_from = [TRANSFORM, digest_of(picture.path), of_mask, config.background, config.latents]
        guided = self._guided(picture)
        made_from += [self._encoder.identity, self._encoder.beside is not None, [*guided], *[GUIDED][: guided[0]]]
        showing = self._encoder.showing
        needed = showing is not None and showing.of_film and showing.needed
        clips = [clip for clip in picture.clips if len(clip) > 1 or not needed]
        if not clips:
            raise PictureError("picture.no_first_frame")
        buckets = fits(picture.width_px, picture.height_px, config)
        sized = [how for bucket in buckets for how in crops(bucket, picture.name, config)]
        for clip, how in itertools.product(clips, sized):
            views: list[tuple[str, _Cut | None]] = []
            for flipped in (False, True) if config.flip else (False,):
                key = key_of(*made_from, clip, dataclasses.astuple(how), config.crop == "salient", flipped)
                stored = self._store.get(key)
                if not views and stored:
                    how = _as_stored(how, stored)
                elif not views and config.crop == "salient":
                    how = placed(opened(picture, clip), None, how, config)
                views.append((key, None if stored else _Cut(key, how, None, None, flipped=flipped)))
            out.append(_Crop(how, views, clip))
        return out

    def _guided(self, picture: Picture) -> tuple[bool, bool]:
        """Whether the clips of a film are shown their first frame, and their last one."""
        showing, config = self._encoder.showing, picture.data
        shown = self._encoder.guide is not None and showing is not None and showing.share(config) > 0
        return shown, shown and config.last_frame

    def _encoded(self, picture: Picture, cuts: _Views) -> list[Entry]:
        """The entries of one picture, crops of one bucket and clip together. A crop without any of the mask is left out; PictureError when none is left."""
        buckets: dict[tuple[tuple[int, int], Clip], list[tuple[Fit, tuple[str, ...]]]] = {}
        firsts: dict[tuple[tuple[int, int], Clip], Tensors] = {}
        refused = PictureError("picture.unusable")
        for how, views, clip in cuts:
            try:
                kept = [
                    self._store.get(key) if cut is None else self._kept(key, picture, cut, clip) for key, cut in views
                ]
            except PictureError as error:
                refused = error
                continue
            first = kept[0]
            assert first is not None
            firsts.setdefault((how.bucket, clip), first)
            buckets.setdefault((how.bucket, clip), []).append((how, tuple(key for key, _ in views)))
        if not buckets:
            raise refused
        has_mask = picture.data.masks == "alpha" or (picture.data.masks == "file" and picture.mask is not None)
        self.masked += any("mask" in t for t in firsts.values())
        self.unmasked += has_mask and not any("mask" in t or "no_alpha" in t for t in firsts.values())
        return [
            Entry(
                picture,
                tuple(f for f, _ in group),
                tuple(k for _, k in group),
                tuple(firsts[bucket]["latent"].shape[1:]),
                firsts[bucket]["pixels"].numpy().tobytes() + _shown_digest(firsts[bucket]),
            )
            for bucket, group in buckets.items()
        ]

    def _kept(self, key: str, picture: Picture, cut: _Cut, clip: Clip = ()) -> Tensors:
        with blamed("data.picture_failed", "data.folder", memory="data.picture_memory", name=picture.name):
            tensors = self._encode_clip(picture, cut, clip) if clip else self._encode(picture, cut)
        return self._store.put(key, tensors)

    def _encode_clip(self, picture: Picture, cut: _Cut, clip: Clip) -> Tensors:
        """Decoded, encoded and let go."""
        frames = pixels_of(picture, clip, cut.fit, cut.flipped)
        tensors: Tensors = {"crop": torch.tensor(cut.fit.crop), "pixels": _digest(frames)}
        pixels = torch.from_numpy(frames).float().div_(255.0)
        self._encode_pixels(picture, pixels, tensors)
        guided, last = self._guided(picture)
        if guided and len(clip) > 1:
            assert self._encoder.guide is not None
            tensors |= kept_of_clip([frames[0], *([frames[-1]] if last else [])], self._encoder.guide(pixels, last))
        _require_finite(picture, tensors)
        mask = mask_of(picture, clip, cut.fit, cut.flipped)
        if mask is not None and (weights := mask_on_latent(mask, tensors["latent"], len(clip))) is not None:
            tensors["mask"] = weights
        elif picture.data.masks == "alpha" and mask is None:
            tensors["no_alpha"] = torch.zeros(1)
        return tensors

    def _encode_pixels(self, picture: Picture, pixels: torch.Tensor, into: Tensors) -> None:
        """What the encoder makes of (1 or frames, H, W, 3), on the CPU."""
        encoder = self._encoder
        made: Tensors = {}
        if picture.data.latents == "sampled":
            if encoder.spread is None:
                raise LoomError("data.latents.no_spread", field="data.latents")
            made["latent"], made["spread"] = encoder.spread(pixels)
        else:
            made["latent"] = encoder.picture(pixels)
        if encoder.beside is not None:
            made["beside"] = encoder.beside(pixels)
        into |= {name: t.detach().float().cpu() if t.is_floating_point() else t for name, t in made.items()}

    def _encode_controls(self, cut: _Cut, into: Tensors) -> None:
        encoder = self._encoder
        assert encoder.shown is not None
        assert encoder.showing is not None
        shown = kept(cut.controls, encoder.showing, encoder.shown)
        into |= {name: t.detach().float().cpu() if t.is_floating_point() else t for name, t in shown.items()}

    def _encode(self, picture: Picture, cut: _Cut) -> Tensors:
        encoder = self._encoder
        assert cut.pixels is not None
        tensors: Tensors = {"crop": torch.tensor(cut.fit.crop), "pixels": _digest(cut.pixels)}
        if picture.is_latent:
            if encoder.wired is None:
                raise LoomError("base.no_wired_latents", name=picture.name)
            tensors["latent"] = encoder.wired(safetensors_load(cut.pixels.tobytes())["samples"]).detach().float().cpu()
        else:
            pixels = torch.from_numpy(cut.pixels.astype(np.float32) / 255.0)[None]
            self._encode_pixels(picture, pixels, tensors)
            if cut.input_masks:
                assert encoder.shown is not None
                tensors |= kept_masked(cut.pixels, cut.input_masks, encoder.shown)
            if cut.controls:
                self._encode_controls(cut, tensors)
        _require_finite(picture, tensors)
        if cut.mask is not None and (weights := on_latent(cut.mask, tensors["latent"])) is not None:
            tensors["mask"] = weights
        elif picture.data.masks == "alpha" and cut.mask is None:
            tensors["no_alpha"] = torch.zeros(1)
        return tensors


def _as_stored(how: Fit, stored: Tensors) -> Fit:
    """Cut where it was when it was encoded."""
    return dataclasses.replace(how, crop=(int(stored["crop"][0]), int(stored["crop"][1])))


def _require_finite(picture: Picture, tensors: Tensors) -> None:
    if not torch.isfinite(tensors["latent"]).all():
        raise LoomError("vae.not_finite", name=picture.name)


def require_shown(pictures: Sequence[Picture], showing: Showing | None) -> None:
    """Raises LoomError where what the sets show of their pictures is not what the model takes."""
    if not pictures:
        return
    filled, of_film = (showing.filled, showing.of_film) if showing is not None else (False, False)
    _require_frames(pictures, showing)
    if (showing is None or filled or of_film) and any(picture.controls for picture in pictures):
        raise LoomError("data.controls.not_taken", field="data.controls")
    needs_controls = showing is not None and showing.needed and not filled and not of_film
    if needs_controls and not any(picture.controls for picture in pictures):
        raise LoomError("data.controls.needed", field="data.controls", count=len(pictures))
    if filled and any(picture.data.input_mask == "none" for picture in pictures):
        raise LoomError("data.input_mask.needed", field="data.input_mask")
    if not filled and any(picture.data.input_mask != "none" for picture in pictures):
        raise LoomError("data.input_mask.not_taken", field="data.input_mask")


def _require_frames(pictures: Sequence[Picture], showing: Showing | None) -> None:
    """Raises LoomError where what the sets say of first and last frames is not what the model takes."""
    if showing is None or not showing.of_film:
        taken = False
    else:
        taken = showing.last
        asked = {picture.data.first_frame for picture in pictures}
        if showing.needed and not any(picture.moves for picture in pictures):
            raise LoomError("data.frames.needed", field="data.frames", count=len(pictures))
        if showing.needed and (less := sorted(asked - {AUTO, ALWAYS})):
            raise LoomError("data.first_frame.needed", field="data.first_frame", value=less[0])
    if not taken and any(picture.data.last_frame for picture in pictures):
        raise LoomError("data.last_frame.not_taken", field="data.last_frame")


def ahead(work: Callable[[Item], Done], items: Iterable[Item], threads: int = THREADS) -> Iterator[tuple[Item, Done]]:
    """(item, work(item)) in order, worked on by threads a little ahead, so memory does not grow with the number of items."""
    pool = concurrent.futures.ThreadPoolExecutor(threads, "lora-loom")
    waiting: deque[tuple[Item, concurrent.futures.Future]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cut(key: str, image: Image.Image, mask: Image.Image | None, how: Fit, flipped: bool) -> _Cut:
    parts = [apply(i, how) if i is not None else None for i in (image, mask)]
    if flipped:
        parts = [i.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i is not None else None for i in parts]
    return _Cut(key, how, np.asarray(parts[0]), parts[1], flipped=flipped)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PictureError("picture.unopened", reason=error.strerror) from error


def _digest(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(
        np.frombuffer(hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest(), np.uint8).copy()
    )


def _shown_digest(tensors: Tensors) -> bytes:
    return tensors[DIGEST].numpy().tobytes() if DIGEST in tensors else b""


def _whole(picture: Picture) -> Fit:
    """A latent from elsewhere is taken as it is."""
    size = (picture.width_px, picture.height_px)
    return Fit(size, size, (0, 0), size)
