"""Whether the measured matrix says what pictures show: two concepts of the toy world trained apart, and trained so that they bleed."""

import random

import pytest
import shapes
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.config import SampleConfig, parse
from lora_loom.lora_core.events import Listener
from shapes import world
from shapes.concepts import CONCEPTS

RING, CROSS = CONCEPTS["object"], CONCEPTS["word"]
DRAWN = 8
WORDS = "zog", "dax"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder of each concept, named as its trigger."""
    root = tmp_path_factory.mktemp("two concepts")
    for concept in (RING, CROSS):
        (root / concept.trigger).mkdir()
        for n in range(16):
            image, caption = concept.draw(random.Random(f"apart {n}"))
            image.save(root / concept.trigger / f"{n:02}.png")
            (root / concept.trigger / f"{n:02}.txt").write_text(caption, encoding="utf-8")
    return root


class Judge(Listener):
    """Draws by each word while the LoRA is still on, and keeps what was said."""

    def __init__(self, backend):
        self.backend, self.said, self.shown = backend, [], {}

    def on_warning(self, message):
        self.said.append(message.code)

    def on_end(self, outcome, step):
        for word in WORDS:
            pictures = [self._draw(word, n) for n in range(DRAWN)]
            self.shown[word] = [sum(map(concept.shows, pictures)) for concept in (RING, CROSS)]

    def _draw(self, word, n):
        ground = random.Random(n).choice(list(world.GROUNDS))
        how = SampleConfig(seed=900 + n, cfg=4.0, steps=20)
        return self.backend.sample(SampleJob(f"a {word} on a {ground} ground", 64, 64, how))[0]


def judged(sets, toy_backend, run_toy, folder, **changes):
    def data(word):
        return {"folder": str(sets / word), "trigger": word, "resolution": 64, "bucket_step_px": 8}

    judge = Judge(toy_backend)
    job = {
        "name": "two", "base": shapes.BASE, "steps": 240, "batch_size": 8,
        "data": data("zog"), "sets": [data("dax")],
        "adapter": {"rank": 16, "targets": "conv"}, "optimizer": {"lr": 2e-3},
        "schedule": {"name": "cosine", "warmup_steps": 20}, "save": {"every": 1000}, "samples": {"every": 0},
        "validation": {"every": 120, "share": 0.25, "concepts": True},
    }  # fmt: skip
    run_toy(parse({**job, **changes}), folder, judge)
    return judge


@pytest.mark.slow
def test_concepts_whose_words_are_learnt_are_apart_in_pictures_and_figures(sets, toy_backend, run_toy, tmp_path):
    tokens = {"tokens": "\n".join(WORDS), "lr": 2e-2}
    judge = judged(sets, toy_backend, run_toy, tmp_path, method="pivotal", embedding=tokens)
    (rings, none_of_zog), (none_of_dax, crosses) = judge.shown["zog"], judge.shown["dax"]
    assert min(rings, crosses) >= 5
    assert max(none_of_zog, none_of_dax) <= 1
    assert "concepts.bleed" not in judge.said


@pytest.mark.slow
def test_concepts_whose_words_mean_the_same_to_the_model_bleed_in_pictures_and_figures(
    sets, toy_backend, run_toy, tmp_path
):
    """The convolutions of the toy see no words, and its text encoder hardly tells these two apart."""
    judge = judged(sets, toy_backend, run_toy, tmp_path)
    assert all(abs(one - other) <= 3 for one, other in zip(*judge.shown.values(), strict=True))
    assert sum(judge.shown["zog"]) >= 3  # something was learnt
    assert "concepts.bleed" in judge.said
