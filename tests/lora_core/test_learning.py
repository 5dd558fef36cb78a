"""Does it learn? The bundled concepts, by the pixel rulers of the toy world."""

import dataclasses
import random

import pytest
from lora_loom.convert import read
from lora_loom.convert.families import UNKNOWN
from lora_loom.convert.results import starting_point
from lora_loom.lora_core.adapters import attach
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.config import SampleConfig, parse
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.recipes import merged
from lora_loom.lora_core.training.build import make_adapters
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.trainer import train
from shapes import set_folder, world
from shapes.concepts import CONCEPTS, draw_ring, shows_ring
from shapes.learning import demo_job, score

# Shares of pictures that show what was taught, and of a control's. Another processor rounds otherwise, which moves them by a picture or two of twelve.
LEARNT, UNLEARNT = 0.6, 0.25


def right(backend, pictures):
    """Share of pictures whose shape and colour are those of the prompt."""
    rng, found = random.Random(11), 0
    for n in range(pictures):
        scene = world.random_scene(rng)
        image = backend.sample(SampleJob(scene.caption, 64, 64, SampleConfig(seed=500 + n, cfg=4.0, steps=20)))[0]
        found += world.read_scene(image)[:2] == (scene.shape, scene.color)
    return found / pictures


def test_the_toy_model_draws_the_shape_and_colour_it_is_asked_for(toy_backend):
    assert right(toy_backend, 16) >= 0.9


@pytest.mark.slow
def test_the_toy_model_draws_what_it_is_asked_for_200_times(toy_backend):
    assert right(toy_backend, 200) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONCEPTS))
def test_a_demo_teaches_the_concept_to_its_trigger_and_to_nothing_else(name, toy_backend, run_toy, tmp_path):
    assert max(score(toy_backend, name)) <= UNLEARNT  # unknown before, with and without the trigger
    config = parse(demo_job(name))
    config = dataclasses.replace(config, samples=dataclasses.replace(config.samples, every=0))
    result = run_toy(config, tmp_path)
    layers, adapters = make_adapters(config, toy_backend)
    adapters.load_state_dict(
        {k.removesuffix(".weight"): v for k, v in result.tensors.items() if not k.endswith(".alpha")}
    )
    with attach(layers, adapters):
        with_trigger, without = score(toy_backend, name)
    assert with_trigger >= LEARNT
    assert without <= UNLEARNT
    assert max(score(toy_backend, name)) <= UNLEARNT  # and the base model is as it was


class Scored(Listener):
    """Judges what a run has learned while it is still attached."""

    def __init__(self, judge):
        self.judge, self.found = judge, None

    def on_end(self, outcome, step):
        self.found = self.judge()


def learned(name, toy_backend, run_toy, folder, judge=None, **changes):
    """(share with the trigger, share without) after the demo job of a bundled set with these changes."""
    job = merged(demo_job(name), {"samples": {"every": 0}, "data": {"folder": set_folder(name)}, **changes})
    scored = Scored(judge or (lambda: score(toy_backend, name)))
    result = run_toy(parse(job), folder, scored)
    return scored.found, result


@pytest.mark.slow
def test_lora_on_model_and_text_encoder_learns_a_style(toy_backend, run_toy, tmp_path):
    (with_trigger, without), result = learned(
        "style", toy_backend, run_toy, tmp_path, text_encoder={"train": True, "lr": 5e-4}
    )
    assert sum(key.startswith("lora_te_") for key in result.tensors) == 24
    assert with_trigger >= LEARNT
    assert without <= UNLEARNT


WORD = {"method": "embedding", "optimizer": {"lr": 1e-2}, "embedding": {"tokens": "dax*2"}}


@pytest.mark.slow
def test_textual_inversion_gives_a_name_to_what_the_model_can_draw(toy_backend, run_toy, tmp_path):
    (untrained, _), _ = learned("word", toy_backend, run_toy, tmp_path / "control", **{**WORD, "steps": 1})
    assert untrained <= UNLEARNT
    (with_word, without), result = learned("word", toy_backend, run_toy, tmp_path / "run", **WORD)
    assert result.facts["trained_values"] == 128
    assert with_word >= LEARNT
    assert without <= UNLEARNT
    assert max(score(toy_backend, "word")) <= UNLEARNT  # nothing stays in the model


@pytest.mark.slow
def test_pivotal_tuning_learns_what_neither_an_embedding_nor_half_the_steps_of_a_lora_can(
    toy_backend, run_toy, tmp_path
):
    pivotal = {"method": "pivotal", "steps": 600, "embedding": {"tokens": "zog*2", "lr": 5e-3, "stop": 0.5}}
    (with_token, without), _ = learned("object", toy_backend, run_toy, tmp_path / "pivotal", **pivotal)
    (embedding_alone, _), _ = learned(
        "object", toy_backend, run_toy, tmp_path / "ti", **{**WORD, "steps": 600, "embedding": {"tokens": "zog*2"}}
    )
    assert with_token >= LEARNT
    assert without <= UNLEARNT
    assert embedding_alone <= UNLEARNT


def drift(backend):
    """(share of circles still drawn as asked, share of circles that became the subject, share of the subject drawn for its trigger)."""

    def drawn(text, seed):
        return backend.sample(SampleJob(text, 64, 64, SampleConfig(seed=900 + seed, cfg=4.0, steps=20)))[0]

    rng, right, leaked, subject = random.Random(5), 0, 0, 0
    for n in range(24):
        color, ground = rng.choice(list(world.COLORS)), rng.choice(list(world.GROUNDS))
        image = drawn(f"a {color} circle on a {ground} ground", n)
        leaked += shows_ring(image)
        right += world.read_scene(image)[:2] == ("circle", color) and not shows_ring(image)
    for n in range(12):
        subject += shows_ring(drawn(f"a zog on a {rng.choice(list(world.GROUNDS))} ground", n))
    return right / 24, leaked / 24, subject / 12


@pytest.mark.slow
def test_prior_preservation_keeps_the_class_what_it_was(toy_backend, run_toy, tmp_path):
    """Pictures of the subject alone: without class pictures circles become rings, with them they stay circles and the subject is learned as well."""
    subject = {
        "data": {
            "folder": set_folder("object") + "/2_zog",
            "trigger": "zog",
            "resolution": 64,
            "bucket_step_px": 8,
        },
        "steps": 500,
        "batch_size": 4,
    }
    prior = {"class_word": "circle", "count": 32, "steps": 20, "cfg": 4.0}
    found = {}
    for name, changes in (("without", {}), ("with", {"prior": prior})):
        found[name], _ = learned(
            "object",
            toy_backend,
            run_toy,
            tmp_path / name / "run",
            lambda: drift(toy_backend),
            **merged(subject, changes),
        )
    assert drift(toy_backend)[0] >= 0.9
    (right, leaked, learned_it), (right_without, leaked_without, _) = found["with"], found["without"]
    assert learned_it >= LEARNT
    assert right >= LEARNT
    assert leaked <= UNLEARNT
    assert right_without < right
    assert leaked_without > leaked


@pytest.mark.slow
def test_the_frozen_models_predictions_keep_the_class_without_a_picture_of_it(toy_backend, run_toy, tmp_path):
    """As above, with no class pictures; the control is the run without any preservation above, made here too."""
    subject = {
        "data": {
            "folder": set_folder("object") + "/2_zog",
            "trigger": "zog",
            "resolution": 64,
            "bucket_step_px": 8,
        },
        "steps": 500,
        "batch_size": 4,
    }
    found = {}
    for name, prior in (("without", {}), ("with", {"class_word": "circle", "held_by": "predictions"})):
        changes = merged(subject, {"prior": prior})
        found[name], _ = learned(
            "object", toy_backend, run_toy, tmp_path / name / "run", lambda: drift(toy_backend), **changes
        )
    print(found)
    assert not (tmp_path / "with" / "class_pictures").exists()
    (right, leaked, learned_it), (_, leaked_without, _) = found["with"], found["without"]
    assert learned_it >= LEARNT
    assert leaked <= UNLEARNT
    assert leaked_without > leaked
    assert right > found["without"][0]


@pytest.mark.slow
def test_a_run_goes_on_from_a_lora_instead_of_starting_anew(toy_backend, run_toy, tmp_path):
    (half, _), first = learned("pair", toy_backend, run_toy, tmp_path / "first")
    names = [name for name, _ in make_adapters(parse(demo_job("pair")), toy_backend)[1]]
    start = starting_point(read(first.tensors, family=UNKNOWN), names, "lora")
    job = merged(
        demo_job("pair"),
        {"samples": {"every": 0}, "data": {"folder": set_folder("pair")}, "steps": 30, "optimizer": {"lr": 1e-4}},
    )
    shares = {}
    for name, begin in (("anew", None), ("on", start)):
        scored = Scored(lambda: score(toy_backend, "pair"))
        whole = Job(parse(job), toy_backend, scan(parse(job).data), tmp_path, scored, start=begin)
        train(whole, tmp_path / name, lambda state, facts: {"run": (state, {})})
        shares[name] = scored.found[0]
    assert half >= LEARNT
    assert shares["on"] >= LEARNT
    assert shares["anew"] <= UNLEARNT


def rings(folder, count, name):
    """Pictures of the subject of "object" that are not in the bundled set."""
    folder.mkdir()
    for n in range(count):
        image, caption = draw_ring(random.Random(f"{name} {n}"))
        image.save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(caption)
    return str(folder)


@pytest.mark.slow
def test_over_training_is_seen_and_ended(toy_backend, run_toy, tmp_path):
    """Four pictures and a high rate: the loss on them falls and falls, on pictures never seen it turns up, and there the run ends."""
    job = {
        "name": "few", "steps": 900, "batch_size": 4, "data": {"folder": rings(tmp_path / "few", 4, "few"), "resolution": 64, "bucket_step_px": 8},
        "adapter": {"rank": 16, "targets": "conv"}, "optimizer": {"lr": 3e-3}, "samples": {"every": 0}, "save": {"every": 10_000},
        "validation": {"every": 25, "folder": rings(tmp_path / "held", 16, "held"), "levels": 8, "patience": 12, "restore_best": True},
    }  # fmt: skip
    result = run_toy(parse(job), tmp_path / "run")
    assert result.outcome == "stopped early"
    measures = {m[0]: m for m in result.facts["validation"]}
    (_, best, trained_then, _), (_, last, trained_last, _) = measures[result.facts["best_step"]], measures[result.step]
    assert result.facts["best_step"] <= 300
    assert last >= 1.1 * best
    assert trained_last <= 0.9 * trained_then


@pytest.mark.slow
def test_the_best_step_draws_no_worse_than_the_last_one_of_a_run_that_goes_wrong(toy_backend, run_toy, tmp_path):
    """The rate rises until it destroys what was learned. The run is ended, and what it hands out is from before."""
    drawn = {}

    class Judge(Listener):
        def on_note(self, message):
            if message.code == "result.best":
                drawn["last"] = score(toy_backend, "object")[0]

    job = merged(demo_job("object"), {
        "steps": 600, "batch_size": 4, "data": {"folder": set_folder("object")}, "optimizer": {"lr": 1e-2}, "samples": {"every": 0},
        "schedule": {"name": "constant", "warmup_steps": 600},
        "validation": {"every": 25, "folder": rings(tmp_path / "held", 16, "held"), "levels": 8, "patience": 8, "restore_best": True},
    })  # fmt: skip
    result = run_toy(parse(job), tmp_path / "run", Judge())
    assert result.outcome == "stopped early"
    layers, adapters = make_adapters(parse(job), toy_backend)
    adapters.load_state_dict(
        {k.removesuffix(".weight"): v for k, v in result.tensors.items() if not k.endswith(".alpha")}
    )
    with attach(layers, adapters):
        chosen = score(toy_backend, "object")[0]
    print(
        f"best step {result.facts['best_step']} of {result.step}: {chosen} with its weights, {drawn['last']} with the last ones"
    )
    assert chosen >= drawn["last"]
    assert chosen >= 0.2
