"""Datasets through a real server: layouts people have, nodes that make and check them, the editor's routes, the cache."""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
import urllib.error
import urllib.request
from urllib.parse import quote

import numpy as np
import pytest
from live_server import Graph, running
from PIL import Image
from shapes import SETS

TOY = sorted(p for p in (SETS / "object").rglob("*.png"))[-6:]
CAPTIONS = [p.with_suffix(".txt").read_text().strip() for p in TOY]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("datasets") / "base") as server:
        yield server


def put(server, name: str, files: dict[str, bytes]) -> str:
    """A folder below the input folder, made anew."""
    folder = server.base / "input" / name
    shutil.rmtree(folder, ignore_errors=True)
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    return name


def plain(server, name: str, count: int = 6) -> str:
    """Toy pictures with their captions."""
    return put(
        server,
        name,
        {f"{n}.png": p.read_bytes() for n, p in enumerate(TOY[:count])}
        | {f"{n}.txt": c.encode() for n, c in enumerate(CAPTIONS[:count])},
    )


def kohya() -> dict[str, bytes]:
    files = {f"img/3_zog/{n}.png": p.read_bytes() for n, p in enumerate(TOY)} | {
        f"img/3_zog/{n}.txt": c.encode() for n, c in enumerate(CAPTIONS)
    }
    return (
        files
        | {f"reg/1_red circle/{n}.png": p.read_bytes() for n, p in enumerate(TOY[:2])}
        | {"log/x.log": b"x", "model/last.npz": b"x"}
    )


def imagefolder() -> dict[str, bytes]:
    rows = "\n".join(json.dumps({"file_name": f"{n}.png", "text": c}) for n, c in enumerate(CAPTIONS))
    return {f"train/{n}.png": p.read_bytes() for n, p in enumerate(TOY)} | {
        "train/metadata.jsonl": rows.encode(),
        "test/0.png": TOY[0].read_bytes(),
    }


def booru() -> dict[str, bytes]:
    sidecars = {
        f"{n}.png.json": json.dumps({"id": n, "tag_string": "zog white_ground 1object", "rating": "s"}).encode()
        for n in range(6)
    }
    return {f"{n}.png": p.read_bytes() for n, p in enumerate(TOY)} | sidecars


def train(graph: Graph, base: str, dataset: list, **widgets) -> str:
    widgets = {"steps": 4, "sample_every": 0, "rank": 2, "resolution": 64, **widgets}
    return graph.add("LoraLoomTrainLora", model=[base, 0], clip=[base, 1], vae=[base, 2], dataset=dataset, **widgets)


def run_of(server, name: str) -> dict:
    return json.loads((server.base / "output" / "lora_loom" / name / "config.json").read_text())


def said(entry: dict, node: str) -> str:
    return "\n".join(entry["outputs"][node]["text"])


@pytest.mark.parametrize(("name", "files", "expected"), [
    ("kohya", kohya, ["6 pictures, 18 per epoch with repeats, 0 skipped\n2 class pictures for regularization"]),
    ("imagefolder", imagefolder, ["6 pictures, 6 per epoch", "captions from train/metadata.jsonl, column text", "1 picture of other splits than train"]),
    ("booru", booru, ["6 pictures, 6 per epoch with repeats, 0 skipped"]),
])  # fmt: skip
def test_layouts_people_have_train_without_a_manual_step(server, name, files, expected):
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    data = graph.add("LoraLoomLoadFolder", folder=put(server, name, files()))
    train(graph, base, [data, 0], name=f"from_{name}")
    entry = graph.run()
    for sentence in expected:
        assert sentence in said(entry, data)
    run = server.base / "output" / "lora_loom" / f"from_{name}"
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert ("class_loss" in rows[0]) == (name == "kohya")
    captions = json.loads((run / "checkpoints" / "step-00000004" / "state.json").read_text())["facts"]
    assert captions["losses"]


def test_pictures_and_captions_of_other_nodes_train_as_they_are(server):
    folder = plain(server, "wired")
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    native = graph.add("LoadImageTextDataSetFromFolder", folder=folder)
    data = graph.add("LoraLoomDatasetFromImages", images=[native, 0], captions=[native, 1], trigger="zog")
    train(graph, base, [data, 0], name="from_wires")
    one = graph.add("ImageFromBatch", image=[graph.add("LoraLoomEncodeDataset", dataset=[data, 0], vae=[base, 2], clip=[base, 1], resolution=64,
                                                       bucket_step_px=8), 2], batch_index=0, length=1)  # fmt: skip
    graph.add("SaveImage", images=[one, 0], filename_prefix="cut")
    entry = graph.run()
    assert "6 pictures" in said(entry, data)
    place = run_of(server, "from_wires")["data"]["folder"]
    stored = sorted((server.base / "output" / "lora_loom" / "imported").glob("*/*.png"))
    assert len(stored) == 6
    assert str(stored[0].parent) == place
    wanted = {np.asarray(Image.open(p).convert("RGB")).tobytes() for p in TOY}
    assert {np.asarray(Image.open(p)).tobytes() for p in stored} == wanted
    cut = np.asarray(Image.open(next((server.base / "output").glob("cut_*.png"))).convert("RGB"))
    assert cut.tobytes() in wanted  # 64 px pictures are cut nowhere


def test_a_single_picture_with_a_mask_becomes_a_masked_dataset(server):
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    image = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=255)
    white = graph.add("SolidMask", value=1.0, width=64, height=64)
    black = graph.add("SolidMask", value=0.0, width=32, height=64)
    half = graph.add("MaskComposite", destination=[white, 0], source=[black, 0], x=0, y=0, operation="multiply")
    data = graph.add("LoraLoomDatasetFromImages", images=[image, 0], masks=[half, 0], trigger="zog")
    train(graph, base, [data, 0], name="from_mask")
    assert "1 picture" in said(graph.run(), data)
    config = run_of(server, "from_mask")
    assert config["data"]["masks"] == "file"
    (mask,) = (p for p in (server.base / "output" / "lora_loom" / "imported").glob("*/*.mask.png"))
    assert np.asarray(Image.open(mask))[:, [0, 63]].tolist() == [[0, 255]] * 64


def test_what_a_preprocessor_makes_of_pictures_becomes_their_control_pictures(server):
    graph = Graph(server)
    image = graph.add("EmptyImage", width=64, height=64, batch_size=2, color=0xFF8000)
    inverted = graph.add("ImageInvert", image=[image, 0])  # in the place of Canny or a depth estimator
    data = graph.add("LoraLoomDatasetFromImages", images=[image, 0], controls=[inverted, 0], trigger="zog")
    sheet = graph.add("LoraLoomCheckDataset", dataset=[data, 0])
    entry = graph.run()
    assert "2 pictures" in said(entry, data)
    assert entry["outputs"][sheet]["images"]
    shown = sorted((server.base / "output" / "lora_loom" / "imported").glob("*/*-condlabel.png"))
    assert [Image.open(path).convert("RGB").getpixel((5, 5)) for path in shown] == [(0, 127, 255)] * 2
    alone = Graph(server)
    image = alone.add("EmptyImage", width=64, height=64, batch_size=2, color=0)
    one = alone.add("EmptyImage", width=64, height=64, batch_size=1, color=0)
    alone.add("LoraLoomDatasetFromImages", images=[image, 0], controls=[one, 0], trigger="zog")
    entry = server.result(server.queue(alone.nodes))
    assert "1 came with 2 pictures; wire one for each picture" in server.error_of(entry)


def test_latents_and_conditioning_of_other_nodes_train_like_the_pictures_they_came_from(server):
    folder = plain(server, "encoded", 1)  # one: the host's own node gives several in the order the disk has them
    losses = {}
    for kind in ("pictures", "latents"):
        graph = Graph(server)
        base = graph.add("LoraLoomLoadToyModel")
        if kind == "latents":
            native = graph.add("LoadImageTextDataSetFromFolder", folder=folder)
            encoded = graph.add(
                "MakeTrainingDataset", images=[native, 0], vae=[base, 2], clip=[base, 1], texts=[native, 1]
            )
            data = graph.add("LoraLoomDatasetFromLatents", latents=[encoded, 0], conditioning=[encoded, 1])
        else:
            data = graph.add("LoraLoomLoadFolder", folder=folder)
        train(graph, base, [data, 0], name=f"of_{kind}", steps=6)
        graph.run()
        log = server.base / "output" / "lora_loom" / f"of_{kind}" / "log.jsonl"
        losses[kind] = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    assert losses["latents"] == pytest.approx(
        losses["pictures"], rel=1e-5
    )  # the same order, noise and network; the pictures went through PNG


def test_conditioning_that_is_wired_cannot_train_text_encoders(server):
    folder = plain(server, "encoded")
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    native = graph.add("LoadImageTextDataSetFromFolder", folder=folder)
    encoded = graph.add("MakeTrainingDataset", images=[native, 0], vae=[base, 2], clip=[base, 1], texts=[native, 1])
    data = graph.add("LoraLoomDatasetFromLatents", latents=[encoded, 0], conditioning=[encoded, 1])
    settings = graph.add("LoraLoomTextEncoderSettings")
    train(graph, base, [data, 0], name="no_text", settings=[settings, 0])
    assert "its text comes encoded from other nodes" in graph.fails()


def test_combined_sets_keep_their_options(server):
    one, two = plain(server, "one", 3), plain(server, "two", 2)
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    loaded = graph.add("LoraLoomLoadFolder", folder=one, trigger="zog", flip=True, caption_dropout=0.2)
    first = graph.add("LoraLoomDatasetOptions", dataset=[loaded, 0], background="black")
    second = graph.add("LoraLoomLoadFolder", folder=two)
    other = graph.add(
        "LoraLoomDatasetOptions",
        dataset=[second, 0],
        repeats=5,
        loss_weight=0.5,
        prefix="p, ",
        replace="zog => vish\nwhite => black",
    )
    third = graph.add("LoraLoomDatasetOptions", dataset=[second, 0], regularization=True)
    data = graph.add("LoraLoomCombineDatasets", dataset_1=[first, 0], dataset_2=[other, 0], dataset_3=[third, 0])
    train(graph, base, [data, 0], name="combined")
    entry = graph.run()
    assert "5 pictures, 13 per epoch with repeats, 0 skipped\n2 class pictures for regularization" in said(entry, data)
    config = run_of(server, "combined")
    assert [(s["repeats"], s["loss_weight"], s["regularization"]) for s in config["sets"]] == [
        (5, 0.5, False),
        (0, 1.0, True),
    ]
    first_set = config["data"]
    assert (first_set["trigger"], first_set["flip"], first_set["caption_dropout"], first_set["background"]) == (
        "zog",
        True,
        0.2,
        "black",
    )


def test_the_check_names_what_is_wrong_and_measures_a_step(server):
    files = {f"{n}.png": p.read_bytes() for n, p in enumerate(TOY)} | {"copy.png": TOY[0].read_bytes()}
    files |= {f"{n}.txt": c.encode() for n, c in enumerate(CAPTIONS)} | {
        "copy.txt": ("zog, " + "very long " * 60).encode()
    }
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    data = graph.add("LoraLoomLoadFolder", folder=put(server, "checked", files))
    check = graph.add(
        "LoraLoomCheckDataset",
        dataset=[data, 0],
        resolution=64,
        bucket_step_px=8,
        clip=[base, 1],
        model=[base, 0],
        vae=[base, 2],
    )
    entry = graph.run()
    text = said(entry, check)
    assert "near-duplicate of copy.png" in text
    [line] = [line for line in text.splitlines() if "  copy.png: " in line]
    assert "caption with 302 tokens" in line
    assert "pieces of 75" in text
    assert "64 x 64       7" in text
    assert "s a step, about" in text
    assert len(entry["outputs"][check]["images"]) == 1
    assert not list((server.base / "output" / "lora_loom").glob("trial*"))


def test_a_second_run_encodes_nothing_again_and_an_edit_is_seen(server):
    folder = plain(server, "again")
    cache = server.base / "output" / "lora_loom" / "cache"

    def entries():
        return {p.name for p in cache.rglob("*.safetensors")}

    def go(name):
        graph = Graph(server)
        base = graph.add("LoraLoomLoadToyModel")
        train(graph, base, [graph.add("LoraLoomLoadFolder", folder=folder), 0], name=name)
        graph.run()
        return entries()

    shutil.rmtree(cache, ignore_errors=True)
    first = go("again_1")
    assert len(first) == 6 + len(set(CAPTIONS))
    assert go("again_2") == first
    (server.base / "input" / folder / "0.txt").write_text("another caption")
    assert len(go("again_3") - first) == 1


# ---- the editor -------------------------------------------------------------------------------------------------------


def opened(server, folder: str) -> str:
    graph = Graph(server)
    node = graph.add(
        "LoraLoomDatasetEditor", dataset=[graph.add("LoraLoomLoadFolder", folder=folder, trigger="zog"), 0]
    )
    return graph.run()["outputs"][node]["loom_dataset"][0]


def listing(server, session: str) -> dict:
    return server.get(f"/lora_loom/dataset?session={session}")


def files_of(server, folder: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (server.base / "input" / folder).iterdir() if not p.name.startswith(".")}


def test_the_editor_changes_captions_leaves_out_and_takes_back(server):
    folder = plain(server, "edited")
    before = files_of(server, folder)
    session = opened(server, folder)
    found = listing(server, session)
    assert found["sets"] == [{"label": "edited", "editable": True, "trigger": "zog", "paired": False}]
    assert [p["caption"] for p in found["pictures"]] == CAPTIONS
    assert not any(str(server.base) in json.dumps(p) for p in found["pictures"])
    first, second = found["pictures"][:2]
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.port}/lora_loom/dataset/thumb?session={session}&id={first['id']}"
    ) as answer:
        assert Image.open(io.BytesIO(answer.read())).size == (64, 64)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    body = {
        "session": session,
        "captions": {first["id"]: [first["caption"], "a new one"]},
        "excluded": {second["id"]: True},
    }
    assert server.post("/lora_loom/dataset/edit", body) == (200, {"changed": 2})
    assert files_of(server, folder) == {**before, "0.txt": b"a new one"}
    graph = Graph(server)
    data = graph.add("LoraLoomLoadFolder", folder=folder)
    assert "5 pictures, 5 per epoch with repeats, 0 skipped\n1 left out in the editor" in said(graph.run(), data)
    status, answer = server.post("/lora_loom/dataset/edit", body)
    assert (status, "was changed elsewhere meanwhile" in answer["error"]["text"]) == (409, True)
    assert server.post("/lora_loom/dataset/undo", {"session": session}) == (200, {"changed": 2})
    assert files_of(server, folder) == before
    assert server.post("/lora_loom/dataset/undo", {"session": session}) == (200, {"changed": 0})


def test_bundled_pictures_can_be_looked_at_but_not_changed(server):
    session = opened(server, "toy: object")
    found = listing(server, session)
    assert found["sets"][0]["editable"] is False
    one = found["pictures"][0]
    status, answer = server.post(
        "/lora_loom/dataset/edit", {"session": session, "captions": {one["id"]: [one["caption"], "x"]}}
    )
    assert (status, "is not in ComfyUI's input folder and is not changed" in answer["error"]["text"]) == (403, True)


@pytest.mark.parametrize("body", [
    [], {}, {"session": 3}, {"session": "unknown"}, {"captions": []}, {"captions": {"x": "y"}}, {"captions": {"x": ["a", 3]}}, {"excluded": {"x": 1}},
    {"excluded": {"../../etc/passwd": True}}, {"captions": {"0" * 20: ["", "x"]}}, {"captions": {"x": ["", "y" * 50_000]}},
    {"excluded": {str(n): True for n in range(20_001)}},
], ids=lambda b: json.dumps(b)[:40])  # fmt: skip
def test_bodies_that_make_no_sense_change_nothing(server, body):
    folder = plain(server, "hostile", 2)
    session = opened(server, folder)
    before = files_of(server, folder)
    if isinstance(body, dict) and "session" not in body and body:
        body = {"session": session, **body}
    for route in ("edit", "undo") if not isinstance(body, dict) or body.get("session") != session else ("edit",):
        status, answer = server.post(f"/lora_loom/dataset/{route}", body)
        assert 400 <= status < 500
        assert answer["error"]["text"]
    assert files_of(server, folder) == before
    assert not (server.base / "input" / folder / ".lora_loom.json").exists()


STRANGERS = [
    {"Host": "evil.example"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", STRANGERS)
def test_every_route_answers_only_the_hosts_own_page(server, headers):
    session = opened(server, plain(server, "guarded", 2))
    for route in ("edit", "undo"):
        assert server.post(f"/lora_loom/dataset/{route}", {"session": session}, headers=headers)[0] == 403
    for path in (f"dataset?session={session}", f"dataset/thumb?session={session}&id=x"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{server.port}/lora_loom/{path}", headers=headers)
            )
        assert caught.value.code == 403


@pytest.mark.parametrize("session", ["", "x", "../../..", "%00", "a" * 5000])
def test_unknown_sessions_get_404_and_no_path_is_touched(server, session):
    for path in (
        f"dataset?session={quote(session)}",
        f"dataset/thumb?session={quote(session)}&id=..%2F..%2Fetc%2Fpasswd",
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.get(f"/lora_loom/{path}")
        assert caught.value.code == 404


def test_a_thousand_pictures_are_listed(server, figure):
    data = io.BytesIO()
    Image.new("RGB", (64, 64)).save(data, "PNG")
    session = opened(server, put(server, "many", {f"{n:04}.png": data.getvalue() for n in range(1000)}))
    began = time.perf_counter()
    assert len(listing(server, session)["pictures"]) == 1000
    figure("1,000 pictures listed for the editor", time.perf_counter() - began)


def test_captions_with_parentheses_are_read_as_they_stand(toy):
    """Two captions that the host's tokenizer would take for weights encode as the very same text without that meaning."""
    import torch
    from lora_loom.nodes.host.engine.backend import HostBackend
    from lora_loom.nodes.host.engine.texts import literal

    with torch.inference_mode():
        clip = toy[1]
        plainly = clip.tokenize("saber \\(fate\\)")
        assert clip.tokenize(literal("saber (fate)", clip)) == plainly
        assert clip.tokenize(literal("saber \\(fate\\)", clip)) == plainly
        weights = {
            pair[1]
            for windows in clip.tokenize(literal("a (red:1.5) cat", clip)).values()
            for window in windows
            for pair in window
        }
        assert weights == {1.0}
        backend = HostBackend(*toy)
        assert backend.text_length("a red circle").tokens == 3
        assert backend.text_length("red " * 200).pieces == 3


@pytest.mark.parametrize(("module", "tokenizer", "as_it_stands"), [
    ("longcat_image", "LongCatImageTokenizer", True), ("qwen_image", "QwenImageTokenizer", False), ("z_image", "ZImageTokenizer", False),
])  # fmt: skip
def test_tokenizers_that_read_every_text_as_it_stands_get_it_without_backslashes(module, tokenizer, as_it_stands):
    import importlib
    from types import SimpleNamespace

    from lora_loom.nodes.host.engine.texts import literal

    made = getattr(importlib.import_module(f"comfy.text_encoders.{module}"), tokenizer)()
    clip = SimpleNamespace(tokenizer=made, tokenize=made.tokenize_with_weights)
    read = literal("saber (fate)", clip)
    assert (read == "saber (fate)") is as_it_stands
    assert str(clip.tokenize(read)) == str(clip.tokenize("saber (fate)"))  # these two kinds know no weights


def test_what_is_base64_in_the_own_list_is_the_file_as_it_was(server):
    folder = put(server, "bytes", {"0.png": TOY[0].read_bytes(), "0.txt": "zog, Café".encode("utf-16")})
    session = opened(server, folder)
    one = listing(server, session)["pictures"][0]
    assert one["caption"] == "zog, Café"
    server.post("/lora_loom/dataset/edit", {"session": session, "captions": {one["id"]: ["zog, Café", "x"]}})
    kept = json.loads((server.base / "input" / folder / ".lora_loom.json").read_text())["history"][-1]["captions"][
        "0.png"
    ]["bytes"]
    assert base64.b64decode(kept) == "zog, Café".encode("utf-16")


def test_a_local_copy_of_a_hub_dataset_is_a_folder_like_any_other(server):
    """As the Hub stores them: the picture files inside parquet, a caption column beside."""
    datasets = pytest.importorskip("datasets")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    features = datasets.Features({"image": datasets.Image(), "prompt": datasets.Value("string")})
    rows = [{"image": {"bytes": p.read_bytes(), "path": p.name}, "prompt": c} for p, c in zip(TOY, CAPTIONS)]
    data = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), data)
    folder = put(server, "hub_copy", {"data/train-00000-of-00001.parquet": data.getvalue(), "README.md": b"a card"})
    graph = Graph(server)
    base = graph.add("LoraLoomLoadToyModel")
    node = graph.add("LoraLoomLoadFolder", folder=folder)
    train(graph, base, [node, 0], name="of_the_hub")
    text = said(graph.run(), node)
    assert "6 pictures, 6 per epoch" in text
    assert "captions from metadata.jsonl, column text" in text
    graph = Graph(server)
    graph.add("LoraLoomLoadHubDataset", name="../../etc")
    assert "is not a dataset on the Hub; write owner/name" in graph.fails()
