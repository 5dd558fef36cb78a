"""What a captioning model is asked, and what becomes of its answer: what shall go into the trigger word is left out of the caption. Pure functions."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Sequence

from ..data.captions import tidy
from ..messages.errors import LoomError

MAX_LEFT_OUT = 500  # words or phrases
MAX_WORDING = 4000  # characters of each of the texts a person gives
_ASK = (
    "Describe this picture in one or two plain English sentences, as a caption to train an image model with. "
    "Say only what can be seen. {about} Answer with the caption alone."
)
_ABOUT = {
    "everything": "Name the subject, what it does, the surroundings, the light, the framing and the kind of picture.",
    "character": "Call the main figure only by a plain word such as man, woman, girl, boy or animal. Say what it does and wears, its pose and expression, "
    "the surroundings, the light and the framing. Do not describe its face, hair, eyes, skin, body or age, and do not name it.",
    "style": "Name the subject, what it does and the surroundings. Do not say how the picture is made: no word about its style, medium, technique, "
    "artist, colours or mood.",
    "object": "Call the main object only by a plain word for what it is. Say where it is, how it lies or is used, the surroundings, the light and the framing. "
    "Do not describe its shape, colour, material, parts or brand.",
}
SUBJECTS = tuple(_ABOUT)
_TAGS = {  # of booru taggers: what a trigger word for such a subject stands for
    "everything": "",
    "character": "* hair, * eyes, *bangs, ahoge, *braid, *braids, *ponytail, twintails, *twintails, hair between eyes, hair bun, *sidelocks, *-colored hair, "
    "*-colored eyes, heterochromia, * skin, *-skinned *, freckles, mole *, scar *, * breasts, breasts, * ears, * tail, tail, * horns, horns, beard, mustache, "
    "facial hair, stubble, muscular*, fat, tall, short, mature *, old, old *, aged *",
    "style": "* (style), * (medium), *artstyle, * style, traditional media, sketch, lineart, no lineart, monochrome, greyscale, sepia, spot color, "
    "limited palette, flat color, *painting*, watercolor*, pixel art, 3d, realistic, photorealistic, photo *, comic, *koma, chibi, film grain, "
    "chromatic aberration, unfinished, colorful, * theme",
    "object": "still life, no humans, * focus",
}
_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course)[,!.]?\s+)?(?:here(?: is|'s)(?: an?| the)? (?:[a-z]+ ){0,3}caption[^:.\n]{0,60}:\s*|caption:\s*)?"
    r"(?:(?:the|this) (?:image|picture|photo|photograph|illustration) (?:shows|depicts|features|captures|displays|portrays|is of)\s+)?",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)|<\|channel>.*?<channel\|>", re.DOTALL)
_WORD = re.compile(r"[\w'’-]+")
_GLOB_WORD = re.compile(r"[\w'’*-]+")
_MARKUP = re.compile(r"\*\*|__|`+|<\|?[a-z_]+\|?>|^#+\s*", re.IGNORECASE | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Wording:
    """`subject`: one of SUBJECTS, what the set shall teach. `instruction`: what is asked instead of the subject's own words, where it is not empty.

    `leave_out`: words and phrases between commas or on lines of their own that no caption has, `*` for any letters; `prepend`, `append`: put before
    and behind each caption.
    """

    subject: str = "everything"
    instruction: str = ""
    leave_out: str = ""
    prepend: str = ""
    append: str = ""

    def __post_init__(self) -> None:
        """Raises LoomError for what is out of bounds."""
        if self.subject not in SUBJECTS:
            raise LoomError("setting.choice", field="subject", value=repr(self.subject), allowed=list(SUBJECTS))
        for name in ("instruction", "leave_out", "prepend", "append"):
            if len(text := getattr(self, name)) > MAX_WORDING:
                raise LoomError("setting.long", field=name, length=len(text), limit=MAX_WORDING)
        if len(listed(self.leave_out)) > MAX_LEFT_OUT:
            raise LoomError(
                "captioning.many_left_out", field="leave_out", count=len(listed(self.leave_out)), limit=MAX_LEFT_OUT
            )

    def asked(self) -> str:
        """What a model that can be asked is asked."""
        return self.instruction.strip() or _ASK.format(about=_ABOUT[self.subject])

    def finisher(self, tags: bool) -> Callable[[str], str]:
        """What makes a caption of a model's answer; an empty answer stays empty. `tags`: the answers are tags between commas."""
        dropped = listed(self.leave_out) + (listed(_TAGS[self.subject]) if tags else [])

        between = ", " if tags else " "

        def finish(answer: str) -> str:
            text = without_tags(answer, dropped) if tags else without_phrases(sentence(answer), dropped)
            return around(text, self.prepend, self.append, between) if text else ""

        return finish


def listed(text: str) -> list[str]:
    """Words and phrases between commas or line breaks, lower case, each once."""
    return list(dict.fromkeys(tidy(part).lower() for part in re.split(r"[,\n\r]", text) if tidy(part)))


def sentence(answer: str) -> str:
    """A model's answer as one line: without its thoughts, its marks for bold and headings, quotes around it, and "The image shows" before it."""
    text = tidy(_MARKUP.sub("", _THOUGHT.sub("", answer))).strip("\"'“” ")
    return _capital(text[_PREAMBLE.match(text).end() :].strip("\"'“” "))  # type: ignore[union-attr]


def without_tags(text: str, dropped: Sequence[str]) -> str:
    """Tags between commas without those that a pattern names; each tag once."""

    def is_dropped(tag: str) -> bool:
        return any(fnmatch.fnmatchcase(tag.lower(), pattern) for pattern in dropped)

    tags = dict.fromkeys(tidy(tag) for tag in text.split(",") if tidy(tag))
    return ", ".join(tag for tag in tags if not is_dropped(tag))


def without_phrases(text: str, dropped: Sequence[str]) -> str:
    """Sentences without the words and phrases named, and without the commas and spaces these leave behind."""
    words = list(_WORD.finditer(text))
    lower = [word[0].lower() for word in words]
    gone: list[tuple[int, int]] = []
    for pattern in dropped:
        parts = _GLOB_WORD.findall(pattern)
        for n in range(len(words) - len(parts) + 1 if parts else 0):
            if all(fnmatch.fnmatchcase(lower[n + k], part) for k, part in enumerate(parts)):
                gone.append((words[n].start(), words[n + len(parts) - 1].end()))
    if not gone:
        return text
    pieces, last = [], 0
    for start, end in sorted(gone):
        pieces.append(text[last : max(start, last)])
        last = max(end, last)
    return _mended("".join([*pieces, text[last:]]))


def _mended(text: str) -> str:
    """Commas and spaces as they are written, where words between them are gone."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", tidy(text))
    text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
    text = re.sub(r"[,;:]\s*([.!?])", r"\1", text)
    return _capital(text.strip(" ,;:")) if any(letter.isalnum() for letter in text) else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def around(text: str, before: str, behind: str, glue: str) -> str:
    """`text` between what is put before and behind it, which is not said twice."""
    before, behind = tidy(before), tidy(behind)
    if before and not text.lower().startswith(before.lower()):
        text = f"{before}{' ' if before.endswith((',', '.', ':')) else glue}{text}"
    if behind and not text.lower().endswith(behind.lower()):
        text = f"{text}{'' if behind.startswith((',', '.', ':')) else glue}{behind}"
    return text
