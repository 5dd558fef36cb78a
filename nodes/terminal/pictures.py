"""Sample pictures in the terminal itself, where it can show them: kitty's, iTerm's and DEC's (sixel) ways, which most terminals of today know one of."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ...lora_core.events import Listener
from ...lora_core.messages.message import Message

HEIGHT_PX = 192  # of a row of samples: what is smaller is enlarged by whole numbers, what is larger reduced
WIDEST_PX = 1200
COLORS = 256  # of a sixel picture
BAND_PX = 6  # rows of pixels that one line of sixels holds
CHUNK = 4096  # bytes of base64 that kitty takes at once
# Variables by which a terminal tells what it is, with what they hold ("" for anything), and the way it knows.
TELLS = (
    ("KITTY_WINDOW_ID", "", "kitty"),
    ("TERM", "xterm-kitty", "kitty"),
    ("TERM", "xterm-ghostty", "kitty"),
    ("TERM_PROGRAM", "ghostty", "kitty"),
    ("TERM_PROGRAM", "iTerm.app", "iterm"),
    ("LC_TERMINAL", "iTerm2", "iterm"),
    ("TERM_PROGRAM", "WezTerm", "iterm"),
    ("TERM_PROGRAM", "mintty", "iterm"),
    ("TERM", "foot", "sixel"),
    ("TERM", "mlterm", "sixel"),
    ("TERM", "yaft-256color", "sixel"),
)
HIDDEN_BY = ("TMUX", "STY")  # tmux and screen stand between and pass none of it on


def known_way(environment: Mapping[str, str], is_terminal: bool) -> str:
    """How the terminal shows pictures, by its variables: a key of WAYS, or "" where it does not tell."""
    if not is_terminal or any(environment.get(name) for name in HIDDEN_BY):
        return ""
    for name, value, way in TELLS:
        marker = environment.get(name, "")
        if marker and value in ("", marker):
            return way
    return ""


def chosen_way(choice: str) -> str:
    """`--pictures` as a key of WAYS or ""; auto looks at the terminal."""
    if choice == "auto":
        return known_way(os.environ, sys.stderr.isatty())
    return "" if choice == "none" else choice


def in_a_row(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, of one height, as many as are wide enough to be looked at."""
    row: list[Image.Image] = []
    for image in images:
        times = HEIGHT_PX // image.height
        sharp = Image.Resampling.NEAREST if times > 1 else Image.Resampling.LANCZOS
        height = image.height * times if times else HEIGHT_PX
        small = image.convert("RGB").resize((max(1, round(image.width * height / image.height)), height), sharp)
        if row and sum(one.width + 4 for one in row) + small.width > WIDEST_PX:
            break
        row.append(small)
    strip = Image.new("RGB", (sum(one.width + 4 for one in row) - 4, max(one.height for one in row)), "white")
    left = 0
    for one in row:
        strip.paste(one, (left, 0))
        left += one.width + 4
    return strip


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def as_kitty(image: Image.Image) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol: a PNG in chunks, drawn where the cursor stands."""
    text = base64.b64encode(_png(image)).decode()
    parts = [text[n : n + CHUNK] for n in range(0, len(text), CHUNK)]
    last = len(parts) - 1
    heads = [f"{'a=T,f=100,q=2,' if n == 0 else ''}m={int(n < last)}" for n in range(len(parts))]
    return "".join(f"\x1b_G{head};{part}\x1b\\" for head, part in zip(heads, parts))


def as_iterm(image: Image.Image) -> str:
    """https://iterm2.com/documentation-images.html: a file small inline at its own size."""
    data = _png(image)
    text = base64.b64encode(data).decode()
    return f"\x1b]1337;File=inline=1;size={len(data)};width={image.width}px;height={image.height}px:{text}\x07"


def as_sixel(image: Image.Image) -> str:
    """DEC's sixels (VT340): for each band of six rows, each colour's pixels as one line over the last."""
    few = image.convert("RGB").quantize(COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = few.getpalette() or []
    used = sorted(set(few.tobytes()))
    colors = "".join(
        f"#{n};2;" + ";".join(str(round(value / 255 * 100)) for value in palette[3 * n : 3 * n + 3]) for n in used
    )
    rows = [few.tobytes()[y * few.width : (y + 1) * few.width] for y in range(few.height)]
    bands = [_band(rows[top : top + BAND_PX]) for top in range(0, few.height, BAND_PX)]
    return f'\x1bPq"1;1;{few.width};{few.height}{colors}{"-".join(bands)}\x1b\\'


def _band(rows: Sequence[bytes]) -> str:
    return "$".join(f"#{color}{_line(rows, color)}" for color in sorted(set(b"".join(rows))))


def _line(rows: Sequence[bytes], color: int) -> str:
    """The band's pixels of one colour, equal ones counted."""
    bits = [sum((row[x] == color) << n for n, row in enumerate(rows)) for x in range(len(rows[0]))]
    out, start = [], 0
    for x in range(1, len(bits) + 1):
        if x == len(bits) or bits[x] != bits[start]:
            count, letter = x - start, chr(63 + bits[start])
            out.append(letter * count if count < 4 else f"!{count}{letter}")
            start = x
    return "".join(out)


WAYS: dict[str, Callable[[Image.Image], str]] = {"kitty": as_kitty, "iterm": as_iterm, "sixel": as_sixel}
CHOICES = ("auto", *WAYS, "none")


class Shown(Listener):
    """Samples in the terminal, above the progress bar; where it shows none, a line with their file."""

    def __init__(self, way: str) -> None:
        self._way = way

    def on_sample(self, step: int, images: list[Image.Image], path: Path) -> None:
        line = str(Message.of("terminal.samples", step=step, path=path))
        picture = f"\n{WAYS[self._way](in_a_row(images))}" if self._way and images else ""
        tqdm.write(line + picture, file=sys.stderr)
