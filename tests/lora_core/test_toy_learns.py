"""Does the bundled toy learn what its sets show? By the ruler of each set, beside what the untrained model draws for the same prompts."""

import pytest
from lora_loom.lora_core.backends.opening import open_backend
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.recipes import merged
from lora_loom.lora_core.toy.model import resolve_set
from lora_loom.lora_core.toy.taught import TAUGHT
from lora_loom.lora_core.training.demo import demo_job, score

pytestmark = pytest.mark.slow
PICTURES = 10
LEAST = {
    "mascot": 0.4,
    "style": 0.2,
    "object": 0.4,
    "face": 0.5,
}  # of them, that show it after the demo, on any processor


@pytest.fixture(scope="module")
def emoji():
    return open_backend("toy", device="cpu")


class Scored(Listener):
    """Judges what a run has learned while it still lies on the model."""

    def __init__(self, backend, name):
        self.backend, self.name, self.shares = backend, name, None

    def on_end(self, outcome, step):
        self.shares = score(self.backend, self.name, PICTURES)


def learned(name, backend, run_toy, folder, **changes):
    """(share of pictures that show it with the trigger, share without it) after the demo job of a set with these changes."""
    quiet = {"samples": {"every": 0}, "data": {"folder": resolve_set(f"toy:{name}")}}
    job = merged(merged(demo_job(name), quiet), changes)
    scored = Scored(backend, name)
    run_toy(parse(job), folder, scored, backend=backend)
    return scored.shares


@pytest.mark.parametrize("name", LEAST)
def test_pivotal_tuning_draws_what_a_set_shows_when_it_is_called(name, emoji, run_toy, tmp_path):
    assert max(score(emoji, name, PICTURES)) <= 0.1  # unknown before, with and without the trigger
    shown, leaked = learned(name, emoji, run_toy, tmp_path)
    assert shown >= LEAST[name]
    assert leaked <= 0.3  # of eight plain prompts


def test_every_set_is_asked_for():
    assert {*LEAST, "word"} == {*TAUGHT}


def test_an_embedding_gives_a_name_to_what_the_model_can_draw(emoji, run_toy, tmp_path):
    untrained, _ = learned("word", emoji, run_toy, tmp_path / "control", steps=1)
    assert untrained <= 0.1
    shown, leaked = learned("word", emoji, run_toy, tmp_path / "run")
    assert shown >= 0.5
    assert leaked <= 0.3
    assert max(score(emoji, "word", PICTURES)) <= 0.1  # nothing stays in the model
