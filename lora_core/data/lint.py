"""Looks at a dataset as a trainer would before starting: near-duplicates, blur, what is small or cut off, captions that teach the wrong thing."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageFilter

from ..messages.message import Message
from ..pictures.reading import PictureError
from .buckets import Fit, apply, fits
from .folder import Dataset, Picture
from .latents import ahead
from .lengths import TextLength
from .masks import open_trained, placed
from .variety import about_set, about_subject, border

HASH_SIDE = 12  # a hash has 2 x 12 x 12 bits
HASH_BITS = 40  # of them may differ between near-duplicates
SMALL_SIDE = 16
SMALL_DIFFERENCE = 12.0  # mean difference of two tiny pictures, of 255, that are near-duplicates
BLUR_RATIO = 0.12
CUT_SHARE = 0.1  # of a picture's area that a crop may take without a note
FEWEST_FOR_TAGS = 5
CONSTANT_SHARE = 0.9
MOST_LISTED = 40


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the look at one picture gave; `fit` is how it is cut at the main resolution."""

    fit: Fit
    bits: np.ndarray
    tiny: np.ndarray
    sharpness: float
    mask: float | None  # share of white in what is trained, None without a mask


@dataclasses.dataclass(frozen=True)
class Report:
    """`notes`: what to say by picture name. `general`: about all of them. `buckets`: (width, height) px -> pictures an epoch."""

    dataset: Dataset
    seen: dict[str, Seen]
    notes: dict[str, list[Message]]
    general: list[Message]
    buckets: dict[tuple[int, int], int]

    def messages(self) -> list[Message | str]:
        """Everything there is to say, as lines."""
        lines: list[Message | str] = [*self.dataset.messages(), *self.general, "", Message.of("lint.buckets")]
        lines += [
            f"{f'{w} x {h}':14}{count}" for (w, h), count in sorted(self.buckets.items(), key=lambda item: -item[1])
        ]
        if self.notes:
            lines += ["", Message.of("lint.to_look_at", count=len(self.notes))]
            lines += [
                Message.of("lint.about", name=n, notes=notes) for n, notes in list(self.notes.items())[:MOST_LISTED]
            ]
        if len(self.notes) > MOST_LISTED:
            lines.append(Message.of("lint.more", count=len(self.notes) - MOST_LISTED))
        return lines

    def text(self) -> str:
        """The same in English."""
        return "\n".join(map(str, self.messages()))


def look(dataset: Dataset, length: Callable[[str], TextLength] | None, progress: Callable[[int, int], None]) -> Report:
    """Decodes every picture once, in threads. `length`: how long a caption is for the text encoders, where they are known."""
    pictures = [p for p in (*dataset.pictures, *dataset.class_pictures) if not p.is_latent]
    seen: dict[str, Seen] = {}
    notes: dict[str, list[Message]] = collections.defaultdict(list)
    buckets: collections.Counter[tuple[int, int]] = collections.Counter()
    progress(0, len(pictures))
    for done, (picture, sight) in enumerate(ahead(_seen, pictures), 1):
        if isinstance(sight, Seen):
            seen[picture.name] = sight
            notes[picture.name] += [*_about_picture(picture, sight), *about_subject(picture, dataset, sight.mask)]
            for how in fits(picture.width_px, picture.height_px, picture.data):
                buckets[how.bucket] += picture.repeats
        else:
            notes[picture.name].append(Message.of("lint.left_out", reason=sight))
        notes[picture.name] += _about_caption(picture, length)
        progress(done, len(pictures))
    for group in near_duplicates(seen):
        for name in group:
            others = [other for other in group if other != name]
            if len(others) > 2:
                notes[name].append(Message.of("lint.duplicate_of_many", names=others[:2], count=len(others) - 2))
            else:
                notes[name].append(Message.of("lint.duplicate", names=others))
    general = [*_general(dataset), *about_set(dataset, _constant(dataset), _borders(dataset, seen, notes))]
    return Report(dataset, seen, {n: v for n, v in notes.items() if v}, general, dict(buckets))


def _borders(
    dataset: Dataset, seen: Mapping[str, Seen], notes: Mapping[str, Sequence[Message]]
) -> dict[str, np.ndarray]:
    """The borders of the subject's pictures; of near-duplicates, which are told, one would do."""
    names = [picture.name for picture in dataset.pictures if picture.name in seen]
    duplicates = {name for name in names if any(note.code.startswith("lint.duplicate") for note in notes[name])}
    return {name: border(seen[name].tiny) for name in names if name not in duplicates}


def _seen(picture: Picture) -> Seen | Message:
    """Runs in a thread. The reason where the picture cannot be used."""
    try:
        image, mask = open_trained(picture)
    except PictureError as error:
        return error.message
    how = placed(image, mask, fits(picture.width_px, picture.height_px, picture.data)[0], picture.data)
    cut = apply(image, how)
    white = float(np.asarray(apply(mask, how), np.float32).mean() / 255) if mask is not None else None
    return Seen(how, difference_hash(cut), _tiny(cut), sharpness(cut), white)


def difference_hash(image: Image.Image) -> np.ndarray:
    """Bits that say where a tiny grey picture gets brighter to the right and downwards (dHash in two directions)."""
    side = HASH_SIDE + 1
    grey = np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX), np.int16)
    return np.concatenate([(grey[:-1, 1:] > grey[:-1, :-1]).ravel(), (grey[1:, :-1] > grey[:-1, :-1]).ravel()])


def _tiny(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BOX), np.float32)


def sharpness(image: Image.Image) -> float:
    """The finest detail relative to that four times as coarse, both in the tenth of the picture where there is most of the latter.

    Near 0 for what is out of focus or was scaled up; infinite for a plain picture, which has no detail to judge by.
    """
    grey = image.convert("L")
    one, two, four = (
        np.asarray(grey.filter(ImageFilter.GaussianBlur(r)) if r else grey, np.float32) for r in (0, 1, 4)
    )
    fine, coarse = np.abs(one - two), np.abs(two - four)
    bar = np.quantile(coarse, 0.9)
    if bar < 1.0:
        return float("inf")
    where = coarse >= bar
    return float(fine[where].mean() / coarse[where].mean())


def near_duplicates(seen: dict[str, Seen]) -> list[list[str]]:
    """Groups of pictures that show the same thing: hashes close, and tiny versions close, so plain pictures of different colour are told apart."""
    names = list(seen)
    if len(names) < 2:
        return []
    bits = np.stack([seen[n].bits for n in names]).astype(np.float32)
    tiny = np.stack([seen[n].tiny.ravel() for n in names])
    parent = list(range(len(names)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    ones = bits.sum(1)
    for start in range(0, len(names), 512):
        block = slice(start, start + 512)
        apart = ones[block, None] + ones[None] - 2 * bits[block] @ bits.T  # Hamming distances
        for i, j in zip(*np.nonzero(apart <= HASH_BITS), strict=True):
            i = int(i) + start
            if i < j and np.abs(tiny[i] - tiny[j]).mean() <= SMALL_DIFFERENCE:
                parent[root(int(j))] = root(i)
    groups: dict[int, list[str]] = collections.defaultdict(list)
    for i, name in enumerate(names):
        groups[root(i)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _about_picture(picture: Picture, seen: Seen) -> list[Message]:
    out: list[Message] = []
    config, width, height = picture.data, picture.width_px, picture.height_px
    share = width * height / config.resolution**2
    if share < 0.95 and config.upscale:
        out.append(Message.of("lint.scaled_up", width=width, height=height))
    elif share < 0.95:
        bucket = "{} x {}".format(*seen.fit.bucket)
        out.append(Message.of("lint.small", width=width, height=height, bucket=bucket))
    lost = 1 - seen.fit.bucket[0] * seen.fit.bucket[1] / (seen.fit.scaled[0] * seen.fit.scaled[1])
    if lost > CUT_SHARE:
        out.append(Message.of("lint.cropped", share=f"{lost:.0%}"))
    if seen.sharpness < BLUR_RATIO:
        out.append(Message.of("lint.blurred"))
    if seen.mask is not None and seen.mask == 0:
        out.append(Message.of("lint.mask_black"))
    elif seen.mask is not None and seen.mask == 1:
        out.append(Message.of("lint.mask_white"))
    return out


def _about_caption(picture: Picture, length: Callable[[str], TextLength] | None) -> list[Message]:
    out: list[Message] = []
    if not picture.caption and picture.data.captions != "none":
        out.append(Message.of("lint.no_caption"))
    longest = (
        max((length(c.text) for c in picture.captions), key=lambda text_length: text_length.tokens) if length else None
    )
    if longest and longest.cut:
        out.append(Message.of("lint.caption_cut", tokens=longest.tokens, cut=longest.cut))
    elif longest and longest.pieces > 1:
        pieces, window = longest.pieces, longest.window
        out.append(Message.of("lint.caption_pieces", tokens=longest.tokens, pieces=pieces, window=window))
    return out


def _general(dataset: Dataset) -> list[Message]:
    """What holds for the set as a whole."""
    out: list[Message] = []
    captions = [p.caption for p in dataset.pictures if p.caption]
    if len(captions) >= FEWEST_FOR_TAGS:
        if constant := _constant(dataset):
            out.append(Message.of("lint.constant_tags", tags=constant[:8]))
        repeated, count = collections.Counter(captions).most_common(1)[0]
        if count > len(captions) / 2:
            out.append(Message.of("lint.same_captions", count=count, all=len(captions), caption=repr(repeated[:40])))
    if 0 < len(dataset.pictures) < 5:
        out.append(Message.of("lint.few", count=len(dataset.pictures)))
    doubled = [name for name, n in collections.Counter(_stem(p) for p in dataset.pictures).items() if n > 1]
    if doubled:
        out.append(Message.of("lint.shared_names", count=len(doubled), name=f"{doubled[0]}.*"))
    return out


def _constant(dataset: Dataset) -> list[str]:
    """Tags of nearly every caption but the trigger, where captions differ and there are enough of them."""
    captions = [p.caption for p in dataset.pictures if p.caption]
    if len(captions) < FEWEST_FOR_TAGS or len(set(captions)) < 2:
        return []
    counts = collections.Counter(
        tag for caption in captions for tag in _tags(caption) if tag != dataset.trigger.lower()
    )
    return sorted(tag for tag, n in counts.items() if n >= CONSTANT_SHARE * len(captions))


def _tags(caption: str) -> set[str]:
    """The tags of a caption, lower case."""
    return {tag.strip().lower() for tag in caption.split(",") if tag.strip()}


def _stem(picture: Picture) -> str:
    return picture.name.rsplit(".", 1)[0]


def flagged_first(report: Report, most: int) -> Sequence[Picture]:
    """The pictures to show: those with notes first."""
    pictures = [p for p in (*report.dataset.pictures, *report.dataset.class_pictures) if p.name in report.seen]
    return sorted(pictures, key=lambda p: p.name not in report.notes)[:most]
