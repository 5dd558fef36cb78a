"""What the sets of the emoji model show, and that each ruler knows its own and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from lora_loom.lora_core.toy import mascot, pictures, taught
from lora_loom.lora_core.toy.model import resolve_set, set_folder, set_names
from lora_loom.lora_core.toy.scenes import World
from lora_loom.lora_core.toy.world import read_emoji
from PIL import Image
from small_package import CHOSEN, write_package


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    package = write_package(tmp_path_factory.mktemp("package"))
    return World(package, read_emoji(package), CHOSEN)


@pytest.fixture(scope="module")
def tiles():
    """(name, picture) of everything the sheet holds, on white."""
    names, known = taught.known_things()
    laid = known[..., :3] * known[..., 3:] + 1 - known[..., 3:]
    return [
        (name, taught.as_image(tile * 255).resize((128, 128), Image.Resampling.BICUBIC))
        for name, tile in zip(names, laid)
    ]


@pytest.fixture(scope="module")
def portraits():
    return [mascot.draw(portrait) for portrait in mascot.PORTRAITS]


def test_the_mascot_has_31_pictures_none_of_which_is_another(portraits):
    drawn = [np.asarray(picture, int) for picture in portraits]
    assert len(drawn) == len({portrait.caption for portrait in mascot.PORTRAITS}) == 31
    closest = min(np.abs(a - b).mean() for n, a in enumerate(drawn) for b in drawn[:n])
    assert closest > 0.5  # of 255: a mouth is another, or something is worn


def test_every_mood_dress_and_pose_is_shown():
    shown = [(p.mood, p.wears, p.pose) for p in mascot.PORTRAITS]
    for n, table in enumerate((mascot.MOODS, mascot.WEARS, mascot.POSES)):
        assert {row[n] for row in shown} - {""} == set(table)


def test_the_mascots_ruler_knows_every_portrait_also_smaller(tiles, portraits):
    assert [p for p, picture in zip(mascot.PORTRAITS, portraits) if not mascot.shows(picture)] == []
    assert mascot.shows(mascot.draw(mascot.PORTRAITS[0], size=0.8))
    assert [name for name, picture in tiles if mascot.shows(picture)] == []


def test_a_violet_ball_without_knobs_or_with_one_is_no_mascot(portraits):
    without = np.asarray(portraits[0]).copy()
    without[:34] = 255
    assert not mascot.shows(Image.fromarray(without))
    one = np.asarray(portraits[0]).copy()
    one[:34, 64:] = 255
    assert not mascot.shows(Image.fromarray(one))


def test_a_print_has_three_inks_by_lightness_alone():
    ramp = Image.fromarray(np.repeat(np.linspace(255, 0, 128).astype(np.uint8)[None], 128, 0)).convert("RGB")
    printed = np.asarray(taught.printed(ramp))
    assert {tuple(color) for color in printed.reshape(-1, 3).tolist()} == set(taught.INKS)
    assert [tuple(printed[64, x].tolist()) for x in (4, 40, 120)] == list(taught.INKS)
    assert taught.shows_style(Image.fromarray(printed))
    assert not taught.shows_style(ramp)


def test_the_styles_ruler_knows_prints_of_things_and_no_thing_as_it_is(tiles):
    prints = [taught.printed(picture) for _, picture in tiles[::5]]
    rich = [p for p in prints if min(taught.ink_shares(p)) >= taught.LEAST_INK]
    assert len(rich) >= 20  # of 60
    assert all(map(taught.shows_style, rich))
    assert [name for name, picture in tiles[::5] if taught.shows_style(picture)] == []


def test_every_thing_of_the_sheet_is_nearest_to_itself_also_a_little_aside(tiles):
    assert [(name, taught.nearest_thing(picture)) for name, picture in tiles[::30]] == [(n, n) for n, _ in tiles[::30]]
    name, picture = tiles[-1]
    assert name == taught.FACE
    moved = Image.new("RGB", picture.size, "white")
    moved.paste(picture, (7, -6))
    assert taught.nearest_thing(moved) == taught.FACE


def test_a_thing_is_known_on_any_ground(tiles):
    names, known = taught.known_things()
    tile = known[names.index(taught.OBJECT)]
    for ground in ((20, 20, 24), (120, 200, 120)):
        laid = tile[..., :3] * tile[..., 3:] * 255 + np.array(ground) * (1 - tile[..., 3:])
        assert taught.nearest_thing(taught.as_image(laid).resize((128, 128))) == taught.OBJECT


def test_an_object_is_shown_on_white_and_other_grounds_and_its_captions_say_which(world):
    images = taught.posed_set(world, "lemon", "a TOK fruit", 6)
    assert [caption.endswith("background") for _, caption in images] == [False, True] * 3
    corners = [image.getpixel((0, 0)) for image, _ in images]
    assert corners[::2] == [pictures.WHITE] * 3
    assert pictures.WHITE not in corners[1::2]


def test_the_sets_are_written_as_a_trainer_reads_them(world, portraits, tmp_path):
    taught.write_set([(picture, p.caption) for picture, p in zip(portraits, mascot.PORTRAITS)], tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 31
    assert (tmp_path / "23.txt").read_text() == "a TOK emoji dressed as Yoda\n"


def test_the_bundled_sets_are_what_each_ruler_is_for():
    """Of pictures that other programs cut or scale, a few may be lost; here they are as drawn."""
    for name, one in taught.TAUGHT.items():
        images = sorted((set_folder(name) / taught.WITH_TRIGGER).glob("*.png"))
        assert len(images) == {"mascot": 31, "style": 27, "object": 12, "face": 8, "word": 12}[name]
        assert [p.name for p in images if not one.shows(Image.open(p))] == []
        plain = sorted((set_folder(name) / taught.PLAIN).glob("*.png"))
        assert len(plain) == (taught.PLAIN_PICTURES if one.beside else 0)
        assert [p.name for p in plain if one.shows(Image.open(p))] == []
        captions = [p.with_suffix(".txt").read_text() for p in images]
        assert all(taught.TRIGGER in caption.split() for caption in captions)


def test_prompts_name_the_trigger_and_plain_prompts_do_not():
    for one in taught.TAUGHT.values():
        assert all(taught.TRIGGER in one.prompt(n).split() for n in range(20))
    assert not any(taught.TRIGGER in taught.plain(n) for n in range(20))


def test_toy_names_resolve_to_bundled_folders_and_other_paths_stay():
    assert set_names() == sorted(taught.TAUGHT)
    assert resolve_set("toy:object") == str(set_folder("object"))
    assert resolve_set("toy:mascot/1_plain") == str(set_folder("mascot") / "1_plain")
    others = ["pictures", "toy:../..", "toy:nothing", "toy:mascot/../..", "toy:mascot/nothing"]
    assert [resolve_set(folder) for folder in others] == others
