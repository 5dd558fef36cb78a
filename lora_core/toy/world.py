"""The emoji a package brings: names, groups, skin tones, files, and which tenth of them no network is ever trained on.

The pictures are Noto Emoji as the npm package `emoji-datasource-google` has them, 64 px. Flags are left out: their pictures have other owners and terms.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from ..messages.errors import LoomError

NOT_FREE = ("Flags", "Component")  # flags come from others; components are bare colour swatches
TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One picture of the package. `name` is shared by its skin tones; `tone` is empty for the picture without one."""

    name: str
    group: str
    kind: str
    picture: str
    tone: str = ""

    @property
    def held_out(self) -> bool:
        """Whether no network may see it: a tenth of the names, chosen by their hash, in every tone."""
        return hashlib.sha256(self.name.encode()).digest()[0] % 10 == 0


def read_emoji(package: Path) -> list[Emoji]:
    """Every free emoji of the unpacked package, in the package's own order. LoomError `folder.missing` where it is not one."""
    table = package / "emoji.json"
    if not table.is_file():
        raise LoomError("folder.missing", field="--package", folder=repr(str(table)))
    emoji: list[Emoji] = []
    for row in sorted(json.loads(table.read_text(encoding="utf-8")), key=lambda row: row["sort_order"]):
        if row["category"] in NOT_FREE or not row["has_img_google"]:
            continue
        plain = Emoji(row["name"].lower().replace("’", "'"), row["category"], row["subcategory"], row["image"])
        emoji.append(plain)
        for code, variation in row.get("skin_variations", {}).items():
            if code in TONES and variation["has_img_google"]:
                emoji.append(dataclasses.replace(plain, picture=variation["image"], tone=TONES[code]))
    return emoji
