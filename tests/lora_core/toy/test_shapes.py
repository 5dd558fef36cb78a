import random

import numpy as np
import pytest
from PIL import Image
from shapes import SETS, world
from shapes.concepts import CONCEPTS, write_set


def test_the_ruler_reads_every_scene_of_the_world_back():
    rng = random.Random(0)
    for scene in [*world.all_scenes(), *(world.random_scene(rng) for _ in range(200))]:
        assert world.read_scene(world.draw(scene)) == (scene.shape, scene.color, scene.ground)


def test_the_ruler_reads_nothing_from_an_empty_picture_and_from_a_speck():
    empty = Image.new("RGB", (64, 64), world.GROUNDS["white"])
    assert world.read_scene(empty) == ("nothing", "nothing", "white")
    empty.paste((220, 40, 40), (30, 30, 40, 40))
    assert world.read_scene(empty)[0] == "nothing"


def test_a_concepts_ruler_accepts_its_own_pictures_and_none_of_the_plain_world():
    for concept in CONCEPTS.values():
        rng = random.Random(1)
        assert all(concept.shows(concept.draw(rng)[0]) for _ in range(50)), concept.name
        shown = {scene.caption.split(" on ")[0] for scene in world.all_scenes() if concept.shows(world.draw(scene))}
        assert shown == ({"a purple cross"} if concept.name == "word" else set()), (
            concept.name
        )  # that one is in the world, under another name


def test_a_concepts_ruler_refuses_the_other_concepts():
    for concept in CONCEPTS.values():
        rng = random.Random(2)
        others = [other.draw(rng)[0] for other in CONCEPTS.values() if other is not concept for _ in range(20)]
        assert not any(concept.shows(image) for image in others), concept.name


def test_prompts_name_the_trigger_and_plain_prompts_do_not():
    for concept in CONCEPTS.values():
        rng = random.Random(3)
        assert all(concept.trigger in concept.prompt(rng).replace(",", " ").split() for _ in range(20))
        assert not any(concept.trigger in concept.plain(rng) for _ in range(20))


@pytest.mark.parametrize("name", sorted(CONCEPTS))
def test_the_kept_sets_are_what_the_script_draws(name, tmp_path):
    write_set(CONCEPTS[name], tmp_path)
    drawn = {p.relative_to(tmp_path): p for p in tmp_path.rglob("*.*")}
    bundled = {p.relative_to(SETS / name): p for p in (SETS / name).rglob("*.*")}
    assert drawn.keys() == bundled.keys()
    for key, path in drawn.items():
        if key.suffix == ".txt":
            assert path.read_text() == bundled[key].read_text()
        else:
            # Pillow versions may round an edge pixel differently.
            assert np.abs(np.asarray(Image.open(path), int) - np.asarray(Image.open(bundled[key]), int)).max() <= 2
