"""How long captions are for a text encoder."""

from __future__ import annotations

import dataclasses

WINDOW = 75  # tokens a CLIP text encoder reads at once, without start and end


@dataclasses.dataclass(frozen=True)
class TextLength:
    """How long a caption is for the text encoder with the smallest window: its tokens, the window, pieces it is read in, tokens that are lost."""

    tokens: int
    pieces: int = 1
    cut: int = 0
    window: int = WINDOW
