"""Caption Pictures in a real server: a hundred pictures, progress, cancel that keeps what is there, what the editor shows, undo; and the models it can use."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from live_server import Graph, running
from test_http import wait_for

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "lora_core" / "captioning"))
WIRED, TAGGER = "the model at clip", "captioners/wd/model.onnx"
MANY = 100


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import tiny_captioners

    base = tmp_path_factory.mktemp("comfy") / "base"
    tiny_captioners.colour_tagger(base / "models" / "captioners" / "wd")
    tiny_captioners.taught_captioner(base / "models" / "captioners" / "taught")
    (base / "custom_nodes").mkdir(exist_ok=True)
    shutil.copy(HERE / "tiny_vlm.py", base / "custom_nodes")
    with running(base) as server:
        yield server


@pytest.fixture
def folder(server, request):
    """A hundred pictures in four colours, the seventh with a caption of its own."""
    import tiny_captioners

    place = server.base / "input" / request.node.name[:40]
    place.mkdir()
    for n in range(MANY):
        tiny_captioners.picture(list(tiny_captioners.COLOURS)[n % 4], (64 + n, 64)).save(place / f"{n:03}.png")
    (place / "007.txt").write_text("mine")
    return place


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.txt"))}


def graph_of(server, folder: Path, captioner: str, **widgets) -> tuple[Graph, str]:
    """A prompt that captions a folder; (the graph, the session of its editor)."""
    graph = Graph(server)
    data = graph.add("LoraLoomLoadFolder", folder=folder.name, trigger="zog")
    editor = graph.add("LoraLoomDatasetEditor", dataset=[data, 0])
    session = graph.run()["outputs"][editor]["loom_dataset"][0]
    clip = {"clip": [graph.add("TinyVlm"), 0]} if captioner == WIRED else {}
    graph.add("LoraLoomCaptionPictures", dataset=[data, 0], captioner=captioner, **clip, **widgets)
    return graph, session


def progress(server, session: str) -> dict:
    return server.get(f"/lora_loom/dataset/captioning?session={session}")["captioning"] or {"status": "none", "done": 0}


def pictures(server, session: str) -> dict[str, dict]:
    return {p["name"]: p for p in server.get(f"/lora_loom/dataset?session={session}")["pictures"]}


def test_a_tagger_captions_a_hundred_pictures_shown_in_the_editor_and_taken_back_at_once(server, folder):
    graph, session = graph_of(server, folder, TAGGER, subject="character", prepend="photo", leave_out="^_^")
    said = [output["text"][0] for output in graph.run()["outputs"].values() if "text" in output]
    assert any("99 of 99 captions written" in text for text in said)
    shown = {name: picture["caption"] for name, picture in pictures(server, session).items()}
    assert shown["007.png"] == "mine"
    assert shown["000.png"] == "photo, red background"
    assert shown["002.png"] == "photo, blue background"
    assert shown.keys() == {f"{n:03}.png" for n in range(MANY)}
    assert all(shown.values())
    seen = progress(server, session)
    assert (seen["status"], seen["done"], seen["total"], seen["written"]) == ("finished", 99, 99, 99)
    assert server.post("/lora_loom/dataset/undo", {"session": session}) == (200, {"changed": 99})
    assert texts(folder) == {"007.txt": "mine"}


def test_the_host_s_own_model_writes_is_stopped_and_goes_on(server, folder):
    graph, session = graph_of(server, folder, WIRED, max_tokens=8)
    queued = server.queue(graph.nodes)
    wait_for(lambda: progress(server, session)["done"] >= 3, 300)
    assert progress(server, session)["status"] == "running"
    assert server.post("/lora_loom/dataset/stop_captioning", {"session": session}) == (200, {"asked": True})
    entry = server.result(queued)
    assert entry["status"]["status_str"] == "success"
    seen = progress(server, session)
    assert seen["status"] == "stopped"
    assert 3 <= seen["written"] < MANY - 1
    kept = texts(folder)
    assert len(kept) == seen["written"] + 1
    assert {name: picture["caption"] for name, picture in pictures(server, session).items() if picture["caption"]} == {
        name.replace(".txt", ".png"): text for name, text in kept.items()
    }
    queued = server.queue(graph.nodes)
    wait_for(lambda: progress(server, session)["status"] == "running" and progress(server, session)["done"] >= 2, 300)
    server.post("/interrupt", {})
    server.result(queued)
    assert progress(server, session)["status"] == "stopped"
    after = texts(folder)
    assert len(after) >= len(kept) + 2
    assert after.items() >= kept.items()
    assert server.post("/lora_loom/dataset/undo", {"session": session})[0] == 200
    assert texts(folder) == kept
    assert server.post("/lora_loom/dataset/undo", {"session": session})[0] == 200
    assert texts(folder) == {"007.txt": "mine"}


def test_a_model_on_disk_captions_and_all_are_replaced_only_when_asked(server, folder):
    graph, session = graph_of(server, folder, "captioners/taught")
    graph.run()
    assert texts(folder)["001.txt"] == "A plain green picture"
    assert texts(folder)["007.txt"] == "mine"
    graph, session = graph_of(server, folder, "captioners/taught", which="all", leave_out="plain")
    graph.run()
    assert texts(folder)["007.txt"] == "A yellow picture"
    assert server.post("/lora_loom/dataset/undo", {"session": session}) == (200, {"changed": MANY})
    assert texts(folder)["001.txt"] == "A plain green picture"


def test_what_cannot_caption_is_told_and_choices_are_those_of_the_folders(server, folder):
    choices = server.get("/lora_loom/dataset/captioners")["captioners"]
    assert choices == [{"id": "captioners/taught", "kind": "folder"}, {"id": TAGGER, "kind": "folder"}]
    graph = Graph(server)
    data = graph.add("LoraLoomLoadFolder", folder=folder.name)
    graph.add("LoraLoomCaptionPictures", dataset=[data, 0], captioner=WIRED)
    assert "nothing is wired to clip" in graph.fails()
    toy = graph.add("LoraLoomLoadToyModel")
    graph.nodes["2"]["inputs"]["clip"] = [toy, 1]
    assert "vision-language model" in graph.fails()
    outside = Graph(server)
    data = outside.add("LoraLoomLoadFolder", folder="toy: object")
    outside.add("LoraLoomCaptionPictures", dataset=[data, 0], captioner=TAGGER, which="all")
    assert "is not in ComfyUI's input folder" in outside.fails()
    assert texts(folder) == {"007.txt": "mine"}
