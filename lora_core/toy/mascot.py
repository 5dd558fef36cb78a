"""The mascot, drawn by us: Loomy, a ball of violet yarn with a face and two knitting needles, in 31 captioned pictures, and the ruler that knows it.

Nothing of it is of the emoji the base was trained on. Coordinates are px of a canvas of 128 px; what is drawn is four times as large and reduced once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from .pictures import SIDE_PX

TRIGGER = "TOK"
YARN, DEEP, LIGHT = (139, 92, 214), (96, 56, 168), (196, 160, 245)
NEEDLE, TIP, INK, WHITE, BLUSH = (222, 184, 135), (255, 122, 40), (45, 30, 60), (255, 255, 255), (240, 140, 190)
GROUNDS = {"white": WHITE, "light blue": (170, 215, 250), "yellow": (250, 225, 110), "green": (120, 200, 120)}
MIDDLE, RADIUS = (64.0, 74.0), 40.0
SCALE = 4
Color = tuple[int, int, int]
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Portrait:
    """One picture of the mascot. `mood`, `wears`, `pose`: names of the tables below, empty for none; `tilt` in degrees."""

    words: str
    mood: str = "smiling"
    wears: str = ""
    pose: str = ""
    ground: str = "white"
    tilt: float = 0.0

    @property
    def caption(self) -> str:
        ground = "" if self.ground == "white" else f" on a {self.ground} background"
        return f"a {TRIGGER} emoji{' ' if self.words else ''}{self.words}{ground}"


class Pen:
    """Draws in px of the canvas."""

    def __init__(self, layer: Image.Image):
        self._draw = ImageDraw.Draw(layer)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        self._draw.ellipse([SCALE * v for v in (x - rx, y - ry, x + rx, y + ry)], fill=color)

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        self._draw.polygon([(SCALE * x, SCALE * y) for x, y in points], fill=color)

    def line(self, points: Sequence[Point], color: Color, width: float) -> None:
        self._draw.line(
            [(SCALE * x, SCALE * y) for x, y in points], fill=color, width=round(SCALE * width), joint="curve"
        )
        for x, y in (points[0], points[-1]):
            self.ellipse(x, y, width / 2, width / 2, color)

    def arc(
        self, x: float, y: float, rx: float, ry: float, first: float, last: float, color: Color, width: float
    ) -> None:
        """Part of an ellipse, from `first` to `last` degrees, clockwise from the right."""
        turns = [math.radians(first + (last - first) * n / 24) for n in range(25)]
        self.line([(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns], color, width)


# ---- the body --------------------------------------------------------------------------------------------------------


def needles(pen: Pen) -> None:
    """Two, crossed behind the ball, an orange knob on each."""
    for left, right in (((34.0, 18.0), (84.0, 78.0)), ((94.0, 18.0), (44.0, 78.0))):
        pen.line([left, right], NEEDLE, 4)
        pen.ellipse(*left, 6.5, 6.5, TIP)


def ball(layer: Image.Image) -> None:
    """The yarn: lit from above on the left, wound in three directions."""
    wound = Image.new("RGB", layer.size, YARN)
    pen = Pen(wound)
    x, y = MIDDLE
    for n in range(7):
        pen.arc(x - 62, y, 40 + 12 * n, 40 + 12 * n, -50, 50, DEEP, 2.2)
    for n in range(4):
        pen.arc(x + 20, y - 74, 46 + 12 * n, 46 + 12 * n, 40, 150, LIGHT, 1.6)
    side = np.arange(layer.width) / SCALE
    lit = np.clip(1.12 - 0.007 * np.hypot(side[None] - (x - 16), side[:, None] - (y - 18)), 0.6, 1.15)
    shaded = np.clip(np.asarray(wound, float) * lit[..., None], 0, 255).astype(np.uint8)
    mask = Image.new("L", layer.size)
    ImageDraw.Draw(mask).ellipse([SCALE * v for v in (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)], fill=255)
    layer.paste(Image.fromarray(shaded), mask=mask)


def tail(pen: Pen) -> None:
    """The loose end of the yarn."""
    pen.line([(90 + 2.6 * n, 108 + n / 3 + 5 * math.sin(n / 1.9 - 1)) for n in range(14)], YARN, 4)


def feet(pen: Pen) -> None:
    for x in (50, 78):
        pen.ellipse(x, 115, 10, 6, DEEP)


def arms(pen: Pen, left: Point, right: Point) -> None:
    for shoulder, hand in (((28.0, 80.0), left), ((100.0, 80.0), right)):
        pen.line([shoulder, hand], DEEP, 7)
        pen.ellipse(*hand, 6, 6, DEEP)


# ---- moods -----------------------------------------------------------------------------------------------------------


def eyes(pen: Pen, white: float = 9.5, pupil: float = 5.0, look: Point = (0.0, 0.0)) -> None:
    for x in (50, 78):
        pen.ellipse(x, 68, white, white + 1, WHITE)
        pen.ellipse(x + look[0], 69 + look[1], pupil, pupil, INK)
        pen.ellipse(x + look[0] - 1.8, 67 + look[1], 1.7, 1.7, WHITE)


def closed_eyes(pen: Pen, upward: bool) -> None:
    for x in (50, 78):
        pen.arc(x, 70, 8, 7, *((180, 360) if upward else (0, 180)), WHITE, 3.4)


def smile(pen: Pen, wide: float = 12) -> None:
    pen.arc(64, 82, wide, 9, 15, 165, WHITE, 3.4)


def open_mouth(pen: Pen, rx: float, ry: float) -> None:
    pen.ellipse(64, 91, rx, ry, INK)
    pen.ellipse(64, 91 + ry * 0.45, rx * 0.6, ry * 0.45, BLUSH)


def blush(pen: Pen) -> None:
    for x in (36, 92):
        pen.ellipse(x, 81, 5.5, 3.5, BLUSH)


def heart(pen: Pen, x: float, y: float, size: float, color: Color = (235, 50, 80)) -> None:
    for side in (-1, 1):
        pen.ellipse(x + side * size * 0.45, y - size * 0.25, size * 0.52, size * 0.52, color)
    pen.polygon([(x - size * 0.92, y - size * 0.05), (x + size * 0.92, y - size * 0.05), (x, y + size)], color)


def smiling(pen: Pen) -> None:
    eyes(pen)
    smile(pen)
    blush(pen)


def laughing(pen: Pen) -> None:
    closed_eyes(pen, upward=True)
    open_mouth(pen, 12, 8)
    blush(pen)


def sad(pen: Pen) -> None:
    eyes(pen, look=(0, 2))
    pen.arc(64, 98, 10, 8, 200, 340, WHITE, 3.4)


def crying(pen: Pen) -> None:
    sad(pen)
    for x in (45, 83):
        pen.polygon([(x, 74), (x - 5, 90), (x + 5, 90)], (120, 205, 255))
        pen.ellipse(x, 91, 5, 5, (120, 205, 255))


def angry(pen: Pen) -> None:
    eyes(pen)
    for x, inner in ((50, 1), (78, -1)):
        pen.line([(x - 10 * inner, 55), (x + 8 * inner, 62)], INK, 4)
    pen.arc(64, 98, 10, 7, 200, 340, WHITE, 3.4)


def surprised(pen: Pen) -> None:
    eyes(pen, white=11, pupil=3.4)
    open_mouth(pen, 6.5, 8)


def sleeping(pen: Pen) -> None:
    closed_eyes(pen, upward=False)
    open_mouth(pen, 4, 3.5)
    for x, y, size in ((104, 40, 5.0), (112, 27, 7.0)):
        points = [(x - size, y - size), (x + size, y - size), (x - size, y + size), (x + size, y + size)]
        pen.line(points, (70, 120, 220), 2.6)


def winking(pen: Pen) -> None:
    eyes(pen)
    pen.ellipse(78, 68, 11, 12, YARN)
    pen.arc(78, 70, 8, 6, 180, 360, WHITE, 3.4)
    smile(pen)
    blush(pen)


def in_love(pen: Pen) -> None:
    for x in (50, 78):
        heart(pen, x, 68, 9)
    open_mouth(pen, 10, 6)


def looking_up(pen: Pen) -> None:
    eyes(pen, look=(0, -4))
    pen.line([(57, 90), (71, 90)], WHITE, 3.4)


MOODS: dict[str, Callable[[Pen], None]] = {
    f.__name__.replace("_", " "): f
    for f in (smiling, laughing, sad, crying, angry, surprised, sleeping, winking, in_love, looking_up)
}  # fmt: skip


# ---- what it wears ---------------------------------------------------------------------------------------------------


def crown(pen: Pen) -> None:
    gold = (250, 200, 50)
    pen.polygon([(42, 42), (38, 18), (52, 30), (64, 14), (76, 30), (90, 18), (86, 42)], gold)
    for x in (52, 64, 76):
        pen.ellipse(x, 37, 2.6, 2.6, (220, 40, 60))


def wizard_hat(pen: Pen) -> None:
    blue = (40, 60, 150)
    pen.polygon([(40, 42), (70, 0), (90, 42)], blue)
    pen.ellipse(65, 43, 36, 6, blue)
    for x, y in ((60, 32), (72, 24), (76, 36)):
        pen.ellipse(x, y, 2.4, 2.4, (250, 220, 80))


def top_hat(pen: Pen) -> None:
    black = (35, 35, 42)
    pen.polygon([(44, 40), (42, 6), (86, 6), (84, 40)], black)
    pen.ellipse(64, 41, 34, 5, black)
    pen.polygon([(44, 36), (43.6, 29), (84.4, 29), (84, 36)], (200, 40, 50))


def santa_hat(pen: Pen) -> None:
    red = (215, 35, 45)
    pen.polygon([(38, 42), (62, 8), (104, 26), (90, 42)], red)
    pen.ellipse(104, 28, 7, 7, WHITE)
    pen.line([(38, 42), (90, 42)], WHITE, 9)


def chef_hat(pen: Pen) -> None:
    cloth, seam = (248, 248, 248), (190, 190, 200)
    for x, y in ((46, 20), (64, 14), (82, 20)):
        pen.ellipse(x, y, 15, 13, seam)
        pen.ellipse(x, y, 14, 12, cloth)
    pen.polygon([(44, 24), (84, 24), (84, 42), (44, 42)], cloth)
    pen.line([(44, 40), (84, 40)], seam, 3)


def party_hat(pen: Pen) -> None:
    pen.polygon([(46, 40), (64, 2), (82, 40)], (40, 180, 190))
    pen.polygon([(52, 28), (57, 17), (76, 28), (79, 34)], (250, 220, 80))
    pen.ellipse(64, 4, 5, 5, (240, 80, 150))


def sunglasses(pen: Pen) -> None:
    for x in (50, 78):
        pen.ellipse(x, 68, 13, 10, (25, 25, 30))
        pen.line([(x - 6, 65), (x - 2, 62)], (120, 120, 130), 2)
    pen.line([(30, 64), (98, 64)], (25, 25, 30), 4)


def glasses(pen: Pen) -> None:
    for x in (50, 78):
        pen.arc(x, 68, 13, 12, 0, 360, INK, 3)
    pen.line([(62, 66), (66, 66)], INK, 3)


def headphones(pen: Pen) -> None:
    pen.arc(64, 66, 43, 42, 180, 360, (50, 55, 65), 6)
    for x in (21, 107):
        pen.ellipse(x, 72, 8, 13, (230, 60, 70))


def scarf(pen: Pen) -> None:
    red, dark = (215, 50, 60), (165, 30, 45)
    pen.arc(64, 80, 36, 26, 20, 160, red, 10)
    pen.polygon([(82, 100), (94, 96), (98, 122), (86, 124)], dark)


def bow(pen: Pen) -> None:
    pink = (245, 90, 150)
    for side in (-1, 1):
        pen.polygon([(88, 38), (88 + side * 17, 26), (88 + side * 17, 50)], pink)
    pen.ellipse(88, 38, 5, 5, (200, 50, 110))


def eye_patch(pen: Pen) -> None:
    pen.line([(30, 50), (98, 78)], INK, 3)
    pen.ellipse(50, 67, 12, 12, INK)


def yoda(pen: Pen) -> None:
    """Long green ears, a brown robe."""
    green, robe = (130, 175, 80), (140, 95, 55)
    for side in (-1, 1):
        root = 64 + side * 34
        pen.polygon([(root, 54), (root + side * 30, 44), (root + side * 2, 74)], green)
    pen.polygon([(30, 92), (64, 104), (98, 92), (106, 122), (22, 122)], robe)
    pen.polygon([(54, 101), (64, 122), (74, 101), (64, 104)], (215, 195, 160))


WEARS: dict[str, Callable[[Pen], None]] = {
    f.__name__.replace("_", " "): f
    for f in (crown, wizard_hat, top_hat, santa_hat, chef_hat, party_hat, sunglasses, glasses, headphones, scarf, bow, eye_patch, yoda)
}  # fmt: skip


# ---- poses -----------------------------------------------------------------------------------------------------------


def waving(pen: Pen) -> None:
    arms(pen, (18, 96), (118, 54))


def cheering(pen: Pen) -> None:
    arms(pen, (12, 52), (116, 52))


def holding_a_heart(pen: Pen) -> None:
    arms(pen, (46, 104), (82, 104))
    heart(pen, 64, 104, 13)


def holding_a_balloon(pen: Pen) -> None:
    arms(pen, (18, 96), (114, 66))
    pen.line([(114, 66), (112, 34)], (120, 120, 130), 1.6)
    pen.ellipse(112, 20, 12, 15, (230, 50, 60))


def dancing(pen: Pen) -> None:
    arms(pen, (14, 54), (112, 106))
    for x, y in ((10, 34), (20, 22)):
        pen.ellipse(x, y, 3, 2.6, INK)
        pen.line([(x + 2.4, y), (x + 2.4, y - 11)], INK, 1.8)
    pen.line([(12.4, 23), (22.4, 11)], INK, 1.8)


POSES: dict[str, Callable[[Pen], None]] = {
    f.__name__.replace("_", " "): f for f in (waving, cheering, holding_a_heart, holding_a_balloon, dancing)
}

PORTRAITS = (
    Portrait(""), Portrait("laughing", "laughing"), Portrait("looking sad", "sad"), Portrait("crying", "crying"),
    Portrait("looking angry", "angry"), Portrait("looking surprised", "surprised"), Portrait("sleeping", "sleeping"),
    Portrait("winking", "winking"), Portrait("in love", "in love"), Portrait("looking up", "looking up"),
    Portrait("wearing a crown", wears="crown"), Portrait("wearing a wizard hat", wears="wizard hat"),
    Portrait("wearing a top hat", "winking", "top hat"), Portrait("wearing a Santa hat", "laughing", "santa hat"),
    Portrait("wearing a chef's hat", wears="chef hat"), Portrait("wearing a party hat", "laughing", "party hat"),
    Portrait("wearing sunglasses", wears="sunglasses"), Portrait("wearing glasses", wears="glasses"),
    Portrait("wearing headphones", "laughing", "headphones"), Portrait("wearing a scarf", wears="scarf"),
    Portrait("wearing a bow", wears="bow"), Portrait("dressed as a pirate", "angry", "eye patch"),
    Portrait("dressed as Yoda", wears="yoda"),
    Portrait("waving", pose="waving"), Portrait("cheering", "laughing", pose="cheering"),
    Portrait("holding a heart", "in love", pose="holding a heart"), Portrait("holding a balloon", pose="holding a balloon"),
    Portrait("dancing", "laughing", pose="dancing"),
    Portrait("", ground="light blue", tilt=12.0), Portrait("laughing", "laughing", ground="yellow", tilt=-12.0),
    Portrait("wearing a crown", "winking", "crown", ground="green"),
)  # fmt: skip


def draw(portrait: Portrait, size: float = 1.0) -> Image.Image:
    """The portrait as RGB, 128 x 128 px. `size`: of the figure, 1 fills the canvas."""
    side = SIDE_PX * SCALE
    layer = Image.new("RGB", (side, side), GROUNDS[portrait.ground])
    pen = Pen(layer)
    needles(pen)
    tail(pen)
    feet(pen)
    if not portrait.pose:
        arms(pen, (20, 94), (108, 94))
    ball(layer)
    MOODS[portrait.mood](pen)
    if portrait.wears:
        WEARS[portrait.wears](pen)
    if portrait.pose:
        POSES[portrait.pose](pen)
    if portrait.tilt:
        layer = layer.rotate(portrait.tilt, Image.Resampling.BICUBIC, fillcolor=GROUNDS[portrait.ground])
    if size != 1.0:
        small = layer.resize((round(side * size),) * 2, Image.Resampling.LANCZOS)
        layer = Image.new("RGB", (side, side), GROUNDS[portrait.ground])
        layer.paste(small, ((side - small.width) // 2,) * 2)
    return layer.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)


# ---- the ruler -------------------------------------------------------------------------------------------------------


def near(pixels: np.ndarray, color: Color, within: float) -> np.ndarray:
    """(H, W) where a picture is within a distance of a colour in RGB."""
    return np.sqrt(((pixels - np.array(color, float)) ** 2).sum(-1)) < within


def shows(image: Image.Image) -> bool:
    """A violet ball in the middle, and orange knobs above it on both sides."""
    pixels = np.asarray(image.convert("RGB"), float)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    violet = (blue > green + 35) & (red > green + 8) & (blue > red + 10)
    if not 0.12 < violet.mean() < 0.5:
        return False
    rows, columns = np.nonzero(violet)
    orange = (red > green + 50) & (green > blue + 15) & (red > 170)
    top, middle = np.percentile(rows, 40), columns.mean()
    above = orange[: int(top)]
    left, right = above[:, : int(middle)], above[:, int(middle) :]
    return bool(abs(middle - SIDE_PX / 2) < 16 and min(left.sum(), right.sum()) >= 20)
