"""Makes lora_core/pictures/fonts from published packages, whose unpacked folders are given; needs fonttools, brotli and pymupdf, and is run by hand.

    python tests/reference/make_fonts.py FOLDER

FOLDER holds npm packages by name (noto-emoji, noto-sans-arabic ...: @fontsource, SIL Open Font License 1.1) and pymupdf_fonts (Noto Sans, the same
licence). The font for Chinese, Japanese and Korean is Droid Sans Fallback as PyMuPDF brings it (Apache License 2.0).
"""

from __future__ import annotations

import importlib
import io
import shutil
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "lora_core" / "pictures" / "fonts"
SLICES = {
    "arabic": "noto-sans-arabic", "bengali": "noto-sans-bengali", "devanagari": "noto-sans-devanagari",
    "emoji": "noto-emoji", "hebrew": "noto-sans-hebrew", "tamil": "noto-sans-tamil", "thai": "noto-sans-thai",
}  # fmt: skip


def plain(font: bytes | Path) -> bytes:
    """The font as an uncompressed TrueType file without hints, which small sizes on pictures do not need."""
    from fontTools.ttLib import TTFont

    opened = TTFont(io.BytesIO(font) if isinstance(font, bytes) else font)
    opened.flavor = None
    for table in ("fpgm", "prep", "cvt ", "hdmx", "VDMX", "LTSH", "DSIG"):
        if table in opened:
            del opened[table]
    for glyph in opened["glyf"].glyphs.values():
        glyph.removeHinting()
    out = io.BytesIO()
    opened.save(out)
    return out.getvalue()


def main() -> None:
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    fonts = {
        script: plain(folder / name / f"files/{name}-{script}-400-normal.woff2") for script, name in SLICES.items()
    }
    fonts["latin"] = plain(importlib.import_module("pymupdf_fonts").myfont("notos"))
    fonts["cjk"] = plain(importlib.import_module("pymupdf").Font("cjk").buffer)
    for script, font in fonts.items():
        (OUT / f"{script}.ttf").write_bytes(font)
    shutil.copy(folder / "noto-emoji" / "LICENSE", OUT / "OFL.txt")


if __name__ == "__main__":
    main()
