"""Pictures of a run drawn with Pillow alone: the loss curve and labelled grids of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from .writing import cut, write

_INK, _FAINT, _RAW, _SMOOTH = (40, 40, 48), (224, 224, 230), (178, 200, 235), (30, 90, 200)
_TEXT_PX, _AXIS_PX, _TITLE_PX = 12, 13, 14
_LINES = (_SMOOTH, (200, 90, 30), (60, 150, 70), (140, 60, 170))


def smoothed(values: Sequence[float], decay: float = 0.97) -> list[float]:
    """Bias-corrected exponential average, as TensorBoard draws it."""
    out, average = [], 0.0
    for n, value in enumerate(values, 1):
        average = decay * average + (1 - decay) * value
        out.append(average / (1 - decay**n))
    return out


def loss_plot(losses: Sequence[float], width: int = 720, height: int = 360) -> Image.Image:
    """Raw and smoothed loss against the step, with axes."""
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = 62, 18, width - 16, height - 36
    ordered = sorted(losses)
    high = ordered[int(0.995 * (len(ordered) - 1))] * 1.05 or 1.0 if ordered else 1.0
    for n in range(5):
        y = bottom - (bottom - top) * n / 4
        pen.line([(left, y), (right, y)], fill=_FAINT)
        write(pen, (8, y - 8), f"{high * n / 4:.3g}", _INK, _AXIS_PX)
        write(pen, (left + (right - left) * n / 4 - 10, bottom + 8), str(round(len(losses) * n / 4)), _INK, _AXIS_PX)

    def place(values: Sequence[float]) -> list[tuple[float, float]]:
        span = max(1, len(values) - 1)
        return [
            (left + (right - left) * i / span, bottom - (bottom - top) * min(1.0, v / high))
            for i, v in enumerate(values)
        ]

    if len(losses) > 1:
        pen.line(place(losses), fill=_RAW)
        pen.line(place(smoothed(losses)), fill=_SMOOTH, width=3)
    write(pen, (right, top), "loss, smoothed in dark blue", _INK, _AXIS_PX, "ra")
    return image


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    mark: float | None = None,
    logarithmic: bool = False,
    width: int = 720,
    height: int = 360,
) -> Image.Image:
    """Named lines through (x, y) points on common axes; `mark` draws a vertical line at that x, `logarithmic` spreads x by its logarithm."""
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = 70, 18, width - 16, height - 36
    points = [p for line in series.values() for p in line if math.isfinite(p[1])]
    if not points:
        return image
    along = math.log10 if logarithmic else float
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in ([along(x) for x, _ in points], [y for _, y in points]))
    x1, room = x1 if x1 > x0 else x0 + 1, (y1 - y0) * 0.08 or abs(y1) * 0.1 or 1.0
    y0, y1 = y0 - room, y1 + room

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * (along(x) - x0) / (x1 - x0), bottom - (bottom - top) * (
            min(max(y, y0), y1) - y0
        ) / (y1 - y0)

    for n in range(5):
        y = bottom - (bottom - top) * n / 4
        pen.line([(left, y), (right, y)], fill=_FAINT)
        write(pen, (6, y - 8), f"{y0 + (y1 - y0) * n / 4:.3g}", _INK, _AXIS_PX)
        at = x0 + (x1 - x0) * n / 4
        number, anchor = f"{10**at:.1e}" if logarithmic else f"{at:.0f}", {0: "la", 4: "ra"}.get(n, "ma")
        write(pen, (left + (right - left) * n / 4, bottom + 8), number, _INK, _AXIS_PX, anchor)
    if mark is not None:
        x, _ = place(mark, y0)
        pen.line([(x, top), (x, bottom)], fill=_INK)
    for n, (name, line) in enumerate(series.items()):
        color = _LINES[n % len(_LINES)]
        drawn = [place(x, y) for x, y in line if math.isfinite(y)]
        if len(drawn) > 1:
            pen.line(drawn, fill=color, width=3)
        for x, y in drawn:
            pen.ellipse([(x - 3, y - 3), (x + 3, y + 3)], fill=color)
        write(pen, (right, top + 18 * n), name, color, _AXIS_PX, "ra")
    return image


def bars(rows: Sequence[tuple[str, float]], title: str, width: int = 640) -> Image.Image:
    """A horizontal bar for each (label, value), longest at the full width, with the value written behind it."""
    line, left, top = 18, 170, 34
    image = Image.new("RGB", (width, top + line * len(rows) + 10), "white")
    pen = ImageDraw.Draw(image)
    write(pen, (10, 8), title, _INK, _TITLE_PX)
    longest = max((value for _, value in rows), default=0.0) or 1.0
    for n, (label, value) in enumerate(rows):
        y = top + line * n
        write(pen, (left - 8, y + 1), label[-26:], _INK, _TEXT_PX, "ra")
        end = left + (width - left - 80) * value / longest
        pen.rectangle([(left, y + 2), (max(left + 1, end), y + line - 4)], fill=_SMOOTH)
        write(pen, (end + 6, y + 1), f"{value:.3g}", _INK, _TEXT_PX)
    return image


SHEET_MARGIN_PX = 6  # around each picture of a grid


def grid(
    images: Sequence[Image.Image], labels: Sequence[str] = (), columns: int = 0, cell_px: int = 192
) -> Image.Image:
    """Pictures in rows on white, each fitted into a square cell with its label (cut to fit) underneath."""
    columns = columns or min(8, max(1, math.ceil(math.sqrt(len(images)))))
    rows = math.ceil(len(images) / columns)
    caption_px, pad = 20 if labels else 0, SHEET_MARGIN_PX
    sheet = Image.new("RGB", (columns * (cell_px + pad) + pad, rows * (cell_px + caption_px + pad) + pad), "white")
    pen = ImageDraw.Draw(sheet)
    for n, image in enumerate(images):
        x, y = pad + n % columns * (cell_px + pad), pad + n // columns * (cell_px + caption_px + pad)
        scale = cell_px / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(size, Image.Resampling.NEAREST if scale > 1.5 else Image.Resampling.LANCZOS)
        sheet.paste(small, (x + (cell_px - size[0]) // 2, y + (cell_px - size[1]) // 2))
        if labels:
            write(pen, (x, y + cell_px + 3), cut(labels[n], _TEXT_PX, cell_px), _INK, _TEXT_PX)
    return sheet
