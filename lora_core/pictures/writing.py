"""Text of any script on pictures: each letter from the first font that has it, of those that come with the package and then of the system's.

What no font has is written as its code point. Right-to-left runs are laid out by Pillow's raqm, or turned round where Pillow has none.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageDraw, ImageFont, features

Colour = str | tuple[int, ...]
_SHIPPED = ("latin", "cjk", "arabic", "hebrew", "devanagari", "thai", "bengali", "tamil", "emoji")  # as they are asked
_FOLDER = Path(__file__).parent / "fonts"
_JOINERS = frozenset({0x200C, 0x200D, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)})  # shape the letter before them
_PICTURES = 0x1F000  # letters from here on are asked of the emoji font first
_MOST_SYSTEM_FONTS, _MOST_FONT_BYTES = 600, 1 << 26
_FONT_FILES = (".ttf", ".otf", ".ttc")


def length(text: str, size_px: int) -> float:
    """Width of one line in px."""
    return sum(_width(font, run, size_px) for font, run in runs(text))


def write(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: Colour, size_px: int, anchor: str = "la"
) -> None:
    """Writes one line. `anchor`: "la" with `place` at its upper left, "ma" in the middle above, "ra" at its upper right."""
    x, y = place
    baseline = y + _loaded(_FOLDER / "latin.ttf", size_px).getmetrics()[0] - size_px // 8  # Noto's lines are high
    x -= length(text, size_px) * {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]]
    for font, run in runs(text):
        pen.text((x, baseline), _laid_out(run), fill=fill, font=_loaded(font, size_px), anchor="ls")
        x += _width(font, run, size_px)


def cut(text: str, size_px: int, width_px: float) -> str:
    """The text, with dots in place of its end where it is wider."""
    text = text[:200]
    if length(text, size_px) <= width_px:
        return text
    while text and length(f"{text}...", size_px) > width_px:
        text = text[:-2]
    return f"{text}..."


def runs(text: str) -> list[tuple[Path, str]]:
    """(font, letters) of one line from left to right; marks and joiners stay with the letter they belong to."""
    pieces: list[tuple[Path, str]] = []
    for letter in _visible(text):
        before = pieces[-1][0] if pieces else None
        font = _font_of(letter, before)
        spelled = letter if font else f"U+{ord(letter):04X}"
        font = font or _FOLDER / "latin.ttf"
        if font == before:
            pieces[-1] = (font, pieces[-1][1] + spelled)
        else:
            pieces.append((font, spelled))
    return [_mirrored(piece) for piece in reversed(pieces)] if _reads_leftwards(text) else pieces


def _mirrored(piece: tuple[Path, str]) -> tuple[Path, str]:
    """A run within a line that reads leftwards: the space after a run that reads rightwards stands on its left."""
    font, run = piece
    if _reads_leftwards(run):
        return piece
    words = run.rstrip()
    return font, run[len(words) :] + words


def _visible(text: str) -> Iterator[str]:
    """The letters that show: no control characters, and no invisible marks of direction."""
    for letter in text:
        category = unicodedata.category(letter)
        if letter.isspace():
            yield " "
        elif ord(letter) in _JOINERS or category not in ("Cc", "Cf", "Cs"):
            yield letter


def _font_of(letter: str, before: Path | None) -> Path | None:
    """The font of a letter. The one of the letter before goes on where it has this one too, or where this one only shapes it."""
    code = ord(letter)
    goes_on = code in _JOINERS or (before is not None and code in _letters(before))
    if before and goes_on and not (letter == " " and before.stem == "emoji"):  # whose space is as wide as its pictures
        return before
    names = ("emoji", *_SHIPPED) if code >= _PICTURES else _SHIPPED
    shipped = (_FOLDER / f"{name}.ttf" for name in names)
    fonts = (font for font in shipped if code in _letters(font))
    return next(fonts, None) or _system_font(code)


def _reads_leftwards(text: str) -> bool:
    """Whether the first letter with a direction reads from right to left."""
    directions = (unicodedata.bidirectional(letter) for letter in text)
    return next((direction != "L" for direction in directions if direction in ("L", "R", "AL")), False)


def _laid_out(run: str) -> str:
    """What Pillow is given of a run. Its basic layout joins nothing and knows one direction."""
    if features.check("raqm"):
        return run
    run = "".join(letter for letter in run if ord(letter) not in _JOINERS)
    return run[::-1] if _reads_leftwards(run) else run


def _width(font: Path, run: str, size_px: int) -> float:
    return float(_loaded(font, size_px).getlength(_laid_out(run)))


@functools.lru_cache(maxsize=64)
def _loaded(font: Path, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font), size_px)


@functools.lru_cache(maxsize=1024)
def _system_font(code: int) -> Path | None:
    return next((font for font in _system_fonts() if code in _letters(font)), None)


@functools.cache
def _system_fonts() -> tuple[Path, ...]:
    """Font files of this system, the first few hundred by name."""
    home = Path.home()
    places = {
        "win32": [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"],
        "darwin": [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"],
    }.get(sys.platform, [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts"])
    files: list[Path] = []
    for place in places:
        for folder, _, names in os.walk(place):
            files += [Path(folder, name) for name in names if name.lower().endswith(_FONT_FILES)]
    return tuple(sorted(files)[:_MOST_SYSTEM_FONTS])


@functools.cache
def _letters(font: Path) -> frozenset[int]:
    """The code points a font has a glyph for; none where the file cannot be read."""
    try:
        if font.stat().st_size > _MOST_FONT_BYTES:
            return frozenset()
        with open(font, "rb") as file:
            return frozenset(_mapped(_table(file.read(), b"cmap")))
    except (OSError, struct.error, ValueError, IndexError):
        return frozenset()


def _table(data: bytes, name: bytes) -> bytes:
    """One table of a TrueType or OpenType file, of the first font in a collection. Source: OpenType 1.9, "Organization of an OpenType Font"."""
    start = struct.unpack_from(">I", data, 12)[0] if data[:4] == b"ttcf" else 0
    for n in range(struct.unpack_from(">H", data, start + 4)[0]):
        tag, _, offset, size = struct.unpack_from(">4sIII", data, start + 12 + 16 * n)
        if tag == name:
            return data[offset : offset + size]
    raise ValueError(f"no table {name!r}")


def _mapped(cmap: bytes) -> Iterator[int]:
    """The code points in a font's table of characters. Source: OpenType 1.9, "cmap", formats 4 and 12."""
    for n in range(struct.unpack_from(">H", cmap, 2)[0]):
        offset = struct.unpack_from(">HHI", cmap, 4 + 8 * n)[2]
        form = struct.unpack_from(">H", cmap, offset)[0]
        if form == 12:
            for group in range(struct.unpack_from(">I", cmap, offset + 12)[0]):
                first, last, glyph = struct.unpack_from(">III", cmap, offset + 16 + 12 * group)
                yield from range(first + (glyph == 0), min(last, sys.maxunicode) + 1)
        elif form == 4:
            yield from _of_segments(cmap[offset:])


def _of_segments(table: bytes) -> Iterator[int]:
    """The code points of a table of format 4 that have a glyph."""
    count = struct.unpack_from(">H", table, 6)[0] // 2
    ends = struct.unpack_from(f">{count}H", table, 14)
    starts, shifts, offsets = (struct.unpack_from(f">{count}H", table, 16 + 2 * count * k) for k in (1, 2, 3))
    for segment, (first, last) in enumerate(zip(starts, ends)):
        for code in range(first, min(last, 0xFFFE) + 1):
            if not offsets[segment]:
                glyph = (code + shifts[segment]) & 0xFFFF
            else:
                at = 16 + 6 * count + 2 * segment + offsets[segment] + 2 * (code - first)
                glyph = struct.unpack_from(">H", table, at)[0]
            if glyph:
                yield code
