"""Films opened a frame at a time: what a file promises, and the frames that are asked for, upright and in 8-bit RGB. Sound is never read.

Films go through PyAV, which ComfyUI brings and `lora-loom[films]` installs; moving GIF, WebP, PNG and AVIF, and folders of frames, through Pillow.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import compat
from ..messages.blame import first_line
from ..messages.errors import LoomError
from .reading import EXTENSIONS, FILMS, MAX_PIXELS, PictureError, animation, open_picture, open_rgb, read_header

MAX_FRAMES = 30_000  # of a film: twenty minutes at 25 a second
LONG_S = 10.0  # films longer than this are cut where the scene changes
SCENE_SIDE = 32  # of the small grey frames that are compared for it
SCENE_RATIO = 3.0  # how much more a cut changes than the frames around it do
_CLOSE_S = 1e-4  # two times closer than this are one
_STILL_S = 0.1  # how long a frame is shown that does not say
_NUMBER = re.compile(r"(\d+)")


@dataclasses.dataclass(frozen=True)
class Film:
    """A film as its file says: size as shown in px, when each frame is shown in s from 0 on, whether there is sound.

    `paced`: whether the times mean anything; a folder of frames has none. `first_stamp`: the first
    frame's time in the file's own units; None where frames are counted because the file does not say.
    """

    width_px: int
    height_px: int
    times_s: tuple[float, ...]
    sound: bool = False
    paced: bool = True
    first_stamp: int | None = 0

    @property
    def rate(self) -> float:
        """Frames a second; 0 where it is unknown."""
        before_s = self.times_s[-1] - self.times_s[0]
        return (len(self.times_s) - 1) / before_s if self.paced and before_s > 0 else 0.0

    @property
    def seconds(self) -> float:
        """From the first frame to the last; 0 for a folder of frames."""
        return self.times_s[-1] if self.paced else 0.0

    def at_rate(self, rate: float) -> tuple[int, ...]:
        """Numbers of the frames that are shown every 1/rate s; all of them at rate 0, or where times mean nothing."""
        if not rate or not self.paced:
            return tuple(range(len(self.times_s)))
        steps = int((self.times_s[-1] + _CLOSE_S) * rate) + 1
        return tuple(bisect.bisect_right(self.times_s, n / rate + _CLOSE_S) - 1 for n in range(min(steps, MAX_FRAMES)))


def is_frame_folder(path: Path) -> bool:
    """Whether a folder may be read as a clip: nothing but pictures lies in it, two at least."""
    try:
        return path.is_dir() and len(frame_files(path)) > 1
    except OSError:
        return False


def frame_files(folder: Path) -> list[Path]:
    """The frames of a folder in the order of the numbers in their names."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in EXTENSIONS and not f.name.startswith(".")]
    return sorted(files, key=lambda f: [int(p) if p.isdigit() else p.casefold() for p in _NUMBER.split(f.name)])


def read_film(path: Path) -> Film:
    """What a film, a moving picture or a folder of frames holds. Raises PictureError."""
    try:
        facts = os.stat(path)
        return _read(path, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise PictureError("picture.unopened", reason=error.strerror) from error


def frames_of(path: Path, film: Film, numbers: Sequence[int], background: str = "white") -> Iterator[Image.Image]:
    """The frames of these numbers, which do not fall, one at a time. Raises PictureError where the film is broken."""
    if path.is_dir():
        return _of_folder(path, film, numbers, background)
    return _of_film(path, film, numbers) if _is_film(path) else _of_animation(path, numbers, background)


def opacity_of(path: Path, numbers: Sequence[int]) -> Iterator[Image.Image | None]:
    """The opacity of the same frames as 8-bit grey; None for one without any."""
    if path.is_dir():
        files = frame_files(path)
        yield from (open_picture(files[n]).alpha for n in numbers)
    elif _is_film(path):
        yield from (None for _ in numbers)
    else:
        with animation(path) as image:
            for n in numbers:
                image.seek(n)
                has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
                yield image.convert("RGBA").getchannel("A") if has_alpha else None


def first_frame(path: Path, background: str = "white") -> Image.Image:
    """Raises PictureError."""
    return next(frames_of(path, read_film(path), [0], background))


def scenes(path: Path, film: Film, change: float) -> tuple[int, ...]:
    """Numbers of the frames before which the scene changes; none in a film of at most LONG_S, or for `change` 0.

    It changes where two frames, made small and grey, differ by more than `change` (0 to 1, on average), and by SCENE_RATIO times what the frames
    around them do. Raises PictureError.
    """
    if not change or film.seconds <= LONG_S:
        return ()
    facts = os.stat(path)
    return _scenes(path, facts.st_size, facts.st_mtime_ns, change)


@functools.lru_cache(maxsize=256)
def _scenes(path: Path, size: int, changed_ns: int, change: float) -> tuple[int, ...]:
    film = _read(path, size, changed_ns)
    differences, before = [0.0], None
    for frame in frames_of(path, film, range(len(film.times_s))):
        small = frame.convert("L").resize((SCENE_SIDE, SCENE_SIDE), Image.Resampling.BOX)
        grey = np.asarray(small, np.float32) / 255.0
        if before is not None:
            differences.append(float(np.abs(grey - before).mean()))
        before = grey
    padded = [0.0, *differences, 0.0]
    around = [max(padded[n], padded[n + 2]) for n in range(len(differences))]
    pairs = enumerate(zip(differences, around, strict=True))
    return tuple(n for n, (change_here, beside) in pairs if change_here > change and change_here > SCENE_RATIO * beside)


@functools.lru_cache(maxsize=256)
def _read(path: Path, size: int, changed_ns: int) -> Film:
    """`size` and `changed_ns` are part of the name under which it is remembered."""
    if path.is_dir():
        film = _folder(path)
    else:
        film = _film(path) if _is_film(path) else _animation(path)
    if not film.times_s:
        raise PictureError("film.empty")
    if len(film.times_s) > MAX_FRAMES:
        raise PictureError("film.long", limit=MAX_FRAMES)
    if film.width_px * film.height_px > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise PictureError("picture.large", width=film.width_px, height=film.height_px, limit=limit)
    return film


def _is_film(path: Path) -> bool:
    return path.suffix.lower() in FILMS


# ---- films -----------------------------------------------------------------------------------------------------------


def _av() -> Any:
    try:
        return compat.needed("av")
    except LoomError as error:
        raise PictureError("film.needs_av") from error


class _Opened:
    """A film file with its picture stream. Raises PictureError for a file without one, and for whatever PyAV says inside the block."""

    def __init__(self, path: Path):
        self._path, self._av = path, _av()

    def __enter__(self) -> tuple[Any, Any]:
        try:
            self._container = self._av.open(str(self._path))
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise PictureError("film.unreadable", reason=first_line(error)) from error
        streams = [s for s in self._container.streams.video if not _is_cover(s)]
        if not streams:
            self._container.close()
            raise PictureError("film.no_pictures")
        streams[0].thread_type = "AUTO"
        return self._container, streams[0]

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._container.close()
        if isinstance(error, self._av.FFmpegError | ValueError | OSError) and not isinstance(error, PictureError):
            raise PictureError("film.unreadable", reason=first_line(error)) from error


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the picture on the box, as music has it."""
    disposition = getattr(stream, "disposition", 0)
    return bool(int(disposition) & 0x400) if disposition is not None else False


def _film(path: Path) -> Film:
    with _Opened(path) as (container, stream):
        sound = bool(container.streams.audio)
        stamps = []
        for packet in itertools.islice(container.demux(stream), MAX_FRAMES + 2):
            if packet.size and not getattr(packet, "is_discard", False):
                stamps.append(packet.pts)
    if not stamps:
        raise PictureError("film.empty")
    with _Opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise PictureError("film.empty")
        turned = int(getattr(first, "rotation", 0) or 0) % 180 == 90
        width, height = (first.height, first.width) if turned else (first.width, first.height)
        known = sorted({stamp for stamp in stamps if stamp is not None})
        if len(known) == len(stamps):
            times = tuple(float((stamp - known[0]) * stream.time_base) for stamp in known)
            return Film(width, height, times, sound, first_stamp=known[0])
        rate = float(stream.average_rate or stream.guessed_rate or 24)
        return Film(width, height, tuple(n / rate for n in range(len(stamps))), sound, first_stamp=None)


def _of_film(path: Path, film: Film, numbers: Sequence[int]) -> Iterator[Image.Image]:
    """The frame shown at each time. A seek that ends too late is done again from the beginning."""
    times_s = [film.times_s[n] for n in numbers]
    for seeks in (True, False) if film.first_stamp is not None and times_s[0] > 0 else (False,):
        count = 0
        with _Opened(path) as (container, stream):
            for frame in _shown(_timed(container, stream, film, times_s[0] if seeks else 0.0), times_s):
                count += 1
                yield frame
        if count == len(times_s):
            return
        if count:
            break
    raise PictureError("film.broken_off", frame=numbers[count] + 1, frames=len(film.times_s))


def _timed(container: Any, stream: Any, film: Film, from_s: float) -> Iterator[tuple[float, Any]]:
    """(seconds from the first frame on, frame) from a frame that is shown before `from_s`, as far as the file lets itself be searched."""
    base, start = float(stream.time_base), film.first_stamp
    if from_s > 0 and start is not None:
        container.seek(start + int(max(0.0, from_s - _CLOSE_S) / base), stream=stream, backward=True)
    for n, frame in enumerate(container.decode(stream)):
        if start is not None and frame.pts is not None:
            yield (frame.pts - start) * base, frame
        elif n < len(film.times_s):
            yield film.times_s[n], frame


def _shown(frames: Iterator[tuple[float, Any]], times_s: Sequence[float]) -> Iterator[Image.Image]:
    """The frame that is shown at each time; nothing where the frames begin after the first time that is wanted."""
    frame_before, before_s, image, at = None, 0.0, None, 0
    for time_s, frame in frames:
        if frame_before is None and time_s > times_s[0] + _CLOSE_S:
            return
        while at < len(times_s) and time_s > times_s[at] + _CLOSE_S:
            image = image or _upright(frame_before)
            yield image
            at += 1
        if at == len(times_s):
            return
        frame_before, before_s, image = frame, time_s, None
    while frame_before is not None and at < len(times_s) and times_s[at] < before_s + _CLOSE_S:
        image = image or _upright(frame_before)
        yield image
        at += 1


def _upright(frame: Any) -> Image.Image:
    pixels = frame.to_ndarray(format="rgb24")
    quarters = round(int(getattr(frame, "rotation", 0) or 0) / 90)
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels)


# ---- moving pictures and folders of frames ---------------------------------------------------------------------------


def _animation(path: Path) -> Film:
    times, now = [], 0.0
    with animation(path) as image:
        for n in itertools.islice(itertools.count(), min(getattr(image, "n_frames", 1), MAX_FRAMES + 1)):
            image.seek(n)
            image.load()  # some formats tell how long a frame is shown once it is decoded
            times.append(now)
            now += float(image.info.get("duration") or 0) / 1000 or _STILL_S
        width, height = image.size
    return Film(width, height, tuple(times))


def _of_animation(path: Path, numbers: Sequence[int], background: str) -> Iterator[Image.Image]:
    with animation(path) as image:
        for n in numbers:
            image.seek(n)
            frame = image.convert("RGBA")
            ground = Image.new("RGBA", frame.size, background)
            yield Image.alpha_composite(ground, frame).convert("RGB")


def _folder(path: Path) -> Film:
    files = frame_files(path)
    if not files:
        raise PictureError("film.empty")
    if len(files) > MAX_FRAMES:
        raise PictureError("film.long", limit=MAX_FRAMES)
    header = read_header(files[0])
    return Film(header.width_px, header.height_px, tuple(map(float, range(len(files)))), paced=False)


def _of_folder(path: Path, film: Film, numbers: Sequence[int], background: str) -> Iterator[Image.Image]:
    files = frame_files(path)
    if len(files) != len(film.times_s):
        raise PictureError("picture.changed")
    for n in numbers:
        try:
            frame = open_rgb(files[n], background)
        except PictureError as error:
            raise PictureError("film.frame", frame=files[n].name, reason=error) from error
        if frame.size != (film.width_px, film.height_px):
            raise PictureError("film.frame_size", frame=files[n].name, width=frame.width, height=frame.height)
        yield frame
