"""The MODEL that a host node hands over: what it is, which of its layers can be trained, and one pass through its network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import comfy.model_management
import torch
from torch import nn

from ....lora_core.algebra.walk import is_norm
from ....lora_core.backends.base_model import BaseModel
from ....lora_core.borrowing.aliases import as_normal
from ....lora_core.config import ObjectiveConfig
from ....lora_core.messages.blame import blamed
from ....lora_core.messages.errors import LoomError
from ....lora_core.transfer import sent
from .base_model import described, file_of, further_input, reached
from .captions import Conds
from .fingerprints import patched_fingerprint
from .kernels import torch_attention
from .layers import fetched_weights, foreign_layers, input_factor, is_linear, is_unet
from .naming import base_family, file_names
from .objective import HostObjective, host_objective, kind_of, raw_output, sampling_for, sized_levels, usual_shift
from .shown import Use, use_of

CLIP_SKIPPED = ("sd1", "sd2", "sd2-v")


class HostModel:
    """A clone of the user's MODEL, which itself is never changed.

    `patcher` is the host's ModelPatcher, `base` its BaseModel; `further` what the network reads beside noise and text, where it reads more; `use`: how it is
    shown control pictures, where it takes any. `vision`: a CLIP VISION that belongs to it.
    """

    def __init__(self, model: Any, vision: Any = None):
        self.patcher = model.clone()
        self.vision = vision
        self.base = self.patcher.model
        self.device: torch.device = self.patcher.load_device
        self.dtype: torch.dtype = self.base.manual_cast_dtype or self.base.get_dtype()
        self.further = further_input(self.base)
        self.use: Use | None = use_of(self.base, lambda: file_of(self.patcher), vision)
        self._sampling = self.patcher.get_model_object("model_sampling")
        self.names = file_names(self.base)

    @property
    def network(self) -> nn.Module:
        return self.base.diffusion_model

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def family(self) -> str:
        return base_family(self.base)

    @property
    def context_width(self) -> int | None:
        """Width of the text the model reads, where its configuration tells."""
        return self.base.model_config.unet_config.get("context_dim")

    @property
    def text_width(self) -> int | None:
        """The same, where it is what a CLIP has to encode with; other networks map texts of several encoders to it."""
        width = self.context_width
        return width if isinstance(width, int) and is_unet(self.network) else None

    @property
    def skips_clip_layers(self) -> bool:
        """Whether its text is read from a chosen layer of CLIP."""
        return self.family in CLIP_SKIPPED

    def described(self, config: ObjectiveConfig, clip_skip: int | None) -> BaseModel:
        """Raises LoomError for a model that cannot be trained, or not as the job asks."""
        with blamed("model.unopened", "model"):
            model = described(self.patcher, self._sampling, config)
        return dataclasses.replace(model, clip_skip=clip_skip)

    def objective(self, config: ObjectiveConfig, prediction: str) -> HostObjective:
        """With the noise levels of the model; where the job wants another prediction, samples are drawn so too."""
        sampling = self._sampling
        if prediction != kind_of(sampling):
            sampling = sampling_for(prediction, sampling)
            self.patcher.add_object_patch("model_sampling", sampling)
        return host_objective(sampling, config, usual_shift(self.patcher), sized_levels(self.patcher))

    def fingerprint(self) -> str:
        return patched_fingerprint(self.patcher, self.network, "diffusion_model.")

    def find_non_finite(self) -> str | None:
        """Name of a weight that is not finite, or None."""
        for name, p in self.network.named_parameters():
            at_hand = p.is_floating_point() and p.device.type != "meta" and not hasattr(p, "_qdata")
            if at_hand and not torch.isfinite(p.detach().float()).all():
                return name
        return None

    # ---- its layers --------------------------------------------------------------------------------------------------

    def layers(self) -> Mapping[str, nn.Module]:
        """Those that can carry an adapter, by path in the network. Raises LoomError where there are none, or mostly another pack's."""
        named = {path: m for path, m in self.network.named_modules() if path in self.names and reached(self.base, path)}
        convolutions = nn.Conv1d | nn.Conv2d | nn.Conv3d
        layers = {path: m for path, m in named.items() if is_linear(m) or isinstance(m, convolutions) or is_norm(m)}
        self._refuse_foreign(layers)
        return layers

    def _refuse_foreign(self, layers: Mapping[str, nn.Module]) -> None:
        """Refuses a model whose linear layers are mostly of a pack that does not hand out their weights, and one without any layer to train."""
        foreign = foreign_layers(self.network)
        if foreign and len(foreign) >= sum(map(is_linear, layers.values())):
            kinds = sorted({f"{type(m).__module__.rpartition('.')[2]}.{type(m).__name__}" for m in foreign})
            raise LoomError("model.foreign_layers", field="model", count=len(foreign), kinds=", ".join(kinds))
        if not layers:
            raise LoomError("model.no_layers", field="model", network=type(self.network).__name__)

    @contextlib.contextmanager
    def weight(self, layer: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """(weight, bias) as the layer's forward uses them, float32 on the training device, valid inside the block."""
        with torch.inference_mode(), fetched_weights(layer, torch.float32, self.device) as (weight, bias):
            factor = input_factor(layer, weight)
            effective = weight if factor is None else weight * factor
            yield as_normal(effective), None if bias is None else as_normal(bias)

    # ---- one pass ----------------------------------------------------------------------------------------------------

    @property
    def one_level_a_pass(self) -> bool:
        """Whether the network (HunyuanImage, distilled to mean flow) is also told the level it should step to, one for the whole batch."""
        return getattr(self.network, "time_r_in", None) is not None

    def activation_bytes(self, shape: Sequence[int]) -> int:
        """The host's estimate of what sampling latents of this shape takes beside the weights."""
        return self.base.memory_required(list(shape))

    def load(self, beside: Sequence[Any], needed_bytes: int) -> None:
        """Has the host load it together with `beside` (patchers), with so many bytes left free. Raises LoomError."""
        with blamed("model.unopened", "model"), torch.inference_mode():
            comfy.model_management.load_models_gpu([self.patcher, *beside], memory_required=needed_bytes)
        self.further = further_input(self.base)  # a control LoRA widens the first layer when the host loads it

    def unload(self) -> None:
        """Has the host put it back to where it waits, and forget that it was loaded."""
        loaded = comfy.model_management.current_loaded_models
        ours = [one for one in loaded if one.model is not None and one.model.model is self.base]
        for one in ours:
            one.model_unload()
            loaded.remove(one)
        if ours:
            comfy.model_management.soft_empty_cache()

    def answer(
        self, x_t: torch.Tensor, sigma: torch.Tensor, groups: Sequence[tuple[Sequence[int], Conds]]
    ) -> torch.Tensor:
        """The network's raw output for latents (B, ...) at sigma (B,); `groups`: which samples go through it together, and with what."""
        sigma = sigma.to(x_t.device, torch.float32)
        if len(groups) == 1:
            return self._apply(x_t, sigma, groups[0][1])
        parts = [self._apply(x_t[indices], sigma[indices], conds) for indices, conds in groups]
        order = torch.tensor([i for indices, _ in groups for i in indices])
        return torch.cat(parts)[sent(order.argsort(), x_t.device)]

    def forget(self) -> None:
        """Drops what the network keeps from one call to the next, which is of the weights it was made with: HiDream-O1 the prompt's keys and values."""
        clear = getattr(self.network, "clear_kv_cache", None)
        if clear is not None:
            clear()

    def _apply(self, x_t: torch.Tensor, sigma: torch.Tensor, conds: Conds) -> torch.Tensor:
        options = dict(self.patcher.model_options.get("transformer_options", {}))
        options |= {"optimized_attention_override": torch_attention, "cond_or_uncond": [0], "sigmas": sigma}
        if self.one_level_a_pass:
            options["sample_sigmas"] = sigma[:1].repeat(2)  # the next level is this one: the velocity at a point
        self.forget()
        try:
            with raw_output(self.base.model_sampling):
                return self.base.apply_model(x_t, sigma, transformer_options=options, **conds)
        finally:
            self.forget()
