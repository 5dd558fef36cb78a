"""Captions: what a text file says, the edits that hold for a whole set, and the choices made anew each time a picture is drawn.

Pure functions; randomness comes in as an argument.
"""

from __future__ import annotations

import codecs
import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config import DataConfig
from ..matching.regex import Pattern
from ..messages.errors import Fault, LoomError
from ..messages.figures import figure
from ..messages.message import Message

MAX_CAPTION_BYTES = 1_000_000
MAX_CAPTION_CHARS = 100_000  # of what is encoded, about 20,000 words: text encoders read it in pieces of 75 tokens
_BOMS = (  # UTF-32 first: its mark begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d+)?)::")
MAX_CAPTIONS = 10_000  # to choose from, of one picture
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")  # controls, byte-order marks, halves of characters
KEEP, TOGETHER = "|||", ";;;"  # around the parts that may be shuffled; between parts that stay side by side
PLACEHOLDER = re.compile(r"\[(?:trigger|name)\]", re.IGNORECASE)  # ai-toolkit's word for the trigger
_BRACE = re.compile(r"([{}])")


@dataclasses.dataclass(frozen=True)
class Caption:
    """One of the captions of a picture; `weight` says how often it is drawn beside the others.

    `marked`: the same with the separators of kohya's tools in it, where it has some: ||| around what is shuffled, ;;; inside of what stays together.
    """

    text: str
    weight: float = 1.0
    marked: str = ""


def decoded(data: bytes, encoding: str = "auto") -> tuple[str, str]:
    """(text, encoding) of a text file's bytes. With auto: byte-order marks, UTF-8, UTF-16 by its zero bytes, else Windows-1252. Never fails."""
    if encoding == "auto":
        encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "")
    if not encoding:
        encoding = _utf16_without_mark(data) or "utf-8"
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError:
            encoding = "cp1252"
    return data.decode(encoding, errors="replace"), encoding


def _utf16_without_mark(data: bytes) -> str:
    """UTF-16 of mostly Latin text has a zero in every second byte; nothing else has."""
    if len(data) < 4 or len(data) % 2:
        return ""
    even, odd = data[::2].count(0), data[1::2].count(0)
    half = len(data) // 2
    if odd > 0.7 * half and not even:
        return "utf-16-le"
    return "utf-16-be" if even > 0.7 * half and not odd else ""


def lines_of(text: str) -> list[str]:
    """The lines that say something, with white space and control characters tidied."""
    lines = map(tidy, re.split(r"[\r\n\x85\u2028\u2029]+", text))
    return [line for line in lines if line]


def tidy(text: str) -> str:
    """One line: every run of white space, byte-order marks, control characters and halves of characters becomes one space."""
    return " ".join(_NO_TEXT.sub(" ", text).split())


def captions_in(text: str, lines: str) -> tuple[Caption, ...]:
    """The captions a text file holds: all of it as one (lines = joined), its first line (first), or each line as one to choose from (alternatives).

    A line may start with its weight, as in `0.5::a cat`. Several short lines without a comma are tags, one a line, and joined as such.
    """
    return captions_of(lines_of(text), lines)


def captions_of(texts: Sequence[str], lines: str) -> tuple[Caption, ...]:
    """The same from the file's tidy lines."""
    if lines == "alternatives":
        return tuple(weighted(text) for text in texts)
    if not texts:
        return ()
    if lines == "first":
        return (Caption(texts[0]),)
    return (Caption((", " if are_tags(texts) else " ").join(texts)),)


def are_tags(lines: Sequence[str]) -> bool:
    """Whether the lines of a caption file are tags, one a line: three or more, short, without a comma or the end of a sentence."""
    return len(lines) > 2 and not any("," in line or line.endswith((".", "!", "?")) or len(line) > 60 for line in lines)


def weighted(line: str) -> Caption:
    """`0.5::a cat` -> a cat with weight 0.5; without a weight 1."""
    match = _WEIGHT.match(line)
    return Caption(line[match.end() :].strip(), float(match[1])) if match else Caption(line)


def read_captions(path: Path, encoding: str = "auto", lines: str = "joined") -> tuple[tuple[Caption, ...], str]:
    """(captions, encoding) of a text file. Raises OSError, and ValueError for a file no caption can be."""
    text, encoding_used = read_text(path, encoding)
    return captions_in(text, lines), encoding_used


def read_text(path: Path, encoding: str = "auto") -> tuple[str, str]:
    """(text, encoding) of a caption file. Raises OSError, and ValueError for a file no caption can be."""
    if path.stat().st_size > MAX_CAPTION_BYTES:
        size, limit = path.stat().st_size / 1e6, MAX_CAPTION_BYTES // 10**6
        raise Fault("caption.file_large", size=figure(size), limit=limit)
    return decoded(path.read_bytes(), encoding)


def read_caption(path: Path) -> str:
    """A text file as one caption on one line."""
    captions, _ = read_captions(path)
    return captions[0].text if captions else ""


def with_trigger(caption: str, trigger: str) -> str:
    """`caption` with the trigger word in front unless it contains the word already; the trigger alone when there is no caption."""
    if not trigger or has_word(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def named(text: str, trigger: str) -> str:
    """`text` with the trigger where [trigger] or [name] stands; unchanged without a trigger."""
    return PLACEHOLDER.sub(lambda place: trigger, text) if trigger else text


def separated(caption: Caption) -> Caption:
    """A caption whose text has no separators, which `marked` keeps."""
    if KEEP not in caption.text and TOGETHER not in caption.text:
        return caption
    parts = [part.strip(" ,") for part in re.split(r"\|\|\||;;;", caption.text)]
    return dataclasses.replace(caption, text=", ".join(filter(None, parts)), marked=caption.text)


def has_word(caption: str, word: str) -> bool:
    return bool(_as_word(word).search(caption))


def with_word(caption: str, word: str, other: str) -> str:
    """`caption` with `other` where `word` stands; without it, and without the comma behind it, where `other` is empty."""
    if other:
        return _as_word(word).sub(lambda place: other, caption)
    parts = (_as_word(word).sub("", part) for part in caption.split(","))
    return ", ".join(filter(None, map(tidy, parts)))


def _as_word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def editor(config: DataConfig) -> Callable[[Caption], Caption]:
    """The edits a set asks for on each of its captions: search and replace, prefix, suffix, trigger. Raises LoomError for a rule that cannot be read."""
    rules = replacements(config.replace)

    def edit(caption: Caption) -> Caption:
        text = caption.text
        for pattern, new in rules:
            text = _replaced(text, pattern, new)
        text = tidy(f"{config.prefix}{text}{config.suffix}") if text else tidy(text)
        return separated(dataclasses.replace(caption, text=with_trigger(named(text, config.trigger), config.trigger)))

    return edit


def _replaced(text: str, pattern: Pattern | re.Pattern[str], new: str) -> str:
    """The text with one rule applied. Raises LoomError, before it is made, for one that grows without measure."""
    if (len(text) + 1) * max(1, len(new)) > MAX_CAPTION_CHARS:
        places, groups = pattern.sub("\0", text).count("\0"), new.count("\\")
        if len(text) * (1 + groups) + places * len(new) > 4 * MAX_CAPTION_CHARS:
            raise LoomError("data.replace.grows", field="data.replace", new=repr(new[:40]), limit=MAX_CAPTION_CHARS)
    return pattern.sub(new, text)


def replacements(rules: str) -> list[tuple[Pattern | re.Pattern[str], str]]:
    """One rule a line: `old => new` for words as they stand, `/pattern/ => new` for a regular expression. Raises LoomError."""
    out: list[tuple[Pattern | re.Pattern[str], str]] = []
    for line in filter(str.strip, rules.splitlines()):
        old, arrow, new = line.partition("=>")
        old, new = old.strip(), new.strip()
        if not arrow or not old:
            raise LoomError("data.replace.no_rule", field="data.replace", line=repr(line.strip()))
        try:
            if len(old) > 2 and old[0] == old[-1] == "/":
                pattern = Pattern(old[1:-1], _costly(old))
                pattern.check(new)
                out.append((pattern, new))
            else:
                out.append((re.compile(re.escape(old)), new.replace("\\", r"\\")))
        except (re.error, IndexError) as error:
            raise LoomError(
                "data.replace.pattern", field="data.replace", old=repr(old), new=repr(new), reason=error
            ) from error
    return out


def _costly(pattern: str) -> Callable[[Message], LoomError]:
    return lambda why: LoomError("pattern.costly", field="data.replace", pattern=repr(pattern), reason=why)


def vary(captions: Sequence[Caption], rng: random.Random, config: DataConfig) -> str:
    """The caption as it is trained this time. Always draws the same count of numbers, so options do not shift each other's randomness."""
    drop, order, which, tags, wild = (
        rng.random(),
        rng.getrandbits(64),
        rng.random(),
        rng.getrandbits(64),
        rng.getrandbits(64),
    )
    if drop < config.caption_dropout:
        return ""
    caption = chosen(captions, which)
    text = caption.marked or caption.text
    if config.wildcards:
        text = expanded(text, random.Random(wild))
    if not config.shuffle_tags and not config.tag_dropout:
        return separated(Caption(text)).text
    kept, rest, last = in_parts(text, config.keep_tokens)
    if config.shuffle_tags:
        random.Random(order).shuffle(rest)
    if config.tag_dropout:
        dice = random.Random(tags)
        rest = [tag for tag in rest if dice.random() >= config.tag_dropout]
    return separated(Caption(", ".join(kept + rest + last))).text


def in_parts(text: str, keep: int) -> tuple[list[str], list[str], list[str]]:
    """(parts that stay in front, parts to shuffle, parts that stay at the end), between commas. Without ||| the first `keep` stay in front."""
    if KEEP not in text:
        parts = _parts(text)
        return parts[:keep], parts[keep:], []
    first, rest, *last = text.split(KEEP, 2)
    return _parts(first), _parts(rest), _parts(last[0]) if last else []


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def varies(captions: Sequence[Caption], config: DataConfig) -> bool:
    """Whether `vary` can give more than the first caption and the empty one."""
    return (
        len(captions) > 1
        or config.shuffle_tags
        or config.tag_dropout > 0
        or (config.wildcards and "{" in captions[0].text)
    )


def chosen(captions: Sequence[Caption], u: float) -> Caption:
    """The caption at `u` in [0, 1) of the summed weights; the first when all weights are 0."""
    total = sum(c.weight for c in captions)
    for caption in captions:
        if u * total < caption.weight:
            return caption
        u -= caption.weight / total if total else 0.0
    return captions[0]


def expanded(text: str, rng: random.Random) -> str:
    """`a {red|2::blue} cat` -> one of the choices, as often as its weight says; innermost braces first, from left to right."""
    levels: list[list[str]] = [[]]  # what stands outside of all braces, then inside each that is open
    for piece in _BRACE.split(text):
        if piece == "{":
            levels.append([])
        elif piece == "}" and len(levels) > 1:
            choices = [weighted(part) for part in "".join(levels.pop()).split("|")]
            levels[-1].append(chosen(choices, rng.random()).text)
        else:
            levels[-1].append(piece)
    return tidy("{".join(map("".join, levels)))
