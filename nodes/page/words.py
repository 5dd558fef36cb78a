"""What the page says, as HTML: labels, sentences, reports, in one language."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from ...lora_core.messages.message import LANGUAGES, Message, table
from .fields import translated
from .names import as_shown


class Words:
    """The texts of a page in `language`."""

    def __init__(self, language: str):
        self.language = language

    def label(self, code: str) -> str:
        """A label of the page."""
        return table(self.language)[code]

    def of_settings(self, text: str) -> str:
        """A name or sentence of a setting, which nodes and the page share."""
        return translated(self.language).get(text, text) if self.language != LANGUAGES[0] else text

    def sentence(self, message: Message, kind: str = "info") -> str:
        """A sentence below a button; `kind`: info or error."""
        return f'<p class="lora_loom_{kind}">{html.escape(message.text(self.language, as_shown))}</p>'

    def report(self, lines: Sequence[Message | str], picture: Image.Image | None = None) -> str:
        """Several lines, as they stand, below a picture where there is one."""
        texts = [line if isinstance(line, str) else line.text(self.language, as_shown) for line in lines]
        report = f'<pre class="lora_loom_report">{html.escape(chr(10).join(texts))}</pre>'
        return f"{_inline(picture)}{report}" if picture is not None else report

    def place(self, element: str) -> str:
        """Where js/ puts a part."""
        return f'<div id="{element}"><noscript>{html.escape(self.label("tab.needs_script"))}</noscript></div>'


def _inline(picture: Image.Image) -> str:
    """A picture inside the page itself: gradios differ in which files they serve."""
    data = io.BytesIO()
    picture.convert("RGB").save(data, "JPEG", quality=88)
    return f'<img class="lora_loom_sheet" alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
