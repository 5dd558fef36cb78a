"""Import Settings in a real server: another trainer's command drives a run, and what has no counterpart is said."""

from __future__ import annotations

import json

import pytest
from live_server import Graph, running


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


def toy(graph: Graph) -> dict:
    base = graph.add("LoraLoomLoadToyModel")
    data = graph.add("LoraLoomLoadFolder", folder="toy: object", trigger="zog")
    return {"model": [base, 0], "clip": [base, 1], "vae": [base, 2], "dataset": [data, 0]}


COMMAND = (
    "python train_network.py --network_dim 3 --network_alpha 2 --network_train_unet_only --unet_lr 3e-3 --max_train_steps 6 --train_batch_size 2 "
    "--lr_scheduler linear --sample_every_n_steps 0 --seed 5 --resolution 64 --train_data_dir elsewhere --nonsense 1"
)


def trained(server, name: str, text: str, **widgets) -> dict:
    """The settings that a run of this name had, which took over `text`."""
    graph = Graph(server)
    settings = graph.add("LoraLoomImportSettings", text=text, more="")
    graph.add("LoraLoomTrainLora", **toy(graph), name=name, sample_every=0, settings=[settings, 0], **widgets)
    graph.run()
    run = server.base / "output" / "lora_loom" / name
    return {**json.loads((run / "config.json").read_text()), "steps": len((run / "log.jsonl").read_text().splitlines())}


def test_a_command_of_another_trainer_drives_the_run_and_its_report_names_what_is_left(server):
    config = trained(server, "taken_over", COMMAND, steps=50, rank=16)
    assert (config["steps"], config["batch_size"], config["seed"]) == (6, 2, 5)
    assert (config["adapter"]["rank"], config["adapter"]["alpha"], config["optimizer"]["lr"]) == (3, 2.0, 3e-3)
    assert config["schedule"]["name"] == "linear"
    assert config["data"]["folder"] != "elsewhere"  # pictures come over the wire
    graph = Graph(server)
    node = graph.add("LoraLoomImportSettings", text=COMMAND, more="")
    said = graph.run()["outputs"][node]["text"][0]
    assert "nonsense = 1: unknown, and left out" in said
    assert "folder (Load Training Folder)" in said
    assert "set them on the nodes for these" in said


def test_epochs_of_a_command_and_of_the_widget_are_counted_in_pictures(server):
    imported = trained(server, "by_epochs", COMMAND.replace("--max_train_steps 6", "--max_train_epochs 1"), steps=50)
    own = trained(
        server, "by_widget", "python train_network.py --train_batch_size 2 --max_train_steps 0", epochs=1, steps=0
    )
    assert imported["steps"] == own["steps"] > 1
    graph = Graph(server)
    graph.add("LoraLoomTrainLora", **toy(graph), name="both", steps=5, epochs=2)
    assert "each say how long the run is" in graph.fails()


def test_a_text_of_no_program_is_one_sentence(server):
    graph = Graph(server)
    graph.add("LoraLoomImportSettings", text="hello", more="")
    assert "text is not a configuration of any known program" in graph.fails()
