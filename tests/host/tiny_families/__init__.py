"""A custom node for tests: tiny random models of a family, with a text encoder and a VAE that fit them, in a real server."""

import sys
import zlib
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import architectures  # noqa: E402
import comfy.model_patcher  # noqa: E402
import stand_ins  # noqa: E402
import torch  # noqa: E402


class FlatVae(stand_ins.NoVae):
    """Encodes a picture as the mean colours of its squares."""

    def __init__(self, model):
        super().__init__(model)
        self.downscale_ratio = 16 if self.latent_channels == 128 else 8

    def encode(self, pixels):
        means = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), self.downscale_ratio)
        return 2 * means.repeat(1, -(-self.latent_channels // 3), 1, 1)[:, : self.latent_channels] - 1


class TextOfNumbers(stand_ins.SeeingClip):
    """Has no encoder that could carry a LoRA."""

    def __init__(self, name: str):
        super().__init__(name)
        self.layer_idx = self.tokenizer = None
        self.cond_stage_model = torch.nn.Module()
        own = torch.full((1,), float(zlib.crc32(name.encode()) % 1000))  # what is kept of its texts is not another's
        self.cond_stage_model.own = torch.nn.Parameter(own, requires_grad=False)
        cpu = torch.device("cpu")
        self.patcher = comfy.model_patcher.ModelPatcher(self.cond_stage_model, load_device=cpu, offload_device=cpu)


class TinyFamily:
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - as the host spells it
        return {"required": {"name": ("STRING", {"default": "Flux"})}, "optional": {"seed": ("INT", {"default": 0})}}

    def load(self, name, seed=0):
        model = architectures.build(name, seed=seed)
        return model, TextOfNumbers(name), FlatVae(model)


class TinyFilmFamily(TinyFamily):
    """With a VAE of the host's own class that takes films."""

    def load(self, name):
        import film_models

        return film_models.loaded(name)


NODE_CLASS_MAPPINGS = {"TinyFamily": TinyFamily, "TinyFilmFamily": TinyFilmFamily}
