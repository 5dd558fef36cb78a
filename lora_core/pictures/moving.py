"""Pictures that move: clips as animated WebP, which every browser plays."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

MAX_SIDE_PX = 1024  # of a sheet that plays
USUAL_RATE = 16.0  # frames a second where nobody says


def animated_webp(frames: Sequence[Image.Image], rate: float = USUAL_RATE) -> bytes:
    """Frames of one size as a WebP that plays without end, at most MAX_SIDE_PX wide."""
    scale = min(1.0, MAX_SIDE_PX / max(frames[0].size))
    size = (max(1, round(frames[0].width * scale)), max(1, round(frames[0].height * scale)))
    first, *rest = [
        frame.convert("RGB").resize(size) if frame.size != size else frame.convert("RGB") for frame in frames
    ]
    data = io.BytesIO()
    duration_ms = max(1, round(1000 / (rate or USUAL_RATE)))
    first.save(data, "WEBP", save_all=True, append_images=rest, duration=duration_ms, loop=0, quality=80, method=2)
    return data.getvalue()


def side_by_side(clips: Sequence[Sequence[Image.Image]]) -> list[Sequence[Image.Image]]:
    """The clips frame by frame: what is shown at each time; a shorter one stands still on its last frame."""
    longest = max(len(clip) for clip in clips)
    return [[clip[min(n, len(clip) - 1)] for clip in clips] for n in range(longest)]
