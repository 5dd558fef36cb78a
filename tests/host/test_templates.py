"""Every template runs through the HTTP API: those that need a checkpoint of the user's on the toy, with fewer steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from live_server import ROOT, Graph, running
from PIL import Image
from safetensors.torch import load_file

TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
FEWER = {
    "LoraLoomTrainSlider": {"steps": 2, "sample_every": 0, "sampler_steps": 2},
    "LoraLoomTrainLora": {"steps": 4, "sample_every": 0, "batch_size": 2, "sample_prompt": ""},
    "LoraLoomTrainEmbedding": {"steps": 4, "sample_every": 0, "batch_size": 2},
    "LoraLoomTrainBothExperts": {"steps": 4, "sample_every": 0, "switch_every": 1},
    "LoraLoomPriorSettings": {"count": 1, "steps": 2},
    "LoraLoomValidationSettings": {"every": 2, "pictures": 2, "levels": 1},
    "LoraLoomCompareCheckpoints": {"steps": 2, "prompts": "a zog"},
    "LoraLoomCaptionPictures": {"max_tokens": 4},
    "KSampler": {"steps": 2},
    "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": 1},
}


FAMILIES = {  # number of the template -> tiny model of its family
    "8": "Flux", "9": "Qwen Edit 2511",
    "10": "Flux", "11": "Flux2 Klein", "12": "ZImage", "13": "QwenImage", "14": "SD3.5 medium", "15": "Chroma", "16": "Wan", "17": "Wan", "19": "Wan",
}  # fmt: skip
LOADERS = {
    "UNETLoader": 0,
    "CLIPLoader": 1,
    "TinyVlm": 1,
    "DualCLIPLoader": 1,
    "VAELoader": 2,
}  # -> the output of TinyFamily that stands in


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy") / "base"
    (base / "custom_nodes").mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "tiny_vlm.py", base / "custom_nodes")
    (base / "custom_nodes" / "tiny_families").symlink_to(ROOT / "tests" / "host" / "tiny_families")
    with running(base) as server:
        yield server


def on_a_tiny_model(server, name: str, flow: dict) -> dict:
    """The prompt of a family's template with a tiny random model of that family in place of its loaders."""
    prompt = on_the_toy(server, flow)
    instead = {node: LOADERS[entry["class_type"]] for node, entry in prompt.items() if entry["class_type"] in LOADERS}
    instead |= dict.fromkeys((node for node, e in prompt.items() if e["class_type"] == "LoraLoomLoadToyModel"), None)
    other = [node for node in instead if prompt[node]["class_type"] == "UNETLoader"][1:]  # the second of two experts
    for node in instead:
        del prompt[node]
    for entry in prompt.values():
        for key, value in entry["inputs"].items():
            if isinstance(value, list) and value[0] in instead:
                slot = instead[value[0]]
                place = "other" if value[0] in other else "tiny"
                entry["inputs"][key] = [place, value[1] if slot is None else slot]
        if entry["class_type"] in ("LoraLoomTrainLora", "LoraLoomTrainBothExperts"):
            entry["inputs"]["resolution"] = 64
    tiny = {"tiny": {"class_type": "TinyFamily", "inputs": {"name": name}}}
    if other:
        tiny["other"] = {"class_type": "TinyFamily", "inputs": {"name": name, "seed": 1}}
    return {**prompt, **tiny}


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
            inputs["folder"] = "toy: object" if inputs["controls"] == "none" else own_pairs(server)
        if kind == "CLIPLoader":
            node["class_type"], node["inputs"] = "TinyVlm", {}
        if kind == "LoraLoomCaptionPictures":
            loader = prompt[inputs["dataset"][0]]["inputs"]
            loader["folder"] = own_copy(server)
        if kind == "LoraLoomConvertLora":
            inputs["file"] = a_diffusers_lora(server)
        if kind in ("LoraLoomRunCheckpoints", "LoraLoomCompareCheckpoints"):
            inputs["run"] = a_run_with_saves(server)
        inputs |= FEWER.get(kind, {})
    return prompt


def own_copy(server) -> str:
    """Pictures without captions in the server's input folder, where captions may be written."""
    place = server.base / "input" / "to caption"
    place.mkdir(exist_ok=True)
    for n in range(3):
        Image.new("RGB", (64, 64), (80 * n, 0, 0)).save(place / f"{n}.png")
    return place.name


def own_pairs(server) -> str:
    """Grey pictures below the server's input folder, each with a darker one that it is an edit of."""
    place = server.base / "input" / "pairs"
    (place / "control").mkdir(parents=True, exist_ok=True)
    for n in range(3):
        Image.new("RGB", (64, 64), (80 + 40 * n,) * 3).save(place / f"{n}.png")
        Image.new("RGB", (64, 64), (40 * n,) * 3).save(place / "control" / f"{n}.png")
        (place / f"{n}.txt").write_text("make it brighter")
    return place.name


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
    """A run as 21 Train the toy leaves one, in fewer steps."""
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
    flow, family = workflow(path.stem), FAMILIES.get(path.stem.partition(" ")[0])
    entry = server.execute(on_a_tiny_model(server, family, flow) if family else on_the_toy(server, flow))
    assert entry["status"]["status_str"] == "success", entry["status"]


@pytest.mark.parametrize("number", [number for number in FAMILIES if number != "17"])
def test_a_family_is_trained_with_what_its_template_says(server, number):
    (path,) = [path for path in TEMPLATES if path.stem.startswith(f"{number} ")]
    prompt = on_a_tiny_model(server, FAMILIES[number], workflow(path.stem))
    train = next(entry["inputs"] for entry in prompt.values() if entry["class_type"] == "LoraLoomTrainLora")
    train |= {"name": f"family_{number}", "steps": 2}
    assert server.execute(prompt)["status"]["status_str"] == "success"
    config = json.loads((server.base / "output" / "lora_loom" / f"family_{number}" / "config.json").read_text())
    assert (config["adapter"]["rank"], config["optimizer"]["lr"]) == (train["rank"], train["learning_rate"])
    wired = [e["inputs"] for e in prompt.values() if e["class_type"] == "LoraLoomLossNoiseSettings"]
    for settings in wired:
        assert config["objective"]["shift"] == settings["shift"]
        assert config["objective"]["timesteps"] == settings["timesteps"]
    assert config["memory"] == train["memory"] != "as set"
    assert config["data"]["controls"] == ("auto" if number in ("8", "9") else "none")
    log = (server.base / "output" / "lora_loom" / f"family_{number}" / "log.jsonl").read_text().splitlines()
    assert len(log) == 2


def test_both_experts_leave_a_file_each_among_the_servers_loras(server):
    (path,) = [path for path in TEMPLATES if path.stem.startswith("17 ")]
    prompt = on_a_tiny_model(server, FAMILIES["17"], workflow(path.stem))
    train = next(entry["inputs"] for entry in prompt.values() if entry["class_type"] == "LoraLoomTrainBothExperts")
    assert (train["boundary"], train["sample_frames"]) == (0, 0)
    train |= {"name": "experts", "steps": 2}
    entry = server.execute(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    assert (server.base / "output" / "lora_loom" / "experts" / "loss.png").is_file()
    loras = {file.stem for file in (server.base / "output" / "loras").glob("experts*.safetensors")}
    assert loras == {"experts_high_noise", "experts_low_noise"}


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
    assert any(node["type"] == "MarkdownNote" and node["title"] for node in workflow(path.stem)["nodes"])


def test_the_server_offers_them_with_their_thumbnails(server):
    offered = server.get("/api/workflow_templates")
    (ours,) = [names for folder, names in offered.items() if "LoRA-Loom" in folder]
    assert sorted(ours) == [path.stem for path in TEMPLATES]


@pytest.mark.parametrize(
    ("name", "to_choose"),
    [
        ("20 Try it - the bundled toy, no download", set()),
        ("2 Your pictures (SDXL or SD1.5, 8 GB)", {"ckpt_name", "folder", "trigger"}),
    ],
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
    if name == "2 Your pictures (SDXL or SD1.5, 8 GB)":
        chosen.add("trigger")  # may stay empty, then captions are trained as they are
    assert chosen == to_choose


def test_the_second_stage_goes_on_from_the_first_and_a_run_goes_on_from_itself(server):
    prompt = on_the_toy(server, workflow("22 Go on with a run or a LoRA (toy)"))
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
    assert (
        server.execute(on_the_toy(server, workflow("30 Convert a LoRA for A1111 and Forge")))["status"]["status_str"]
        == "success"
    )
    loras = server.base / "output" / "loras"
    file = loras / "for_webui.safetensors"
    card = json.loads(file.with_suffix(".json").read_text())
    assert (card["activation text"], card["preferred weight"]) == ("my trigger word", 0.8)
    assert all(key.startswith("lora_unet_") for key in load_file(file))
