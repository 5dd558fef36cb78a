"""reForge: its built-in Lora extension hands the file to ldm_patched; its own model classes, text encoders of transformers' under its names."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import tempfile
import types
from pathlib import Path

import torch
from loom_harness import Tree, clip, folder, randomised, stand_in, t5
from loom_small_models import ENCODERS, HOST, projects

TITLE, FOLDER = "reForge", "reforge"
HOME = folder(FOLDER)

sys.path[:0] = [str(HOME / "extensions-builtin" / "Lora"), str(HOME)]
stand_in("modules")
stand_in(
    "modules.shared",
    opts=types.SimpleNamespace(),
    cmd_opts=types.SimpleNamespace(lora_dir=tempfile.gettempdir(), lyco_dir_backcompat=""),
)
for surrounding in (
    "sd_models",
    "errors",
    "scripts",
    "hashes",
    "cache",
    "paths",
    "devices",
    "patches",
    "models",
    "models.sd3",
):
    stand_in(f"modules.{surrounding}")
stand_in("modules.models.sd3.mmdit", QkvLinear=torch.nn.Linear)
for absent in ("gradio", "av", "torchaudio", "torchsde", "kornia"):
    stand_in(absent)
from ldm_patched.modules import args_parser  # noqa: E402

args_parser.args.always_cpu = True
import networks  # noqa: E402  the extension's own module
from ldm_patched.ldm.chroma.model import ChromaParams  # noqa: E402
from ldm_patched.ldm.flux.model import FluxParams  # noqa: E402
from ldm_patched.ldm.hunyuan_video.model import HunyuanVideoParams  # noqa: E402
from ldm_patched.modules import model_patcher, supported_models  # noqa: E402

PARAMETERS = {"flux1": FluxParams, "chroma": ChromaParams, "hunyuanvideo": HunyuanVideoParams}
FAMILIES = tuple(family for family, (name, _) in HOST.items() if hasattr(supported_models, name))

LISTED_IN = "ldm_patched.modules.supported_models"


def models() -> list[str]:
    return [cls.__name__ for cls in supported_models.models]


class Namespace(torch.nn.Module):
    """A module that only holds others."""

    def __init__(self, **members):
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)


class Clip:
    """What the loader asks of a CLIP: its encoders' names, a patcher, a clone."""

    def __init__(self, encoders: torch.nn.Module, patcher=None):
        cpu = torch.device("cpu")
        self.cond_stage_model = encoders
        self.patcher = patcher or model_patcher.ModelPatcher(encoders, cpu, cpu)

    def clone(self) -> Clip:
        return Clip(self.cond_stage_model, self.patcher.clone())

    def add_patches(self, *args, **kwargs):
        return self.patcher.add_patches(*args, **kwargs)


def tree(family: str) -> Tree:
    name, config = HOST[family]
    if family in PARAMETERS:  # which it takes fewer of
        known = {field.name for field in dataclasses.fields(PARAMETERS[family])}
        config = {key: value for key, value in config.items() if key in known or key == "image_model"}
    row = getattr(supported_models, name)({**config})
    row.set_inference_dtype(torch.float32, None)
    if family == "sd2":  # the host gives its heads 64 channels
        row.unet_config["num_head_channels"] = 16
    model = row.get_model({}, "", device="cpu")
    randomised(model)
    encoders = {}
    for encoder, layers in ENCODERS.get(family, {}).items():
        projection = projects(family, encoder)
        encoders[encoder] = Namespace(
            transformer=t5(16, layers) if encoder == "t5xxl" else clip(16, layers, projection)
        )
    cpu = torch.device("cpu")
    texts = Namespace(**encoders) if encoders else None
    out = Tree(
        family, types.SimpleNamespace(unet=model_patcher.ModelPatcher(model, cpu, cpu), clip=texts and Clip(texts))
    )
    out.add_denoiser(model.diffusion_model)
    for encoder, module in encoders.items():
        out.add_text(encoder, module.transformer)
    return out


def load(tree: Tree, path: Path) -> None:
    networks.load_lora_state_dict.cache_clear()
    state = networks.load_lora_state_dict(str(path))
    unet, clip = networks.load_lora_for_models(tree.host.unet, tree.host.clip, state, 1.0, 1.0, filename=str(path))
    for patcher in (unet, clip and clip.patcher):
        for key in patcher.patches if patcher else ():
            patcher.patch_weight_to_device(key)


EMBEDDINGS = ("sd1", "sd2", "sdxl", "flux1", "sd3")
SHAPES = {
    "sd1": 768,
    "sd2": 1024,
    "sdxl": 2048,
    "flux1": 768,
    "sd3": 2048,
}  # what its models answer when asked for the shape of a vector


def embedding(family: str, path: Path) -> dict[str, torch.Tensor]:
    """The vectors of the word it registers for a file."""
    sys.modules["modules"].__path__ = [str(HOME / "modules")]
    for name in ("devices", "sd_hijack", "images", "sd_samplers", "sd_hijack_checkpoint", "textual_inversion.dataset"):
        stand_in(f"modules.{name}")
    sys.modules["modules.devices"].device, sys.modules["modules.devices"].cpu = torch.device("cpu"), torch.device("cpu")
    stand_in("modules.textual_inversion").__path__ = [str(HOME / "modules" / "textual_inversion")]
    textual_inversion = importlib.import_module("modules.textual_inversion.textual_inversion")
    model = types.SimpleNamespace(cond_stage_model=types.SimpleNamespace(tokenize=lambda words: [[1]]))
    textual_inversion.shared.sd_model = model
    database = textual_inversion.EmbeddingDatabase()
    database.expected_shape = SHAPES[family]
    database.load_from_file(str(path), path.name)
    if path.stem not in database.word_embeddings:
        return {}
    vectors = database.word_embeddings[path.stem].vec
    return vectors if isinstance(vectors, dict) else {"clip_h" if family == "sd2" else "clip_l": vectors}
