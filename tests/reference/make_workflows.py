"""Writes example_workflows/*.json: each node with the defaults of its schema, and what a workflow changes. `make_texts.py` runs it.

The name of a file is what ComfyUI shows as its title. Columns go from left to right, one step each, with the note on its own at the left;
a node that grows as it runs (Load Training Folder) is the last of its column. Figures of the families stand in FAMILIES, each with its source.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[2] / "example_workflows"
PAGE = OUT.parent / "docs" / "templates.md"

KOALA = {
    "name": "toy_koala", "steps": 300, "rank": 16, "learning_rate": 0.002, "sample_prompt": "a TOK face\na TOK face on a pink background", "batch_size": 4,
    "targets": "conv", "sample_every": 100, "sample_cfg": 4.0,
}  # fmt: skip
TOY = {"folder": "toy: face", "trigger": "TOK"}
TOY_PX = 128
DESTINATION = "output/loras"
CHECKPOINT = "choose your SD1.5 or SDXL checkpoint"
PICTURES = "choose your folder of pictures"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTE_X, NOTE_W, MODEL_X, TRAIN_X, USE_X, TOP = 40, 360, 460, 900, 1420, 60  # px
LOADER_SIZE, TRAIN_SIZE = (380, 850), (460, 900)  # as high as they become when they have run
ROW = 190  # px from one loader of a model to the next: Nodes 2.0 draws them higher
BLUE, GREEN, VIOLET, AMBER = "#3f789e", "#8a8", "#a1309b", "#b58b2a"


class Graph:
    """A workflow in the frontend's own format, built node by node."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list[Any]] = []
        self.groups: list[dict[str, Any]] = []
        self.extra: dict[str, Any] = {}

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

    def note(self, text: str, height: int = 620, at: tuple[int, int] = (NOTE_X, TOP)) -> None:
        node = self.add("MarkdownNote", at, (NOTE_W, height), {}, [], {"text": text})
        node |= {"title": "Read me first", "color": "#432", "bgcolor": "#653"}

    def step(self, title: str, nodes: Sequence[dict], color: str) -> None:
        """A coloured field with a title behind nodes."""
        left, top = min(n["pos"][0] for n in nodes), min(n["pos"][1] for n in nodes)
        right = max(n["pos"][0] + n["size"][0] for n in nodes)
        bottom = max(n["pos"][1] + n["size"][1] for n in nodes)
        box = [left - 10, top - 80, right - left + 20, bottom - top + 90]
        self.groups.append(
            {"id": len(self.groups) + 1, "title": title, "bounding": box, "color": color, "font_size": 24, "flags": {}}
        )

    def app(self, inputs: Sequence[tuple[dict, str]], outputs: Sequence[dict], heights: Mapping[str, int]) -> None:
        """Opens in App mode with these widgets and the pictures of these nodes."""
        rows = [
            [n["id"], name, {"height": heights[name]}] if name in heights else [n["id"], name] for n, name in inputs
        ]
        self.extra |= {"linearMode": True, "linearData": {"inputs": rows, "outputs": [n["id"] for n in outputs]}}

    def write(self, name: str) -> None:
        workflow = {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": self.extra,
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


Wires = dict[str, tuple[dict, str, str]]
SETTINGS = "LORALOOM_SETTINGS"
OWN = (
    "### 1 Choose the model\nYour SDXL or SD1.5 **checkpoint**.\n\n### 2 Give it pictures\nDrop 10 to 30 pictures on the page, or press **Add pictures\u2026**. Write a **trigger** "
    "word for what they show, such as `ohwx dog`.\n\n### 3 Press Run\n**memory** is what your GPU has. What will happen stands in the panel before you press Run. The LoRA "
    "is in output/loras, in every loader's list."
)  # fmt: skip


def toy_model(graph: Graph) -> Wires:
    base = graph.loom("LoraLoomLoadToyModel", (MODEL_X, TOP), (380, 80), {})
    return {name: (base, name, name.upper()) for name in ("model", "clip", "vae")}


def own_model(graph: Graph) -> Wires:
    outputs = [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")]
    base = graph.add("CheckpointLoaderSimple", (MODEL_X, TOP), (380, 110), {}, outputs, {"ckpt_name": CHECKPOINT})
    return {name.lower(): (base, name, name) for name, _ in outputs}


def pictures(graph: Graph, top: int = TOP + 2 * ROW, **widgets: Any) -> Wires:
    folder = graph.loom("LoraLoomLoadFolder", (MODEL_X, top), LOADER_SIZE, {}, widgets)
    return {"dataset": (folder, "dataset", "LORALOOM_DATASET")}


def trained(
    graph: Graph, inputs: Wires, widgets: Mapping[str, Any], at: int = TRAIN_X, kind: str = "LoraLoomTrainLora"
) -> dict:
    return graph.loom(kind, (at, TOP), TRAIN_SIZE, inputs, dict(widgets))


def steps(graph: Graph, inputs: Wires, train: dict) -> None:
    """The coloured fields of the first three steps."""
    sources = {id(inputs[name][0]): inputs[name][0] for name in ("model", "clip", "vae")}
    graph.step("1 Model", list(sources.values()), BLUE)
    graph.step("2 Pictures", [inputs["dataset"][0]], GREEN)
    graph.step("3 Train", [train], VIOLET)


TALL = {"LoraLoomLossNoiseSettings": 760}  # as high as Nodes 2.0 draws its rows


def over(graph: Graph, kinds: Sequence[tuple[str, dict[str, Any]]], height: int = 320) -> Wires:
    """Settings nodes in a row above the training, one into the other; no wire passes behind another node."""
    wires: Wires = {}
    for number, (kind, widgets) in enumerate(kinds):
        height = TALL.get(kind, height)
        x = MODEL_X - 420 * (len(kinds) - 1 - number)
        node = graph.loom(kind, (x, TOP - height - 160), (340, height), wires, widgets)
        wires = {"settings": (node, "settings", SETTINGS)}
    return wires


def try_out(
    graph: Graph,
    train: dict,
    model: tuple[dict, str],
    vae: tuple[dict, str],
    prompt: str,
    side: int,
    cfg: float,
    count: int,
    at: tuple[int, int] = (USE_X, TOP),
) -> list[dict]:
    """Prompt, sampler and picture behind a MODEL and CLIP, from left to right."""
    x, y = at
    conditioning = [("CONDITIONING", "CONDITIONING")]
    good = graph.add(
        "CLIPTextEncode", (x, y), (320, 130), {"clip": (train, "clip", "CLIP")}, conditioning, {"text": prompt}
    )
    bad = graph.add(
        "CLIPTextEncode", (x, y + ROW), (320, 130), {"clip": (train, "clip", "CLIP")}, conditioning, {"text": ""}
    )
    size = graph.add(
        "EmptyLatentImage",
        (x, y + 2 * ROW),
        (320, 110),
        {},
        [("LATENT", "LATENT")],
        {"width": side, "height": side, "batch_size": count},
    )
    wires = {
        "model": (*model, "MODEL"),
        "positive": (good, "CONDITIONING", "CONDITIONING"),
        "negative": (bad, "CONDITIONING", "CONDITIONING"),
        "latent_image": (size, "LATENT", "LATENT"),
    }
    widgets = {
        "seed": 1,
        "control": "fixed",
        "steps": 20,
        "cfg": cfg,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    sampler = graph.add("KSampler", (x + 360, y), (300, 480), wires, [("LATENT", "LATENT")], widgets)
    decode = graph.add(
        "VAEDecode",
        (x + 700, y),
        (220, 60),
        {"samples": (sampler, "LATENT", "LATENT"), "vae": (*vae, "VAE")},
        [("IMAGE", "IMAGE")],
        {},
    )
    saved = graph.add(
        "SaveImage",
        (x + 960, y),
        (360, 420),
        {"images": (decode, "IMAGE", "IMAGE")},
        [],
        {"filename_prefix": "lora_loom"},
    )
    nodes = [good, bad, size, sampler, decode, saved]
    graph.step("4 Use it", nodes, AMBER)
    return nodes


def app(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = own_model(graph) | pictures(graph, folder=PICTURES)
    train = trained(graph, inputs, {"memory": "8 GB"})
    steps(graph, inputs, train)
    prompt = "a photo of my subject"
    shown = try_out(graph, train, (train, "model"), (inputs["vae"][0], "VAE"), prompt, 1024, 7.0, 1)
    base, folder = inputs["model"][0], inputs["dataset"][0]
    graph.app(
        [(base, "ckpt_name"), (folder, "loom_add_pictures"), (folder, "folder"), (folder, "trigger"), (train, "memory"), (train, "name"), (shown[0], "text"),
         (train, "loom_panel")],
        [shown[-1]], {"loom_panel": 520, "text": 90},
    )  # fmt: skip
    graph.note(
        OWN
        + "\n\nThis one opens as an **app**: the same graph with nothing but what has to be chosen. *Graph* in the menu shows it whole."
    )
    graph.write("1 App - a LoRA of your pictures (SDXL or SD1.5, 8 GB)")


def first_own(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = own_model(graph) | pictures(graph, folder=PICTURES)
    steps(graph, inputs, trained(graph, inputs, {"memory": "8 GB"}))
    graph.note(OWN)
    graph.write("2 Your pictures (SDXL or SD1.5, 8 GB)")


def asks_nothing(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = own_model(graph) | pictures(graph, folder=PICTURES)
    train = trained(graph, inputs, {"preset": "auto"})
    steps(graph, inputs, train)
    graph.note(
        "### 1 Choose the model\nAny **checkpoint** that Train LoRA trains.\n\n### 2 Give it pictures\n10 or more, so that some can be held out, and a **trigger** word.\n\n"
        "### 3 Press Run\nThe preset **auto** measures memory, finds the learning rate in a short test, holds pictures out and measures them on the way, ends at the turn, "
        "keeps the best weights and measures the strength to start from. The panel tells each choice with its reason and its figure.\n\nWhat you set yourself, here or on a "
        "settings node, stays as you set it."
    )
    graph.write("18 It sets itself - auto (SDXL or SD1.5, 8 GB)")


def checkpoint(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = own_model(graph) | pictures(graph, folder=PICTURES)
    train = trained(graph, inputs, {"memory": "8 GB"})
    steps(graph, inputs, train)
    nodes = try_out(graph, train, (train, "model"), (inputs["vae"][0], "VAE"), "a photo of my subject", 1024, 7.0, 1)
    for_webui(graph, train, nodes)
    graph.note(
        OWN + "\n\n### 4 Use it\nThe trained model draws a picture at once. Use 512 in *Empty Latent Image* for SD1.5."
    )
    graph.write("3 Train, then try it (SDXL or SD1.5, 8 GB)")


def for_webui(graph: Graph, train: dict, nodes: Sequence[dict]) -> None:
    wires = {"lora": (train, "lora", "LORA_MODEL"), "preview": (nodes[4], "IMAGE", "IMAGE")}
    graph.loom(
        "LoraLoomSaveLora",
        (USE_X + 960, TOP + 540),
        (360, 300),
        wires,
        {"name": "my_lora_webui", "destination": DESTINATION},
    )


def style(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = own_model(graph) | pictures(graph, folder=PICTURES, trigger="in mystyle style")
    inputs |= over(graph, [("LoraLoomLossNoiseSettings", {"noise_offset": 0.03})])
    prompt = "a lighthouse by the sea, in mystyle style"
    train = trained(graph, inputs, {"name": "my_style", "preset": "style", "sample_prompt": prompt, "memory": "8 GB"})
    steps(graph, inputs, train)
    try_out(graph, train, (train, "model"), (inputs["vae"][0], "VAE"), prompt, 1024, 7.0, 1)
    graph.note(
        "### A style\n20 to 100 pictures of many different subjects, with captions of what each shows (.txt beside it); what the captions leave unsaid becomes the "
        "style. The preset brings rank 32, a cosine course and 40 steps a picture.\n\n**noise_offset** 0.03 lets it learn darker and brighter pictures (Guttenberg 2023 "
        "used 0.1; less keeps contrast). Use 512 in *Empty Latent Image* for SD1.5."
    )  # fmt: skip
    graph.write("4 A style (SDXL or SD1.5, 8 GB)")


def face(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = own_model(graph) | pictures(graph, folder=PICTURES, trigger="ohwx woman")
    inputs |= over(
        graph, [("LoraLoomPriorSettings", {"prompt": "a photo of a woman"}), ("LoraLoomValidationSettings", {})]
    )
    prompts = "a photo of ohwx woman in a cafe\na photo of a woman in a cafe"
    steps(
        graph,
        inputs,
        trained(graph, inputs, {"name": "my_face", "preset": "character", "sample_prompt": prompts, "memory": "12 GB"}),
    )
    graph.note(
        "### A face\nFrom 10 to 30 pictures. **Prior Preservation** makes 100 pictures of the class before training and trains them beside the face, so other people "
        "keep theirs; the second sample prompt shows whether they do.\n\nChange **woman** in all four places to the class of your subject. Leave flip off."
    )  # fmt: skip
    graph.write("5 A face, other people keep theirs (SDXL or SD1.5, 12 GB)")


def pivotal(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = own_model(graph) | pictures(graph, folder=PICTURES, trigger="TOK")
    kinds = [
        ("LoraLoomPivotalSettings", {"lr": 0.0003}),
        ("LoraLoomPriorSettings", {"prompt": "a photo of a dog"}),
        ("LoraLoomValidationSettings", {}),
    ]
    inputs |= over(graph, kinds)
    steps(
        graph,
        inputs,
        trained(graph, inputs, {"name": "my_dog", "sample_prompt": "a photo of TOK on the beach", "memory": "12 GB"}),
    )
    graph.note(
        "### DreamBooth with pivotal tuning\nThe new word **TOK** is learned beside the LoRA and frozen half-way, pictures of the class are made first and keep it "
        "what it was, validation pictures tell the best step.\n\nLeave out any of the three by taking it off the wire."
    )  # fmt: skip
    graph.write("6 A new word with its LoRA (SDXL or SD1.5, 12 GB)")


@dataclasses.dataclass(frozen=True)
class FamilyTemplate:
    """What the users of a family train it with. `source`: of each figure; `files`: what the host's own templates load."""

    title: str
    name: str
    unet: str
    clips: tuple[str, ...]
    clip_type: str
    vae: str
    memory: str
    train: Mapping[str, Any]
    settings: Mapping[str, Any]
    source: str
    hint: str = ""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # widgets of Load Training Folder
    pictures: str = "### 2 Your pictures\nDrop 10 to 30 on the page; write a **trigger** word."
    run: str = "**memory** says what your GPU has."


AI_TOOLKIT = "ostris/ai-toolkit 27a03a91, config/examples/train_lora_{}.yaml"
MUSUBI = "kohya-ss/musubi-tuner 30c658c, docs/{}.md"
FAMILIES = (
    FamilyTemplate(
        "10 Flux.1 dev (16 GB with fp8)", "my_flux", "flux1-dev.safetensors", ("clip_l.safetensors", "t5xxl_fp16.safetensors"), "flux", "ae.safetensors", "16 GB",
        {"rank": 16, "learning_rate": 1e-4, "steps": 2000, "resolution": 1024}, {},
        f"rank 16, rate 1e-4, 2000 steps, 1024 px: {AI_TOOLKIT.format('flux_24gb')}; noise levels by the model: the same file, flowmatch",
        "Load the weights as fp8 (weight_dtype) on 16 GB.",
    ),
    FamilyTemplate(
        "11 Flux.2 Klein 4B (12 GB)", "my_klein", "flux-2-klein-base-4b.safetensors", ("qwen_3_4b.safetensors",), "flux2", "flux2-vae.safetensors", "12 GB",
        {"rank": 32, "learning_rate": 1e-4, "resolution": 1024}, {},
        f"rank 32, rate 1e-4, the model's own time shift: {MUSUBI.format('flux_2')} (network_dim, learning_rate, flux2_shift); steps: our preset, 100 a picture",
        "Train the *base* model; the LoRA works on the distilled one too.",
    ),
    FamilyTemplate(
        "12 Z-Image (16 GB)", "my_zimage", "z_image_bf16.safetensors", ("qwen_3_4b.safetensors",), "lumina2", "ae.safetensors", "16 GB",
        {"rank": 32, "learning_rate": 1e-4, "resolution": 1024}, {"shift": 2.0},
        f"rank 32, rate 1e-4, shift 2.0: {MUSUBI.format('zimage')}; steps: our preset, 100 a picture",
        "Train the base model, not Turbo.",
    ),
    FamilyTemplate(
        "13 Qwen-Image (24 GB with fp8)", "my_qwen", "qwen_image_fp8_e4m3fn.safetensors", ("qwen_2.5_vl_7b_fp8_scaled.safetensors",), "qwen_image",
        "qwen_image_vae.safetensors", "24 GB or more", {"rank": 16, "learning_rate": 5e-5, "steps": 2000, "resolution": 1024}, {"shift": 2.2},
        f"rank 16, rate 5e-5, shift 2.2: {MUSUBI.format('qwen_image')}; 2000 steps: {AI_TOOLKIT.format('qwen_image_24gb')}",
    ),
    FamilyTemplate(
        "14 SD3.5 large (12 GB with fp8)", "my_sd35", "sd3.5_large_fp8_scaled.safetensors", (), "", "", "12 GB",
        {"rank": 16, "learning_rate": 1e-4, "steps": 2000, "resolution": 1024}, {"timesteps": "uniform"},
        f"rank 16, rate 1e-4, 2000 steps, 1024 px, uniform noise levels: {AI_TOOLKIT.format('sd35_large_24gb')}; kohya-ss/sd-scripts 48d368fa, docs/sd3_train_network.md",
    ),
    FamilyTemplate(
        "15 Chroma (12 GB with fp8)", "my_chroma", "Chroma1-HD-fp8mixed.safetensors", ("t5xxl_fp8_e4m3fn_scaled.safetensors",), "chroma", "ae.safetensors",
        "12 GB", {"rank": 16, "learning_rate": 1e-4, "steps": 2000, "resolution": 1024}, {},
        f"rank 16, rate 1e-4, 2000 steps, 1024 px: {AI_TOOLKIT.format('chroma_24gb')}",
    ),
    FamilyTemplate(
        "16 Wan 2.1 1.3B, from pictures (8 GB)", "my_wan", "wan2.1_t2v_1.3B_fp16.safetensors", ("umt5_xxl_fp8_e4m3fn_scaled.safetensors",), "wan",
        "wan_2.1_vae.safetensors", "8 GB", {"rank": 32, "learning_rate": 2e-4, "steps": 2000, "resolution": 640}, {"shift": 3.0},
        f"rank 32, rate 2e-4, shift 3: {MUSUBI.format('wan')}; 2000 steps, 632 px (here 640, a multiple of 64): {AI_TOOLKIT.format('wan21_1b_24gb')}",
        "For one of Wan 2.2's two experts choose the preset *Wan 2.2 high noise* or *Wan 2.2 low noise*; for both of them see template 17.",
    ),
)  # fmt: skip


FILMS = FamilyTemplate(
    "19 Wan 2.1 1.3B, from films (16 GB)", "my_wan_film", "wan2.1_t2v_1.3B_fp16.safetensors", ("umt5_xxl_fp8_e4m3fn_scaled.safetensors",), "wan",
    "wan_2.1_vae.safetensors", "16 GB", {"rank": 32, "learning_rate": 2e-4, "steps": 2000, "resolution": 384}, {"shift": 3.0},
    f"rank 32, rate 2e-4, shift 3: {MUSUBI.format('wan')}; clips of 25 and 45 frames: {MUSUBI.format('dataset_config')}; 16 frames a second is what Wan makes",
    "An image-to-video Wan (2.1 or 2.2) trains the same way: it is shown the first frame of each clip. For Wan 2.1 wire *Load CLIP Vision* to **clip_vision**.", {"frames": "25, 45", "frame_rate": 16.0},
    "### 2 Your films\nDrop 10 to 30 short ones on the page, each with a caption beside it; write a **trigger** word. **frames** are the lengths of clips, "
    "**frame_rate** what they are read at; pictures may lie among them.", "The samples play.",
)  # fmt: skip
PAIRS = (
    "### 2 Your pairs\nA folder of pictures **after** the edit, each with a caption that asks for it (\u201cmake it a pencil drawing\u201d), and in it a folder "
    "**control** with the pictures **before**, by the same names (`a.png` and `control/a.png`; {several}). 10 to 30 pairs. **controls** `auto` finds them, "
    "**control_path** names a folder elsewhere. A trigger word is not needed."
)  # fmt: skip
EDITS = (
    FamilyTemplate(
        "8 Flux.1 Kontext, edits from pairs (24 GB with fp8)", "my_edit", "flux1-dev-kontext_fp8_scaled.safetensors",
        ("clip_l.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors"), "flux", "ae.safetensors", "24 GB or more",
        {"rank": 16, "learning_rate": 1e-4, "steps": 3000, "resolution": 768}, {},
        "rank 16, rate 1e-4, 3000 steps, at most 768 px on 24 GB: ostris/ai-toolkit 01c9f830, config/examples/train_lora_flux_kontext_24gb.yaml",
        "The picture before the edit goes through the model beside the one it makes, so a step costs about twice as much.", {"controls": "auto"},
        PAIRS.format(several="a second one is `a_1.png`"), "Samples edit a picture of your set.",
    ),
    FamilyTemplate(
        "9 Qwen-Image-Edit 2509, edits from pairs (24 GB with fp8)", "my_qwen_edit", "qwen_image_edit_2509_fp8_e4m3fn.safetensors",
        ("qwen_2.5_vl_7b_fp8_scaled.safetensors",), "qwen_image", "qwen_image_vae.safetensors", "24 GB or more",
        {"rank": 16, "learning_rate": 1e-4, "steps": 3000, "resolution": 1024}, {"shift": 2.2},
        "rank 16, rate 1e-4, 3000 steps, up to three control pictures: ostris/ai-toolkit 2a2ca26e, config/examples/train_lora_qwen_image_edit_2509_32gb.yaml; "
        f"shift 2.2: {MUSUBI.format('qwen_image')}",
        "The text encoder sees the pictures before the edit too, as *TextEncodeQwenImageEditPlus* shows them. The first Qwen-Image-Edit and 2511 train the same way.",
        {"controls": "auto"}, PAIRS.format(several="up to three: `a_0.png`, `a_1.png`, `a_2.png`"), "Samples edit a picture of your set.",
    ),
)  # fmt: skip


def family_model(graph: Graph, family: FamilyTemplate) -> tuple[Wires, int]:
    """The loaders the host's own template of the family has; (wires, where the next node of the column begins)."""
    if not family.clips:
        outputs = [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")]
        base = graph.add("CheckpointLoaderSimple", (MODEL_X, TOP), (380, 110), {}, outputs, {"ckpt_name": family.unet})
        return {name.lower(): (base, name, name) for name, _ in outputs}, TOP + 2 * ROW
    model = graph.add(
        "UNETLoader",
        (MODEL_X, TOP),
        (380, 90),
        {},
        [("MODEL", "MODEL")],
        {"unet_name": family.unet, "weight_dtype": "default"},
    )
    names = {f"clip_name{n + 1 if len(family.clips) > 1 else ''}": file for n, file in enumerate(family.clips)}
    kind = "DualCLIPLoader" if len(family.clips) > 1 else "CLIPLoader"
    clip = graph.add(
        kind,
        (MODEL_X, TOP + ROW),
        (380, 130),
        {},
        [("CLIP", "CLIP")],
        {**names, "type": family.clip_type, "device": "default"},
    )
    vae = graph.add(
        "VAELoader", (MODEL_X, TOP + 2 * ROW + 30), (380, 70), {}, [("VAE", "VAE")], {"vae_name": family.vae}
    )
    wires: Wires = {"model": (model, "MODEL", "MODEL"), "clip": (clip, "CLIP", "CLIP"), "vae": (vae, "VAE", "VAE")}
    return wires, TOP + 3 * ROW + 80


def family_templates(schemas: Mapping[str, Any]) -> None:
    for family in (*EDITS, *FAMILIES, FILMS):
        graph = Graph(schemas)
        inputs, below = family_model(graph, family)
        inputs |= pictures(graph, below, folder=PICTURES, **family.data)
        if family.settings:
            inputs |= over(graph, [("LoraLoomLossNoiseSettings", dict(family.settings))])
        train = trained(graph, inputs, {"name": family.name, "memory": family.memory, **family.train})
        steps(graph, inputs, train)
        files = "\n".join(f"- `{file}`" for file in (family.unet, *family.clips, family.vae) if file)
        graph.note(
            f"### 1 The files\n{files}\n\n{family.hint}\n\n{family.pictures}\n\n### 3 Press Run\n{family.run}\n\n### Where the figures come from\n{family.source}."
        )
        graph.write(family.title)


BOTH_EXPERTS = FamilyTemplate(
    "17 Wan 2.2, both experts from pictures (24 GB with fp8)", "my_wan", "wan2.2_t2v_{}_noise_14B_fp8_scaled.safetensors",
    ("umt5_xxl_fp8_e4m3fn_scaled.safetensors",), "wan", "wan_2.1_vae.safetensors", "24 GB or more",
    {"rank": 32, "learning_rate": 2e-4, "steps": 4000, "resolution": 640, "switch_every": 10, "checkpointing": True}, {},
    f"rank 32, rate 2e-4, the border at 0.875: {MUSUBI.format('wan')}; a switch every 10 steps, 2000 steps for each expert: {AI_TOOLKIT.format('wan22_14b_24gb')}",
)  # fmt: skip


def both_experts(schemas: Mapping[str, Any]) -> None:
    """The loaders of the host's own template of Wan 2.2 A14B, text to video."""
    graph, wires, family = Graph(schemas), {}, BOTH_EXPERTS
    files = {f"model_{kind}": family.unet.format(kind) for kind in ("high", "low")}
    for number, (name, file) in enumerate(files.items()):
        widgets = {"unet_name": file, "weight_dtype": "default"}
        loader = graph.add("UNETLoader", (MODEL_X, TOP + number * ROW), (380, 90), {}, [("MODEL", "MODEL")], widgets)
        wires[name] = (loader, "MODEL", "MODEL")
    (text,), vae_file = family.clips, family.vae
    widgets = {"clip_name": text, "type": family.clip_type, "device": "default"}
    clip = graph.add("CLIPLoader", (MODEL_X, TOP + 2 * ROW), (380, 130), {}, [("CLIP", "CLIP")], widgets)
    vae = graph.add("VAELoader", (MODEL_X, TOP + 3 * ROW + 30), (380, 70), {}, [("VAE", "VAE")], {"vae_name": vae_file})
    wires |= {"clip": (clip, "CLIP", "CLIP"), "vae": (vae, "VAE", "VAE")}
    inputs = wires | pictures(graph, TOP + 4 * ROW + 80, folder=PICTURES)
    train = trained(graph, inputs, {"name": family.name, **family.train}, kind="LoraLoomTrainBothExperts")
    graph.step("1 Model", [source for source, *_ in wires.values()], BLUE)
    graph.step("2 Pictures", [inputs["dataset"][0]], GREEN)
    graph.step("3 Train", [train], VIOLET)
    names = "\n".join(f"- `{file}`" for file in (*files.values(), text, vae_file))
    graph.note(
        f"### 1 The files\n{names}\n\n### 2 Your pictures\nDrop 10 to 30 on the page; write a **trigger** word.\n\n### 3 Press Run\nThe two experts take turns, one on the "
        "GPU at a time; `my_wan_high_noise` and `my_wan_low_noise` go each on its own expert.\n\n### Where the figures come from\n"
        f"{family.source}."
    )  # fmt: skip
    graph.write(family.title)


def first_toy(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = toy_model(graph) | pictures(graph, TOP + ROW, **TOY)
    steps(graph, inputs, trained(graph, inputs, KOALA))
    graph.note(
        "### Nothing to set: press Run\nA small model learns a face it never saw, called **TOK**, in about a minute on a CPU. The LoRA is in output/loras.",
        260,
    )
    graph.write("20 Try it - the bundled toy, no download")


def toy(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    inputs = toy_model(graph) | pictures(graph, TOP + ROW, **TOY)
    train = trained(graph, inputs, KOALA)
    steps(graph, inputs, train)
    nodes = try_out(
        graph,
        train,
        (train, "model"),
        (inputs["vae"][0], "vae"),
        "a TOK face on a pink background",
        TOY_PX,
        4.0,
        4,
    )
    for_webui(graph, train, nodes)
    graph.note(
        "### Press Run\nTeaches a small model a face it never saw, called **TOK**, in about a minute on a CPU, and draws four. Watch the samples in *Train LoRA*.",
        260,
    )
    graph.write("21 Train the toy, then try it")


def resume(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    base = toy_model(graph)
    inputs = base | pictures(graph, TOP + ROW, **TOY)
    first = trained(graph, inputs, {**KOALA, "name": "stage_one", "steps": 300})
    steps(graph, inputs, first)
    widgets = {**KOALA, "name": "stage_two", "steps": 300, "learning_rate": 0.0005, "seed": 1}
    second = trained(graph, inputs | {"lora": (first, "lora", "LORA_MODEL")}, widgets, USE_X)
    graph.step("4 Train on", [second], VIOLET)
    graph.note(
        "### Resume\nA run that was stopped, cancelled or lost: set **resume** of the same node to *continue last* and press Run. It goes on from the last save as if "
        "it had never stopped; raise **steps** to train longer.\n\n### Continue\nFrom a finished LoRA, with other settings or other pictures: wire it to **lora**. A file "
        "works too: Inspect LoRA/Embedding gives it as a wire. Ranks stay as they are; optimizer and course start anew."
    )  # fmt: skip
    graph.write("22 Go on with a run or a LoRA (toy)")


def embedding(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    base = toy_model(graph)
    inputs = base | pictures(graph, TOP + ROW, folder="toy: word", trigger="TOK")
    widgets = {
        "name": "tok_emb", "vectors": 2, "steps": 300, "learning_rate": 0.01, "batch_size": 4, "sample_prompt": "a TOK on a yellow background",
        "sample_every": 100, "sample_cfg": 4.0,
    }  # fmt: skip
    train = trained(graph, inputs, widgets, kind="LoraLoomTrainEmbedding")
    steps(graph, inputs, train)
    try_out(
        graph,
        train,
        (base["model"][0], "model"),
        (base["vae"][0], "vae"),
        "a embedding:tok_emb on a white background",
        TOY_PX,
        4.0,
        4,
    )
    graph.note(
        "### An embedding\nGives the small model a word, **TOK**, for something it can draw and has no such name for. The MODEL is the one it was.",
        260,
    )
    graph.write("23 An embedding (toy)")


def slider(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    base = toy_model(graph)
    things = ("a lemon", "a cat face")
    prompts = {
        name: "\n".join(f"{thing} on a {ground} background" for thing in things)
        for name, ground in (("target", "gray"), ("positive", "white"), ("negative", "black"))
    }
    widgets = {
        "name": "toy_ground", **prompts, "steps": 100, "rank": 8, "learning_rate": 0.003, "guidance": 2.0, "sampler_steps": 4, "drawing_cfg": 1.0,
        "batch_size": 2, "sample_prompt": "a rocket on a gray background", "sample_every": 50, "sample_cfg": 4.0,
    }  # fmt: skip
    train = trained(graph, base, widgets, kind="LoraLoomTrainSlider")
    graph.step("1 Model", [base["model"][0]], BLUE)
    graph.step("2 Train", [train], VIOLET)
    graph.note(
        "### A slider without pictures\nNo folder and no caption: the model itself knows what a black, a gray and a white ground are. The LoRA learns the way from one to the "
        "other; strength 1 brightens, -1 darkens, and the thing stays. The samples show strengths -2 to 2 of a thing the training never named.\n\nWith your model: "
        "**target** `person`, **positive** `old person`, **negative** `young person`, 500 steps at 2e-4. **mode** *erase* unlearns **target** instead.",
        420,
    )  # fmt: skip
    graph.write("26 A slider without pictures (toy)")


def compare_checkpoints(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    base = toy_model(graph)
    sheet = graph.loom("LoraLoomCompareCheckpoints", (TRAIN_X, TOP), (380, 640), base, {"strengths": "0.6, 1"})
    graph.add(
        "SaveImage",
        (TRAIN_X + 440, TOP),
        (900, 420),
        {"images": (sheet, "sheet", "IMAGE")},
        [],
        {"filename_prefix": "lora_loom_compared"},
    )
    below = TOP + 860
    saves = graph.loom("LoraLoomRunCheckpoints", (TRAIN_X, below), (380, 420), {n: base[n] for n in ("model", "clip")})
    try_out(
        graph,
        saves,
        (saves, "model"),
        (base["vae"][0], "vae"),
        "a TOK face on a green background",
        TOY_PX,
        4.0,
        4,
        (TRAIN_X + 440, below),
    )
    graph.note(
        "### Which save is best\nRun *21 Train the toy, then try it* first, then this.\n\nAbove: base model, saves and strengths of the latest run on one sheet. Below: the same "
        "saves one after the other through the usual sampler.\n\nFor a run of your own put your checkpoint in place of the toy model and choose the run."
    )  # fmt: skip
    graph.write("24 Which save is best (toy)")


def convert(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    choice = {"file": "choose your LoRA file", "form": "kohya", "destination": DESTINATION}
    converted = graph.loom("LoraLoomConvertLora", (MODEL_X, TOP), (380, 420), {}, choice)
    header = {
        "name": "for_webui",
        "activation_text": "my trigger word",
        "preferred_weight": 0.8,
        "form": "kohya",
        "destination": DESTINATION,
    }
    graph.loom("LoraLoomSaveLora", (TRAIN_X, TOP), (380, 320), {"lora": (converted, "lora", "LORA_MODEL")}, header)
    graph.add("PreviewAny", (TRAIN_X, TOP + 480), (380, 300), {"source": (converted, "report", "STRING")}, [], {})
    graph.note(
        "### For A1111 and Forge\nA LoRA of any trainer (diffusers, PEFT, OneTrainer, ai-toolkit, ComfyUI): choose the file, press Run. **kohya** is the form that all of "
        "them read.\n\nSave LoRA for WebUI also writes the card with the trigger word that they show; take it away if you need no card."
    )  # fmt: skip
    graph.write("30 Convert a LoRA for A1111 and Forge")


def caption_pictures(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    words = graph.add(
        "CLIPLoader", (MODEL_X, TOP), (380, 130), {}, [("CLIP", "CLIP")],
        {"clip_name": "choose your vision-language model", "type": "stable_diffusion", "device": "default"},
    )  # fmt: skip
    inputs = pictures(graph, folder=PICTURES, trigger="ohwx") | {"clip": (words, "CLIP", "CLIP")}
    chosen = {"subject": "character", "captioner": "the model at clip"}
    caption = graph.loom("LoraLoomCaptionPictures", (TRAIN_X, TOP), (400, 640), inputs, chosen)
    graph.loom("LoraLoomDatasetEditor", (USE_X, TOP), (760, 720), {"dataset": (caption, "dataset", "LORALOOM_DATASET")})
    graph.step("1 Captioner", [words], BLUE)
    graph.step("2 Pictures", [inputs["dataset"][0]], GREEN)
    graph.step("3 Captions", [caption], VIOLET)
    graph.note(
        "### Captions for the pictures that have none\nWritten by a vision-language model such as Qwen3-VL, Qwen3.5 or Gemma from **text_encoders**.\n\nWith "
        "**subject** *character* they say nothing of face and hair: that goes into the trigger word.\n\nFor a tagger choose it as **captioner** and take "
        "*Load CLIP* away."
    )  # fmt: skip
    graph.write("7 Captions for your pictures")


WORKFLOWS = (
    app, first_own, checkpoint, asks_nothing, style, face, pivotal, family_templates, both_experts, first_toy, toy, resume, embedding, slider, compare_checkpoints,
    caption_pictures, convert,
)  # fmt: skip


def page() -> str:
    """docs/templates.md: what the templates of the families are set to, and where each figure comes from."""
    head = """# Templates of the model families

What each template sets, and where its figures come from. Files are those that ComfyUI's own templates of the family load; memory is what the choice
*memory* on Train LoRA is set to, by the figures of [activations.json](../benchmarks/results/activations.json). What a template leaves open is for preset
and model to say. Made by `tests/reference/make_workflows.py`.

| template | model | memory | rank | rate | steps | noise levels | source |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
    rows = []
    for family in sorted(
        (*FAMILIES, FILMS, *EDITS, BOTH_EXPERTS), key=lambda family: int(family.title.partition(" ")[0])
    ):
        levels = ", ".join(f"{name} {value}" for name, value in family.settings.items()) or "by the model"
        of = family.train
        steps_of = of.get("steps") or "100 a picture"
        cells = (
            family.title,
            f"`{family.unet.format('high')}`, `{family.unet.format('low')}`"
            if "{}" in family.unet
            else f"`{family.unet}`",
            family.memory,
            of["rank"],
            f"{of['learning_rate']:g}",
            steps_of,
            levels,
            family.source,
        )
        rows.append(f"| {' | '.join(map(str, cells))} |\n")
    return head + "".join(rows)


def write(schemas: Mapping[str, Any]) -> None:
    for workflow in WORKFLOWS:
        workflow(schemas)


def write_page() -> None:
    PAGE.write_text(page(), encoding="utf-8")
