"""A package of a handful of drawn emoji in the layout of `emoji-datasource-google`, for tests that have no network."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

# name, category, subcategory, fill
ROWS = (
    ("DOG FACE", "Animals & Nature", "animal-mammal", (150, 90, 40)),
    ("CAT FACE", "Animals & Nature", "animal-mammal", (240, 180, 40)),
    ("RED APPLE", "Food & Drink", "food-fruit", (220, 30, 30)),
    ("LEMON", "Food & Drink", "food-fruit", (250, 220, 50)),
    ("PEAR", "Food & Drink", "food-fruit", (180, 210, 60)),
    ("BANANA", "Food & Drink", "food-fruit", (250, 225, 80)),
    ("THUMBS UP SIGN", "People & Body", "hand-fingers-closed", (250, 200, 60)),
    ("CROWN", "Objects", "clothing", (250, 190, 30)),
    ("TOP HAT", "Objects", "clothing", (30, 30, 40)),
    ("GRADUATION CAP", "Objects", "clothing", (40, 40, 60)),
    ("SUNGLASSES", "Objects", "clothing", (20, 20, 30)),
    ("RIBBON", "Activities", "event", (230, 60, 80)),
    ("JAPAN FLAG", "Flags", "country-flag", (255, 255, 255)),
)
CHOSEN = {
    "animal face": "dog face|cat face",
    "food": "red apple|lemon|pear|banana",
    "hand": "thumbs up sign",
    "thing": "crown|top hat|sunglasses",
}


def write_package(folder: Path) -> Path:
    """The table and its pictures; the hand has two skin tones."""
    place = folder / "img" / "google" / "64"
    place.mkdir(parents=True)
    table = []
    for n, (name, category, kind, fill) in enumerate(ROWS):
        row = {
            "name": name,
            "category": category,
            "subcategory": kind,
            "image": f"{n:x}.png",
            "sort_order": n,
            "has_img_google": True,
        }
        _draw(fill).save(place / row["image"])
        if kind.startswith("hand"):
            row["skin_variations"] = {}
            for code, tone in (("1F3FB", (250, 220, 190)), ("1F3FF", (90, 60, 50))):
                row["skin_variations"][code] = {"image": f"{n:x}-{code}.png", "has_img_google": True}
                _draw(tone).save(place / f"{n:x}-{code}.png")
        table.append(row)
    (folder / "emoji.json").write_text(json.dumps(table))
    return folder


def _draw(fill: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    pen.ellipse((6, 6, 57, 57), fill=(*fill, 255))
    pen.rectangle((20, 24, 25, 30), fill=(10, 10, 10, 255))
    return image
