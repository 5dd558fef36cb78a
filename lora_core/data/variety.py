"""Whether pictures of one subject are near, whole and close, alone, in other clothes and places, as far as captions, masks and borders tell.

Faces themselves are looked for in looks.py.
The advice is that of Hugging Face's article on LoRAs for SDXL (Tsaban and Passos, 2024), section on making a training set.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..messages.figures import percent
from ..messages.message import Message
from .dataset import Dataset, Picture

FEWEST = 5  # captions or pictures below which nothing is said of the set
REPEATED = 0.4  # share of captions that may name the same thing
ALIKE = 10.0  # mean difference of two borders, of 255, up to which they are the same
SMALL_SUBJECT = 0.05  # share of a picture below which what its mask shows is far away
MOST_COMPARED = 1000  # pictures whose borders are compared

_PERSON = re.compile(r"\b(wom[ae]n|m[ae]n|girls?|boys?|person|lady|guy|face|portrait|1girl|1boy|he|she|his|her)\b")
_CLOSE = re.compile(r"\b(close[- ]?ups?|headshot|head shot|portrait|face|upper body|bust)\b")
_WHOLE = re.compile(r"\b(full[- ]body|full[- ]length|full[- ]figure|whole (?:body|figure)|head to toe|cowboy shot)\b")
_FAR = re.compile(
    r"\b(far away|in the distance|from afar|from a distance|(?:very )?wide shot|long shot|distant|tiny figure)\b"
)
_OTHERS = re.compile(
    r"\b(crowds?|groups?|couple|friends|family|people|(?:two|three|four|five|several|many|multiple|other) "
    r"(?:wom[ae]n|m[ae]n|girls|boys|persons?|faces?|children)|multiple (?:girls|boys|others)|[2-9]\+?(?:girls|boys)|audience)\b"
)
_SHOWN = re.compile(  # clothes, places and poses, with the word before them
    r"\b(?:([a-z]+) )?(dress|shirt|t-shirt|blouse|jacket|coat|suit|hoodie|sweater|skirt|jeans|hat|cap|glasses|sunglasses|scarf|uniform|armor|swimsuit|"
    r"background|beach|street|forest|garden|kitchen|bedroom|office|studio|room|park|wall|indoors|outdoors|sitting|standing|lying|kneeling|smiling)\b"
)
_SMALL_WORDS = frozenset(
    {"a", "an", "the", "in", "on", "at", "of", "with", "and", "her", "his", "is", "wearing", "person"}
)


def about_subject(picture: Picture, dataset: Dataset, mask: float | None) -> Iterator[Message]:
    """What a picture of a subject shows that it better would not. `mask`: the share of white in what is trained."""
    caption = picture.caption.lower()
    if mask is not None and 0 < mask < SMALL_SUBJECT:
        yield Message.of("lint.far_mask", share=percent(mask))
    elif dataset.trigger and (far := _FAR.search(caption)):
        yield Message.of("lint.far", words=far[0])
    if dataset.trigger and of_person(dataset) and (others := _OTHERS.search(caption)):
        yield Message.of("lint.others", words=others[0])


def about_set(dataset: Dataset, constant: Sequence[str], borders: Mapping[str, np.ndarray]) -> Iterator[Message]:
    """What the pictures of a subject have in common that it better would not. `constant`: tags that are named anyway; `borders` by picture, flat."""
    captions = [p.caption.lower() for p in dataset.pictures if p.caption]
    if dataset.trigger and len(captions) >= FEWEST:
        if of_person(dataset):
            yield from _framing(captions)
        yield from _repeated(captions, constant)
    alike = largest_alike(list(borders.values())[:MOST_COMPARED])
    if len(borders) >= FEWEST and alike > len(borders) / 2:
        yield Message.of("lint.same_background", count=alike, all=len(borders))


def of_person(dataset: Dataset) -> bool:
    """Whether most captions speak of a person."""
    captions = [p.caption.lower() for p in dataset.pictures if p.caption]
    return bool(captions) and sum(bool(_PERSON.search(caption)) for caption in captions) > len(captions) / 2


def _framing(captions: Sequence[str]) -> Iterator[Message]:
    """Close pictures without whole figures, or the other way round, where captions speak of either."""
    close = sum(bool(_CLOSE.search(caption)) for caption in captions)
    whole = sum(bool(_WHOLE.search(caption)) for caption in captions)
    if close > len(captions) / 2 and not whole:
        yield Message.of("lint.no_whole_figure", count=close, all=len(captions))
    if whole > len(captions) / 2 and not close:
        yield Message.of("lint.no_close_up", count=whole, all=len(captions))


def _repeated(captions: Sequence[str], constant: Sequence[str]) -> Iterator[Message]:
    """Clothes, places and poses that many captions name."""
    counts: collections.Counter[str] = collections.Counter()
    for caption in captions:
        counts.update({_phrase(match) for match in _SHOWN.finditer(caption)})
    words = " ".join(constant)
    often = [f"{what} ({n})" for what, n in counts.most_common(6) if n > REPEATED * len(captions) and what not in words]
    if often:
        yield Message.of("lint.repeated", things=often, all=len(captions))


def _phrase(match: re.Match[str]) -> str:
    """red dress, or dress where the word before says nothing."""
    before, thing = match[1], match[2]
    return f"{before} {thing}" if before and before not in _SMALL_WORDS else thing


def border(tiny: np.ndarray) -> np.ndarray:
    """The outermost pixels of a tiny picture (H, W, 3), flat: what lies around the subject."""
    return np.concatenate([tiny[0], tiny[-1], tiny[1:-1, 0], tiny[1:-1, -1]]).ravel()


def largest_alike(borders: Sequence[np.ndarray]) -> int:
    """How many borders are the same as one of them, itself included."""
    if not borders:
        return 0
    stacked = np.stack(borders)
    return max(int((np.abs(stacked - one).mean(1) <= ALIKE).sum()) for one in stacked)
