"""Does it learn? The bundled concepts, by the pixel rulers of the toy world."""

import dataclasses
import random

import pytest
from lora_loom.lora_core.adapters import attach
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.build import make_adapters
from lora_loom.lora_core.config import SampleConfig, parse
from lora_loom.lora_core.toy import world
from lora_loom.lora_core.toy.concepts import CONCEPTS
from lora_loom.lora_core.toy.model import resolve_set
from lora_loom.lora_core.toy.recipes import demo_job, score


def right(backend, pictures):
    """Share of pictures whose shape and colour are those of the prompt."""
    rng, found = random.Random(11), 0
    for n in range(pictures):
        scene = world.random_scene(rng)
        image = backend.sample(SampleJob(scene.caption, 64, 64, SampleConfig(seed=500 + n, cfg=4.0, steps=20)))[0]
        found += world.read_scene(image)[:2] == (scene.shape, scene.color)
    return found / pictures


def test_the_toy_model_draws_the_shape_and_colour_it_is_asked_for(toy_backend):
    assert right(toy_backend, 40) >= 0.9


@pytest.mark.slow
def test_the_toy_model_draws_what_it_is_asked_for_200_times(toy_backend):
    assert right(toy_backend, 200) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONCEPTS))
def test_a_demo_teaches_the_concept_to_its_trigger_and_to_nothing_else(name, toy_backend, run_toy, tmp_path):
    assert max(score(toy_backend, name)) <= 0.2  # unknown before, with and without the trigger
    config = parse(demo_job(name))
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, folder=resolve_set(config.data.folder)), samples=dataclasses.replace(config.samples, every=0)
    )
    result = run_toy(config, tmp_path)
    layers, adapters = make_adapters(config, toy_backend)
    adapters.load_state_dict({k.removesuffix(".weight"): v for k, v in result.tensors.items() if not k.endswith(".alpha")})
    with attach(layers, adapters):
        with_trigger, without = score(toy_backend, name)
    assert with_trigger >= 0.8
    assert without <= 0.2
    assert max(score(toy_backend, name)) <= 0.2  # and the base model is as it was
