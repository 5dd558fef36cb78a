"""The dataset on one picture: thumbnails as they will be cut, and under each what was noticed: red stops, orange is to look at, grey is the rest."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..messages.message import Names, as_in_a_job
from ..pictures import writing
from ..pictures.thumbnails import thumbnail, with_controls
from .buckets import Fit
from .lint import Report, Seen, flagged_first
from .looks import LOOK, NOTE, STOP, severity

CELL_PX, PAD_PX, LINE_PX = 200, 10, 15
MOST_LINES = 5
_HEAD_PX, _TEXT_PX = 14, 12
_INK, _RED, _FAINT = (40, 40, 48), (200, 30, 30), (235, 235, 240)
COLOURS = {STOP: _RED, LOOK: (176, 96, 0), NOTE: (96, 100, 112)}


def sheet(report: Report, columns: int = 6, most: int = 60, names: Names = as_in_a_job) -> Image.Image:
    """At most `most` pictures, those with notes first; what the crop takes off is veiled in red. `names`: of settings, where notes speak of them."""
    pictures = flagged_first(report, most)
    columns = min(columns, max(1, len(pictures)))
    width = max(columns * (CELL_PX + PAD_PX) + PAD_PX, 640)
    heads = [
        (report.counts().text(names=names), _INK),
        *((message.text(names=names), COLOURS[severity(message)]) for message in report.general),
    ]
    head = [(line, ink) for text, ink in heads for line in wrapped(text, _HEAD_PX, width - 2 * PAD_PX)]
    top = PAD_PX + (LINE_PX + 4) * len(head) + PAD_PX
    notes = {
        p.name: [
            (line, COLOURS[severity(note)])
            for note in report.notes.get(p.name, [])
            for line in wrapped(note.text(names=names), _TEXT_PX, CELL_PX)
        ][:MOST_LINES]
        for p in pictures
    }
    rows = [pictures[n : n + columns] for n in range(0, len(pictures), columns)]
    heights = [CELL_PX + 2 * LINE_PX + LINE_PX * max(len(notes[p.name]) for p in row) + PAD_PX for row in rows]
    out = Image.new("RGB", (width, top + sum(heights)), "white")
    pen = ImageDraw.Draw(out)
    for n, (line, ink) in enumerate(head):
        writing.write(pen, (PAD_PX, PAD_PX + n * (LINE_PX + 4)), line, ink, _HEAD_PX)
    y = top
    for row, height in zip(rows, heights, strict=True):
        for n, picture in enumerate(row):
            x = PAD_PX + n * (CELL_PX + PAD_PX)
            pen.rectangle([x, y, x + CELL_PX - 1, y + CELL_PX - 1], fill=_FAINT)
            seen = report.seen[picture.name]
            thumb = veiled(thumbnail(picture.path, CELL_PX, picture.data.background), seen)
            thumb = with_controls(thumb, picture.controls, picture.data.background)
            out.paste(thumb, (x + (CELL_PX - thumb.width) // 2, y + (CELL_PX - thumb.height) // 2))
            lines = [
                (writing.cut(picture.name, _TEXT_PX, CELL_PX), _INK),
                (writing.cut(picture.caption or "(no caption)", _TEXT_PX, CELL_PX), (110, 110, 120)),
            ]
            for k, (text, colour) in enumerate([*lines, *notes[picture.name]]):
                writing.write(pen, (x, y + CELL_PX + 2 + k * LINE_PX), text, colour, _TEXT_PX)
        y += height
    return out


def veiled(image: Image.Image, seen: Seen) -> Image.Image:
    """The thumbnail with what is cut off under red."""
    left, top, right, bottom = kept(seen.fit, image.size)
    veil = Image.new("L", image.size, 150)
    veil.paste(0, (left, top, right, bottom))
    image.paste(Image.new("RGB", image.size, (220, 60, 60)), (0, 0), veil)
    if (left, top, right, bottom) != (0, 0, *image.size):
        ImageDraw.Draw(image).rectangle([left, top, right - 1, bottom - 1], outline=_RED)
    return image


def kept(fit: Fit, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is trained, on a picture shown at `size`; a loss below a pixel is none."""
    across, down = size[0] / fit.scaled[0], size[1] / fit.scaled[1]
    left, top = round(fit.crop[0] * across), round(fit.crop[1] * down)
    return (
        left,
        top,
        min(size[0], left + round(fit.bucket[0] * across)),
        min(size[1], top + round(fit.bucket[1] * down)),
    )


def wrapped(text: str, size_px: int, width: int) -> Sequence[str]:
    """The text in lines that fit; a word too long for a line is cut, except in scripts that write no spaces, which are broken anywhere."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and writing.length(longer, size_px) <= width:
            lines[-1] = longer
        else:
            lines += _broken(word, size_px, width)
    return lines


def _broken(word: str, size_px: int, width: int) -> list[str]:
    """One word in lines: cut in one, where its script has spaces."""
    if writing.length(word, size_px) <= width or not any(letter >= "\u2e80" for letter in word):
        return [writing.cut(word, size_px, width)]
    lines = [""]
    for letter in word:
        if lines[-1] and writing.length(lines[-1] + letter, size_px) > width:
            lines.append("")
        lines[-1] += letter
    return lines
