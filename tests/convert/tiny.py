"""Tiny random models of every family diffusers knows, with the real block layout, and reference LoRAs over all their layers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings

import diffusers
import torch
from lora_loom.convert.families import FAMILIES
from lora_loom.convert.lora import Lora, Module
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

# Factors, their roots of the scale and the alpha of a file are float32 (epsilon 6e-8), each rounded once, and a delta sums at most four products of
# them: 1e-7 is what is seen. A wrong alpha, half or order of rows is an error of 0.1 and more.
EXACT = 1e-6

UNETS = ("sd1", "sd2", "sdxl")
TRANSFORMERS = ("flux1", "chroma", "sd3", "flux2", "z-image", "lumina2", "qwen-image", "wan")
NAMES = (*UNETS, *TRANSFORMERS)
_PIPELINES = {
    "sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "flux1": "FluxPipeline",
    "chroma": "ChromaPipeline", "sd3": "StableDiffusion3Pipeline", "flux2": "Flux2KleinPipeline", "z-image": "ZImagePipeline",
    "lumina2": "Lumina2Pipeline", "qwen-image": "QwenImagePipeline", "wan": "WanImageToVideoPipeline",
}  # fmt: skip


def _unet(levels: int, attention: tuple[int, ...], linear: bool, **more) -> nn.Module:
    has = [level in attention for level in range(levels)]
    return diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(16, 24, 32, 32)[:levels], norm_num_groups=8, attention_head_dim=8, cross_attention_dim=24,
        down_block_types=tuple("CrossAttnDownBlock2D" if h else "DownBlock2D" for h in has), use_linear_projection=linear,
        up_block_types=tuple("CrossAttnUpBlock2D" if h else "UpBlock2D" for h in reversed(has)), **more,
    )  # fmt: skip


def denoiser(family: str, width: str = "tiny") -> nn.Module:
    """The UNet or transformer. `width` "real": the attention widths of the published model, for readers of diffusers that have them hard-coded."""
    attention = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24}
    two_stream = {"patch_size": 1, "in_channels": 8, "num_layers": 2, "num_single_layers": 2, **attention}
    if family == "sd1":
        return _unet(4, (0, 1, 2), linear=False)
    if family == "sd2":
        return _unet(4, (0, 1, 2), linear=True)
    if family == "sdxl":
        pooled = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        }
        return _unet(3, (1, 2), linear=True, transformer_layers_per_block=(1, 2, 3), **pooled)
    if family == "flux1":
        return diffusers.FluxTransformer2DModel(
            **two_stream, pooled_projection_dim=20, guidance_embeds=True, axes_dims_rope=(4, 4, 8)
        )
    if family == "chroma":
        approximator = {"approximator_num_channels": 8, "approximator_hidden_dim": 20, "approximator_layers": 2}
        return diffusers.ChromaTransformer2DModel(**two_stream, axes_dims_rope=(4, 4, 8), **approximator)
    if family == "flux2":
        return diffusers.Flux2Transformer2DModel(
            **two_stream, timestep_guidance_channels=12, mlp_ratio=3.0, axes_dims_rope=(4, 4, 4, 4)
        )
    if (
        family == "sd3"
    ):  # as 3.5 medium: dual attention in the first block; the last block's text stream is context_pre_only, as in all of them
        return diffusers.SD3Transformer2DModel(
            sample_size=8, in_channels=4, out_channels=4, num_layers=3, **attention, caption_projection_dim=32, pooled_projection_dim=20, pos_embed_max_size=8,
            dual_attention_layers=(0,), qk_norm="rms_norm",
        )  # fmt: skip
    if family == "z-image":
        return diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=48,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=24,
            axes_dims=[8, 8, 8],
            axes_lens=[32] * 3,
        )
    if family == "lumina2":  # three query heads to a key head, as in the published model
        heads, head = (24, 96) if width == "real" else (6, 8)
        return diffusers.Lumina2Transformer2DModel(
            sample_size=8, in_channels=4, hidden_size=heads * head, num_layers=2, num_refiner_layers=1, num_attention_heads=heads, num_kv_heads=heads // 3,
            multiple_of=16, ffn_dim_multiplier=0.01 if width == "real" else None, axes_dim_rope=(head // 3,) * 3 if width == "real" else (4, 2, 2),
            axes_lens=(32, 16, 16), cap_feat_dim=24,
        )  # fmt: skip
    if family == "qwen-image":
        return diffusers.QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=2, **attention, axes_dims_rope=(4, 6, 6)
        )
    assert family == "wan"  # image to video of 2.1: with image keys and values
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=24, freq_dim=16, ffn_dim=40, num_layers=2, image_dim=20,
        added_kv_proj_dim=24, rope_max_seq_len=32,
    )  # fmt: skip


def encoder(name: str) -> nn.Module:
    """A CLIP text encoder; `clip_g` with a projection, as SDXL and SD3 use it."""
    wide = {"clip_l": 24, "clip_g": 32, "clip_h": 24}[name]
    config = CLIPTextConfig(
        hidden_size=wide, intermediate_size=4 * wide, num_hidden_layers=2, num_attention_heads=2, projection_dim=20
    )
    return (CLIPTextModelWithProjection if name == "clip_g" else CLIPTextModel)(config)


@dataclasses.dataclass
class Tiny:
    """The trainable models of a pipeline by component, and where each canonical layer name lies: (component, path in that model)."""

    family: str
    models: dict[str, nn.Module]
    layers: dict[str, tuple[str, str]]

    def module(self, name: str) -> nn.Module:
        part, path = self.layers[name]
        return self.models[part].get_submodule(path)

    def pipeline(self):
        """diffusers' own pipeline around the models; parts that loading a LoRA does not need are missing."""
        kind = getattr(diffusers, _PIPELINES[self.family])
        names = [n for n in kind.__init__.__annotations__ if n not in ("return", "requires_safety_checker")]
        optional = {
            "is_distilled",
            "boundary_ratio",
            "expand_timesteps",
            "force_zeros_for_empty_prompt",
            "add_watermarker",
        }
        parts = {n: self.models.get(n) for n in names if n not in optional}
        return kind(
            **parts,
            **(
                {"requires_safety_checker": False} if "requires_safety_checker" in kind.__init__.__annotations__ else {}
            ),
        )


def build(family: str, width: str = "tiny", seed: int = 0) -> Tiny:
    """Fresh models; every Linear and convolution of them is a layer, of text encoders those inside the encoder."""
    torch.manual_seed(seed)
    info = FAMILIES[family]
    models = {info.component: denoiser(family, width)}
    layers = {f"{info.component}.{path}": (info.component, path) for path in _layers(models[info.component])}
    for e in info.encoders:
        if e.name.startswith("clip"):
            models[e.component] = encoder(e.name)
            paths = [path for path in _layers(models[e.component]) if "encoder.layers" in path]
            layers |= {f"{e.name}.text_model.{path.removeprefix('text_model.')}": (e.component, path) for path in paths}
    for model in models.values():
        model.eval().requires_grad_(False)
    return Tiny(family, models, layers)


# Widths of the published models, for converters of diffusers that have them hard-coded; a block or two, on the meta device, which holds no numbers.
_PUBLISHED = {
    "flux1": (diffusers.FluxTransformer2DModel, {"num_layers": 2, "num_single_layers": 2, "guidance_embeds": True}),
    "chroma": (diffusers.ChromaTransformer2DModel, {"num_layers": 2, "num_single_layers": 2}),
    "sd3": (
        diffusers.SD3Transformer2DModel,
        {"num_layers": 3, "num_attention_heads": 24, "caption_projection_dim": 1536, "dual_attention_layers": (0,)},
    ),
    "flux2": (diffusers.Flux2Transformer2DModel, {"num_layers": 2, "num_single_layers": 2}),
    "z-image": (diffusers.ZImageTransformer2DModel, {"n_layers": 2, "n_refiner_layers": 1}),
    "lumina2": (diffusers.Lumina2Transformer2DModel, {"num_layers": 2, "num_refiner_layers": 1}),
    "wan": (diffusers.WanTransformer3DModel, {"num_layers": 2, "image_dim": 1280, "added_kv_proj_dim": 5120}),
}


def on_meta(family: str) -> Tiny:
    """The transformer of a family at its real width, without its weights."""
    kind, settings = _PUBLISHED[family]
    with torch.device("meta"):
        transformer = kind(**settings)
    return Tiny(
        family,
        {"transformer": transformer},
        {f"transformer.{path}": ("transformer", path) for path in _layers(transformer)},
    )


def _layers(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]


@dataclasses.dataclass
class Reference:
    """A LoRA in canonical form and, computed apart from the code under test, the change of every layer's weight."""

    lora: Lora
    deltas: dict[str, torch.Tensor]


RANKS, ALPHAS = (4, 2, 4, 3), (1.0, 6.0, None, 2.5, 4.0)


def factors(tiny: Tiny, scales: str = "mixed", only=None, seed: int = 1) -> Lora:
    """Random factors for every layer (for which `only(name)` holds). "mixed": ranks 2 to 4 and five kinds of alpha; "uniform": rank 4, alpha 2."""
    rng = torch.Generator().manual_seed(seed)
    modules = {}
    for n, name in enumerate(name for name in tiny.layers if only is None or only(name)):
        rank, alpha = (RANKS[n % len(RANKS)], ALPHAS[n % len(ALPHAS)]) if scales == "mixed" else (4, 2.0)
        out, *into = tiny.module(name).weight.shape
        down, up = (
            torch.randn(rank, *into, generator=rng),
            torch.randn(out, rank, *[1] * (len(into) - 1), generator=rng),
        )
        modules[name] = Module("lora", {"down": down, "up": up}, alpha)
    return Lora(tiny.family, modules)


def reference(tiny: Tiny, scales: str = "mixed", only=None, seed: int = 1) -> Reference:
    """`factors`, and alpha / rank * up @ down in float64, a missing alpha being the rank."""
    lora, deltas = factors(tiny, scales, only, seed), {}
    for name, module in lora.modules.items():
        down, up = (module.parts[k].double() for k in ("down", "up"))
        scale = 1.0 if module.alpha is None else module.alpha / len(down)
        deltas[name] = (scale * (up.flatten(1) @ down.flatten(1))).reshape(tiny.module(name).weight.shape)
    return Reference(lora, deltas)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """||got - want|| / ||want||; infinite where the shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    return float((got.double() - want.double()).norm() / want.double().norm())


def lora_layers(tiny: Tiny, adapter: str) -> dict[str, torch.Tensor]:
    """Canonical name -> delta, as diffusers and PEFT compute it, of every layer that carries the adapter; one that is in no table gets its own path."""
    where = {place: name for name, place in tiny.layers.items()}
    return {
        where.get((part, path), f"{part}: {path}"): module.get_delta_weight(adapter).detach()
        for part, model in tiny.models.items()
        for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and adapter in getattr(module, "lora_A", getattr(module, "hada_w1_a", ()))
    }


def worst(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> tuple[float, str]:
    """(largest error, whose) over layers that both name; that they name the same ones is asserted."""
    assert got.keys() == want.keys(), (
        f"missing {sorted(want.keys() - got.keys())[:5]}, extra {sorted(got.keys() - want.keys())[:5]}"
    )
    return max((error(got[name], want[name]), name) for name in want)


class Complaints(logging.Handler):
    """What the libraries log or warn about keys."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "LOAD REPORT" in text and not any(word in text for word in ("UNEXPECTED", "MISMATCH", "CONVERSION", "lora")):
            return  # transformers lists the base weights as missing from the adapter's file, which they are
        self.said.append(text)


@contextlib.contextmanager
def overheard():
    """Everything diffusers, transformers and PEFT complain about meanwhile; their loggers do not propagate, so caplog hears nothing of them."""
    ear, loggers = Complaints(), [logging.getLogger(n) for n in ("diffusers", "transformers", "peft")]
    for logger in loggers:
        logger.addHandler(ear)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield ear.said
        ear.said += [str(w.message) for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning))]
    finally:
        for logger in loggers:
            logger.removeHandler(ear)
