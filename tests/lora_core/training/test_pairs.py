"""A slider from pairs of pictures: what it is told to aim at, what the network is shown, what is refused, and that a run of it is a run like any other."""

import random

import pytest
import shapes
import torch
from lora_loom.lora_core.config import ConfigError, parse
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.data.shown import Showing
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.rng import step_rng
from lora_loom.lora_core.runs import checkpoints
from lora_loom.lora_core.training.assemble import assembled
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.pairs import changed
from lora_loom.lora_core.training.step import optimizer_step
from PIL import Image
from shapes import world

SMALL = {"resolution": 32, "bucket_step_px": 16}
JOB = {
    "name": "pairs", "base": shapes.BASE, "method": "slider", "steps": 3, "batch_size": 2, "seed": 7,
    "adapter": {"rank": 4}, "optimizer": {"lr": 1e-3}, "save": {"every": 1000}, "samples": {"every": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Three scenes before black as control pictures, and before white."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "control").mkdir()
    for n in range(3):
        for ground, place in (("black", folder / "control"), ("white", folder)):
            scene = world.random_scene(random.Random(n), color="red", ground=ground)
            world.draw(scene).resize((32, 32), Image.Resampling.BOX).save(place / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"scene {n}", encoding="utf-8")
    return folder


@pytest.fixture
def job(pairs):
    def config(slider=None, data=None, **changes):
        data = {**SMALL, "folder": str(pairs), "controls": "auto", **(data or {})}
        return parse({**JOB, "data": data, "slider": {"mode": "pairs", **(slider or {})}, **changes})

    return config


@pytest.fixture
def assemble(toy_backend, tmp_path):
    """`with assemble(config) as run:` a run on the toy model, ready for its first step."""
    return lambda config, **more: assembled(Job(config, toy_backend, open_sets(config), tmp_path, **more))


def test_places_that_hardly_differ_are_taken_to_be_alike():
    difference = torch.tensor([[[[1.0, 0.05], [0.2, 0.0]]], [[[10.0, 0.5], [2.0, -9.0]]]])
    kept = changed(difference, 0.1)
    assert kept.tolist() == [[[[1.0, 0.0], [pytest.approx(0.2), 0.0]]], [[[10.0, 0.0], [2.0, -9.0]]]]
    assert changed(difference, 0.0).equal(difference)


def losses(run, batch=None):
    """Of the lesson's first pass, with the batch and the noise levels that it drew."""
    batch = batch or run.batches.at(0, 0)
    sigma = run.objective.draw_sigma(len(batch.latents), step_rng(0, 0, 0, 0))
    return list(run.sources[0].lesson.losses(run, run.objective, batch, step_rng(0, 0, 0, 0))), batch, sigma


def differences(batch, unchanged=0.1):
    first = torch.cat([shown.latents[0] for shown in batch.shown])
    return changed(batch.latents - first, unchanged)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_an_untrained_lora_is_as_far_off_as_the_two_pictures_differ(assemble, job, guidance):
    """The toy predicts the noise: an answer moves the picture by -sigma, so of the error of the picture counts sigma^2 / (1 + sigma^2) / sigma^2."""
    with assemble(job({"guidance": guidance})) as run, torch.no_grad():
        (up, down), batch, sigma = losses(run)
        wanted = ((guidance or 1.0) * differences(batch)).pow(2).mean((1, 2, 3)) / (1 + sigma**2) / 2
        assert float(wanted.min()) > 1e-4
        for told in (up, down):
            assert told.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)


def test_a_lora_that_moves_the_picture_by_the_difference_has_arrived(assemble, job, monkeypatch):
    """The network's answer at each strength, made up: it moves what is seen in the noise by exactly that strength of the difference."""
    with assemble(job()) as run, torch.no_grad():
        batch, plain = run.batches.at(0, 0), run.backend.predict
        strength = []

        def predict(x_t, sigma, asked):
            assert not asked.shown  # no picture beside the one with noise
            answer = plain(x_t, sigma, asked)
            return answer - (strength[-1] if strength else 0) * differences(batch) / sigma.view(-1, 1, 1, 1).float()

        at_strength = run.adapters.at_strength

        class Worn:
            def __init__(self, value):
                self.value, self.inner = value, at_strength(value)

            def __enter__(self):
                strength.append(self.value)
                return self.inner.__enter__()

            def __exit__(self, *error):
                strength.pop()
                return self.inner.__exit__(*error)

        monkeypatch.setattr(run.backend, "predict", predict)
        monkeypatch.setattr(run.adapters, "at_strength", Worn)
        (up, down), *_ = losses(run, batch)
        assert max(*up.tolist(), *down.tolist()) < 1e-8


def test_strength_1_sees_the_first_picture_and_minus_1_the_second(assemble, job, monkeypatch):
    with assemble(job()) as run, torch.no_grad():
        batch, seen, plain = run.batches.at(0, 0), [], run.backend.predict
        monkeypatch.setattr(
            run.backend, "predict", lambda x_t, sigma, asked: (seen.append(x_t), plain(x_t, sigma, asked))[1]
        )
        losses(run, batch)
        first = torch.cat([shown.latents[0] for shown in batch.shown])
        assert len(seen) == 4  # frozen and trained, on each of both
        assert (seen[2] - seen[0]).flatten().tolist() == pytest.approx(
            (batch.latents - first).flatten().tolist(), abs=1e-5
        )
        assert seen[0].equal(seen[1])


def test_one_way_trains_strength_1_alone(assemble, job):
    with assemble(job({"both_ways": False})) as run, torch.no_grad():
        assert len(losses(run)[0]) == 1


@pytest.mark.parametrize(("target", "expected"), [("", {"scene 0", "scene 1", "scene 2"}), ("a room", {"a room"})])
def test_pictures_are_shown_with_their_captions_or_with_the_target(assemble, job, monkeypatch, target, expected):
    with assemble(job({"target": target})) as run, torch.no_grad():
        said, plain = set(), run.backend.predict
        monkeypatch.setattr(run.backend, "predict", lambda x, s, b: (said.update(b.captions), plain(x, s, b))[1])
        for step in range(6):
            batch = run.batches.at(step, 0)
            list(run.sources[0].lesson.losses(run, run.objective, batch, step_rng(0, 0, step, 0)))
        assert said == expected


def test_what_is_preserved_adds_its_loss(assemble, job):
    with assemble(job({"preserve": "a blue square"})) as run, torch.no_grad():
        found, *_ = losses(run)
        assert len(found) == 3
        assert float(found[2].abs().max()) == 0  # nothing has changed yet


@pytest.mark.parametrize(("slider", "data", "field", "words"), [
    ({}, {"controls": "none"}, "data.controls", "none of the 3 pictures has a control picture"),
    ({"positive": "a cat"}, {}, "slider.positive", "belongs to a slider from prompts"),
    ({"negative": "a cat"}, {}, "slider.negative", "belongs to a slider from prompts"),
    ({"across": "male\nfemale"}, {}, "slider.across", "belongs to a slider from prompts"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(assemble, job, slider, data, field, words):
    with pytest.raises((LoomError, ConfigError), match=words) as refused, assemble(job(slider, data)):
        pass
    assert refused.value.message.field == field


def test_without_a_folder_it_is_refused(assemble):
    config = parse({**JOB, "data": SMALL, "slider": {"mode": "pairs"}})
    with pytest.raises(LoomError, match=r"data\.folder"), assemble(config):
        pass


def test_a_model_that_is_shown_pictures_is_refused(assemble, job, toy_backend, monkeypatch):
    monkeypatch.setattr(type(toy_backend), "showing", lambda self: Showing(1), raising=False)
    monkeypatch.setattr(type(toy_backend), "encode_shown", lambda self, pixels: pixels, raising=False)
    with (
        pytest.raises(LoomError, match="a slider from pairs changes what a model draws from a prompt"),
        assemble(job()),
    ):
        pass


def test_a_picture_without_a_partner_is_left_out_by_name(assemble, job, pairs, tmp_path):
    class Heard(Listener):
        said: list[str] = []  # noqa: RUF012 - of one test

        def on_warning(self, message):
            self.said.append(str(message))

    Image.new("RGB", (32, 32)).save(pairs / "alone.png")
    try:
        with assemble(job(), listener=Heard()) as run:
            assert len(run.batches.pictures) == 3
    finally:
        (pairs / "alone.png").unlink()
    assert any("alone.png" in text for text in Heard.said)


def states(folder):
    return dict(checkpoints.latest(folder / "checkpoints")[0].adapter)


def test_a_run_goes_on_bit_for_bit(run_toy, tmp_path, job):
    mirrored = {"data": {"flip": True}, "slider": {"preserve": "a blue square"}}
    run_toy(job(**mirrored), tmp_path / "whole" / "run")
    run_toy(job(**mirrored, steps=2), tmp_path / "parts" / "run")
    run_toy(job(**mirrored), tmp_path / "parts" / "run", resume=True)
    one, other = states(tmp_path / "whole" / "run"), states(tmp_path / "parts" / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(float(value.abs().max()) > 0 for name, value in one.items() if "lora_up" in name)


def test_samples_are_drawn_by_the_first_caption_at_all_strengths(run_toy, tmp_path, job):
    class Seen(Listener):
        def on_sample(self, step, images, path):
            self.images = images

    seen = Seen()
    run_toy(job(samples={"every": 100, "steps": 1}, steps=1), tmp_path / "run", seen)
    assert len(seen.images) == 5


def test_a_step_moves_the_answer_towards_the_second_picture(assemble, job):
    with assemble(job(optimizer={"lr": 3e-3})) as run:
        with torch.no_grad():
            before = sum(float(part.mean()) for part in losses(run)[0])
        for step in range(8):
            optimizer_step(run, step)
        with torch.no_grad():
            after = sum(float(part.mean()) for part in losses(run)[0])
        assert after < before
