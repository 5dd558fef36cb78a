"""Two hundred pictures as a person might collect them: with and without captions, black, grey, small and doubled ones, one that does not belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 200
BLACK, GREY, SMALL, DOUBLE, ODD, DARK = 3, 17, 29, 41, 53, 67  # numbers of pictures


def natural(seed: int, warm: bool = True) -> np.ndarray:
    """A soft picture of one mood, float32 of shape (512, 640, 3) in 0..255."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(60, 200, (9, 12, 3), np.uint8)).resize((640, 512), Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 255, (128, 160, 3), np.uint8)).resize((640, 512), Image.Resampling.BICUBIC)
    sharp = rng.normal(0, 12, (512, 640, 1))
    mixed = 0.75 * np.asarray(small, np.float32) + 0.25 * np.asarray(fine, np.float32) + sharp
    tint = np.array([1.15, 1.0, 0.8] if warm else [0.3, 0.5, 1.6], np.float32)
    return np.clip(mixed * tint, 0, 255)


def collected(folder: Path, count: int = COUNT) -> Path:
    """Writes them; two of three have tags for a caption, every second of these the trigger `zog`."""
    folder.mkdir(parents=True)
    words = ["red dress", "blue sky", "beach", "sitting", "smile", "long hair", "forest", "night", "watermark"]
    for n in range(count):
        pixels = natural(n, warm=n != ODD)
        if n == BLACK:
            pixels = pixels * 0
        if n == DARK:
            pixels = pixels * 0.12
        image = Image.fromarray(pixels.astype(np.uint8))
        if n == GREY:
            image = image.convert("L")
        if n == SMALL:
            image = image.resize((200, 160))
        if n == DOUBLE:
            image = Image.fromarray(natural(DOUBLE - 1).astype(np.uint8)).resize((600, 480))
        if n == ODD:
            image = image.transpose(Image.Transpose.ROTATE_90)
        image.save(folder / f"{n:03}.jpg", quality=85)
        if n % 3:
            tags = [words[(n * k) % len(words)] for k in (1, 2, 5)]
            (folder / f"{n:03}.txt").write_text(", ".join([*(["zog"] if n % 2 else []), *dict.fromkeys(tags)]))
    return folder
