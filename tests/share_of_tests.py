"""`--share 1/4 --share-seed COMMIT`: a part of the long rows of tests, another one for another commit; what cannot be cut into rows runs always.

Rows are the cases of a parametrised test, and in suites of `slow` tests the tests of a file. Each such group gives the share of its rows that the seed
chooses, at least one, so that every file and every test is there in every run. A test marked `always` is never left out, one marked `release` is run only
where everything is: it takes many minutes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import pytest


def options(parser: pytest.Parser) -> None:
    group = parser.getgroup("share")
    group.addoption(
        "--share", default="1/1", help="run this share of the rows of parametrised and of slow tests, such as 1/4"
    )
    group.addoption("--share-seed", default="", help="what chooses the share, such as the hash of a commit")


def parts(config: pytest.Config) -> int:
    """The 4 of `--share 1/4`."""
    one, _, count = config.getoption("share").partition("/")
    if one != "1" or not count.isdigit() or count == "0":
        raise pytest.UsageError(f"--share: {config.getoption('share')!r} is no share; write one like 1/4")
    return int(count)


def number(text: str) -> int:
    """A number of a text that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def chosen_rows(group: str, count: int, of: int, seed: str) -> set[int]:
    """Places of the rows of a group that are run. A group is cut into `of` parts, or as many as it has rows; the seed chooses one of them."""
    of = min(of, count)
    part = (
        number(seed) + number(group)
    ) % of  # groups smaller than the number of parts do not all begin with the same row
    return set(range(part, count, of))


def group_of(item: pytest.Item) -> str | None:
    """What the test is a row of; None for one that stands alone."""
    if item.get_closest_marker("always"):
        return None
    file = item.nodeid.split("::")[0]
    if item.get_closest_marker("slow"):
        return f"{file} slow"
    return f"{file} {item.originalname}" if getattr(item, "callspec", None) else None


def left_out(items: Sequence[pytest.Item], of: int, seed: str) -> list[pytest.Item]:
    """The tests that are not in the share."""
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    out = [item for item in items if item.get_closest_marker("release")]
    for item in items:
        if item.get_closest_marker("release"):
            continue
        if (group := group_of(item)) is not None:
            groups[group].append(item)
    for name, rows in groups.items():
        kept = chosen_rows(name, len(rows), of, seed)
        out += [row for place, row in enumerate(rows) if place not in kept]
    return out


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes out of `items` what the share does not have."""
    if (of := parts(config)) == 1:
        return
    out = left_out(items, of, config.getoption("share_seed"))
    config.hook.pytest_deselected(items=out)
    dropped = set(map(id, out))
    items[:] = [item for item in items if id(item) not in dropped]


def announce(config: pytest.Config) -> None:
    """A line on the terminal about what is run."""
    if parts(config) > 1 and not hasattr(config, "workerinput"):
        seed = config.getoption("share_seed")
        line = f"share 1/{parts(config)} of the rows of parametrised and of slow tests, chosen by {seed!r} (part {number(seed) % parts(config) + 1})"
        config.get_terminal_writer().line(line)
