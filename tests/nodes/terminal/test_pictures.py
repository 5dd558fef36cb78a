"""Sample pictures in a terminal: who is shown them, and that each way holds the picture."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from lora_loom.nodes.terminal import pictures
from lora_loom.nodes.terminal.arguments import add_place
from PIL import Image


@pytest.fixture
def picture():
    """Few colours, more rows than one band, runs of every length."""
    pixels = np.zeros((20, 33, 3), np.uint8)
    pixels[:, :, 0] = 255
    pixels[3:17, 5:30] = (0, 255, 0)
    pixels[::2, 31] = (0, 0, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, ""),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, ""),
        ({}, ""),
    ],
)
def test_a_terminal_is_shown_pictures_in_the_way_it_tells(environment, way):
    assert pictures.known_way(environment, is_terminal=True) == way
    assert pictures.known_way(environment, is_terminal=False) == ""


def test_what_is_chosen_wins_and_none_means_none(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert pictures.chosen_way("sixel") == "sixel"
    assert pictures.chosen_way("none") == ""
    monkeypatch.setattr(pictures.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.delenv("STY", raising=False)
    assert pictures.chosen_way("auto") == "kitty"


def test_the_flag_offers_every_way():
    import argparse

    parser = argparse.ArgumentParser()
    add_place(parser)
    (flag,) = (action for action in parser._actions if action.dest == "pictures")
    assert tuple(flag.choices) == pictures.CHOICES


def test_kitty_gets_the_png_in_chunks():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", pictures.as_kitty(noise))
    assert len(parts) > 2
    assert [head.endswith("m=1") for head, _ in parts] == [True] * (len(parts) - 1) + [False]
    assert all(len(text) <= pictures.CHUNK for _, text in parts)
    assert parts[0][0].startswith("a=T,f=100")
    data = base64.b64decode("".join(text for _, text in parts))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(noise))


def test_iterm_gets_the_png_with_its_size(picture):
    (size, text), *_ = re.findall(r"size=(\d+);width=33px;height=20px:([^\x07]*)\x07", pictures.as_iterm(picture))
    data = base64.b64decode(text)
    assert len(data) == int(size)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture))


def seen(text: str) -> np.ndarray:
    """What a terminal draws of sixels."""
    head, width, height, body = re.fullmatch(r'\x1bPq"(1;1);(\d+);(\d+)(.*)\x1b\\', text).groups()
    out = np.full((int(height) + 6, int(width), 3), -1)
    colors, x, top, color = {}, 0, 0, None
    for define, rgb, choose, count, letter, move in re.findall(
        r"#(\d+);2;(\d+;\d+;\d+)|#(\d+)|(?:!(\d+))?([?-~])|([$-])", body
    ):
        if define:
            colors[define] = [round(int(v) * 2.55) for v in rgb.split(";")]
        elif choose:
            color = colors[choose]
        elif move:
            x, top = 0, top + (6 if move == "-" else 0)
        else:
            run = int(count or 1)
            for n in range(6):
                if ord(letter) - 63 >> n & 1:
                    out[top + n, x : x + run] = color
            x += run
    return out[: int(height)]


def test_sixels_hold_every_pixel_of_a_picture_of_few_colors(picture):
    assert np.array_equal(seen(pictures.as_sixel(picture)), np.asarray(picture, int))


def test_a_row_is_of_one_height_and_as_long_as_a_screen_is_wide(picture):
    small = [Image.new("RGB", (64, 64)), Image.new("RGB", (32, 64))]
    assert pictures.in_a_row(small).size == (192 + 4 + 96, 192)
    wide = pictures.in_a_row([Image.new("RGB", (1024, 1024))] * 20)
    assert wide.height == pictures.HEIGHT_PX
    assert wide.width <= pictures.WIDEST_PX
    assert pictures.in_a_row([Image.new("RGB", (4000, 100))]).height == 100


def test_samples_are_told_by_their_file_and_shown_where_it_is_known_how(picture, capsys):
    pictures.Shown("").on_sample(40, [picture], Path("runs/a/step-40.png"))
    told = capsys.readouterr().err
    assert "40" in told
    assert "step-40.png" in told
    assert "\x1b" not in told
    pictures.Shown("sixel").on_sample(40, [picture], Path("runs/a/step-40.png"))
    assert "\x1bPq" in capsys.readouterr().err
