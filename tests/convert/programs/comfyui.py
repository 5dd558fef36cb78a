"""ComfyUI: `comfy.sd.load_lora_for_models` on its own model classes; run with its own Python."""

from __future__ import annotations

import functools
import os
import sys
import types
from pathlib import Path

import torch
from loom_harness import Tree, randomised
from loom_small_models import CLIP, ENCODERS, HOST, T5, WIDTHS, projects

TITLE, FOLDER = "ComfyUI", "comfyui"
FAMILIES = tuple(HOST)
HOME = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
sys.path[:0] = [str(HOME)]
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.clip_model  # noqa: E402
import comfy.ldm.anima.model as anima  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.text_encoders.t5  # noqa: E402
import comfy.utils  # noqa: E402
import comfyui_version  # noqa: E402

VERSION = comfyui_version.__version__

LISTED_IN = "comfy.supported_models"


def models() -> list[str]:
    return [cls.__name__ for cls in comfy.supported_models.models]


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
        self.patcher = patcher or comfy.model_patcher.ModelPatcher(encoders, cpu, cpu)

    def clone(self) -> Clip:
        return Clip(self.cond_stage_model, self.patcher.clone())

    def add_patches(self, *args, **kwargs):
        return self.patcher.add_patches(*args, **kwargs)


def encoder(name: str, layers: int) -> torch.nn.Module:
    operations = comfy.ops.disable_weight_init
    if name == "t5xxl":
        return randomised(comfy.text_encoders.t5.T5(T5, torch.float32, "cpu", operations))
    return randomised(
        comfy.clip_model.CLIPTextModel({**CLIP, "num_hidden_layers": layers}, torch.float32, "cpu", operations)
    )


# Its sizes are constants of the model.
anima.LLMAdapter = functools.partial(
    anima.LLMAdapter, source_dim=32, target_dim=32, model_dim=32, num_layers=2, num_heads=2
)


def tree(family: str) -> Tree:
    name, config = HOST[family]
    row = getattr(comfy.supported_models, name)({**config})
    row.set_inference_dtype(torch.float32, None)
    if (
        "model_channels" not in config
    ):  # some classes put the published sizes back; UNets take the number of heads from their class
        row.unet_config.update(config)
    if family == "sd2":  # the host gives its heads 64 channels
        row.unet_config["num_head_channels"] = 16
    model = randomised(row.get_model({}, "", device="cpu"))
    encoders = {name: Namespace(transformer=encoder(name, layers)) for name, layers in ENCODERS.get(family, {}).items()}
    cpu = torch.device("cpu")
    texts = Namespace(**encoders) if encoders else None
    out = Tree(
        family,
        types.SimpleNamespace(unet=comfy.model_patcher.ModelPatcher(model, cpu, cpu), clip=texts and Clip(texts)),
    )
    out.add_denoiser(model.diffusion_model)
    for encoder_name, module in encoders.items():
        out.add_text(encoder_name, module.transformer, projection=projects(family, encoder_name))
    return out


def load(tree: Tree, path: Path) -> None:
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    unet, clip = comfy.sd.load_lora_for_models(tree.host.unet, tree.host.clip, state, 1.0, 1.0)
    for patcher in (unet, clip and clip.patcher):
        for key in patcher.patches if patcher else ():
            patcher.patch_weight_to_device(key)


EMBEDDINGS = ("sd1", "sd2", "sdxl", "flux1", "sd3")


def embedding(family: str, path: Path) -> dict[str, torch.Tensor]:
    """What each of the family's encoders takes from a file that a prompt names."""
    from comfy import sd1_clip

    taken = {name: sd1_clip.load_embed(path.stem, [str(path.parent)], WIDTHS[name], name) for name in ENCODERS[family]}
    return {name: vectors for name, vectors in taken.items() if vectors is not None}
