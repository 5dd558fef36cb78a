"""The model that Forge has loaded: Stable Diffusion 1, 2, XL and Flux.1, by its own classes, in whatever form and place it keeps their weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from backend.modules.k_prediction import rescale_zero_terminal_snr_sigmas
from modules import sd_models
from PIL import Image
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.attach import override
from ....lora_core.backends.base import TRAINING_GUIDANCE, SampleJob, whole_fingerprint
from ....lora_core.config import ObjectiveConfig
from ....lora_core.data.buckets import Fit
from ....lora_core.messages.errors import LoomError
from ....lora_core.messages.message import Message
from ....lora_core.objectives import DiscreteLevels, FlowLevels, NoiseLevels, Objective
from ....lora_core.transfer import sent
from .backend import WebUIBackend
from .captions import Encoded
from .drawing import drawn, scheduler_for
from .forge_layers import ForgeLayers, are_loaded, load_all
from .forge_texts import ForgeTexts
from .host import loaded_model, lora_extension, pictures_end_in_noise
from .joined import FILLED, Joined
from .tokens import written

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "const": "flow"}
FAMILIES = {"StableDiffusion": "sd1", "StableDiffusion2": "sd2", "StableDiffusionXL": "sdxl", "Flux": "flux1"}


class ForgeBackend(WebUIBackend):
    """Makes the host load its checkpoint where it has not yet. Raises LoomError for a model that is not one of these."""

    pure = False

    def __init__(self) -> None:
        self.model = _loaded()
        self.joined = self._further(self.model)
        self._patcher = (
            self.model.forge_objects_original.unet
        )  # the one pictures are drawn with, so that loading is shared
        self._kmodel = self._patcher.model
        self.host = ForgeLayers()
        self.device = self._patcher.load_device
        self.text_device = self.model.forge_objects.clip.patcher.load_device
        self.dtype = self._kmodel.computation_dtype
        self._texts = ForgeTexts(self.model, self.family, self.host.is_linear)
        super().__init__(self._texts)
        self._log_sigmas: torch.Tensor | None = None  # where they are not those of the host's predictor
        self.settled += self.settle()

    @staticmethod
    def _further(model: Any) -> Joined | None:
        """What the model reads beside its noise. Raises LoomError for one that reads what the host cannot give, and for other models."""
        name = type(model).__name__
        if name not in FAMILIES:
            kind = "webui.kind_refiner" if name == "StableDiffusionXLRefiner" else "webui.kind_other"
            raise LoomError(
                "webui.model_kind", kind=Message.of(kind, **({} if kind.endswith("refiner") else {"name": name}))
            )
        channels = model.forge_objects.vae.latent_channels
        inputs = getattr(model.model_config, "unet_config", {}).get("in_channels", channels)
        if model.is_inpaint and inputs == channels + FILLED:
            return Joined(FILLED)
        if model.is_inpaint or inputs not in (channels, 4 * channels):
            raise LoomError("webui.model_kind", kind=Message.of("webui.kind_picture"))
        return None

    @property
    def network(self) -> nn.Module:
        return self._kmodel.diffusion_model

    @property
    def family(self) -> str:
        family = FAMILIES[type(self.model).__name__]
        return "sd2-v" if family == "sd2" and self._predictor.prediction_type == "v_prediction" else family

    @property
    def _predictor(self) -> Any:
        return self._kmodel.predictor

    @property
    def prediction(self) -> str:
        kind = PREDICTIONS.get(self._predictor.prediction_type)
        if kind is None:
            raise LoomError("model.sampling_type", field="model", type=self._predictor.prediction_type)
        return kind

    @property
    def ends_in_noise(self) -> bool:
        """As the host draws: only for the time of a picture does it put such noise levels into its model."""
        if self.prediction == "flow":
            return False
        marked = getattr(getattr(self.model, "model_config", None), "ztsnr", False)
        return bool(marked) or pictures_end_in_noise()

    @property
    def guidance(self) -> float | None:
        return TRAINING_GUIDANCE if self.model.use_distilled_cfg_scale else None

    def shift(self, config: ObjectiveConfig) -> float | None:
        return (config.shift or math.exp(self._predictor.mu)) if self.prediction == "flow" else None

    def objective_of(self, config: ObjectiveConfig) -> Objective:
        if config.zero_terminal_snr and not self.ends_in_noise:
            raise LoomError("objective.zero_terminal_snr.host", field="objective.zero_terminal_snr")
        return Objective(self.prediction, self._levels_of(config), config)

    def _levels_of(self, config: ObjectiveConfig) -> NoiseLevels:
        shift = self.shift(config)
        if shift is not None:
            return FlowLevels(shift)
        sigmas = self._predictor.sigmas.detach().clone()
        self._log_sigmas = None
        if self.ends_in_noise:
            sigmas = rescale_zero_terminal_snr_sigmas(sigmas)
            self._log_sigmas = sigmas.log().float()
        return DiscreteLevels(sigmas.cpu().double())

    # ---- pictures and texts ------------------------------------------------------------------------------------------

    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.require_at_hand()
        vae, answers = self.model.forge_objects.vae, []
        network = vae.first_stage_model
        encode = network.encode

        def noted(x: torch.Tensor, regulation: Any = None) -> torch.Tensor:
            """The host draws a sample unless it is told what to take, and never tells it when it encodes in tiles."""

            def mean(posterior: Any) -> torch.Tensor:
                answers.append(posterior)
                return posterior.mode()

            return encode(x, mean)

        with torch.inference_mode(), override(network, "encode", noted):
            raw = vae.encode(pixels)
            latents = network.process_in(raw)
            if len(answers) != 1:
                return latents.clone().float(), torch.zeros_like(latents).clone().float()
            deviation = answers[0].std.to(raw)
            spread = network.process_in(raw + deviation) - latents
        return latents.clone().float(), spread.clone().float()

    def picture_fingerprint(self) -> str:
        vae = self.model.forge_objects.vae
        config = vae.first_stage_model.config
        scale = tuple(getattr(config, name, None) for name in ("scaling_factor", "shift_factor"))
        with torch.inference_mode():
            return f"{whole_fingerprint(vae.first_stage_model)} {vae.vae_dtype} {scale}"

    # ---- training ----------------------------------------------------------------------------------------------------

    def settle(self) -> list[Message]:
        networks, objects = lora_extension(), self.model.forge_objects
        patchers = [objects.unet, objects.clip.patcher]
        present = any(patcher.lora_patches for patcher in patchers)
        if networks is not None:
            networks.load_networks([], [], [], [])
        for patcher in (self.model.forge_objects.unet, self.model.forge_objects.clip.patcher):
            patcher.refresh_loras()
        return [Message.of("webui.settled_lora")] if present else []

    def at_hand(self) -> bool:
        return loaded_model() is self.model

    def load(self) -> None:
        patchers = [self._patcher]
        if self._adapters.trains_text:
            patchers.append(self.model.forge_objects_original.clip.patcher)
        if not are_loaded(patchers):
            with self._taken_off():
                load_all(patchers, self._bytes_beside(self._kmodel.memory_required))

    def _channels(self) -> int:
        return self.model.forge_objects.vae.latent_channels

    def join(self, texts: Sequence[Encoded]) -> Encoded | None:
        if self.family == "flux1" and len({text["crossattn"].shape[1] for text in texts}) > 1:
            return None
        return super().join(texts)

    def ask(
        self, x_t: torch.Tensor, sigma: torch.Tensor, texts: Encoded, fits: Sequence[Fit], beside: torch.Tensor | None
    ) -> torch.Tensor:
        place, sigma = x_t.device, sigma.to(x_t.device, torch.float32)
        more: dict[str, Any] = {}
        if "pooled" in texts:
            more["y"] = sent(texts["pooled"], place)
        if self.family == "sdxl":
            sizes = torch.cat([self._sizes(fit) for fit in fits]).to(more["y"])
            more["y"] = torch.cat([more["y"], sizes], 1)
        if "guidance" in texts:
            more["guidance"] = sent(texts["guidance"], place)
        if beside is not None:
            more["c_concat"] = beside
        options = {"cond_or_uncond": [0], "sigmas": sigma}
        with contextlib.ExitStack() as undo:
            undo.enter_context(override(self._predictor, "calculate_denoised", lambda sigma, out, x: out))
            if self._log_sigmas is not None:  # by which the host finds a noise level's timestep
                undo.enter_context(override(self._predictor, "log_sigmas", self._log_sigmas))
            return self._kmodel.apply_model(
                x_t, sigma, c_crossattn=sent(texts["crossattn"], place), transformer_options=options, **more
            )

    def _sizes(self, fit: Fit) -> torch.Tensor:
        """(1, 1536): the size vector as the host makes it of width and height."""
        (width, height), (left, top), (to_width, to_height) = fit.original, fit.crop, fit.bucket
        values = (height, width, top, left, to_height, to_width)
        with torch.no_grad():
            parts = [self.model.embedder(torch.Tensor([value])) for value in values]
        return torch.flatten(torch.cat(parts)).unsqueeze(0)

    def draw(self, job: SampleJob, adapters: AdapterSet) -> list[Image.Image]:
        scheduler = scheduler_for(job.config, self.prediction == "flow")
        with torch.inference_mode(), self._texts.known(adapters.tokens):
            return drawn(self.model, job, written(job.prompt, adapters.tokens), scheduler, self.beside(job))


def _loaded() -> Any:
    """The model; Forge loads nothing before the first picture."""
    try:
        model, _ = sd_models.forge_model_reload()
    except ValueError as error:  # no checkpoint chosen
        raise LoomError("webui.no_model", host="Forge") from error
    if getattr(model, "forge_objects_original", None) is None:
        raise LoomError("webui.no_model", host="Forge")
    return model
