"""Caption files and the edits made to a caption each time a picture is drawn. Pure functions; randomness comes in as an argument."""

from __future__ import annotations

import codecs
import random
import re
from pathlib import Path

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_caption(path: Path) -> str:
    """The caption in a text file: byte-order marks and UTF-16 understood, other bytes as UTF-8 or else Windows-1252; one line."""
    data = path.read_bytes()
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    return " ".join(text.replace("\0", " ").split())


def with_trigger(caption: str, trigger: str) -> str:
    """`caption` with the trigger word in front unless it contains the word already; the trigger alone when there is no caption."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def vary(caption: str, rng: random.Random, shuffle_tags: bool, keep_tokens: int, dropout: float) -> str:
    """The caption as it is trained this time. Always draws the same count of numbers, so options do not shift each other's randomness."""
    drop, order = rng.random(), rng.getrandbits(64)
    if drop < dropout:
        return ""
    if shuffle_tags:
        tags = [t.strip() for t in caption.split(",") if t.strip()]
        rest = tags[keep_tokens:]
        random.Random(order).shuffle(rest)
        return ", ".join(tags[:keep_tokens] + rest)
    return caption
