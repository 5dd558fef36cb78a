"""Looks at a dataset as a trainer would before starting: near-duplicates, blur, what is small or cut off, captions that teach the wrong thing."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, ImageFilter

from ..messages.figures import percent
from ..messages.message import Message
from ..pictures.reading import PictureError
from .buckets import Fit, apply, fits
from .clips import shape_text, shapes_of
from .dataset import Dataset, Picture
from .latents import ahead
from .lengths import TextLength
from .looks import (
    LOOK,
    NOTE,
    STOP,
    Tone,
    about_faces,
    about_tone,
    face_detector,
    faces,
    grey_ones,
    odd_ones,
    severity,
    tone,
)
from .masks import open_trained, placed
from .variety import about_set, about_subject, border, of_person

HASH_SIDE = 12  # a hash has 2 x 12 x 12 bits
HASH_BITS = 40  # of them may differ between near-duplicates
SMALL_SIDE = 16
SMALL_DIFFERENCE = 12.0  # mean difference of two tiny pictures, of 255, that are near-duplicates
BLUR_RATIO = 0.12
CUT_SHARE = 0.1  # of a picture's area that a crop may take without a note
FEWEST_FOR_TAGS = 5
CONSTANT_SHARE = 0.9
MOST_LISTED = 40
GRAVITY = (STOP, LOOK, NOTE)
ABOUT: Mapping[str, Callable[[str, Sequence[Message]], Message]] = {
    STOP: lambda name, notes: Message.of("lint.about_stop", name=name, notes=notes),
    LOOK: lambda name, notes: Message.of("lint.about_look", name=name, notes=notes),
    NOTE: lambda name, notes: Message.of("lint.about_note", name=name, notes=notes),
}


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the look at one picture gave; `fit` is how it is cut at the main resolution."""

    fit: Fit
    bits: np.ndarray
    tiny: np.ndarray
    sharpness: float
    mask: float | None  # share of white in what is trained, None without a mask
    tone: Tone
    faces: list[float] | None  # sides as shares of the shorter side; None where nobody looks for them


@dataclasses.dataclass(frozen=True)
class Report:
    """`notes`: what to say by picture name. `general`: about all of them. `buckets`: (width px, height px, frames) -> pictures an epoch."""

    dataset: Dataset
    seen: dict[str, Seen]
    notes: dict[str, list[Message]]
    general: list[Message]
    buckets: dict[tuple[int, int, int], int]

    def gravity(self, name: str) -> str:
        """That of the gravest note about a picture; NOTE without one."""
        return min((severity(note) for note in self.notes.get(name, [])), key=GRAVITY.index, default=NOTE)

    def counts(self) -> Message:
        """How many pictures there are to train on, and how many are not: as the loader counts, less those that turned out broken."""
        pictures = [p for p in self.dataset.pictures if p.name in self.seen or p.is_latent]
        skipped = len(self.dataset.skipped) + len(self.dataset.pictures) - len(pictures)
        per_epoch = sum(p.repeats for p in pictures)
        return Message.of("data.counts", pictures=len(pictures), per_epoch=per_epoch, skipped=skipped)

    @property
    def good(self) -> bool:
        """Whether there is nothing to look at."""
        return not self.notes and all(note.code == "lint.faces_not_looked_for" for note in self.general)

    def messages(self) -> list[Message | str]:
        """Everything there is to say, as lines, what stops first."""
        said = [self.counts(), *self.dataset.messages()[1:]]
        lines: list[Message | str] = [*said, *self.general, "", Message.of("lint.buckets")]
        lines += [
            f"{shape_text(*shape):14}{count}"
            for shape, count in sorted(self.buckets.items(), key=lambda item: -item[1])
        ]
        if self.notes:
            lines += ["", Message.of("lint.to_look_at", count=len(self.notes))]
            order = sorted(self.notes, key=lambda name: GRAVITY.index(self.gravity(name)))
            lines += [ABOUT[self.gravity(n)](n, self.notes[n]) for n in order[:MOST_LISTED]]
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
    buckets: collections.Counter[tuple[int, int, int]] = collections.Counter()
    progress(0, len(pictures))
    for done, (picture, sight) in enumerate(ahead(_seen, pictures), 1):
        if isinstance(sight, Seen):
            seen[picture.name] = sight
            notes[picture.name] += [*_about_picture(picture, sight), *about_subject(picture, dataset, sight.mask)]
            for shape in shapes_of(picture):
                buckets[shape] += picture.repeats
        else:
            notes[picture.name].append(Message.of("lint.left_out", reason=sight))
        notes[picture.name] += _about_caption(picture, length)
        if picture.data.shows_controls and not picture.controls:
            notes[picture.name].append(Message.of("lint.no_control"))
        progress(done, len(pictures))
    for group in near_duplicates(seen):
        for name in group:
            others = [other for other in group if other != name]
            if len(others) > 2:
                notes[name].append(Message.of("lint.duplicate_of_many", names=others[:2], count=len(others) - 2))
            else:
                notes[name].append(Message.of("lint.duplicate", names=others))
    for name, note in _beside_others(dataset, seen, notes):
        notes[name].append(note)
    general = [*_general(dataset), *about_set(dataset, _constant(dataset), _borders(dataset, seen, notes))]
    if of_person(dataset) and any(sight.faces is None for sight in seen.values()):
        general.append(Message.of("lint.faces_not_looked_for"))
    for messages in notes.values():
        messages.sort(key=lambda note: GRAVITY.index(severity(note)))
    return Report(dataset, seen, {n: v for n, v in notes.items() if v}, general, dict(buckets))


def _beside_others(
    dataset: Dataset, seen: Mapping[str, Seen], notes: Mapping[str, Sequence[Message]]
) -> Iterator[tuple[str, Message]]:
    """(picture, note) for what is only seen beside the others: grey among coloured, unlike all, faces in a set of people."""
    subject = {p.name: seen[p.name] for p in dataset.pictures if p.name in seen}
    plain = {name for name, messages in notes.items() if _says(messages, "lint.black", "lint.flat")}
    for name in grey_ones({name: sight.tone for name, sight in subject.items()}):
        yield name, Message.of("lint.grey")
    for name in odd_ones({name: sight.tiny for name, sight in subject.items() if name not in plain}):
        yield name, Message.of("lint.odd")
    sides = {name: sight.faces for name, sight in subject.items() if sight.faces is not None}
    yield from about_faces(sides, of_person(dataset)).items()


def beside_loaded(report: Report, loaded: Dataset) -> Report:
    """The report, which says first how many of the pictures that were loaded cannot be trained at its size, and why its count is another one."""
    usable = {
        p.name
        for p in (*report.dataset.pictures, *report.dataset.class_pictures)
        if p.name in report.seen or p.is_latent
    }
    names = [p.name for p in (*loaded.pictures, *loaded.class_pictures) if p.name not in usable]
    if not names:
        return report
    every = len(loaded.pictures) + len(loaded.class_pictures)
    first = Message.of("lint.fewer", count=len(names), loaded=every, names=names[:3])
    return dataclasses.replace(report, general=[first, *report.general])


def _borders(
    dataset: Dataset, seen: Mapping[str, Seen], notes: Mapping[str, Sequence[Message]]
) -> dict[str, np.ndarray]:
    """The borders of the subject's pictures; of near-duplicates, which are told, one would do."""
    names = [picture.name for picture in dataset.pictures if picture.name in seen]
    duplicates = {name for name in names if _says(notes[name], "lint.duplicate", "lint.duplicate_of_many")}
    return {name: border(seen[name].tiny) for name in names if name not in duplicates}


def _says(messages: Sequence[Message], *codes: str) -> bool:
    return any(message.code in codes for message in messages)


def _seen(picture: Picture) -> Seen | Message:
    """Runs in a thread. The reason where the picture cannot be used."""
    try:
        image, mask = open_trained(picture)
    except PictureError as error:
        return error.message
    how = placed(image, mask, fits(picture.width_px, picture.height_px, picture.data)[0], picture.data)
    cut = apply(image, how)
    white = float(np.asarray(apply(mask, how), np.float32).mean() / 255) if mask is not None else None
    detector = face_detector()
    sides = None if detector is None else faces(cut, detector)
    return Seen(how, difference_hash(cut), _tiny(cut), sharpness(cut), white, tone(cut), sides)


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
        out.append(Message.of("lint.cropped", share=percent(lost)))
    about = list(about_tone(seen.tone))
    out += about
    if seen.sharpness < BLUR_RATIO and not about:
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
    captions = [
        p.caption for p in dataset.pictures if p.caption and not p.controls
    ]  # an instruction may serve all pairs
    if len(captions) >= FEWEST_FOR_TAGS:
        if constant := _constant(dataset):
            out.append(Message.of("lint.constant_tags", tags=constant[:8]))
        repeated, count = collections.Counter(captions).most_common(1)[0]
        if count > len(captions) / 2:
            out.append(Message.of("lint.same_captions", count=count, all=len(captions), caption=repr(repeated[:40])))
    if 0 < len(dataset.pictures) < 5:
        out.append(Message.of("lint.few", count=len(dataset.pictures)))
    stems = collections.Counter(map(_stem, dataset.pictures))
    doubled = [name for name, count in stems.items() if count > 1]
    if doubled:
        out.append(Message.of("lint.shared_names", count=len(doubled), name=f"{doubled[0]}.*"))
    return out


def _constant(dataset: Dataset) -> list[str]:
    """Tags of nearly every caption but the trigger, where captions differ and there are enough of them."""
    captions = [p.caption for p in dataset.pictures if p.caption]
    if len(captions) < FEWEST_FOR_TAGS or len(set(captions)) < 2:
        return []
    trigger = {dataset.trigger.lower()}
    counts = collections.Counter(tag for caption in captions for tag in _tags(caption) - trigger)
    return sorted(tag for tag, n in counts.items() if n >= CONSTANT_SHARE * len(captions))


def _tags(caption: str) -> set[str]:
    """The tags of a caption, lower case."""
    return {tag.strip().lower() for tag in caption.split(",") if tag.strip()}


def _stem(picture: Picture) -> str:
    return picture.name.rsplit(".", 1)[0]


def flagged_first(report: Report, most: int) -> Sequence[Picture]:
    """The pictures to show: those with notes first, the gravest of them before the others."""
    pictures = [p for p in (*report.dataset.pictures, *report.dataset.class_pictures) if p.name in report.seen]
    return sorted(pictures, key=lambda p: GRAVITY.index(report.gravity(p.name)) if p.name in report.notes else 9)[:most]
