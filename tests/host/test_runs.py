"""Runs through a real server: the saves of a run in one queue and on one sheet, the list, export, delete and restore, and what the routes refuse."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from live_server import ROOT, Graph, running
from PIL import Image
from safetensors import safe_open

RUNS = "/lora_loom/runs"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    programs = folder / "bin"
    programs.mkdir()
    opener = programs / "xdg-open"
    opener.write_text(f'#!/bin/sh\necho "$1" >> {folder}/opened\n')
    opener.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        patch.setenv("DISPLAY", ":99")
        with running(folder / "base") as server:
            server.opened = folder / "opened"
            train(server, "kept")
            yield server


def train(server, name: str, go: bool = True, **changes) -> Graph:
    """Nine steps on the toy with a save and a validation every three, all saves kept. `go`: whether it is run now."""
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    folder = graph.add("LoraLoomLoadFolder", folder="toy: object")
    watch = graph.add("LoraLoomValidationSettings", every=3, restore_best=False)
    keep = graph.add("LoraLoomSaveSettings", every=3, keep=10, settings=[watch, 0])
    values = {
        "name": name, "steps": 9, "rank": 4, "learning_rate": 0.02, "targets": "conv", "batch_size": 4, "sample_every": 3, "sample_cfg": 4.0,
        "sample_prompt": "a zog on a white ground", **changes,
    }  # fmt: skip
    graph.add(
        "LoraLoomTrainLora",
        model=[base, 0],
        clip=[base, 1],
        vae=[base, 2],
        dataset=[folder, 0],
        settings=[keep, 0],
        **values,
    )
    if go:
        graph.run()
    return graph


def runs_root(server) -> Path:
    return server.base / "output" / "lora_loom"


def row(server, run: str = "kept") -> dict:
    return next(r for r in server.get(RUNS)["runs"] if r["id"] == run)


def raw(server, method: str, path: str, body: bytes = b"", headers: dict | None = None) -> tuple[int, bytes, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data, dict(answer.getheaders())


def state_of_disk(server) -> str:
    """Names and contents of everything below output and models, and their times."""
    digest = hashlib.sha256()
    for place in ("output", "models"):
        for path in sorted((server.base / place).rglob("*")):
            digest.update(str(path).encode())
            if path.is_file():
                digest.update(path.read_bytes() + str(path.stat().st_mtime_ns).encode())
    return digest.hexdigest()


def pictures(server, entry: dict, prefix: str) -> list[np.ndarray]:
    saved = sorted(
        i["filename"]
        for out in entry["outputs"].values()
        for i in out.get("images", [])
        if i["filename"].startswith(prefix)
    )
    return [np.asarray(Image.open(server.base / "output" / name).convert("RGB"), int) for name in saved]


def test_the_list_says_what_a_run_is(server):
    found = row(server)
    assert (found["state"], found["step"], found["steps"], found["saves"]) == ("finished", 9, 9, [3, 6, 9])
    assert (found["base"], found["base_file"]) == ("Stable Diffusion 1.x", "toy")
    assert (found["picture"], found["results"]) == (9, ["kept.safetensors"])
    probes = [json.loads(line) for line in (runs_root(server) / "kept" / "log.jsonl").read_text().splitlines()]
    assert found["best"][1] == min(p["held_out"] for p in probes if "held_out" in p)
    assert found["size_bytes"] == sum(p.stat().st_size for p in (runs_root(server) / "kept").rglob("*") if p.is_file())
    assert server.get(RUNS)["local"] is True


def test_what_a_person_says_of_a_run_is_kept_in_its_folder_and_changes_nothing_else(server):
    before, file = state_of_disk(server), runs_root(server) / "kept" / "remark.json"
    changed = row(server)["changed"]
    for body in ({"title": "The good one"}, {"note": "lower rate\n猫"}, {"star": True}):
        assert server.post(f"{RUNS}/remark", {"id": "kept", **body})[0] == 200
    found = row(server)
    assert [found[name] for name in ("title", "note", "star", "changed")] == [
        "The good one",
        "lower rate\n猫",
        True,
        changed,
    ]
    for body in ({}, {"title": "x" * 121}, {"star": "yes"}, {"id": "nowhere", "star": True}, {"note": "x" * 40_000}):
        status, answer = server.post(f"{RUNS}/remark", {"id": "kept", **body})
        assert 400 <= status < 500
        assert answer["error"]["text"]
    assert row(server)["title"] == "The good one"
    file.unlink()
    assert state_of_disk(server) == before


def test_settings_and_pace_of_a_run_are_told(server):
    told = server.get(f"{RUNS}/settings?id=kept")
    assert (told["settings"]["adapter.rank"], told["settings"]["steps"]) == (4, 9)
    assert set(told["pace"]) <= {"seconds_per_step", "peak_bytes"}  # too few steps between its saves to tell


def test_the_queue_is_told_in_its_order_with_the_time_each_takes(server):
    assert server.get(f"{RUNS}/queue") == {"queue": []}
    graphs = [train(server, f"waits_{n}", go=False, steps=400 + n, sample_every=0).nodes for n in range(3)]
    ids = [server.queue(graph) for graph in graphs]
    try:
        for _ in range(600):
            rows = server.get(f"{RUNS}/queue")["queue"]
            if rows and rows[0]["running"] and (rows[0]["step"] or 0) >= 4:
                break
            time.sleep(0.1)
        assert [(r["id"], r["name"], r["running"], r["steps"]) for r in rows] == [
            (ids[0], "waits_0", True, 400), (ids[1], "waits_1", False, 401), (ids[2], "waits_2", False, 402),
        ]  # fmt: skip
        assert rows[0]["seconds"] > 0
        assert [r["seconds"] for r in rows[1:]] == [None, None]  # no run like them has told what its steps take
    finally:
        server.post("/queue", {"clear": True})
        server.post("/interrupt", {})
        server.result(ids[0])


def test_a_running_run_says_so_and_is_not_deleted(server):
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    folder = graph.add("LoraLoomLoadFolder", folder="toy: object")
    node = graph.add(
        "LoraLoomTrainLora",
        model=[base, 0],
        clip=[base, 1],
        vae=[base, 2],
        dataset=[folder, 0],
        name="long",
        steps=5000,
        sample_every=0,
    )
    queued = server.queue(graph.nodes)
    for _ in range(6000):
        rows = [r for r in server.get(RUNS)["runs"] if r["id"] == "long"]
        if rows and rows[0]["state"] == "running" and rows[0]["step"]:
            break  # a run that ends before its first step leaves no folder
        time.sleep(0.05)
    assert rows[0]["state"] == "running"
    status, answer = server.post(f"{RUNS}/delete", {"id": "long"})
    assert (status, "is running" in answer["error"]["text"]) == (409, True)
    assert server.post("/lora_loom/stop", {"node": node})[0] == 200
    server.result(queued)
    assert row(server, "long")["state"] == "stopped"
    assert server.post(f"{RUNS}/delete", {"id": "long"})[0] == 200


def test_every_save_of_a_run_goes_through_the_sampler_in_one_queue(server):
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    saves = graph.add("LoraLoomRunCheckpoints", run="kept", saves="all", model=[base, 0], clip=[base, 1])
    graph.draw([saves, 0], [saves, 1], [base, 2], "a zog on a white ground", "every_save")
    graph.add("PreviewAny", source=[saves, 5])
    entry = graph.run()
    drawn = pictures(server, entry, "every_save")
    assert len(drawn) == 3
    assert all(np.abs(a - b).max() > 5 for a, b in zip(drawn, drawn[1:]))
    told = next(out["text"] for out in entry["outputs"].values() if out["text"][0].startswith("kept\n"))
    assert "step 9" in told[0]
    assert "validation 0." in told[0]

    last = Graph(server)  # the last save is the result: as LoraLoader draws its file
    base = last.add("LoraLoomLoadToyModel")
    loaded = last.add(
        "LoraLoader",
        model=[base, 0],
        clip=[base, 1],
        lora_name="kept.safetensors",
        strength_model=1.0,
        strength_clip=1.0,
    )
    last.draw([loaded, 0], [loaded, 1], [base, 2], "a zog on a white ground", "from_file")
    assert np.abs(pictures(server, last.run(), "from_file")[0] - drawn[-1]).max() == 0


def test_training_and_its_saves_go_through_one_queue(server):
    graph = train(server, "at_once", steps=6)
    base, path = "1", next(n for n, node in graph.nodes.items() if node["class_type"] == "LoraLoomTrainLora")
    graph.nodes[path]["inputs"].update(name="at_once_again", seed=5)
    saves = graph.add("LoraLoomRunCheckpoints", run="latest run", model=[base, 0], after=[path, 4])
    graph.add("PreviewAny", source=[saves, 5])
    entry = graph.run()
    told = next(
        out["text"][0]
        for out in entry["outputs"].values()
        if "step 6" in str(out.get("text")) and "\n" in out["text"][0]
    )
    assert told.splitlines()[0] == "at_once_again"


@pytest.mark.parametrize(("saves", "nth", "count"), [("last", 2, 1), ("best", 2, 1), ("every nth", 2, 2)])
def test_saves_can_be_chosen(server, saves, nth, count):
    graph = Graph(server)
    chosen = graph.add("LoraLoomRunCheckpoints", run="kept", saves=saves, nth=nth)
    graph.add("PreviewAny", source=[chosen, 3])
    graph.add(
        "LoraLoomSaveLora",
        lora=[chosen, 2],
        name=f"chosen_{saves.split()[0]}",
        destination="output/loras",
        write_card=False,
    )
    graph.run()
    assert len(list((server.base / "output" / "loras").glob(f"chosen_{saves.split()[0]}*.safetensors"))) == count


def test_the_sheet_has_base_saves_and_strengths(server):
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    sheet = graph.add(
        "LoraLoomCompareCheckpoints", model=[base, 0], clip=[base, 1], vae=[base, 2], run="kept", prompts="a zog on a white ground\na red circle",
        strengths="0.5, 1", steps=2,
    )  # fmt: skip
    graph.add("SaveImage", images=[sheet, 0], filename_prefix="sheet")
    entry = graph.run()
    (image,) = pictures(server, entry, "sheet")
    assert image.shape == (22 + 2 * (192 + 22 + 22 + 8), 8 + 7 * 200, 3)
    columns = [image[44 : 44 + 192, 8 + n * 200 : 200 + n * 200] for n in range(7)]
    assert all(np.abs(columns[0] - other).max() > 5 for other in columns[1:])
    report = next(out["text"][0] for out in entry["outputs"].values() if "text" in out)
    assert report.splitlines()[0] == "kept"
    assert len(report.splitlines()) == 8
    assert "without: validation 0." in report
    assert sum("validation" in line for line in report.splitlines()) == 4  # measured at full strength alone


def test_a_save_that_does_not_fit_the_model_is_refused(toy):
    import torch
    from lora_loom.lora_core.messages.errors import LoomError
    from lora_loom.nodes.run_checkpoints import applied
    from lora_loom.nodes.sockets import LoraWeights

    name = "lora_unet_nowhere"
    other = LoraWeights(
        {f"{name}.lora_down.weight": torch.zeros(2, 4), f"{name}.lora_up.weight": torch.zeros(4, 2)}, "sd1", {}
    )
    with pytest.raises(LoomError, match="model: the saves of this run do not fit it; wire the model and clip"):
        applied(toy[0], None, other, {}, 1.0)


def test_a_refused_comparison_is_one_sentence(server):
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    wires = dict(model=[base, 0], clip=[base, 1], vae=[base, 2], run="kept")
    node = graph.add("LoraLoomCompareCheckpoints", **wires)
    for changes, sentence in (
        ({"strengths": "a lot"}, "strengths: 'a lot' is no list of strengths"),
        ({"prompts": "x\n" * 200}, "pictures would be generated"),
    ):
        graph.nodes[node]["inputs"].update({"strengths": "1", "prompts": "x", **changes})
        assert sentence in graph.fails()


def test_a_new_run_is_a_choice_without_a_restart(server):
    train(server, "later", steps=3)
    options = server.get("/object_info/LoraLoomRunCheckpoints")["LoraLoomRunCheckpoints"]["input"]["required"]["run"][
        1
    ]["options"]
    assert options[:2] == ["latest run", "later"]


def test_pictures_curves_and_resume_are_read(server):
    status, data, headers = raw(server, "GET", f"{RUNS}/picture?id=kept&step=9")
    assert (status, headers["Content-Type"], data[:2]) == (200, "image/jpeg", b"\xff\xd8")
    assert raw(server, "GET", f"{RUNS}/picture?id=kept&step=9&large=1")[0] == 200
    curve = server.get(f"{RUNS}/curve?id=kept")
    assert [step for step, _ in curve["loss"]] == list(range(1, 10))
    assert [step for step, _ in curve["held_out"]] == [3, 6, 9]
    assert server.get(f"{RUNS}/resume?id=kept") == {"name": "kept", "workflow": None}
    measured = server.get(f"{RUNS}/measured?id=kept")
    assert [row["step"] for row in measured["pictures"]["rows"]] == [0, 3, 6, 9]
    assert measured["concepts"] is None
    status, data, headers = raw(server, "GET", f"{RUNS}/thumbnails?id=kept")
    assert (status, headers["Content-Type"], data[:2]) == (200, "image/jpeg", b"\xff\xd8")


def test_a_run_keeps_the_graph_it_was_queued_from(server):
    graph, workflow = (
        train(server, "drawn", steps=3),
        {"id": "w", "nodes": [{"id": 1, "type": "Näh \ud800"}], "links": []},
    )
    assert not (runs_root(server) / "drawn" / "workflow.json").exists()  # the prompt came without one

    def queued(workflow: dict, **changes) -> str:
        next(n for n in graph.nodes.values() if n["class_type"] == "LoraLoomTrainLora")["inputs"].update(changes)
        status, answer = server.post(
            "/prompt", {"prompt": graph.nodes, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
        )
        assert status == 200
        return server.result(answer["prompt_id"])["status"]["status_str"]

    assert queued(workflow, name="graph") == "success"
    assert server.get(f"{RUNS}/resume?id=graph") == {"name": "graph", "workflow": workflow}
    assert (
        queued({**workflow, "id": "other"}, resume="continue last", seed=7) == "error"
    )  # a run that does not go on keeps its graph
    assert server.get(f"{RUNS}/resume?id=graph")["workflow"] == workflow
    assert queued({**workflow, "id": "x" * (8 << 20)}, name="large", resume="new run") == "success"
    assert server.get(f"{RUNS}/resume?id=large") == {"name": "large", "workflow": None}
    assert [path.name for path in runs_root(server).glob("large/*workflow*")] == []


def test_a_paused_run_is_listed_as_paused(server):
    graph = train(server, "short", steps=3)
    number = next(k for k, n in graph.nodes.items() if n["class_type"] == "LoraLoomTrainLora")
    graph.nodes[number]["inputs"].update(name="rests", steps=3000, sample_every=0)
    queued = server.queue(graph.nodes)
    for _ in range(600):
        if any(r["id"] == "rests" and r["state"] == "running" and r["step"] > 3 for r in server.get(RUNS)["runs"]):
            break
        time.sleep(0.1)
    assert server.post("/lora_loom/pause", {"node": number})[0] == 200
    server.result(queued)
    assert (row(server, "rests")["state"], row(server, "rests")["error"]) == ("paused", None)


def test_export_writes_a_loadable_file_and_never_over_another(server):
    folder = server.base / "models" / "loras"
    (folder / "kept.safetensors").write_bytes(b"precious")
    for save, name in (("result", "kept_2"), ("result", "kept_3"), (6, "kept_step6"), ("best", "kept_best")):
        status, answer = server.post(f"{RUNS}/export", {"id": "kept", "save": save})
        assert (status, answer) == (200, {"files": [f"models/loras/{name}.safetensors"]})
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            told = file.metadata()
            assert (told["ss_output_name"], told["ss_base_model_version"], told["ss_network_dim"]) == (
                name,
                "sd_v1",
                "4",
            )
            assert int(told["ss_steps"]) == (6 if save == 6 else row(server)["best_save"] if save == "best" else 9)
        assert (folder / f"{name}.preview.png").exists()
    assert (folder / "kept.safetensors").read_bytes() == b"precious"
    with (
        safe_open(folder / "kept_2.safetensors", "pt") as mine,
        safe_open(runs_root(server) / "kept" / "kept.safetensors", "pt") as result,
    ):
        assert set(mine.keys()) == set(result.keys())
    status, answer = server.post(f"{RUNS}/export", {"id": "kept", "save": 4})
    assert (status, answer["error"]["text"]) == (409, "save: kept has no save of step 4; it has 3, 6, 9.")


def test_an_exported_save_draws_what_the_node_draws(server):
    assert server.post(f"{RUNS}/export", {"id": "kept", "save": 3})[0] == 200
    drawn = []
    for kind in ("node", "file"):
        graph = Graph(server)
        base = graph.add("LoraLoomLoadToyModel")
        if kind == "node":
            source = graph.add("LoraLoomRunCheckpoints", run="kept", saves="all", model=[base, 0], clip=[base, 1])
        else:
            source = graph.add(
                "LoraLoader",
                model=[base, 0],
                clip=[base, 1],
                lora_name="kept_step3.safetensors",
                strength_model=1.0,
                strength_clip=1.0,
            )
        graph.draw([source, 0], [source, 1], [base, 2], "a zog on a white ground", f"save3_{kind}")
        drawn.append(pictures(server, graph.run(), f"save3_{kind}")[0])
    assert np.abs(drawn[0] - drawn[1]).max() <= 2  # the file holds fp16


def test_the_saves_of_an_embedding_teach_the_clip_its_word(server):
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    folder = graph.add("LoraLoomLoadFolder", folder="toy: word", trigger="dax")
    keep = graph.add("LoraLoomSaveSettings", every=2, keep=10)
    graph.add(
        "LoraLoomTrainEmbedding", model=[base, 0], clip=[base, 1], vae=[base, 2], dataset=[folder, 0], settings=[keep, 0], name="word", steps=4,
        learning_rate=0.1, sample_every=0,
    )  # fmt: skip
    graph.run()
    assert row(server, "word")["trigger"] == "embedding:word"
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    saves = graph.add("LoraLoomRunCheckpoints", run="word", model=[base, 0], clip=[base, 1])
    graph.draw([saves, 0], [saves, 1], [base, 2], "a embedding:word on a white ground", "word_save")
    graph.add("LoraLoomSaveEmbedding", embedding=[saves, 6], name="word_kept")
    drawn = pictures(server, graph.run(), "word_save")
    assert len(drawn) == 2
    assert np.abs(drawn[0] - drawn[1]).max() > 2
    status, answer = server.post(f"{RUNS}/export", {"id": "word", "save": 2})
    assert (status, answer) == (200, {"files": ["models/embeddings/word_step2.safetensors"]})
    assert server.post(f"{RUNS}/export", {"id": "word", "save": "result"})[1]["files"][0].startswith(
        "models/embeddings/word"
    )


def test_a_deleted_run_is_in_the_trash_and_comes_back_whole(server):
    train(server, "thrown", steps=3)
    folder = runs_root(server) / "thrown"
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    status, answer = server.post(f"{RUNS}/delete", {"id": "thrown"})
    assert status == 200
    assert not folder.exists()
    listed = server.get(RUNS)
    assert "thrown" not in [r["id"] for r in listed["runs"]]
    assert [t["name"] for t in listed["trash"] if t["id"] == answer["trash"]] == ["thrown"]
    assert server.post(f"{RUNS}/delete", {"id": "thrown"})[0] == 404
    assert server.post(f"{RUNS}/restore", {"trash": answer["trash"]}) == (200, {"id": "thrown"})
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert server.post(f"{RUNS}/restore", {"trash": answer["trash"]})[0] == 409
    assert (server.base / "output" / "loras" / "thrown.safetensors").exists()  # what was published stays


def test_a_run_comes_back_under_a_free_name(server):
    train(server, "twin", steps=3)
    number = server.post(f"{RUNS}/delete", {"id": "twin"})[1]["trash"]
    (runs_root(server) / "twin").mkdir()
    assert server.post(f"{RUNS}/restore", {"trash": number}) == (200, {"id": "twin_2"})


def test_the_folder_opens_only_where_the_browser_is_on_the_same_machine(server):
    assert server.post(f"{RUNS}/open", {"id": "kept"}) == (200, {"opened": "lora_loom/kept"})
    for _ in range(100):
        if server.opened.exists():
            break
        time.sleep(0.05)
    assert server.opened.read_text().splitlines() == [str(runs_root(server) / "kept")]
    for headers in ({"X-Forwarded-For": "10.0.0.7"}, {"Host": f"192.168.1.5:{server.port}"}):
        status, answer = server.post(f"{RUNS}/open", {"id": "kept"}, headers=headers)
        assert (status, answer["error"]["text"]) == (
            403,
            "the folder is on the server, in ComfyUI's output folder: lora_loom/kept",
        )
    assert len(server.opened.read_text().splitlines()) == 1


def test_links_out_of_the_folder_are_not_followed(server, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text(json.dumps({"name": "x", "steps": 1, "method": "canary"}))
    Image.new("RGB", (64, 64), "red").save(outside / "step-1.png")
    root = runs_root(server)
    (root / "linked").symlink_to(outside)
    half = root / "half"
    (half / "checkpoints").mkdir(parents=True)
    (half / "config.json").write_text(json.dumps({"name": "half", "steps": 1}))
    (half / "samples").symlink_to(outside)
    (half / "log.jsonl").symlink_to(outside / "config.json")
    try:
        assert "linked" not in [r["id"] for r in server.get(RUNS)["runs"]]
        for path in (f"{RUNS}/picture?id=linked&step=1", f"{RUNS}/picture?id=half&step=1", f"{RUNS}/curve?id=linked"):
            assert raw(server, "GET", path)[0] == 404
        assert row(server, "half")["picture"] is None
        for action in ("delete", "export", "open"):
            assert server.post(f"{RUNS}/{action}", {"id": "linked", "save": "result"})[0] == 404
        assert sorted(p.name for p in outside.iterdir()) == ["config.json", "step-1.png"]
    finally:
        (root / "linked").unlink()


HOSTILE = [
    "..", ".", "", "/", "\\", "../kept", "kept/../kept", "kept/", "./kept", "KEPT", "kept.", "kept ", "kept\0", "..\\kept", "C:\\", "/etc/passwd", ".trash",
    "cache", "%2e%2e", "..%2fkept", "kept%00", "~", "$HOME", "con", "kept/samples", "a" * 5000, "\u202ekept", "\ud800", "*", "ke?t", "[k]ept", "\n", "kept\r\n",
]  # fmt: skip


def test_no_name_leads_out_of_the_listing(server):
    from urllib.parse import quote

    before = state_of_disk(server)
    for name in HOSTILE:
        for path in (
            f"{RUNS}/curve?id=",
            f"{RUNS}/settings?id=",
            f"{RUNS}/resume?id=",
            f"{RUNS}/picture?step=9&id=",
            f"{RUNS}/measured?id=",
            f"{RUNS}/thumbnails?id=",
        ):
            status, data, _ = raw(server, "GET", path + quote(name, safe="", errors="surrogatepass"))
            assert 400 <= status < 500, (path, name, status)
        for action, body in (
            ("delete", {"id": name}),
            ("export", {"id": name, "save": "result"}),
            ("open", {"id": name}),
            ("restore", {"trash": name}),
            ("remark", {"id": name, "star": True}),
        ):
            status, answer = server.post(f"{RUNS}/{action}", body)
            assert 400 <= status < 500, (action, name, status)
            assert answer["error"]["text"]
    for step in ("-1", "1e9", "9.0", "../9", "٩", "9" * 5000, "", "0x9", "before"):
        assert raw(server, "GET", f"{RUNS}/picture?id=kept&step={quote(step)}")[0] == 404
    assert state_of_disk(server) == before


def hostile_value(rng: random.Random, depth: int = 0):
    kinds = [None, True, 1, -1, 10**400, 1.5, "", "kept", "result", "\0", "x" * 300, [], {}]
    value = rng.choice(kinds)
    if depth < 3 and rng.random() < 0.4:
        return [hostile_value(rng, depth + 1)] if rng.random() < 0.5 else {"id": hostile_value(rng, depth + 1)}
    return value


def hostile_body(rng: random.Random) -> bytes:
    kind = rng.randrange(8)
    if kind == 0:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
    if kind == 1:
        return b'{"id": "kept", "save": ' + rng.choice([b"NaN", b"-Infinity", b"1e", b"[", b"}", b"'x'"]) + b"}"
    if kind == 2:
        return b"[" * rng.choice([10, 1000, 4000])
    if kind == 3:
        return b'{"id": "nowhere", "pad": "' + b"x" * rng.choice([5000, 100_000]) + b'"}'
    body = {key: hostile_value(rng) for key in ("id", "save", "trash", "x") if rng.random() < 0.7}
    if body.get("id") == "kept":  # what is well formed is not what is tested here
        body["id"] = ["kept"]
    return json.dumps(body).encode()


def test_600_malformed_requests_change_nothing_and_get_a_reason(server):
    rng, before = random.Random(7), state_of_disk(server)
    log_from = len(server.log.read_text())
    slowest, seen = 0.0, set()
    for n in range(600):
        action = rng.choice(["delete", "export", "open", "restore", "remark"])
        headers = {
            "Content-Type": rng.choice(
                ["application/json"] * 4 + ["text/plain", "application/x-www-form-urlencoded", ""]
            )
        }
        began = time.monotonic()
        status, data, _ = raw(server, "POST", f"{RUNS}/{action}", hostile_body(rng), headers)
        slowest = max(slowest, time.monotonic() - began)
        seen.add(status)
        assert 400 <= status < 500, (n, action, status, data[:200])
        assert json.loads(data)["error"]["text"]
    assert state_of_disk(server) == before
    assert "Traceback" not in server.log.read_text()[log_from:]
    print(f"600 malformed requests: {sorted(seen)}, slowest {slowest * 1000:.0f} ms")


STRANGERS = [
    {"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"}, {"Host": "evil.localhost.example"}, {"Host": "127.0.0.1.evil.example"},
]  # fmt: skip


@pytest.mark.parametrize("headers", STRANGERS)
def test_strangers_get_nothing(server, headers):
    before = state_of_disk(server)
    for path in (
        "",
        "/curve?id=kept",
        "/settings?id=kept",
        "/queue",
        "/picture?id=kept&step=9",
        "/resume?id=kept",
        "/measured?id=kept",
        "/thumbnails?id=kept",
    ):
        assert raw(server, "GET", f"{RUNS}{path}", headers=headers)[0] == 403
    for action in ("delete", "export", "open", "restore", "remark"):
        body = json.dumps({"id": "kept", "save": "result", "trash": "1", "star": True}).encode()
        assert raw(server, "POST", f"{RUNS}/{action}", body, {"Content-Type": "application/json", **headers})[0] == 403
    assert state_of_disk(server) == before


def test_reading_changes_nothing(server):
    before = state_of_disk(server)
    for path in (
        "", "/curve?id=kept", "/settings?id=kept", "/queue", "/picture?id=kept&step=9", "/picture?id=kept&step=0&large=1", "/resume?id=kept",
        "/measured?id=kept", "/thumbnails?id=kept",
    ):  # fmt: skip
        assert raw(server, "GET", f"{RUNS}{path}")[0] == 200
    for action in ("delete", "export", "open", "restore", "remark"):
        assert raw(server, "GET", f"{RUNS}/{action}?id=kept")[0] in (404, 405)
    assert state_of_disk(server) == before


def test_300_runs_are_listed_and_what_has_not_changed_is_not_read_again(server, figure):
    source, root = runs_root(server) / "kept", runs_root(server)
    rows = [{"step": n, "loss": 0.1, "lr": 1e-4, "grad_norm": 0.2, "time": 1795232227.589} for n in range(1, 1001)]
    rows = [{**row, "held_out": 0.1, "trained": 0.1} if row["step"] % 50 == 0 else row for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    made = []
    try:
        for n in range(300):
            folder = root / f"many_{n:03d}"
            for path in source.rglob("*"):
                if path.is_file():
                    target = folder / path.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.link(path, target) if path.name != "log.jsonl" else target.write_text(lines)
            made.append(folder)
        process = psutil.Process(server.pid)
        bytes_read, seconds = [process.io_counters().read_chars], []
        for _ in range(3):
            began = time.monotonic()
            assert len(server.get(RUNS)["runs"]) > 300
            seconds.append(time.monotonic() - began)
            bytes_read.append(process.io_counters().read_chars)
        figure("300 runs listed for the first time", seconds[0])
        figure("300 runs listed again", seconds[-1])
        first, *again = (after - before for before, after in zip(bytes_read, bytes_read[1:], strict=False))
        assert first - max(again) >= 300 * len(lines)  # a log that has not changed is not read again
    finally:
        import shutil

        for folder in made:
            shutil.rmtree(folder)


def test_the_template_compares_the_saves_of_the_first_template(server):
    first = server.api_prompt(
        json.loads((ROOT / "example_workflows" / "21 Train the toy, then try it.json").read_text())
    )
    next(n["inputs"] for n in first.values() if n["class_type"] == "LoraLoomTrainLora").update(
        {"steps": 6, "save_every": 3, "sample_every": 0}
    )
    assert server.execute(first)["status"]["status_str"] == "success"
    entry = server.execute(
        server.api_prompt(json.loads((ROOT / "example_workflows" / "24 Which save is best (toy).json").read_text()))
    )
    assert entry["status"]["status_str"] == "success", entry["status"]
    report = next(
        out["text"][0] for out in entry["outputs"].values() if out.get("text", [""])[0].startswith("toy_koala")
    )
    assert "step 3" in report
    assert "step 6" in report


def test_blocks_that_a_finished_lora_does_not_need_are_measured_and_left_out(server):
    """On the run's own pictures and base; the report and the chart stand on the node, and what is left is a LoRA that the host loads."""
    train(server, "blocks", steps=30, learning_rate=0.002, sample_every=0)
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    node = graph.add("LoraLoomNeededBlocks", model=[base, 0], clip=[base, 1], vae=[base, 2], run="blocks", bound=60.0)
    graph.add("LoraLoomSaveLora", lora=[node, 0], name="smaller", destination="output/loras", dtype="fp32")
    report = next(out["text"][0] for out in graph.run()["outputs"].values() if "text" in out).splitlines()
    blocks = report[1:-1]
    assert report[0].startswith("On 2 validation pictures the loss is")
    assert len(blocks) > 3
    assert all("of the effect lost" in line for line in blocks)
    left_out = [line.partition(":")[0] for line in blocks if line.endswith("not needed")]
    assert 0 < len(left_out) < len(blocks)
    assert report[-1].startswith(f"Without the {len(left_out)} of {len(blocks)} blocks")
    whole, smaller = (
        runs_root(server) / "blocks" / "blocks.safetensors",
        server.base / "output" / "loras" / "smaller.safetensors",
    )
    names = [set(tensors_of(file)) for file in (whole, smaller)]
    assert len(names[1]) < len(names[0])
    loader = Graph(server)
    base = loader.add("LoraLoomLoadToyModel")
    loader.add("LoraLoomInspect", file="smaller.safetensors")
    assert any("text" in out for out in loader.run()["outputs"].values())


def tensors_of(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())
