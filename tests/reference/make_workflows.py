"""Writes example_workflows/*.json: each node with the defaults of its schema, and what a workflow changes. `make_texts.py` runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[2] / "example_workflows"

ZOG = {
    "name": "toy_zog", "steps": 600, "rank": 16, "learning_rate": 0.002, "sample_prompt": "a zog on a white ground", "batch_size": 8, "targets": "conv",
    "sample_every": 100, "sample_cfg": 4.0,
}  # fmt: skip
TOY = {"folder": "toy: object"}
DESTINATION = "output/loras"
CHECKPOINT = "choose your SD1.5 or SDXL checkpoint"
PICTURES = "choose your folder of pictures"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


class Graph:
    """A workflow in the frontend's own format, built node by node."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list[Any]] = []

    def add(
        self,
        kind: str,
        at: tuple[int, int],
        size: tuple[int, int],
        inputs: dict[str, tuple[dict, str, str]],
        outputs: list[tuple[str, str]],
        widgets: dict[str, Any],
    ) -> dict:
        """`inputs`: name -> (source node, its output's name, type); `outputs`: (name, type)."""
        node: dict[str, Any] = {
            "id": len(self.nodes) + 1, "type": kind, "pos": list(at), "size": list(size), "flags": {}, "order": len(self.nodes), "mode": 0, "inputs": [],
            "outputs": [{"name": n, "type": t, "links": []} for n, t in outputs], "properties": {"Node name for S&R": kind}, "widgets_values": list(widgets.values()),
        }  # fmt: skip
        for name, (source, output, kind_of_link) in inputs.items():
            slot = next(i for i, o in enumerate(source["outputs"]) if o["name"] == output)
            link = len(self.links) + 1
            self.links.append([link, source["id"], slot, node["id"], len(node["inputs"]), kind_of_link])
            source["outputs"][slot]["links"].append(link)
            node["inputs"].append({"name": name, "type": kind_of_link, "link": link})
        self.nodes.append(node)
        return node

    def loom(
        self,
        kind: str,
        at: tuple[int, int],
        size: tuple[int, int],
        inputs: dict[str, tuple[dict, str, str]],
        widgets: dict[str, Any] | None = None,
    ) -> dict:
        """A node of ours: what `widgets` does not name has the default of its schema."""
        schema = self._schemas[kind]
        outputs = [(output.display_name, output.kind) for output in schema.outputs]
        return self.add(kind, at, size, inputs, outputs, with_defaults(schema, widgets or {}))

    def note(self, text: str, at: tuple[int, int], size: tuple[int, int]) -> None:
        self.add("MarkdownNote", at, size, {}, [], {"text": text})

    def write(self, name: str) -> None:
        workflow = {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        OUT.mkdir(exist_ok=True)
        (OUT / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")


def with_defaults(schema: Any, widgets: Mapping[str, Any]) -> dict[str, Any]:
    """Widget -> value in the order a workflow stores them; the page puts a second widget behind every seed."""
    out: dict[str, Any] = {}
    for row in (row for row in schema.inputs if row.kind in WIDGETS):
        out[row.id] = widgets.get(row.id, row.default)
        if row.id == "seed":
            out["control"] = "fixed"
    unknown = widgets.keys() - out.keys()
    if unknown:
        raise KeyError(f"{schema.node_id} has no widget {sorted(unknown)}")
    return out


def try_out(
    graph: Graph, train: dict, vae: tuple[dict, str], prompt: str, side: int, cfg: float, pictures: int
) -> None:
    """Prompt, sampler and save nodes behind the trained MODEL and CLIP, and the file for WebUIs."""
    good = graph.add(
        "CLIPTextEncode",
        (920, 60),
        (320, 110),
        {"clip": (train, "clip", "CLIP")},
        [("CONDITIONING", "CONDITIONING")],
        {"text": prompt},
    )
    bad = graph.add(
        "CLIPTextEncode",
        (920, 220),
        (320, 110),
        {"clip": (train, "clip", "CLIP")},
        [("CONDITIONING", "CONDITIONING")],
        {"text": ""},
    )
    size = graph.add(
        "EmptyLatentImage",
        (920, 380),
        (320, 110),
        {},
        [("LATENT", "LATENT")],
        {"width": side, "height": side, "batch_size": pictures},
    )
    sampler = graph.add(
        "KSampler", (1280, 60), (300, 480),
        {"model": (train, "model", "MODEL"), "positive": (good, "CONDITIONING", "CONDITIONING"), "negative": (bad, "CONDITIONING", "CONDITIONING"), "latent_image": (size, "LATENT", "LATENT")},
        [("LATENT", "LATENT")], {"seed": 1, "control": "fixed", "steps": 20, "cfg": cfg, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
    )  # fmt: skip
    decode = graph.add(
        "VAEDecode",
        (1620, 60),
        (200, 60),
        {"samples": (sampler, "LATENT", "LATENT"), "vae": (vae[0], vae[1], "VAE")},
        [("IMAGE", "IMAGE")],
        {},
    )
    graph.add(
        "SaveImage",
        (1620, 180),
        (320, 320),
        {"images": (decode, "IMAGE", "IMAGE")},
        [],
        {"filename_prefix": "lora_loom"},
    )
    inputs = {"lora": (train, "lora", "LORA_MODEL"), "preview": (decode, "IMAGE", "IMAGE")}
    graph.loom(
        "LoraLoomSaveLora", (920, 560), (320, 240), inputs, {"name": "my_lora_webui", "destination": DESTINATION}
    )


def toy(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    base = graph.loom("LoraLoomLoadToyModel", (40, 60), (260, 80), {})
    folder = graph.loom("LoraLoomLoadFolder", (40, 200), (360, 520), {}, TOY)
    inputs = {name: (base, name, name.upper()) for name in ("model", "clip", "vae")} | {
        "dataset": (folder, "dataset", "LORALOOM_DATASET")
    }
    train = graph.loom("LoraLoomTrainLora", (440, 60), (420, 720), inputs, ZOG)
    try_out(graph, train, (base, "vae"), "a zog on a white ground", 64, 4.0, 4)
    graph.note(
        "Teaches a tiny model what a **zog** is, in about a minute on a CPU. Press Run, and watch the sample in Train LoRA.",
        (40, 760),
        (360, 110),
    )
    graph.write("train_and_try_toy")


def checkpoint(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    base = graph.add(
        "CheckpointLoaderSimple",
        (40, 60),
        (360, 110),
        {},
        [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")],
        {"ckpt_name": CHECKPOINT},
    )
    folder = graph.loom("LoraLoomLoadFolder", (40, 220), (360, 520), {}, {"folder": PICTURES})
    inputs = {name.lower(): (base, name, name) for name in ("MODEL", "CLIP", "VAE")} | {
        "dataset": (folder, "dataset", "LORALOOM_DATASET")
    }
    train = graph.loom("LoraLoomTrainLora", (440, 60), (420, 720), inputs)
    try_out(graph, train, (base, "VAE"), "a photo of my subject", 512, 7.0, 1)
    graph.note(
        "1. Choose a checkpoint. 2. Put pictures (with captions as .txt if you have them) into a folder inside ComfyUI's **input** folder, press R, choose it, and give it a trigger word. 3. Press Run.",
        (40, 780), (360, 150),
    )  # fmt: skip
    graph.write("train_lora_sd15_sdxl")


def toy_model(graph: Graph, at: tuple[int, int] = (40, 60)) -> dict[str, tuple[dict, str, str]]:
    base = graph.loom("LoraLoomLoadToyModel", at, (260, 80), {})
    return {name: (base, name, name.upper()) for name in ("model", "clip", "vae")}


def own_model(graph: Graph) -> dict[str, tuple[dict, str, str]]:
    outputs = [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")]
    base = graph.add("CheckpointLoaderSimple", (40, 60), (360, 110), {}, outputs, {"ckpt_name": CHECKPOINT})
    return {name.lower(): (base, name, name) for name, _ in outputs}


def pictures(graph: Graph, at: tuple[int, int] = (40, 220), **widgets: Any) -> dict[str, tuple[dict, str, str]]:
    folder = graph.loom("LoraLoomLoadFolder", at, (360, 520), {}, widgets)
    return {"dataset": (folder, "dataset", "LORALOOM_DATASET")}


def first_lora_toy(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = toy_model(graph) | pictures(graph, (40, 200), **TOY)
    graph.loom("LoraLoomTrainLora", (440, 60), (420, 720), inputs, ZOG)
    graph.note(
        "Nothing to set: press **Run**. A tiny model learns what a **zog** is, in about a minute on a CPU. The LoRA is in output/loras.",
        (40, 760),
        (360, 110),
    )
    graph.write("first_lora_toy")


def first_lora_sdxl(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = own_model(graph) | pictures(graph, folder=PICTURES)
    graph.loom("LoraLoomTrainLora", (440, 60), (420, 720), inputs)
    graph.note(
        "Three things to choose: your SDXL (or SD1.5) **checkpoint**; a **folder** of 10 to 30 pictures inside ComfyUI's input folder (press R to refresh the "
        "list); a **trigger** word for what they show. Then press **Run**. The LoRA is in output/loras, in every loader's list.",
        (40, 780), (360, 170),
    )  # fmt: skip
    graph.write("first_lora_sdxl")


def style(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = own_model(graph) | pictures(graph, folder=PICTURES, trigger="in mystyle style")
    widgets = {
        "name": "my_style",
        "preset": "style",
        "sample_prompt": "a lighthouse by the sea, in mystyle style",
        "noise_offset": 0.03,
    }
    train = graph.loom("LoraLoomTrainLora", (440, 60), (420, 720), inputs, widgets)
    try_out(graph, train, inputs["vae"][:2], "a lighthouse by the sea, in mystyle style", 1024, 7.0, 1)
    graph.note(
        "A **style**: 20 to 100 pictures of many different subjects, with captions of what each shows (.txt beside it); what the captions leave unsaid becomes the "
        "style. The preset brings rank 32, a cosine course and 40 steps a picture. Use 512 in Empty Latent Image for SD1.5.",
        (40, 780), (360, 190),
    )  # fmt: skip
    graph.write("style_lora")


def face(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = own_model(graph) | pictures(graph, folder=PICTURES, trigger="ohwx woman")
    prior = graph.loom("LoraLoomPriorSettings", (440, 60), (320, 300), {}, {"prompt": "a photo of a woman"})
    watch = graph.loom(
        "LoraLoomValidationSettings", (440, 400), (320, 260), {"settings": (prior, "settings", "LORALOOM_SETTINGS")}
    )
    inputs |= {"settings": (watch, "settings", "LORALOOM_SETTINGS")}
    widgets = {
        "name": "my_face",
        "preset": "character",
        "sample_prompt": "a photo of ohwx woman in a cafe\na photo of a woman in a cafe",
    }
    train = graph.loom("LoraLoomTrainLora", (820, 60), (420, 720), inputs, widgets)
    graph.add("PreviewAny", (1300, 60), (320, 110), {"source": (train, "path", "STRING")}, [], {})
    graph.note(
        "A **face** from 10 to 30 pictures. **Prior Preservation** makes 100 pictures of the class before training and trains them beside the face, so other people "
        "keep theirs; the second sample prompt shows whether they do. Change **woman** in all four places to the class of your subject. Leave flip off.",
        (40, 780), (360, 200),
    )  # fmt: skip
    graph.write("face_with_prior_pictures")


def resume(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    base = toy_model(graph)
    inputs = base | pictures(graph, (40, 200), **TOY)
    first = graph.loom("LoraLoomTrainLora", (440, 60), (420, 720), inputs, {**ZOG, "name": "stage_one", "steps": 300})
    inputs = base | inputs | {"lora": (first, "lora", "LORA_MODEL")}
    widgets = {**ZOG, "name": "stage_two", "steps": 300, "learning_rate": 0.0005, "seed": 1}
    graph.loom("LoraLoomTrainLora", (920, 60), (420, 720), inputs, widgets)
    graph.note(
        "**Resume** a run that was stopped, cancelled or lost: set **resume** of the same node to *continue last* and press Run. It goes on from the last save as if "
        "it had never stopped; raise **steps** to train longer.",
        (40, 760), (360, 150),
    )  # fmt: skip
    graph.note(
        "**Continue** from a finished LoRA, with other settings or other pictures: wire it to **lora**. A file works too: Inspect LoRA/Embedding gives it as a wire. "
        "Ranks stay as they are; optimizer and course start anew.",
        (40, 940), (360, 150),
    )  # fmt: skip
    graph.write("resume_and_continue")


def convert(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    choice = {"file": "choose your LoRA file", "destination": DESTINATION}
    converted = graph.loom("LoraLoomConvertLora", (40, 60), (380, 360), {}, choice)
    header = {
        "name": "for_webui",
        "activation_text": "my trigger word",
        "preferred_weight": 0.8,
        "destination": DESTINATION,
    }
    graph.loom("LoraLoomSaveLora", (480, 60), (360, 280), {"lora": (converted, "lora", "LORA_MODEL")}, header)
    graph.add("PreviewAny", (480, 400), (360, 300), {"source": (converted, "report", "STRING")}, [], {})
    graph.note(
        "A LoRA of any trainer (diffusers, PEFT, OneTrainer, ai-toolkit, ComfyUI) for **A1111 and Forge**: choose the file, press Run. **universal** is the form all of "
        "them read. Save LoRA for WebUI also writes the card with the trigger word that they show; take it away if you need no card.",
        (40, 480), (380, 190),
    )  # fmt: skip
    graph.write("convert_for_a1111")


def embedding(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    base = graph.loom("LoraLoomLoadToyModel", (40, 60), (260, 80), {})
    folder = graph.loom("LoraLoomLoadFolder", (40, 200), (360, 520), {}, {"folder": "toy: word", "trigger": "dax"})
    widgets = {
        "name": "dax_emb", "vectors": 2, "steps": 600, "learning_rate": 0.01, "batch_size": 8, "sample_prompt": "a dax on a white ground",
        "sample_every": 100, "sample_cfg": 4.0,
    }  # fmt: skip
    inputs = {name: (base, name, name.upper()) for name in ("model", "clip", "vae")} | {
        "dataset": (folder, "dataset", "LORALOOM_DATASET")
    }
    train = graph.loom("LoraLoomTrainEmbedding", (440, 60), (420, 620), inputs, widgets)
    words = "a embedding:dax_emb on a white ground"
    good = graph.add(
        "CLIPTextEncode",
        (920, 60),
        (320, 110),
        {"clip": (train, "clip", "CLIP")},
        [("CONDITIONING", "CONDITIONING")],
        {"text": words},
    )
    bad = graph.add(
        "CLIPTextEncode",
        (920, 220),
        (320, 110),
        {"clip": (train, "clip", "CLIP")},
        [("CONDITIONING", "CONDITIONING")],
        {"text": ""},
    )
    size = graph.add(
        "EmptyLatentImage",
        (920, 380),
        (320, 110),
        {},
        [("LATENT", "LATENT")],
        {"width": 64, "height": 64, "batch_size": 4},
    )
    sampler = graph.add(
        "KSampler", (1280, 60), (300, 480),
        {"model": (base, "model", "MODEL"), "positive": (good, "CONDITIONING", "CONDITIONING"), "negative": (bad, "CONDITIONING", "CONDITIONING"), "latent_image": (size, "LATENT", "LATENT")},
        [("LATENT", "LATENT")], {"seed": 1, "control": "fixed", "steps": 20, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
    )  # fmt: skip
    decode = graph.add(
        "VAEDecode",
        (1620, 60),
        (200, 60),
        {"samples": (sampler, "LATENT", "LATENT"), "vae": (base, "vae", "VAE")},
        [("IMAGE", "IMAGE")],
        {},
    )
    graph.add(
        "SaveImage",
        (1620, 180),
        (320, 320),
        {"images": (decode, "IMAGE", "IMAGE")},
        [],
        {"filename_prefix": "lora_loom"},
    )
    graph.note(
        "Gives the tiny model a word, **dax**, for something it can draw but has no name for. The MODEL is the one it was.",
        (920, 560),
        (360, 110),
    )
    graph.write("train_embedding_toy")


def pivotal(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    base = graph.add(
        "CheckpointLoaderSimple", (40, 60), (360, 110), {}, [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")],
        {"ckpt_name": CHECKPOINT},
    )  # fmt: skip
    folder = graph.loom("LoraLoomLoadFolder", (40, 220), (360, 520), {}, {"folder": PICTURES, "trigger": "TOK"})
    words = graph.loom("LoraLoomPivotalSettings", (440, 60), (320, 300), {}, {"lr": 0.0003})
    prior = graph.loom(
        "LoraLoomPriorSettings",
        (440, 400),
        (320, 300),
        {"settings": (words, "settings", "LORALOOM_SETTINGS")},
        {"prompt": "a photo of a dog"},
    )
    watch = graph.loom(
        "LoraLoomValidationSettings", (440, 740), (320, 260), {"settings": (prior, "settings", "LORALOOM_SETTINGS")}
    )
    inputs = {name.lower(): (base, name, name) for name in ("MODEL", "CLIP", "VAE")} | {
        "dataset": (folder, "dataset", "LORALOOM_DATASET"), "settings": (watch, "settings", "LORALOOM_SETTINGS"),
    }  # fmt: skip
    train = graph.loom(
        "LoraLoomTrainLora",
        (820, 60),
        (420, 720),
        inputs,
        {"name": "my_dog", "sample_prompt": "a photo of TOK on the beach"},
    )
    graph.add("PreviewAny", (1300, 60), (320, 110), {"source": (train, "path", "STRING")}, [], {})
    graph.note(
        "DreamBooth with pivotal tuning: the new word **TOK** is learned beside the LoRA and frozen half-way, pictures of the class are made first and keep it what it "
        "was, held-out pictures tell the best step. Leave out any of the three by taking it off the wire.",
        (40, 780), (360, 170),
    )  # fmt: skip
    graph.write("pivotal_dreambooth")


def compare_checkpoints(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    base = graph.loom("LoraLoomLoadToyModel", (40, 60), (260, 80), {})
    wires = {name: (base, name, name.upper()) for name in ("model", "clip", "vae")}
    sheet = graph.loom("LoraLoomCompareCheckpoints", (360, 60), (380, 860), wires, {"strengths": "0.6, 1"})
    graph.add(
        "SaveImage",
        (800, 60),
        (860, 420),
        {"images": (sheet, "sheet", "IMAGE")},
        [],
        {"filename_prefix": "lora_loom_compared"},
    )
    saves = graph.loom("LoraLoomRunCheckpoints", (360, 1000), (380, 420), {n: wires[n] for n in ("model", "clip")})
    words = "a zog on a blue ground"
    good = graph.add(
        "CLIPTextEncode",
        (800, 1000),
        (320, 110),
        {"clip": (saves, "clip", "CLIP")},
        [("CONDITIONING", "CONDITIONING")],
        {"text": words},
    )
    bad = graph.add(
        "CLIPTextEncode",
        (800, 1160),
        (320, 110),
        {"clip": (saves, "clip", "CLIP")},
        [("CONDITIONING", "CONDITIONING")],
        {"text": ""},
    )
    size = graph.add(
        "EmptyLatentImage",
        (800, 1320),
        (320, 110),
        {},
        [("LATENT", "LATENT")],
        {"width": 64, "height": 64, "batch_size": 4},
    )
    sampler = graph.add(
        "KSampler", (1160, 1000), (300, 480),
        {
            "model": (saves, "model", "MODEL"), "positive": (good, "CONDITIONING", "CONDITIONING"), "negative": (bad, "CONDITIONING", "CONDITIONING"),
            "latent_image": (size, "LATENT", "LATENT"),
        },
        [("LATENT", "LATENT")], {"seed": 1, "control": "fixed", "steps": 20, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
    )  # fmt: skip
    decode = graph.add(
        "VAEDecode",
        (1500, 1000),
        (200, 60),
        {"samples": (sampler, "LATENT", "LATENT"), "vae": (base, "vae", "VAE")},
        [("IMAGE", "IMAGE")],
        {},
    )
    graph.add(
        "SaveImage",
        (1500, 1120),
        (320, 360),
        {"images": (decode, "IMAGE", "IMAGE")},
        [],
        {"filename_prefix": "lora_loom_saves"},
    )
    graph.note(
        "Run **train_and_try_toy** first, then this. Above: base model, saves and strengths of the latest run on one sheet. Below: the same saves one after the "
        "other through the usual sampler. For a run of your own put your checkpoint in place of the toy model and choose the run.",
        (40, 200), (280, 260),
    )  # fmt: skip
    graph.write("compare_checkpoints")


WORKFLOWS = (
    first_lora_toy,
    first_lora_sdxl,
    style,
    face,
    resume,
    convert,
    toy,
    checkpoint,
    embedding,
    pivotal,
    compare_checkpoints,
)


def write(schemas: Mapping[str, Any]) -> None:
    for workflow in WORKFLOWS:
        workflow(schemas)
