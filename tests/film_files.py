"""Films made for tests: what they show is known from their frames' brightness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

STEP = 6  # of brightness from frame to frame


def av() -> Any:
    """PyAV. Skips the test where it is not installed."""
    return pytest.importorskip("av", reason="films need PyAV (pip install av)")


def frame(value: int, width: int, height: int) -> np.ndarray:
    """Grey, with a bright bar that tells left from right."""
    pixels = np.full((height, width, 3), value, np.uint8)
    pixels[:, : width // 8] = 255
    return pixels


def write_film(
    path: Path,
    values: Sequence[int],
    size: tuple[int, int] = (96, 64),
    rate: int = 24,
    codec: str = "",
    sound: bool = False,
) -> Path:
    """A film whose frames have these brightnesses, by default h264, in .webm VP9."""
    library = av()
    with library.open(str(path), "w") as container:
        stream = container.add_stream(codec or ("libvpx-vp9" if path.suffix == ".webm" else "h264"), rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        voice = container.add_stream("aac", rate=8000) if sound else None
        for value in values:
            pixels = library.VideoFrame.from_ndarray(frame(value, *size), format="rgb24")
            for packet in stream.encode(pixels):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
        if voice is not None:
            _mux_silence(library, container, voice)
    return path


def _mux_silence(library: Any, container: Any, voice: Any) -> None:
    silence = library.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    silence.sample_rate = 8000
    for packet in [*voice.encode(silence), *voice.encode()]:
        container.mux(packet)


def rising(count: int) -> list[int]:
    return [n * STEP % 240 for n in range(count)]


def write_gif(path: Path, values: Sequence[int], size: tuple[int, int] = (96, 64)) -> Path:
    """Also animated WebP, by the name."""
    frames = [Image.fromarray(frame(value, *size)) for value in values]
    extra = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, **extra)
    return path


def write_frames(folder: Path, values: Sequence[int], size: tuple[int, int] = (96, 64)) -> Path:
    folder.mkdir(parents=True)
    for n, value in enumerate(values):
        Image.fromarray(frame(value, *size)).save(folder / f"{n}.png")
    return folder
