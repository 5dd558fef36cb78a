"""What a picture looks like in a few numbers: black, dark, plain, grey, unlike the others; faces where OpenCV is at hand. How grave each note is."""

from __future__ import annotations

import dataclasses
import importlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..messages.figures import percent
from ..messages.message import Message

STOP, LOOK, NOTE = "stop", "look", "note"
GRAVE = {"lint.fewer": STOP, "lint.left_out": STOP, "lint.black": STOP, "lint.mask_black": STOP}
SLIGHT = frozenset(
    {
        "lint.small",
        "lint.scaled_up",
        "lint.cropped",
        "lint.grey",
        "lint.mask_white",
        "lint.caption_pieces",
        "lint.few",
        "lint.faces_not_looked_for",
    }
)
NOTE_FILTERS = {  # of notes about pictures, as an editor filters by them
    "lint.duplicate": "duplicate", "lint.duplicate_of_many": "duplicate", "lint.small": "small",
    "lint.scaled_up": "small", "lint.black": "dark", "lint.dark": "dark", "lint.flat": "flat", "lint.grey": "grey",
    "lint.blurred": "blurred", "lint.odd": "odd", "lint.face_small": "faces", "lint.faces_several": "faces",
    "lint.cropped": "cropped", "lint.left_out": "broken", "lint.mask_black": "mask", "lint.mask_white": "mask",
    "lint.far": "far", "lint.far_mask": "far", "lint.others": "far",
}  # fmt: skip
BLACK, DARK = 10.0, 45.0  # mean light of 255 below which a picture is black, or dark
PLAIN = 4.0  # deviation of light, of 255, below which a picture is one colour
BRIGHTEST = 60.0  # of 255: a dark picture with a brighter hundredth is a night, with something to see in it
COLOURLESS = 2.5  # mean distance of a pixel from grey, of 255
MOST_GREY = 0.5  # share of grey pictures from which they are the set's own look
FEWEST_FOR_ODD, NEIGHBOURS = 8, 3
ODD = 6.0  # times the usual deviation from the usual distance to the nearest pictures
MOST_ODD = 0.1  # share of a set that can be odd
FACE_SIDE_PX = 512
FACE_FILE = "haarcascade_frontalface_default.xml"
SMALL_FACE = 0.1  # of a picture's shorter side
MOSTLY_FACES = 0.6  # share of pictures with a face from which a set is one of people
_OF_THREAD = threading.local()


@dataclasses.dataclass(frozen=True)
class Tone:
    """Means over a picture: `light` and its deviation `spread` in 0..255, `bright`: light of its brightest hundredth, `colour`: distance from grey."""

    light: float
    spread: float
    bright: float
    colour: float


def severity(note: Message) -> str:
    """How grave a note is: STOP for what cannot be trained on, LOOK for what probably harms, NOTE for what is worth knowing."""
    return GRAVE.get(note.code, NOTE if note.code in SLIGHT else LOOK)


def kind(note: Message) -> str:
    """The name an editor filters notes of its kind by; "" for notes that have none."""
    return NOTE_FILTERS.get(note.code, "")


def tone(image: Image.Image) -> Tone:
    small = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX), np.float32)
    light = small @ np.array([0.299, 0.587, 0.114], np.float32)
    grey = small.mean(-1, keepdims=True)
    return Tone(
        float(light.mean()), float(light.std()), float(np.quantile(light, 0.99)), float(np.abs(small - grey).mean())
    )


def about_tone(of: Tone) -> Iterator[Message]:
    """Black, dark or plain: one of them at most."""
    if of.light < BLACK and of.bright < BRIGHTEST:
        yield Message.of("lint.black")
    elif of.spread < PLAIN:
        yield Message.of("lint.flat")
    elif of.light < DARK and of.bright < 2 * BRIGHTEST:
        yield Message.of("lint.dark")


def grey_ones(tones: Mapping[str, Tone]) -> list[str]:
    """Pictures without colour among coloured ones."""
    grey = [name for name, one in tones.items() if one.colour < COLOURLESS and one.spread >= PLAIN]
    return grey if len(grey) < MOST_GREY * len(tones) else []


def fingerprint(tiny: np.ndarray) -> np.ndarray:
    """What a tiny picture (H, W, 3) has of each colour and where it is light, as a vector of length 1."""
    bins = np.minimum((tiny / 64).astype(int), 3)
    colours = np.bincount((bins[..., 0] * 16 + bins[..., 1] * 4 + bins[..., 2]).ravel(), minlength=64).astype(
        np.float64
    )
    light = tiny.mean(-1).reshape(4, tiny.shape[0] // 4, 4, tiny.shape[1] // 4).mean((1, 3)).ravel()
    layout = (light - light.mean()) / (light.std() + 8)
    both = np.concatenate([np.sqrt(colours / colours.sum()), 0.15 * layout])
    return both / np.linalg.norm(both)


def odd_ones(tinies: Mapping[str, np.ndarray]) -> list[str]:
    """Pictures much farther from their nearest ones, in colours and layout, than is usual in the set; what they show is not known."""
    names = list(tinies)
    if len(names) < FEWEST_FOR_ODD:
        return []
    prints = np.stack([fingerprint(tinies[name]) for name in names])
    nearest = np.empty(len(names))
    for n, one in enumerate(prints):
        apart = 1 - prints @ one
        apart[n] = np.inf
        nearest[n] = np.sort(apart)[:NEIGHBOURS].mean()
    middle = np.median(nearest)
    usual = 1.4826 * np.median(np.abs(nearest - middle)) + 0.01
    odd = [n for n in np.argsort(-nearest) if nearest[n] > middle + ODD * usual]
    return [names[n] for n in odd[: max(1, int(MOST_ODD * len(names)))]] if odd else []


def face_detector() -> Any:
    """OpenCV's own detector of faces, one for each thread as it may not be shared; None where the package or its file is absent, as in OpenCV 5."""
    if not hasattr(_OF_THREAD, "detector"):
        _OF_THREAD.detector = _opened_detector()
    return _OF_THREAD.detector


def _opened_detector() -> Any:
    try:
        cv2 = importlib.import_module("cv2")
        detector = cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / FACE_FILE))
        return None if detector.empty() else detector
    except Exception:  # noqa: BLE001 - a package of another version, or built for another system, raises what it likes
        return None


def faces(image: Image.Image, detector: Any) -> list[float]:
    """Sides of the faces found, as shares of the picture's shorter side, the largest first.

    Of scikit-image's photographs (100 faces of LFW, 100 cuts without one, 14 scenes): 80 faces found and no false one; 8 neighbours find 74, and no small
    ones, a side of 768 px takes two patterns of large scenes for faces.
    """
    small = image.convert("L")
    small.thumbnail((FACE_SIDE_PX, FACE_SIDE_PX))
    least = max(16, round(0.04 * min(small.size)))
    boxes = detector.detectMultiScale(np.asarray(small), scaleFactor=1.1, minNeighbors=5, minSize=(least, least))
    return sorted((float(width) / min(small.size) for _, _, width, _ in boxes), reverse=True)


def about_faces(sides: Mapping[str, list[float]], of_person: bool) -> dict[str, Message]:
    """A note for pictures whose face is small or that show several, in a set of people: by its captions, or because most of them show a face."""
    with_face = sum(bool(one) for one in sides.values())
    if not sides or not (of_person or with_face > MOSTLY_FACES * len(sides)):
        return {}
    out = {}
    for name, faces in sides.items():
        if len(faces) > 1 and faces[1] > SMALL_FACE:
            out[name] = Message.of("lint.faces_several", count=sum(side > SMALL_FACE for side in faces))
        elif faces and faces[0] < SMALL_FACE:
            out[name] = Message.of("lint.face_small", share=percent(faces[0]))
    return out
