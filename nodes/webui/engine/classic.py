"""The model that Forge classic has loaded: Stable Diffusion 1, 2 and XL. Its network is that of an early ComfyUI, its texts are read as A1111 reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from ldm_patched.ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm_patched.modules import model_management
from ldm_patched.modules.model_sampling import EPS, V_PREDICTION, ModelSamplingDiscrete
from modules_forge.forge_loader import apply_alpha_schedule_override
from PIL import Image
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.attach import override, override_forward
from ....lora_core.backends.base import SampleJob, whole_fingerprint
from ....lora_core.config import ObjectiveConfig
from ....lora_core.data.buckets import Fit
from ....lora_core.messages.errors import LoomError
from ....lora_core.messages.message import Message
from ....lora_core.objectives import DiscreteLevels, Objective, discrete_sigmas, rescale_zero_terminal_snr
from ....lora_core.transfer import sent
from .a1111_texts import size_values
from .backend import WebUIBackend
from .captions import Encoded
from .classic_layers import ClassicLayers, differentiable_attention
from .classic_texts import ClassicTexts
from .drawing import drawn, scheduler_for
from .first_forge import settled_clones, untiled
from .host import WebUI, loaded_model, wanted_model
from .joined import FILLED, Joined
from .tokens import written

CHANNELS = 4  # of latents
NEARLY_ZERO = 1e-6  # of the signal that is left at the last noise level
FAMILIES = {("clip_l",): "sd1", ("clip_h",): "sd2", ("clip_g", "clip_l"): "sdxl"}  # by the text encoders


class ClassicBackend(WebUIBackend):
    """Raises LoomError for a model that is not one of these, or needs more than noise and text."""

    pure = False

    def __init__(self) -> None:
        self.model = wanted_model()
        objects = getattr(self.model, "forge_objects_original", None)
        if objects is None:
            raise LoomError("webui.no_model", host=WebUI.CLASSIC.value)
        self._patcher, self._clip, self._vae = objects.unet, objects.clip.patcher, objects.vae
        self._kmodel = self._patcher.model
        self._encoder_names = tuple(sorted(name for name, _ in self._clip.model.named_children()))
        self.joined = self._further()
        self.device, self.text_device = self._patcher.load_device, self._clip.load_device
        self.dtype = self._kmodel.manual_cast_dtype or self._kmodel.get_dtype()
        self.host = ClassicLayers()
        self._texts = ClassicTexts(self.model, self.family)
        super().__init__(self._texts)
        self.settled += self.settle()
        self._abar = self.model.alphas_cumprod.detach().double().cpu()
        self._log_sigmas = torch.empty(0)  # of the noise levels that were asked for last

    def _further(self) -> Joined | None:
        """What the model reads beside its noise. Raises LoomError for one that reads what the host cannot give, and for other models."""
        if self._encoder_names == ("clip_g",):
            raise LoomError("webui.model_kind", kind=Message.of("webui.kind_refiner"))
        if self._encoder_names not in FAMILIES or (self._kmodel.adm_channels > 0) != (self.family == "sdxl"):
            raise LoomError("webui.model_kind", kind=Message.of("webui.kind_other", name=type(self._kmodel).__name__))
        inputs = self._kmodel.model_config.unet_config.get("in_channels", CHANNELS)
        if inputs not in (CHANNELS, CHANNELS + FILLED):
            raise LoomError("webui.model_kind", kind=Message.of("webui.kind_picture"))
        return Joined(FILLED) if inputs == CHANNELS + FILLED else None

    @property
    def network(self) -> nn.Module:
        return self._kmodel.diffusion_model

    @property
    def family(self) -> str:
        family = FAMILIES[self._encoder_names]
        return "sd2-v" if family == "sd2" and self.prediction == "v" else family

    @property
    def _sampling(self) -> Any:
        return self._kmodel.model_sampling

    @property
    def prediction(self) -> str:
        if not isinstance(self._sampling, ModelSamplingDiscrete) or not isinstance(self._sampling, EPS):
            kind = ", ".join(base.__name__ for base in type(self._sampling).__bases__)
            raise LoomError("model.sampling_type", field="model", type=kind)
        return "v" if isinstance(self._sampling, V_PREDICTION) else "epsilon"

    @property
    def ends_in_noise(self) -> bool:
        return float(self._abar[-1]) < NEARLY_ZERO

    def objective_of(self, config: ObjectiveConfig) -> Objective:
        rescales = config.zero_terminal_snr and not self.ends_in_noise
        sigmas = discrete_sigmas(rescale_zero_terminal_snr(self._abar) if rescales else self._abar)
        self._log_sigmas = sigmas.log().float()
        return Objective(self.prediction, DiscreteLevels(sigmas), config)

    # ---- pictures and texts ------------------------------------------------------------------------------------------

    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.require_at_hand()
        answers = []

        def noted(answer: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
            """The host draws a sample here."""
            posterior = DiagonalGaussianDistribution(answer)
            answers.append(posterior)
            return posterior.mode(), {}

        form = getattr(self._vae.first_stage_model, "regularization", None)
        with torch.inference_mode(), override_forward(form, noted) if form is not None else contextlib.nullcontext():
            raw = self._vae.encode(pixels)
            latents = self._kmodel.process_latent_in(raw)
            if len(answers) != 1:  # in tiles, or a VAE that draws no sample
                return latents.clone().float(), torch.zeros_like(latents).clone().float()
            spread = self._kmodel.process_latent_in(raw + answers[0].std.to(raw)) - latents
        return latents.clone().float(), spread.clone().float()

    def picture_fingerprint(self) -> str:
        scale = float(self._kmodel.latent_format.scale_factor)
        with torch.inference_mode():
            return f"{whole_fingerprint(self._vae.first_stage_model)} {self._vae.vae_dtype} {scale}"

    # ---- training ----------------------------------------------------------------------------------------------------

    def settle(self) -> list[Message]:
        notes = settled_clones(self.model) + untiled(self.model)
        apply_alpha_schedule_override(self.model)
        return notes

    def at_hand(self) -> bool:
        return loaded_model() is self.model

    def load(self) -> None:
        patchers = [self._patcher, *([self._clip] if self._adapters.trains_text else [])]
        loaded = [one.model for one in model_management.current_loaded_models]
        if not all(any(patcher is one for one in loaded) for patcher in patchers):
            with self._taken_off():
                needed = self._bytes_beside(self._kmodel.memory_required)
                model_management.load_models_gpu(patchers, memory_required=needed)

    def differentiable(self) -> contextlib.AbstractContextManager[None]:
        return differentiable_attention()

    def ask(
        self, x_t: torch.Tensor, sigma: torch.Tensor, texts: Encoded, fits: Sequence[Fit], beside: torch.Tensor | None
    ) -> torch.Tensor:
        place, sigma = x_t.device, sigma.to(x_t.device, torch.float32)
        more: dict[str, Any] = {} if beside is None else {"c_concat": beside}
        if "pooled" in texts:
            sizes = torch.cat([self._texts.sizes(size_values(fit)) for fit in fits])
            more["y"] = torch.cat([sent(texts["pooled"], place).to(sizes), sizes], 1)
        options = {"cond_or_uncond": [0], "sigmas": sigma}
        with contextlib.ExitStack() as undo:
            undo.enter_context(override(self._sampling, "calculate_denoised", lambda sigma, out, x: out))
            # by which the host finds a noise level's timestep: it knows no levels that end in noise
            undo.enter_context(override(self._sampling, "log_sigmas", sent(self._log_sigmas, place)))
            return self._kmodel.apply_model(
                x_t, sigma, c_crossattn=sent(texts["crossattn"], place), transformer_options=options, **more
            )

    def draw(self, job: SampleJob, adapters: AdapterSet) -> list[Image.Image]:
        with torch.inference_mode(), self._texts.known(adapters.tokens):
            prompt, scheduler = written(job.prompt, adapters.tokens), scheduler_for(job.config, flow=False)
            return drawn(self.model, job, prompt, scheduler, self.beside(job))
