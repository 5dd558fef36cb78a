"""The model that AUTOMATIC1111 has loaded: Stable Diffusion 1, 2 and XL, by its own classes (ldm, sgm), with whatever attention it has chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from modules import devices, sd_hijack, sd_models, sd_unet, shared
from modules.hypernetworks import hypernetwork
from PIL import Image
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.backends.base import SampleJob, whole_fingerprint
from ....lora_core.backends.headless import nearest_timestep
from ....lora_core.config import ObjectiveConfig
from ....lora_core.data.buckets import Fit
from ....lora_core.messages.errors import LoomError
from ....lora_core.messages.message import Message
from ....lora_core.objectives import DiscreteLevels, Objective, discrete_sigmas, rescale_zero_terminal_snr
from ....lora_core.transfer import sent
from .a1111_texts import A1111Texts, size_values
from .backend import WebUIBackend
from .captions import Encoded
from .drawing import drawn, scheduler_for
from .host import loaded_model, lora_extension, wanted_model
from .joined import EDITED, FILLED, Joined
from .layers import PlainLayers
from .tokens import written

CHANNELS = 4  # of latents
NEARLY_ZERO = 1e-6  # of the signal that is left at the last noise level
WITH_PICTURE = ("hybrid", "concat", "hybrid-adm", "crossattn-adm")  # conditioning of models that read a picture
_PATCHED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)  # by the Lora extension


class A1111Backend(WebUIBackend):
    """Raises LoomError for a model that is not one of these, or needs more than noise and text."""

    def __init__(self) -> None:
        self.model = wanted_model()
        if self.model is None:
            raise LoomError("webui.no_model", host="AUTOMATIC1111")
        self.joined = _joined(self.model)
        self.device = self.text_device = devices.device
        self.dtype = devices.dtype_unet
        self.host = PlainLayers(self.dtype, bool(getattr(self.model, "lowvram", False)))
        self._texts = A1111Texts(self.model, self.family)
        super().__init__(self._texts)
        self.settled += self.settle()
        self._abar = self.model.alphas_cumprod.detach().double().cpu()

    @property
    def network(self) -> nn.Module:
        return self.model.model.diffusion_model

    @property
    def family(self) -> str:
        if self.model.is_sdxl:
            return "sdxl"
        if self.model.is_sd2:
            return "sd2-v" if self.model.parameterization == "v" else "sd2"
        return "sd1"

    @property
    def prediction(self) -> str:
        return "v" if self.model.parameterization == "v" else "epsilon"

    @property
    def ends_in_noise(self) -> bool:
        return float(self._abar[-1]) < NEARLY_ZERO

    def objective_of(self, config: ObjectiveConfig) -> Objective:
        rescales = config.zero_terminal_snr and not self.ends_in_noise
        abar = rescale_zero_terminal_snr(self._abar) if rescales else self._abar
        return Objective(self.prediction, DiscreteLevels(discrete_sigmas(abar)), config)

    # ---- pictures and texts ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.require_at_hand()
        vae = self.model.first_stage_model
        x = (pixels.permute(0, 3, 1, 2) * 2 - 1).to(devices.device, devices.dtype_vae)
        for hook in vae._forward_pre_hooks.values():  # --medvram brings the VAE onto the device by one
            hook(vae, None)
        with devices.autocast():
            if self.family == "sdxl":  # its own encode() draws a sample; the class it comes from gives the distribution
                posterior = _distribution(vae, x)
            else:
                posterior = self.model.encode_first_stage(x)
        scale = self.model.scale_factor
        return (scale * posterior.mean).float(), (scale * posterior.std).float()

    def picture_fingerprint(self) -> str:
        made_by = type(self.model.first_stage_model).__name__, str(devices.dtype_vae), float(self.model.scale_factor)
        return f"{whole_fingerprint(self.model.first_stage_model)} {made_by}"

    # ---- training ----------------------------------------------------------------------------------------------------

    def settle(self) -> list[Message]:
        if sd_unet.current_unet is not None:
            raise LoomError("webui.other_unet", name=str(getattr(sd_unet.current_unet.option, "label", "")))
        notes = []
        if _without_networks(self.model):
            notes.append(Message.of("webui.settled_lora"))
        if sd_hijack.model_hijack.circular_enabled:
            sd_hijack.model_hijack.apply_circular(False)
            notes.append(Message.of("webui.settled_tiling"))
        if shared.loaded_hypernetworks:
            hypernetwork.load_hypernetworks([], [])
            notes.append(Message.of("webui.settled_hypernetwork"))
        sd_models.apply_alpha_schedule_override(self.model)
        return notes

    def at_hand(self) -> bool:
        if loaded_model() is not self.model:
            return False
        moves = getattr(self.model, "lowvram", False)  # by hooks of the host, in each forward
        return bool(moves) or next(self.network.parameters()).device.type == torch.device(devices.device).type

    def load(self) -> None:
        """Hooks of the host bring the model where it runs in each forward."""

    def ask(
        self, x_t: torch.Tensor, sigma: torch.Tensor, texts: Encoded, fits: Sequence[Fit], beside: torch.Tensor | None
    ) -> torch.Tensor:
        wide = sigma.to(x_t.device, torch.float32 if x_t.device.type == "mps" else torch.float64)
        sigmas = self._levels.sigmas if isinstance(self._levels, DiscreteLevels) else discrete_sigmas(self._abar)
        t = nearest_timestep(sent(sigmas.to(wide.dtype), wide.device), wide)
        scaled = x_t / (1 + wide.square()).sqrt().view(-1, 1, 1, 1).to(x_t.dtype)
        text = sent(texts["crossattn"], x_t.device)
        if self.family == "sdxl":
            sizes = torch.cat([self._texts.sizes(size_values(fit)) for fit in fits])
            cond: Any = {"crossattn": text, "vector": torch.cat([texts["pooled"].to(sizes), sizes], 1)}
        else:
            cond = {"c_crossattn": [text]}
        if beside is not None:
            cond["c_concat"] = [beside.to(self.dtype)]
        with devices.without_autocast() if devices.unet_needs_upcast else devices.autocast():
            return self.model.apply_model(scaled.to(self.dtype), t, cond).float()

    def draw(self, job: SampleJob, adapters: AdapterSet) -> list[Image.Image]:
        with torch.no_grad(), self._texts.known(adapters.tokens), self._texts.attention_in_parts(adapters):
            prompt, scheduler = written(job.prompt, adapters.tokens), scheduler_for(job.config, flow=False)
            return drawn(self.model, job, prompt, scheduler, self.beside(job))


def _distribution(vae: Any, x: torch.Tensor) -> Any:
    """What the VAE of SDXL makes of pixels, by the class that its wrapper comes from."""
    wrapped: Any = super(type(vae), vae)
    return wrapped.encode(x)


def _joined(model: Any) -> Joined | None:
    """What a model of the SD family reads beside its noise. Raises LoomError for one that reads what cannot be given, and for other models."""
    conditioner = getattr(model, "conditioner", None)
    if getattr(model, "is_sd3", False):
        raise _untrainable("webui.kind_sd3")
    if conditioner is not None and sum(hasattr(e, "process_texts") for e in conditioner.embedders) != 2:
        raise _untrainable("webui.kind_refiner")
    key = getattr(model.model, "conditioning_key", "")
    if key not in WITH_PICTURE and not getattr(model, "is_sdxl_inpaint", False):
        return None
    further = model.model.diffusion_model.input_blocks[0][0].in_channels - CHANNELS
    if further == EDITED and getattr(model, "cond_stage_key", "") == "edit":
        return Joined(EDITED, 1 / float(model.scale_factor))  # which the host leaves out there
    if further == FILLED and not key.endswith("adm"):
        return Joined(FILLED)
    raise _untrainable("webui.kind_picture")


def _untrainable(kind: str) -> LoomError:
    return LoomError("webui.model_kind", kind=Message.of(kind))


def _without_networks(model: nn.Module) -> bool:
    """Takes the LoRAs of the last picture out of the weights now; the host does it only in the next forward of each layer. Whether there were any."""
    networks = lora_extension()
    if networks is None:
        return False
    networks.loaded_networks.clear()  # read from the prompt of each picture anew
    patched = [m for m in model.modules() if isinstance(m, _PATCHED) and hasattr(m, "network_layer_name")]
    present = any(getattr(module, "network_current_names", ()) for module in patched)
    with torch.no_grad():
        for module in patched:
            networks.network_apply_weights(module)
    return present
