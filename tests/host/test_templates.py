"""Every template runs through the HTTP API: those that need a checkpoint of the user's on the toy, with fewer steps."""

from __future__ import annotations

import json

import pytest
from live_server import ROOT, Graph, running
from PIL import Image
from safetensors.torch import load_file

TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
FEWER = {
    "LoraLoomTrainLora": {"steps": 4, "sample_every": 0, "batch_size": 2, "sample_prompt": ""},
    "LoraLoomTrainEmbedding": {"steps": 4, "sample_every": 0, "batch_size": 2},
    "LoraLoomPriorSettings": {"count": 1, "steps": 2},
    "LoraLoomValidationSettings": {"every": 2, "pictures": 2, "levels": 1},
    "LoraLoomCompareCheckpoints": {"steps": 2, "prompts": "a zog"},
    "KSampler": {"steps": 2},
    "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": 1},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


def workflow(name: str) -> dict:
    return json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


def on_the_toy(server, flow: dict) -> dict:
    """The prompt of a template, small, with what the user chooses chosen: the toy, its pictures, a LoRA of it."""
    prompt = server.api_prompt(flow)
    for node in prompt.values():
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "CheckpointLoaderSimple":
            node["class_type"], node["inputs"] = "LoraLoomLoadToyModel", {}
        if kind == "LoraLoomLoadFolder" and inputs["folder"].startswith("choose your"):
            inputs["folder"] = "toy: object"
        if kind == "LoraLoomConvertLora":
            inputs["file"] = a_diffusers_lora(server)
        if kind in ("LoraLoomRunCheckpoints", "LoraLoomCompareCheckpoints"):
            inputs["run"] = a_run_with_saves(server)
        inputs |= FEWER.get(kind, {})
    return prompt


def a_diffusers_lora(server) -> str:
    """A LoRA of the toy as another trainer would write it, among the server's LoRAs."""
    if not (server.base / "output" / "loras" / "foreign.safetensors").exists():
        graph = Graph(server)
        base, data = graph.add("LoraLoomLoadToyModel"), graph.add("LoraLoomLoadFolder", folder="toy: object")
        train = graph.add(
            "LoraLoomTrainLora",
            model=[base, 0],
            clip=[base, 1],
            vae=[base, 2],
            dataset=[data, 0],
            name="seed",
            steps=2,
            sample_every=0,
        )
        graph.add("LoraLoomSaveLora", lora=[train, 2], name="foreign", form="diffusers", write_card=False)
        graph.run()
    return "foreign.safetensors"


def a_run_with_saves(server) -> str:
    """A run as train_and_try_toy leaves one, in fewer steps."""
    if not (server.base / "output" / "lora_loom" / "saved").exists():
        graph = Graph(server)
        base, data = graph.add("LoraLoomLoadToyModel"), graph.add("LoraLoomLoadFolder", folder="toy: object")
        graph.add(
            "LoraLoomTrainLora",
            model=[base, 0],
            clip=[base, 1],
            vae=[base, 2],
            dataset=[data, 0],
            name="saved",
            steps=4,
            save_every=2,
            sample_every=0,
        )
        graph.run()
    return "saved"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_every_template_runs(server, path):
    entry = server.execute(on_the_toy(server, workflow(path.stem)))
    assert entry["status"]["status_str"] == "success", entry["status"]


@pytest.mark.parametrize("name", ["first_lora_toy", "train_embedding_toy"])
def test_a_workflow_saved_by_0_1_0_runs(server, name):
    flow = json.loads((ROOT / "tests" / "data" / "0.1.0" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    entry = server.execute(on_the_toy(server, flow))
    assert entry["status"]["status_str"] == "success", entry["status"]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_every_template_has_a_thumbnail_and_a_note(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG"
        assert picture.width >= 400
    assert path.with_suffix(".jpg").stat().st_size <= 100_000
    assert any(node["type"] == "MarkdownNote" for node in workflow(path.stem)["nodes"])


def test_the_server_offers_them_with_their_thumbnails(server):
    offered = server.get("/api/workflow_templates")
    (ours,) = [names for folder, names in offered.items() if "LoRA-Loom" in folder]
    assert sorted(ours) == [path.stem for path in TEMPLATES]


@pytest.mark.parametrize(
    ("name", "to_choose"), [("first_lora_toy", set()), ("first_lora_sdxl", {"ckpt_name", "folder", "trigger"})]
)
def test_a_first_run_takes_three_nodes_and_at_most_three_values(server, name, to_choose):
    prompt = server.api_prompt(workflow(name))
    assert len(prompt) == 3
    chosen = set()
    for node in prompt.values():
        spec = server.get(f"/object_info/{node['class_type']}")[node["class_type"]]["input"]
        for field, (kind, *options) in {**spec.get("required", {}), **spec.get("optional", {})}.items():
            offered = kind if isinstance(kind, list) else options[0].get("options") if kind == "COMBO" else None
            if offered is not None and node["inputs"].get(field) not in offered:
                chosen.add(field)
    if name == "first_lora_sdxl":
        chosen.add("trigger")  # may stay empty, then captions are trained as they are
    assert chosen == to_choose


def test_the_second_stage_goes_on_from_the_first_and_a_run_goes_on_from_itself(server):
    prompt = on_the_toy(server, workflow("resume_and_continue"))
    first, second = (node["inputs"] for node in prompt.values() if node["class_type"] == "LoraLoomTrainLora")
    first |= {"name": "one", "steps": 6, "learning_rate": 0.01}
    second |= {"name": "two", "steps": 1, "learning_rate": 1e-7}
    assert server.execute(prompt)["status"]["status_str"] == "success"
    loras = server.base / "output" / "loras"
    one, two = (load_file(loras / f"{name}.safetensors") for name in ("one", "two"))
    assert max(float(v.abs().max()) for k, v in one.items() if "lora_up" in k) > 1e-3
    assert max(float((one[k].float() - two[k].float()).abs().max()) for k in one) < 1e-4
    first |= {"resume": "continue last", "steps": 9}
    assert server.execute(prompt)["status"]["status_str"] == "success"
    rows = (server.base / "output" / "lora_loom" / "one" / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 10))


def test_the_converted_file_is_listed_with_its_card(server):
    assert server.execute(on_the_toy(server, workflow("convert_for_a1111")))["status"]["status_str"] == "success"
    loras = server.base / "output" / "loras"
    file = loras / "for_webui.safetensors"
    card = json.loads(file.with_suffix(".json").read_text())
    assert (card["activation text"], card["preferred weight"]) == ("my trigger word", 0.8)
    assert all(key.startswith("lora_unet_") for key in load_file(file))
