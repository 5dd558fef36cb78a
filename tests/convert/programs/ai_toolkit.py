"""ai-toolkit: its own LoRA network over diffusers' models, with the file's weights as its training continues from them (`network.pretrained_lora_path`)."""

from __future__ import annotations

import importlib
import re
import sys
import types
from pathlib import Path

import torch
from loom_diffusers_models import denoiser, encoder
from loom_harness import Tree, folder, randomised
from safetensors.torch import load_file

TITLE, FOLDER = "ai-toolkit", "ai-toolkit"
HOME = folder(FOLDER)
sys.path[:0] = [str(HOME)]
from toolkit.config_modules import NetworkConfig  # noqa: E402
from toolkit.lora_special import LoRASpecialNetwork  # noqa: E402

# family -> how the program's job tells its network which model it is
FLAGS = {
    "sd1": {}, "sd2": {"is_v2": True}, "sdxl": {"is_sdxl": True}, "flux1": {"is_flux": True}, "sd3": {"is_v3": True}, "lumina2": {"is_lumina2": True},
    "z-image": {"is_transformer": True, "target_lin_modules": ["ZImageTransformer2DModel"]},
    "qwen-image": {"is_transformer": True, "target_lin_modules": ["QwenImageTransformer2DModel"]},
}  # fmt: skip
FAMILIES = tuple(FLAGS)
KINDS_ON = ()  # its user says with many settings which kind of module stands over which layer
NOT_RUN = {
    "kinds beside plain LoRA": "its user says with many settings which kind stands over which layer",
    "Chroma, Flux.2, Wan, LTX-2, HiDream, Anima, OmniGen2, Krea 2, Ideogram 4, ERNIE-Image": "models of its own code",
}
# Of which it calls the model in files as ComfyUI does, and puts its own name in place of that while it loads.
NATIVE = {"z-image": ("z_image.z_image", "ZImageModel"), "qwen-image": ("qwen_image.qwen_image", "QwenImageModel")}
TEXTS = {
    "sd1": {"text_encoder": "clip_l"},
    "sd2": {"text_encoder": "clip_h"},
    "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
}

LISTED_IN = "its architectures"


def models() -> list[str]:
    """Those of its configuration, and of its own and its extensions' models."""
    listed = re.search(
        r"ModelArch = Literal\[(.*?)\]", (HOME / "toolkit/config_modules.py").read_text(encoding="utf-8"), re.DOTALL
    )
    places = [*HOME.glob("extensions_built_in/diffusion_models/**/*.py"), *HOME.glob("toolkit/models/**/*.py")]
    found = [
        name
        for place in places
        for name in re.findall(r"^    arch = \"(\w[\w.]*)\"", place.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return [*re.findall(r"'(\w+)'", listed[1]), *found]


class Base:
    """What a network asks of the model it belongs to: the program's own renaming of files, where that model has one."""

    use_old_lokr_format, arch = False, None

    def __init__(self, cls: type | None):
        self._cls = cls

    def get_transformer_block_names(self) -> None:
        return None  # all layers may be trained: the job's `transformer_only` is off

    def convert_lora_weights_before_load(self, state: dict) -> dict:
        return self._cls.convert_lora_weights_before_load(self, state) if self._cls else state

    def convert_lora_weights_before_save(self, state: dict) -> dict:
        return self._cls.convert_lora_weights_before_save(self, state) if self._cls else state


def base(family: str) -> Base:
    if family not in NATIVE:
        return Base(None)
    package = "extensions_built_in.diffusion_models"
    if package not in sys.modules:  # whose own beginning imports every model
        module = types.ModuleType(package)
        module.__path__ = [str(HOME / package.replace(".", "/"))]
        sys.modules[package] = module
    place, cls = NATIVE[family]
    return Base(getattr(importlib.import_module(f"{package}.{place}"), cls))


def tree(family: str) -> Tree:
    parts = {"denoiser": randomised(denoiser(family, depth=3))}
    out = Tree(family, types.SimpleNamespace(parts=parts, base=base(family)))
    out.add_denoiser(parts["denoiser"])
    for component, name in TEXTS.get(family, {}).items():
        parts[component] = encoder(family, name)
        out.add_text(name, parts[component])
    return out


def network(tree: Tree, rank: int, alpha: float, kind: str = "lora") -> LoRASpecialNetwork:
    """Over all layers, convolutions too, and the text encoders of UNets, in one rank: what its user sets."""
    texts = [part for name, part in tree.host.parts.items() if name != "denoiser"]
    config = NetworkConfig(
        type=kind, linear=rank, linear_alpha=alpha, conv=rank, conv_alpha=alpha, transformer_only=False
    )
    made = LoRASpecialNetwork(
        text_encoder=texts[0] if len(texts) == 1 else texts, unet=tree.host.parts["denoiser"], lora_dim=rank, alpha=alpha, multiplier=1.0,
        train_text_encoder=bool(texts), conv_lora_dim=rank, conv_alpha=alpha, network_config=config, network_type=kind, transformer_only=False,
        base_model=tree.host.base, **FLAGS[tree.family],
    )  # fmt: skip
    made.force_to(torch.device("cpu"), torch.float32)
    made.apply_to(texts, tree.host.parts["denoiser"], bool(texts), True)
    for part in tree.host.parts.values():
        for layer in part.modules():  # the layers get their own forward back: the network is merged
            vars(layer).pop("forward", None)
    return made


def load(tree: Tree, path: Path) -> None:
    state = load_file(str(path))
    down = [value for key, value in state.items() if key.endswith(("lora_down.weight", "lora_A.weight"))]
    alphas = [float(value) for key, value in state.items() if key.endswith(".alpha")]
    rank = down[0].shape[0] if down else 2
    made = network(
        tree, rank, alphas[0] if alphas else float(rank), "lokr" if any("lokr_" in key for key in state) else "lora"
    )
    made.load_weights(str(path))
    made.merge_in(1.0)


def write(tree: Tree, path: Path, form: str) -> dict[str, torch.Tensor]:
    """A file of its own training: all layers, rank 4, alpha 2, random weights."""
    made = randomised(network(tree, 4, 2.0))
    before = {label: weight().detach().clone() for label, weight in tree.weights.items()}
    made.save_weights(str(path), torch.float32)
    made.merge_in(1.0)
    change = {label: weight().detach() - before[label] for label, weight in tree.weights.items()}
    with torch.no_grad():
        for label, weight in tree.weights.items():
            weight().copy_(before[label])
    return change
