"""Pictures of each concept under every trigger: what is measured, what is said of it, what is kept."""

import json
import random

import pytest
import torch
from full_disk import NoRoomFor
from lora_loom.lora_core.data.captions import with_word
from lora_loom.lora_core.events import Control, Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs.measured import measured
from lora_loom.lora_core.training.concepts import Matrix
from PIL import Image
from shapes import world

ON = {"every": 2, "share": 0.5, "levels": 2, "concepts": True}
SMALL = {"resolution": 32, "bucket_step_px": 16}


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory):
    """Four small pictures each of two concepts, whose captions say their trigger in the middle."""
    root, rng = tmp_path_factory.mktemp("concepts"), random.Random(3)
    for word in ("zog", "dax"):
        (root / word).mkdir()
        for n in range(4):
            scene = world.random_scene(rng)
            world.draw(scene).resize((32, 32), Image.Resampling.BOX).save(root / word / f"{n}.png")
            (root / word / f"{n}.txt").write_text(f"a {word} on a {scene.ground} ground", encoding="utf-8")
    return root


@pytest.fixture
def of_two(toy_config, two_sets):
    """A job of both sets."""

    def config(**changes):
        data = {"folder": str(two_sets / "zog"), "trigger": "zog"}
        sets = [{"folder": str(two_sets / "dax"), "trigger": "dax", **SMALL}]
        return toy_config(**{"data": data, "sets": sets, "validation": ON, **changes})

    return config


def table(folder):
    return json.loads((folder / "concepts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("caption", "other", "said"), [
    ("a zog on a red ground", "dax", "a dax on a red ground"),
    ("Zog, red, zogs", "dax", "dax, red, zogs"),
    ("zog, red ground", "", "red ground"),
    ("a zog on a red ground, zog", "", "a on a red ground"),
    ("zog", "", ""),
    ("zog", r"\1", r"\1"),
])  # fmt: skip
def test_a_caption_says_another_word_in_the_place_of_its_own_or_none(caption, other, said):
    assert with_word(caption, "zog", other) == said


def test_each_concept_is_measured_under_each_word_and_none_at_every_validation(of_two, run_toy, tmp_path):
    run_toy(of_two(), tmp_path)
    found = table(tmp_path)
    assert found["words"] == ["zog", "dax"]
    assert [row["step"] for row in found["rows"]] == [0, 2, 4]
    for row in found["rows"]:
        assert [len(line) for line in row["losses"]] == [3, 3]
        assert all(len(set(line)) == 3 for line in row["losses"])  # another caption is another loss
    assert len({json.dumps(row["losses"]) for row in found["rows"]}) == 3
    assert measured(tmp_path)["concepts"] == found  # as a page is told


def test_words_meet_the_same_levels_and_noise(of_two, run_toy, tmp_path):
    """Captions that no word of changes: were any noise another one, the columns would differ."""
    from lora_loom.lora_core.training import concepts

    saved = concepts.with_word
    concepts.with_word = lambda caption, word, other: caption
    try:
        run_toy(of_two(), tmp_path)
    finally:
        concepts.with_word = saved
    assert all(len(set(line)) == 1 for row in table(tmp_path)["rows"] for line in row["losses"])


def test_pictures_held_out_are_measured_where_a_concept_has_some(of_two, run_toy, tmp_path, two_sets):
    run_toy(of_two(validation={**ON, "folder": str(two_sets / "zog")}), tmp_path)
    assert table(tmp_path)["held_out"] == [True, False]


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}, {"text_encoder": {"train": True}}])
def test_measuring_concepts_changes_nothing_that_is_trained(changes, of_two, run_toy, tmp_path):
    plain = run_toy(of_two(validation={**ON, "concepts": False}, **changes), tmp_path / "plain")
    told = run_toy(of_two(validation={**ON, "each_picture": True}, **changes), tmp_path / "told")
    assert told.losses == plain.losses
    assert told.facts["validation"] == plain.facts["validation"]
    assert all(torch.equal(told.tensors[k], plain.tensors[k]) for k in plain.tensors)
    assert not (tmp_path / "plain" / "concepts.json").exists()


class StopAt(Listener):
    def __init__(self, step):
        self.control, self.step = Control(), step

    def on_step(self, report):
        if report.step == self.step:
            self.control.pause()


def test_a_run_that_goes_on_has_the_same_tables(of_two, run_toy, tmp_path):
    config = of_two(steps=6, validation={**ON, "each_picture": True})
    run_toy(config, tmp_path / "whole")
    stopper = StopAt(3)
    run_toy(config, tmp_path / "parts", stopper, control=stopper.control)
    for name in ("concepts.json", "pictures.json"):
        (tmp_path / "parts" / name).unlink()  # what a resume goes by is in the checkpoint
    run_toy(config, tmp_path / "parts", resume=True)
    for name in ("concepts.json", "pictures.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_it_may_be_turned_on_when_a_run_goes_on(of_two, run_toy, tmp_path):
    run_toy(of_two(steps=2, validation={**ON, "concepts": False}), tmp_path)
    run_toy(of_two(steps=4, validation={**ON, "each_picture": True}), tmp_path, resume=True)
    assert [row["step"] for row in table(tmp_path)["rows"]] == [4]


def test_one_concept_alone_is_refused_before_the_first_step(toy_config, run_toy, tmp_path):
    with pytest.raises(
        LoomError, match=r"validation\.concepts: compares sets that have triggers of their own, and there is 1;"
    ):
        run_toy(toy_config(data={"trigger": "zog"}, validation=ON), tmp_path)


def test_measuring_without_validation_is_refused(of_two, run_toy, tmp_path):
    for setting in ("concepts", "each_picture"):
        with pytest.raises(LoomError, match=r"validation\.every: is 0, so validation\.concepts and"):
            run_toy(of_two(validation={setting: True}), tmp_path)


def test_tokens_of_several_embeddings_are_concepts_too(of_two, run_toy, tmp_path, two_sets):
    data = {"folder": str(two_sets / "zog")}
    sets = [{"folder": str(two_sets / "dax"), **SMALL}]
    config = of_two(data=data, sets=sets, method="pivotal", embedding={"tokens": "zog\ndax"})
    run_toy(config, tmp_path)
    found = table(tmp_path)
    assert found["words"] == ["zog", "dax"]
    assert all(len(set(line)) == 3 for row in found["rows"] for line in row["losses"])


# ---- what is said of it ----------------------------------------------------------------------------------------------

PAIRS = 16


def losses(level, jitter=0.0, seed=0):
    """Losses of pictures that are hard and easy; `jitter`: how far a word moves each, at random."""
    pictures, own = random.Random(1), random.Random(seed)
    return [level * pictures.uniform(0.8, 1.2) * (1 + jitter * own.gauss(0, 1)) for _ in range(PAIRS)]


def matrix(own, other, none, jitter=0.02):
    """Two concepts of which the first stands so after training; of the second nothing is learnt."""
    same = [losses(1.0)] * 3
    now = [losses(own), losses(other, jitter, seed=2), losses(none, jitter, seed=3)]
    return Matrix(["zog", "dax"], [True, True], [(0, [same, same]), (100, [now, same])])


@pytest.mark.parametrize(("own", "other", "none", "bleeds"), [
    (0.5, 0.51, 0.51, True),  # surely a difference, of which nobody sees anything
    (0.5, 0.55, 0.5, False),  # without a trigger the concept comes, which the other word prevents
    (0.5, 0.9, 0.8, False),  # the other word draws something else
    (0.5, 0.7, 0.7, False),  # the other word does nothing
    (0.5, 0.6, 0.65, False),  # it does a third of what the own word does: what both have in common
    (0.5, 0.55, 0.8, True),  # it does nearly as much
    (0.5, 0.5, 0.8, True),
    (0.5, 0.5, 0.5, True),  # no word makes a difference
    (0.5, 0.45, 0.5, True),  # it does it better
    (0.995, 0.995, 0.995, False),  # nothing is learnt yet
    (1.2, 1.2, 1.2, False),
])  # fmt: skip
def test_concepts_bleed_where_another_word_does_what_the_own_one_does(own, other, none, bleeds):
    found = matrix(own, other, none, 0.002 if other == 0.51 else 0.02)
    assert [(one.concept, one.other) for one in found.bleeding()] == ([("zog", "dax")] if bleeds else [])
    assert found.bleeding(0) == []
    said = found.messages()
    assert len(said) == bleeds
    if bleeds:
        assert "Concepts bleed into each other: pictures of zog fit dax too" in str(said[0])


def test_a_matrix_of_one_row_says_nothing():
    only = Matrix(["a", "b"], [True, True], matrix(0.5, 0.5, 0.5).rows[1:])
    assert only.messages() == []


def test_a_matrix_comes_back_from_a_checkpoint_as_it_was():
    found = matrix(0.5, 0.6, 0.7)
    assert Matrix.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_a_full_disk_for_the_table_is_told_and_the_run_goes_on(of_two, run_toy, tmp_path):
    class Heard(Listener):
        def on_warning(self, message):
            warnings.append(message)

    warnings = []
    with NoRoomFor("concepts.json"):
        result = run_toy(of_two(steps=2), tmp_path, Heard())
    assert result.outcome == "finished"
    assert not (tmp_path / "concepts.json").exists()
    assert [m.values["name"] for m in warnings if m.code == "extra.failed"] == ["concepts.json"]
