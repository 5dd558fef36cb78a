"""Pairs through a real server: an edit model is trained on a folder with control pictures, goes on bit for bit, and shows what it edits."""

from __future__ import annotations

import io
import json
import random
import shutil
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from live_server import Graph, running
from PIL import Image
from safetensors.torch import load_file
from shapes import world

COUNT = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy") / "base"
    (base / "custom_nodes").mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "tiny_edit.py", base / "custom_nodes")
    with running(base) as server:
        yield server


def put(server, name: str, with_last: bool = True) -> str:
    """Red shapes as targets, the same shapes in blue as control pictures; the last one may lack its own."""
    folder, rng = server.base / "input" / name, random.Random(3)
    (folder / "control").mkdir(parents=True)
    for n in range(COUNT):
        scene = world.random_scene(rng, color="red", ground="white")
        world.draw(scene).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text("make it red")
        pixels = np.asarray(world.draw(scene)).copy()
        if with_last or n < COUNT - 1:
            Image.fromarray(pixels[..., ::-1].copy()).save(folder / "control" / f"{n}.png")
    return name


def train(server, folder: str, name: str, steps: int, **more):
    graph = Graph(server)
    base = graph.add("TinyEdit")
    data = graph.add("LoraLoomLoadFolder", folder=folder, **more.pop("data", {"controls": "auto"}))
    wires = {"model": [base, 0], "clip": [base, 1], "vae": [base, 2], "dataset": [data, 0]}
    graph.add(
        "LoraLoomTrainLora",
        **wires,
        name=name,
        steps=steps,
        batch_size=2,
        scheduler="constant",
        **{"sample_every": 0, **more},
    )
    return graph


def losses(server, name: str) -> list[float]:
    return [json.loads(row)["loss"] for row in (server.base / "output" / "lora_loom" / name / "log.jsonl").open()]


def lora(server, name: str) -> dict:
    return load_file(server.base / "output" / "lora_loom" / name / f"{name}.safetensors")


def test_an_edit_model_is_trained_on_pairs_and_goes_on_as_if_it_had_not_stopped(server):
    folder = put(server, "pairs")
    train(server, folder, "whole", 6, save_every=3, sample_every=3, resume="new run").run()
    train(server, folder, "parts", 3, save_every=3, resume="new run").run()
    train(server, folder, "parts", 6, save_every=3, resume="continue last").run()
    assert losses(server, "parts")[-3:] == losses(server, "whole")[-3:]
    one, other = lora(server, "whole"), lora(server, "parts")
    assert all((one[k] == other[k]).all() for k in one)
    samples = server.base / "output" / "lora_loom" / "whole" / "samples"
    assert (samples / "before.png").exists()
    # other control pictures, another run: what was trained is not what it was
    for path in (server.base / "input" / folder / "control").iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    train(server, folder, "other", 6, resume="new run").run()
    assert losses(server, "other") != losses(server, "whole")


def test_what_a_model_needs_is_asked_for_in_one_sentence(server):
    folder = put(server, "bare")
    error = train(server, folder, "bare", 2, data={"controls": "none"}).fails()
    assert "this model needs a control picture beside each target, and none of the 5 pictures has one" in str(error)
    graph = Graph(server)
    base, data = graph.add("LoraLoomLoadToyModel"), graph.add("LoraLoomLoadFolder", folder=folder, controls="auto")
    wires = {"model": [base, 0], "clip": [base, 1], "vae": [base, 2], "dataset": [data, 0]}
    graph.add("LoraLoomTrainLora", **wires, name="plain", steps=2)
    assert "this model takes no control pictures" in str(graph.fails())


def test_the_editor_shows_control_pictures_and_which_picture_has_none(server):
    folder = put(server, "shown", with_last=False)
    graph = Graph(server)
    data = graph.add("LoraLoomLoadFolder", folder=folder, controls="auto")
    node = graph.add("LoraLoomDatasetEditor", dataset=[data, 0])
    session = graph.run()["outputs"][node]["loom_dataset"][0]
    contents = server.get(f"/lora_loom/dataset?session={session}")
    assert contents["sets"][0]["paired"] is True
    assert [p["controls"] for p in contents["pictures"]] == [[f"{n}.png"] for n in range(COUNT - 1)] + [[]]
    assert str(server.base) not in json.dumps(contents)
    address = f"http://127.0.0.1:{server.port}/lora_loom/dataset/thumb?session={session}&id="
    pictures = []
    for mark in ("", "-0"):
        with urllib.request.urlopen(address + contents["pictures"][0]["id"] + mark) as answer:
            pictures.append(np.asarray(Image.open(io.BytesIO(answer.read())), np.int16))
    assert (
        np.abs(pictures[0] - pictures[1][..., ::-1]).mean() < 6
    )  # the control picture is the target with red and blue exchanged
    assert np.abs(pictures[0] - pictures[1]).mean() > 6


def test_a_control_folder_elsewhere_is_chosen_below_the_input_folder_alone(server):
    folder = put(server, "apart")
    (server.base / "input" / folder / "control").rename(server.base / "input" / "before")
    train(server, folder, "apart", 1, data={"control_path": "before"}).run()
    outside = train(server, folder, "outside", 1, data={"control_path": "../models"})
    with pytest.raises(AssertionError, match=r"control_path: '\.\./models' is not below ComfyUI's input folder"):
        outside.run()


def test_saves_of_an_edit_model_are_compared_on_pictures_to_edit(server):
    folder = put(server, "to compare")
    train(server, folder, "compared", 4, save_every=2, resume="new run").run()
    source = np.zeros((2, 40, 80, 3), np.uint8)
    source[1] = 200
    for n, pixels in enumerate(source):
        Image.fromarray(pixels).save(server.base / "input" / f"edit_{n}.png")

    def compared(model: str, pictures: int, **more) -> Graph:
        graph = Graph(server)
        base = graph.add(model)
        wires = {"model": [base, 0], "clip": [base, 1], "vae": [base, 2]}
        if pictures:
            images = [[graph.add("LoadImage", image=f"edit_{n}.png"), 0] for n in range(pictures)]
            wires["control"] = images[0]
            if pictures > 1:
                wires["control"] = [graph.add("ImageBatch", image1=images[0], image2=images[1]), 0]
        graph.add("LoraLoomCompareCheckpoints", **wires, run="compared", prompts="make it red", steps=2, **more)
        return graph

    entry = compared("TinyEdit", 2).run()
    (report,) = [out["text"] for out in entry["outputs"].values() if "text" in out]
    assert "control" in str(report)
    sheet = shown_image(server, entry)
    one = shown_image(server, compared("TinyEdit", 1).run())
    assert sheet.height > 1.5 * one.height  # a row for each picture
    assert "this model edits pictures" in compared("TinyEdit", 0).fails()
    assert "shown no picture" in compared("LoraLoomLoadToyModel", 1).fails()


def shown_image(server, entry) -> Image.Image:
    """The sheet that Compare Checkpoints shows."""
    (shown,) = [out["images"][0] for out in entry["outputs"].values() if "images" in out]
    query = urllib.parse.urlencode({key: shown[key] for key in ("filename", "subfolder", "type")})
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/view?{query}") as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")
