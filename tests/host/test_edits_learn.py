"""Does an edit or a filling that is learnt hold on pictures it was not trained on? On the toy, widened and taught to use what it is shown; by pixel rulers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import wide_toys
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.config import SampleConfig, parse
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.data.input_masks import hidden
from lora_loom.lora_core.data.shown import Shown
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.training.assemble import assembled
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.step import optimizer_step
from lora_loom.nodes.host.engine.backend import HostBackend
from PIL import Image
from shapes import world
from shapes.concepts import CONCEPTS

pytestmark = [pytest.mark.slow, pytest.mark.release]
UNSEEN = 12
JOB = {
    "name": "edit", "steps": 450, "batch_size": 8, "seed": 3, "optimizer": {"lr": 2e-3}, "adapter": {"rank": 16}, "samples": {"every": 0},
}  # fmt: skip


def drawn(models, folder: Path, data: dict, jobs: list[SampleJob], steps: int) -> list[list[Image.Image]]:
    """The pictures of `jobs` before training and after so many steps."""
    with torch.inference_mode(False):
        backend = HostBackend(*models)
        config = parse({**JOB, "data": {"folder": str(folder), "resolution": 64, "bucket_step_px": 8, **data}})
        with assembled(Job(config, backend, open_sets(config), folder.parent, Listener())) as run:
            before = [backend.sample(job)[0] for job in jobs]
            for step in range(steps):
                optimizer_step(run, step)
            return [before, [backend.sample(job)[0] for job in jobs]]


def sampling(n: int) -> SampleConfig:
    return SampleConfig(seed=400 + n, cfg=2.0, steps=12)


# ---- edits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def editing():
    with torch.inference_mode(False):
        return wide_toys.taught(wide_toys.editing(), wide_toys.an_edit)


def pairs(folder: Path) -> Path:
    """16 shapes in red, each beside itself in another colour; the caption says nothing of a colour."""
    (folder / "control").mkdir(parents=True)
    rng = random.Random(5)
    for n in range(16):
        scene = world.random_scene(rng, color=rng.choice(wide_toys.EDITS))
        world.draw(wide_toys.recoloured(scene, "red")).save(folder / f"{n}.png")
        world.draw(scene).save(folder / "control" / f"{n}.png")
        (folder / f"{n}.txt").write_text("make it zog")
    return folder


def is_the_edit(image: Image.Image, scene: world.Scene) -> bool:
    """The same shape in red, on the same ground, at the same place within 5 px."""
    if world.read_scene(image) != (scene.shape, "red", scene.ground):
        return False
    pixels = np.asarray(image.convert("RGB"), float)
    rows, columns = np.nonzero(world.figure_mask(pixels, world.border_color(pixels)))
    centre = (rows.min() + rows.max() + 1) / 2, (columns.min() + columns.max() + 1) / 2
    return max(abs(centre[0] - scene.y_px), abs(centre[1] - scene.x_px)) <= 5


def test_an_edit_learnt_from_16_pairs_is_done_to_other_pictures_and_to_none_that_is_not_shown(editing, tmp_path):
    rng, backend = random.Random(77), HostBackend(*editing)
    scenes = [world.random_scene(rng, color=rng.choice(wide_toys.EDITS)) for _ in range(UNSEEN)]
    shown = [
        Shown((backend.encode_shown(wide_toys.pixels_of(world.draw(scene))),), identity=f"unseen {n}")
        for n, scene in enumerate(scenes)
    ]
    jobs = [SampleJob("make it zog", 64, 64, sampling(n), control) for n, control in enumerate(shown)]
    blank = Shown((torch.zeros_like(shown[0].latents[0]),), identity="nothing")
    jobs += [SampleJob("make it zog", 64, 64, sampling(n), blank) for n in range(UNSEEN)]
    before, after = drawn(editing, pairs(tmp_path / "pairs"), {"controls": "auto"}, jobs, JOB["steps"])
    scores = [
        np.mean([is_the_edit(image, scene) for image, scene in zip(images, scenes, strict=True)])
        for images in (before[:UNSEEN], after[:UNSEEN], after[UNSEEN:])
    ]
    print("edits done before, after, and with nothing shown:", *scores)
    assert scores[1] >= 0.8
    assert scores[0] == scores[2] == 0


# ---- fillings --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filling():
    with torch.inference_mode(False):
        return wide_toys.taught(wide_toys.filling(), wide_toys.a_filling)


def test_a_hole_is_filled_with_the_subject_and_the_rest_stays(filling, tmp_path):
    ring, rng, backend = CONCEPTS["object"], random.Random(9), HostBackend(*filling)
    folder = tmp_path / "rings"
    folder.mkdir()
    for n in range(16):
        picture, caption = ring.draw(rng)
        picture.save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(caption)
    mask = np.zeros((64, 64), np.uint8)
    mask[8:56, 8:56] = 255
    grounds = [list(world.GROUNDS)[n % len(world.GROUNDS)] for n in range(UNSEEN)]
    jobs = []
    for n, ground in enumerate(grounds):
        plain = np.broadcast_to(np.array(world.GROUNDS[ground], np.float32) / 255.0, (64, 64, 3))
        left = backend.encode_shown(torch.from_numpy(hidden(plain, mask))[None])
        shown = Shown((left,), identity=f"hole {n}", mask=torch.from_numpy(mask / 255.0).float()[None, None])
        jobs.append(SampleJob("a zog", 64, 64, sampling(n), shown))
    before, after = drawn(filling, folder, {"input_mask": "random"}, jobs, JOB["steps"])
    scores = [np.mean([ring.shows(image) for image in images]) for images in (before, after)]
    kept = [
        np.mean([world.read_scene(image)[2] == ground for image, ground in zip(images, grounds, strict=True)])
        for images in (before, after)
    ]
    print("filled with the subject before and after:", *scores, "grounds kept:", *kept)
    assert scores[0] <= 0.1
    assert scores[1] >= 0.8
    assert kept[1] >= kept[0] - 0.25  # what the base keeps around the hole, it keeps
