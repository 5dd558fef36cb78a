"""The dataset on one picture: thumbnails as they will be cut, and under each in red what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..compat import font as font_of
from ..pictures.reading import thumbnail
from .buckets import Fit
from .lint import Report, Seen, flagged_first

CELL_PX, PAD_PX, LINE_PX = 200, 10, 15
MOST_LINES = 5
_INK, _RED, _FAINT = (40, 40, 48), (200, 30, 30), (235, 235, 240)


def sheet(report: Report, columns: int = 6, most: int = 60) -> Image.Image:
    """At most `most` pictures, those with notes first; what the crop takes off is veiled in red."""
    pictures = flagged_first(report, most)
    font, small = font_of(14), font_of(12)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    columns = min(columns, max(1, len(pictures)))
    width = max(columns * (CELL_PX + PAD_PX) + PAD_PX, 640)
    head = [
        line
        for message in [report.dataset.messages()[0], *report.general]
        for line in wrapped(str(message), pen, font, width - 2 * PAD_PX)
    ]
    top = PAD_PX + (LINE_PX + 4) * len(head) + PAD_PX
    notes = {
        p.name: [line for note in report.notes.get(p.name, []) for line in wrapped(str(note), pen, small, CELL_PX)][
            :MOST_LINES
        ]
        for p in pictures
    }
    rows = [pictures[n : n + columns] for n in range(0, len(pictures), columns)]
    heights = [CELL_PX + 2 * LINE_PX + LINE_PX * max(len(notes[p.name]) for p in row) + PAD_PX for row in rows]
    out = Image.new("RGB", (width, top + sum(heights)), "white")
    pen = ImageDraw.Draw(out)
    for n, line in enumerate(head):
        pen.text((PAD_PX, PAD_PX + n * (LINE_PX + 4)), line, fill=_INK if not n else _RED, font=font)
    y = top
    for row, height in zip(rows, heights, strict=True):
        for n, picture in enumerate(row):
            x = PAD_PX + n * (CELL_PX + PAD_PX)
            pen.rectangle([x, y, x + CELL_PX - 1, y + CELL_PX - 1], fill=_FAINT)
            seen = report.seen[picture.name]
            thumb = veiled(thumbnail(picture.path, CELL_PX, picture.data.background), seen)
            out.paste(thumb, (x + (CELL_PX - thumb.width) // 2, y + (CELL_PX - thumb.height) // 2))
            lines = [
                (_cut(picture.name, pen, small), _INK),
                (_cut(picture.caption or "(no caption)", pen, small), (110, 110, 120)),
            ]
            for k, (text, colour) in enumerate([*lines, *((note, _RED) for note in notes[picture.name])]):
                pen.text((x, y + CELL_PX + 2 + k * LINE_PX), text, fill=colour, font=small)
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


def wrapped(
    text: str, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> Sequence[str]:
    """The text in lines that fit; a word too long for a line is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and pen.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(_cut(word, pen, font, width))
    return lines


def _cut(
    text: str, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int = CELL_PX
) -> str:
    text = text[:200]
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(f"{text}...", font=font) > width:
        text = text[:-2]
    return f"{text}..."
