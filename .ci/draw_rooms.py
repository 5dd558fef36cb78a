"""Draws the rooms and their imports as read from the code: `python .ci/draw_rooms.py > docs/rooms.svg`.

Rows are the lines of ORDER in rooms.py. An arrow that follows from others is left out: A -> C where A -> B -> C stands. Within a row the boxes
stand in the order in which arrows cross least (barycenter sweeps, Sugiyama et al. 1981), each as near as it can be to what it is joined with
(least squares with a least distance, by pooling neighbours that would overlap). The same code gives the same picture, byte for byte.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import combinations, pairwise
from typing import NamedTuple

import rooms

ROW_PX, BOX_PX, GAP_PX, LANE_PX, MARGIN_PX, INSET_PX, LABEL_PX = 64, 30, 16, 10, 16, 20, 34
WINGS = {
    "nodes": ("#eef3fb", "#3f68a8", "doors and nodes"),
    "lora_core": ("#fbf3e6", "#a8722a", "lora_core: the engine"),
    "convert": ("#ecf6ee", "#3d8350", "convert: the file formats"),
    "shared": ("#f2f0f5", "#6b5b8a", "lora_core, open to convert"),
}  # wing -> (ground, line, label)  # fmt: skip
Pair = tuple[str, str]


class Spot(NamedTuple):
    """A place in a row: a room, or the lane in which the arrow (source, target) passes between the boxes of that row."""

    row: int
    room: str = ""
    arrow: Pair = ("", "")

    @property
    def width_px(self) -> float:
        return 7.6 * len(label(self.room)) + 22 if self.room else LANE_PX


Links = list[tuple[Spot, Spot]]


def label(room: str) -> str:
    """What stands in the box: the name as it is looked for inside its wing."""
    return room if wing(room) == "nodes" else room.removeprefix(wing(room) + "/").removeprefix("lora_core/")


def wing(room: str) -> str:
    top = "shared" if room in rooms.SHARED else room.split("/")[0]
    return top if top in WINGS else "nodes"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def reduced(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs that do not follow from others."""
    targets: dict[str, set[str]] = {}
    for source, target in pairs:
        targets.setdefault(source, set()).add(target)

    def below(room: str) -> set[str]:
        return set().union(*({target} | below(target) for target in targets.get(room, ())))

    def follows(source: str, target: str) -> bool:
        return any(target in below(other) for other in targets[source])

    return sorted((a, b) for a in targets for b in targets[a] if not follows(a, b))


def rows_of(names: list[str], first: int) -> dict[str, int]:
    """Room -> row: the lines of ORDER that have one of `names`, counted from row `first` on."""
    levels = sorted({rooms.LEVEL[name] for name in names})
    return {name: first + levels.index(rooms.LEVEL[name]) for name in names}


def crossings(upper: list[Spot], lower: list[Spot], links: Links) -> int:
    """How often the links between two neighbouring rows cross."""
    places = {spot: n for row in (upper, lower) for n, spot in enumerate(row)}
    ends = [(places[a], places[b]) for a, b in links if a.row == upper[0].row and a in places and b in places]
    return sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(ends, 2))


def neighbours(links: Links) -> dict[Spot, list[Spot]]:
    near: dict[Spot, list[Spot]] = {}
    for a, b in links:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    return near


def ordered(rows: list[list[Spot]], links: Links, pinned: int) -> list[list[Spot]]:
    """The rows in the order with the fewest crossings of 60 sweeps down and up; the last `pinned` rows stay as they are."""
    near, free = neighbours(links), len(rows) - pinned
    best, fewest = rows, sum(crossings(a, b, links) for a, b in pairwise(rows))
    for sweep in range(60):
        rows = [list(row) for row in rows]
        down = sweep % 2 == 0
        for n in range(1, free) if down else range(min(free, len(rows) - 1) - 1, -1, -1):
            beside = rows[n - 1 if down else n + 1]
            place = {spot: (k + 0.5) / len(beside) for k, spot in enumerate(beside)}
            present = {spot: (k + 0.5) / len(rows[n]) for k, spot in enumerate(rows[n])}
            pulled: dict[Spot, float] = {}
            for spot in rows[n]:
                pulled[spot] = mean([place[other] for other in near.get(spot, []) if other in place] or [present[spot]])
            rows[n].sort(key=lambda spot: (pulled[spot], present[spot]))
        crossed = sum(crossings(a, b, links) for a, b in pairwise(rows))
        if crossed < fewest:
            best, fewest = rows, crossed
    return best


def spread(row: list[Spot], ideal: list[float]) -> list[float]:
    """The centres nearest to those wanted, in least squares, at which no two spots of a row overlap."""
    offsets = [0.0]
    for a, b in pairwise(row):
        offsets.append(offsets[-1] + (a.width_px + b.width_px) / 2 + GAP_PX)
    pools: list[list[float]] = []
    for want, offset in zip(ideal, offsets):
        pools.append([want - offset])
        while len(pools) > 1 and mean(pools[-2]) > mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    starts = [mean(pool) for pool in pools for _ in pool]
    return [start + offset for start, offset in zip(starts, offsets)]


def centres(rows: list[list[Spot]], links: Links, fixed: dict[Spot, float]) -> dict[Spot, float]:
    """Spot -> its centre in px; those `fixed` stay where they are."""
    near, x = neighbours(links), dict(fixed)

    def pull(spot: Spot) -> float:
        """Where its neighbours want a spot; a lane is drawn to its next lane most, so that long arrows run straight."""
        weights = {other: 1 if spot.room or other.room else 8 for other in near.get(spot, [spot])}
        return sum(weight * x[other] for other, weight in weights.items()) / sum(weights.values())

    middle = mean(list(fixed.values())) if fixed else 0.0
    for row in rows:
        x |= {spot: at for spot, at in zip(row, spread(row, [middle] * len(row))) if spot not in fixed}
    for _ in range(80):
        for row in rows:
            if row[0] not in fixed:
                x |= zip(row, spread(row, [pull(spot) for spot in row]))
    return x


class Plan:
    """Where every room and every lane stands, in px."""

    def __init__(self, pairs: set[Pair]) -> None:
        joined = {room for pair in pairs for room in pair}
        self.rooms: dict[str, list[str]] = {name: [] for name in WINGS}
        for room in rooms.LEVEL:
            if room in joined:
                self.rooms[wing(room)].append(room)
        self.row = rows_of(self.rooms["nodes"], 0)
        self.ground = max(self.row.values()) + 1  # the first row below the nodes
        self.row |= rows_of(self.rooms["lora_core"], self.ground) | rows_of(self.rooms["convert"], self.ground)
        self.cellar = max(self.row.values()) + 1  # the first row of what both wings share
        self.row |= rows_of(self.rooms["shared"], self.cellar)
        self.runs = [self._run(source, target) for source, target in reduced(pairs)]
        self.x: dict[Spot, float] = {}
        self.sides: dict[str, tuple[float, float]] = {}  # wing -> left and right edge
        left = float(MARGIN_PX)
        for name in ("lora_core", "convert"):
            left = self._place(name, left) + MARGIN_PX
        self.width, self.height = left, self.y(max(self.row.values())) + BOX_PX / 2 + INSET_PX + MARGIN_PX
        self._place_nodes()
        self._place_shared()
        self.sides["nodes"] = self.sides["shared"] = MARGIN_PX, self.width - MARGIN_PX

    def y(self, row: int) -> float:
        """The middle of a row."""
        apart = (row >= self.ground) * (INSET_PX + MARGIN_PX) + (row >= self.cellar) * (INSET_PX + MARGIN_PX)
        return MARGIN_PX + LABEL_PX + BOX_PX / 2 + row * ROW_PX + apart

    def frame(self, name: str) -> tuple[float, float, float, float]:
        """Left, right, top and bottom edge of a wing."""
        floor, ceiling = (self.y(row) - BOX_PX / 2 - INSET_PX for row in (self.ground, self.cellar))
        edges = {"nodes": (MARGIN_PX, floor - MARGIN_PX), "shared": (ceiling, self.height - MARGIN_PX)}
        return *self.sides[name], *edges.get(name, (floor, ceiling - MARGIN_PX))

    def _run(self, source: str, target: str) -> list[Spot]:
        """The spots an arrow runs through, from its source to its target."""
        first, last = self.row[source], self.row[target]
        return [
            Spot(first, source),
            *(Spot(row, arrow=(source, target)) for row in range(first + 1, last)),
            Spot(last, target),
        ]

    def _wing(self, spot: Spot) -> str:
        if spot.room:
            return wing(spot.room)
        source, target = (wing(room) for room in spot.arrow)
        if spot.row < self.ground:
            return "nodes"
        if target != "shared":
            return target
        return source if source != "nodes" else "lora_core"

    def _grid(self, name: str) -> tuple[list[list[Spot]], Links]:
        """Rows of a wing, and the links within it."""
        links = [(a, b) for run in self.runs for a, b in pairwise(run) if self._wing(a) == self._wing(b) == name]
        spots = dict.fromkeys(Spot(self.row[room], room) for room in self.rooms[name])
        spots |= dict.fromkeys(spot for run in self.runs for spot in run if self._wing(spot) == name)
        rows: dict[int, list[Spot]] = {}
        for spot in spots:
            rows.setdefault(spot.row, []).append(spot)
        return [rows[row] for row in sorted(rows)], links

    def _place(self, name: str, left: float) -> float:
        """Places a wing whose frame begins at `left`; returns the frame's right edge."""
        rows, links = self._grid(name)
        x = centres(ordered(rows, links, 0), links, {})
        start = min(at - spot.width_px / 2 for spot, at in x.items())
        self.x |= {spot: at - start + left + INSET_PX for spot, at in x.items()}
        right = max(self.x[spot] + spot.width_px / 2 for spot in x) + INSET_PX
        self.sides[name] = left, right
        return right

    def _place_nodes(self) -> None:
        """Places doors and nodes over the two wings, each arrow that leads down near the place where it arrives."""
        rows, links = self._grid("nodes")
        down = [(a, b) for run in self.runs for a, b in pairwise(run) if a.row < self.ground <= b.row]
        arrivals = sorted({b for _, b in down}, key=lambda spot: self.x[spot])
        rows, fixed = [*rows, arrivals], {spot: self.x[spot] for spot in arrivals}
        self.x |= centres(ordered(rows, links + down, 1), links + down, fixed)

    def _place_shared(self) -> None:
        """Places what both wings share in the middle below them."""
        middle = self.width / 2
        for row in self._grid("shared")[0]:
            starts = spread(row, [middle] * len(row))
            self.x |= {spot: at - mean(starts) + middle for spot, at in zip(row, starts)}


def path(plan: Plan, run: list[Spot]) -> str:
    """An arrow as curves from row to row, straight through its lanes."""
    x, y = plan.x[run[0]], plan.y(run[0].row) + BOX_PX / 2
    out = f"M{x:.1f} {y:.1f}"
    for spot in run[1:]:
        to, top = plan.x[spot], plan.y(spot.row) - BOX_PX / 2
        end = top - (6 if spot.room else 0)  # the length of an arrowhead
        bend = (end - y) / 2
        out += f"C{x:.1f} {y + bend:.1f} {to:.1f} {end - bend:.1f} {to:.1f} {end:.1f}"
        x, y = to, top + BOX_PX
        out += "" if spot.room else f"V{y:.1f}"
    return out


def tag(name: str, inside: str = "", **attributes: object) -> str:
    """An element of an SVG; numbers in px with one digit, `stroke_width` for `stroke-width`."""
    values = {key.replace("_", "-"): f"{v:.1f}" if isinstance(v, float) else v for key, v in attributes.items()}
    head = " ".join([name, *(f'{key}="{value}"' for key, value in values.items())])
    return f"<{head}>{inside}</{name}>" if inside else f"<{head}/>"


def box(left: float, right: float, top: float, bottom: float, **attributes: object) -> str:
    return tag("rect", x=left, y=top, width=right - left, height=bottom - top, **attributes)


def picture(pairs: set[Pair]) -> str:
    """The rooms as SVG text."""
    plan = Plan(pairs)
    out = [box(0.0, plan.width, 0.0, plan.height, fill="#ffffff")]
    for name, (ground, line, _) in WINGS.items():
        head = tag("path", d="M0 1L7 4L0 7z", fill=line)
        out.append(tag("marker", head, id=name, markerWidth=8, markerHeight=8, refX=1, refY=4, orient="auto"))
        out.append(box(*plan.frame(name), rx=10, fill=ground))
    for run in plan.runs:
        name = wing(run[0].room)
        ink = {"fill": "none", "stroke": WINGS[name][1], "stroke_opacity": 0.6, "stroke_width": 1.2}
        out.append(tag("path", d=path(plan, run), marker_end=f"url(#{name})", **ink))
    for name, (ground, line, text) in WINGS.items():  # with a rim, for arrows may pass behind
        left, _, top, _ = plan.frame(name)
        rim = {"stroke": ground, "stroke_width": 6, "paint_order": "stroke"}
        out.append(tag("text", text, x=left + 14, y=top + 21, fill=line, font_weight=600, **rim))
    for spot in sorted(spot for spot in plan.x if spot.room):
        x, y, half = plan.x[spot], plan.y(spot.row), spot.width_px / 2
        line = WINGS[wing(spot.room)][1]
        out.append(box(x - half, x + half, y - BOX_PX / 2, y + BOX_PX / 2, rx=6, fill="#ffffff", stroke=line))
        out.append(tag("text", label(spot.room), x=x, y=y + 4.5, text_anchor="middle", fill="#222222"))
    size = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {plan.width:.0f} {plan.height:.0f}"}
    font = {"font_family": "Segoe UI,Helvetica,Arial,sans-serif", "font_size": 13}
    return tag("svg", "\n".join(["", *out, ""]), **size, **font) + "\n"


if __name__ == "__main__":
    sys.stdout.write(picture(rooms.between(rooms.arrows(rooms.read(rooms.ROOT)))))
