"""The rooms of the code: imports run one way, and the picture of ARCHITECTURE.md shows them as they are."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def rooms(root):
    spec = importlib.util.spec_from_file_location("rooms", root / ".ci" / "rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(rooms, root):
    return rooms.read(root)


def test_imports_run_one_way_without_a_circle(rooms, files):
    assert rooms.faults(files) == []


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        (
            "lora_core/rng",
            "from .training.step import optimizer_step",
            "lora_core/training does not stand below lora_core/rng",
        ),
        (
            "lora_core/rng",
            "if TYPE_CHECKING:\n    from .data.batches import Batch",
            "lora_core/data does not stand below lora_core/rng",
        ),
        (
            "lora_core/rng",
            "def late():\n    from . import config",
            "lora_core/config does not stand below lora_core/rng",
        ),
        (
            "lora_core/optim/ema",
            "from ..losses import mse",
            "lora_core/losses does not stand below lora_core/optim",
        ),  # of the same line
        ("lora_core/losses", "from ..convert.keys import SUFFIXES", "lora_core imports no other part of ours"),
        ("lora_core/losses", "from .. import nodes", "lora_core imports no other part of ours"),
        (
            "convert/lora",
            "from ..lora_core.config import parse",
            "convert imports no other part of ours than lora_core/messages",
        ),
        ("convert/lora", "import comfy.sd", "only nodes/host imports the host"),
        ("lora_core/losses", "from nodes import LoadImage", "only nodes/host imports the host"),
        ("lora_core/losses", "from lora_loom.lora_core import names", "by relative imports"),
        ("lora_core/losses", "import lora_core.names", "no such file of ours"),
        ("lora_core/losses", "from .nowhere.at_all import a", "no such file of ours"),
        ("nodes/host/access/api", "from ..web import live", "nodes/host/web does not stand below nodes/host/access"),
        ("lora_core/unheard/of", "", "lora_core/unheard: a new room"),
        ("newcomer/__init__", "", "newcomer: a new room"),
    ],
)
def test_an_import_against_the_direction_is_named(rooms, files, file, line, told):
    (problem,) = [p for p in rooms.faults({**files, file: line}) if not p.startswith("a circle")]
    assert told in problem
    assert problem.startswith(f"{file}.py:" if line else told)


def test_convert_may_import_the_messages_it_shares_with_the_engine(rooms, files):
    assert rooms.faults({**files, "convert/forms": "from ..lora_core.messages.errors import LoomError"}) == []


def test_a_circle_of_files_in_one_room_is_named_also_when_an_arrow_is_for_type_checkers(rooms, files):
    circle = {
        "lora_core/optim/ema": "if TYPE_CHECKING:\n    from .groups import drop",
        "lora_core/optim/groups": "def f():\n    from .ema import Ema",
    }
    (problem,) = rooms.faults({**files, **circle})
    assert problem in (
        f"a circle of files: {a} -> {b} -> {a}" for a, b in (sorted(circle), sorted(circle, reverse=True))
    )


def test_a_circle_of_rooms_is_named_where_no_circle_of_files_is(rooms, files):
    ways = {
        "lora_core/optim/first": "from ..data import second",
        "lora_core/data/second": "",
        "lora_core/data/third": "from ..optim import ema",
    }
    problems = [p for p in rooms.faults({**files, **ways}) if p.startswith("a circle")]
    assert [p.partition(":")[0] for p in problems] == ["a circle of rooms"]
    assert "lora_core/data" in problems[0]
    assert "lora_core/optim" in problems[0]


def test_a_room_that_is_gone_leaves_the_order(rooms, files):
    rest = {name: text for name, text in files.items() if name != "lora_core/rng"}
    assert "lora_core/rng: ORDER of .ci/rooms.py names a room that has no file" in rooms.faults(rest)


def test_the_picture_of_the_rooms_is_drawn_from_the_code_as_it_is(root):
    drawn = subprocess.run(
        [sys.executable, root / ".ci" / "draw_rooms.py"], capture_output=True, check=True, timeout=600
    ).stdout.decode()
    stored = (root / "docs" / "rooms.svg").read_text(encoding="utf-8")
    assert stored == drawn.replace("\r\n", "\n"), (
        "the rooms have changed; run: python .ci/draw_rooms.py > docs/rooms.svg"
    )


def test_the_text_beside_the_picture_names_every_room(rooms, root):
    text = (root / "ARCHITECTURE.md").read_text(encoding="utf-8")
    empty = {"lora_core", "nodes/host"}  # folders that hold rooms, with a docstring alone
    assert [room for room in rooms.LEVEL if room not in empty and f"`{room}`" not in text] == []


def test_the_text_names_files_and_functions_that_are_there(root):
    text = (root / "ARCHITECTURE.md").read_text(encoding="utf-8")
    steps = re.findall(r"`([\w/]+\.py)` `(\w+)`", text)
    assert len(steps) >= 12
    for file, name in steps:
        assert re.search(rf"^(def|class) {name}\b", (root / file).read_text(encoding="utf-8"), re.MULTILINE), (
            f"{file}: {name}"
        )
    places = re.findall(r"`((?:lora_core|convert|nodes)/[\w/]*(?:\.py)?)`", text)
    assert [place for place in places if not any((root / end).exists() for end in (place, f"{place}.py"))] == []
