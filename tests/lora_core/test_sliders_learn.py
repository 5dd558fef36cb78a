"""Does it learn without pictures? Sliders, erasing and preservation on the bundled toy, by pixel rulers, each beside a control that fails."""

import random

import numpy as np
import pytest
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.config import SampleConfig, parse
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.training.assemble import assembled
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.step import optimizer_step
from shapes import world

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
JOB = {
    "name": "slide", "method": "slider", "batch_size": 2, "seed": 3, "data": {"resolution": 64, "bucket_step_px": 8},
    "adapter": {"rank": 8}, "samples": {"every": 0},
}  # fmt: skip


def told(shape, color, ground):
    return f"a {color} {shape} on a {ground} ground"


def drawn_after(steps, slider, prompts, strengths, toy_backend, folder, lr=3e-3, **more):
    """Strength -> the pictures of `prompts` after so many steps of a slider."""
    config = parse({**JOB, "steps": max(1, steps), "slider": slider, "optimizer": {"lr": lr}, **more})
    with assembled(Job(config, toy_backend, open_sets(config), folder, Listener())) as run:
        for step in range(steps):
            optimizer_step(run, step)
        out = {}
        for strength in strengths:
            with run.adapters.at_strength(strength):
                sampling = [SampleConfig(seed=300 + n, cfg=4.0, steps=8) for n in range(len(prompts))]
                jobs = [SampleJob(prompt, 64, 64, how) for prompt, how in zip(prompts, sampling, strict=True)]
                out[strength] = [toy_backend.sample(job)[0] for job in jobs]
        return out


def brightness(image):
    """Of the ground."""
    return float(world.border_color(np.asarray(image.convert("RGB"), float)).mean())


GROUND = {
    name: "\n".join(told(shape, color, ground) for color, shape in (("red", "circle"), ("blue", "square")))
    for name, ground in (("target", "gray"), ("positive", "white"), ("negative", "black"))
}
SCENES = [(shape, color) for shape in world.SHAPES for color in world.COLORS][::2]


@pytest.mark.slow
def test_a_slider_moves_its_attribute_at_every_strength_and_leaves_the_others(toy_backend, tmp_path):
    """From black over gray to white ground, of twelve shapes and colours of which its prompts named two; untrained it moves nothing."""
    prompts = [told(shape, color, "gray") for shape, color in SCENES]
    slider = {**GROUND, "guidance": 1.5, "sampler_steps": 2, "cfg": 1.0}
    moved = drawn_after(60, slider, prompts, STRENGTHS, toy_backend, tmp_path, lr=1.5e-3)
    levels = [float(np.mean([brightness(image) for image in moved[s]])) for s in STRENGTHS]
    kept = {
        s: sum(world.read_scene(image)[:2] == scene for image, scene in zip(moved[s], SCENES, strict=True))
        for s in STRENGTHS
    }
    print("brightness of the ground:", [round(level) for level in levels], "scenes kept:", kept)
    assert all(low < high for low, high in zip(levels, levels[1:], strict=False))
    assert levels[3] - levels[1] > 35
    assert min(kept[-1.0], kept[1.0]) >= 0.8 * kept[0.0] >= 7
    untrained = drawn_after(0, slider, prompts[:1], STRENGTHS, toy_backend, tmp_path)
    assert len({image.tobytes() for (image,) in untrained.values()}) == 1


@pytest.mark.slow
def test_erasing_takes_one_concept_and_leaves_the_rest(toy_backend, tmp_path):
    """Circles become squares; without the prompts to preserve and trained the same, at strength 0 they are circles."""
    places = [(color, ground) for color in ("red", "blue", "green") for ground in ("white", "black")]
    of = {shape: "\n".join(told(shape, color, ground) for color, ground in places) for shape in world.SHAPES}
    rest = "\n".join(of[shape] for shape in ("square", "triangle", "cross"))
    slider = {"mode": "erase", "target": of["circle"], "positive": of["square"], "preserve": rest, "sampler_steps": 2}
    circles = [("circle", "yellow", "white"), ("circle", "red", "gray"), ("circle", "purple", "black")]
    others = [("square", "yellow", "white"), ("triangle", "red", "gray"), ("cross", "purple", "black")]
    others += [("triangle", "orange", "white"), ("square", "blue", "brown")]
    prompts = [told(*scene) for scene in circles + others]
    pictures = drawn_after(90, slider, prompts, (0.0, 1.0), toy_backend, tmp_path)
    shapes = {s: [world.read_scene(image)[0] for image in pictures[s]] for s in pictures}
    print(shapes)
    scenes = [shape for shape, _, _ in circles + others]
    assert sum(one == other for one, other in zip(shapes[0.0], scenes, strict=True)) >= 7  # of eight
    assert sum(shape == "circle" for shape in shapes[1.0][:3]) <= 1
    assert sum(one == other for one, other in zip(shapes[1.0][3:], scenes[3:], strict=True)) >= 4  # of five


def write_pairs(folder, grounds, scenes):
    """A pair of each scene: on the first ground as the control picture, on the second as the picture, with the caption of the first."""
    (folder / "control").mkdir(parents=True)
    for n, (shape, color) in enumerate(scenes):
        for ground, place in zip(grounds, (folder / "control", folder), strict=True):
            scene = world.random_scene(random.Random(n), shape=shape, color=color, ground=ground)
            world.draw(scene).save(place / f"{n}.png")
        (folder / f"{n}.txt").write_text(told(shape, color, grounds[0]), encoding="utf-8")


@pytest.mark.slow
def test_a_slider_from_pairs_moves_what_they_differ_in_and_leaves_the_rest(toy_backend, tmp_path):
    """Six pairs, each of a scene before gray and before white; of twelve shapes and colours, half of them in no pair, strength 1 makes the ground white.

    Below 0 it gets darker, of which no pair shows anything.
    """
    write_pairs(tmp_path / "pairs", ("gray", "white"), SCENES[1::2])
    prompts, strengths = [told(shape, color, "gray") for shape, color in SCENES], (-1.0, -0.5, 0.0, 0.5, 1.0)
    data = {**JOB["data"], "folder": str(tmp_path / "pairs"), "controls": "auto"}
    convs = {"data": data, "adapter": {"rank": 8, "targets": "conv"}}
    moved = drawn_after(120, {"mode": "pairs"}, prompts, strengths, toy_backend, tmp_path, lr=1.5e-3, **convs)
    levels = [float(np.mean([brightness(image) for image in moved[s]])) for s in strengths]
    kept = {
        s: sum(world.read_scene(image)[:2] == scene for image, scene in zip(moved[s], SCENES, strict=True))
        for s in strengths
    }
    print("brightness of the ground:", [round(level) for level in levels], "scenes kept:", kept)
    assert all(low < high for low, high in zip(levels, levels[1:], strict=False))
    gray, white = (float(np.mean(world.GROUNDS[name])) for name in ("gray", "white"))
    assert levels[4] - levels[2] > 0.5 * (white - gray)
    assert min(kept[-1.0], kept[1.0]) >= 0.8 * kept[0.0] >= 7
