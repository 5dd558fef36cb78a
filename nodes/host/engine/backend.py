"""The ComfyUI backend: trains on the MODEL, CLIP and VAE that the host has loaded, through the host's own `apply_model` and sampler.

Host code runs inside inference mode, as everywhere in the host; only the step's own mathematics runs outside of it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from comfy.ldm.modules.attention import attention_pytorch
from PIL import Image
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.base import override
from ....lora_core.adapters.tokens import TokenTable
from ....lora_core.algebra.walk import is_norm
from ....lora_core.backends.base import UNKNOWN_ENCODER, SampleJob, weights_checksum, weights_fingerprint, whole_fingerprint
from ....lora_core.backends.headless import TEXTS
from ....lora_core.backends.recompute import ALL
from ....lora_core.config import ObjectiveConfig
from ....lora_core.data.batches import Batch
from ....lora_core.data.buckets import Fit
from ....lora_core.data.lengths import TextLength
from ....lora_core.data.store import Memory, Store, key_of
from ....lora_core.messages.errors import LoomError
from .borrow import Borrowing
from .frozen import as_normal, fetched_weights, is_linear
from .guards import TrainingKernels, is_pure
from .naming import base_family, file_names, text_file_names
from .objective import HostObjective, host_objective
from .texts import length_of, literal, packed, unpacked, wired
from .tokens import for_training, tables, written
from .verify import verify

KEY = "lora_loom"
TRAINING_GUIDANCE = 1.0  # guidance-distilled models (Flux.1-dev) are trained at 1, as sd-scripts and ai-toolkit do
MAX_CONDS_BYTES = 2**29  # of conditioning kept on the training device
MAX_TEXTS_BYTES = 2 * 2**30
ACTIVATION_FACTOR = 3  # of a forward and backward over the host's estimate for sampling


class HostBackend:
    """Lends a MODEL (a ModelPatcher), with the CLIP and VAE that belong to it. The user's objects are never changed: we work on a clone."""

    recomputes = (ALL,)  # frozen layers keep nothing here, and what they give cannot be kept by selective checkpointing

    def __init__(self, model: Any, clip: Any, vae: Any):
        self._patcher, self._clip, self._vae = model.clone(), clip, vae
        self._model = self._patcher.model
        self.device: torch.device = self._patcher.load_device
        self.dtype: torch.dtype = self._model.manual_cast_dtype or self._model.get_dtype()
        self._names = file_names(self._model)
        self._texts: dict[str, Any] = {}
        self._texts_bytes = self._conds_bytes = 0
        self._wired: dict[str, Any] = {}
        self._store: Store = Memory()
        self._identity: tuple = ()  # of the text encoders, in the store
        self._trained = AdapterSet({})
        self._text_borrowing: Borrowing | None = None
        self._text_clip = clip  # while text is trained, a clone that carries the adapters and knows the tokens
        self._conds: dict[tuple, dict[str, Any]] = {}
        self._borrowing: Borrowing | None = None
        self._needed_bytes = 0
        self._reload = False
        self._kernels = TrainingKernels()
        self._check_pairing()

    @property
    def network(self) -> nn.Module:
        return self._model.diffusion_model

    @property
    def family(self) -> str:
        return base_family(self._model)

    @property
    def context_width(self) -> int | None:
        """Width of the text the model reads, where its configuration tells."""
        return self._model.model_config.unet_config.get("context_dim")

    @property
    def latent_step_px(self) -> int:
        ratio = getattr(self._vae, "downscale_ratio", 8)
        return ratio if isinstance(ratio, int) else int(ratio[-1])

    def _check_pairing(self) -> None:
        """Refuses a VAE whose latents the model cannot read. The CLIP is checked by its first encoded caption."""
        wanted = self._patcher.get_model_object("latent_format").latent_channels
        found = getattr(self._vae, "latent_channels", wanted)
        if found != wanted:
            raise LoomError(f"vae: makes latents with {found} channels, the model reads {wanted}; wire the VAE that belongs to this model.")

    # ---- what can be trained -----------------------------------------------------------------------------------------

    def layers(self) -> Mapping[str, nn.Module]:
        kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d
        return {p: m for p, m in self.network.named_modules() if p in self._names and (is_linear(m) or isinstance(m, kinds) or is_norm(m))}

    def text_layers(self) -> Mapping[str, nn.Module]:
        names = text_file_names(self._clip, self.family)
        self._names.update({path: name for path, name in names.items()})
        modules = dict(self._clip.cond_stage_model.named_modules())
        return {path: modules[path] for path in names if is_linear(modules[path])}

    def token_tables(self) -> Mapping[str, TokenTable]:
        return tables(self._clip)

    @property
    def text_device(self) -> torch.device:
        return self._clip.patcher.load_device

    @contextlib.contextmanager
    def weight(self, layer: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        with torch.inference_mode(), fetched_weights(layer, torch.float32, self.device) as (weight, bias):
            yield as_normal(weight), None if bias is None else as_normal(bias)

    def file_name(self, path: str) -> str:
        return self._names[path]

    def text_fingerprint(self) -> str:
        return self._text_fingerprint

    @functools.cached_property
    def _text_fingerprint(self) -> str:
        """Read once a run: the weights are only lent, and a T5 takes seconds."""
        told = (type(self._clip.tokenizer).__name__, self._clip.layer_idx, str(getattr(self._clip, "tokenizer_options", "")))
        return f"{_patched_fingerprint(self._clip.patcher, self._clip.cond_stage_model, '', weights_checksum)} {told}"

    def fingerprint(self) -> str:
        return _patched_fingerprint(self._patcher, self.network, "diffusion_model.")

    def objective(self, config: ObjectiveConfig) -> HostObjective:
        return host_objective(self._patcher.get_model_object("model_sampling"), config)

    def find_non_finite(self) -> str | None:
        for name, p in self.network.named_parameters():
            if p.is_floating_point() and p.device.type != "meta" and not hasattr(p, "_qdata") and not torch.isfinite(p.detach().float()).all():
                return name
        return None

    # ---- encoding ----------------------------------------------------------------------------------------------------

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            latent = self._model.process_latent_in(self._vae.encode(pixels))
            wanted = self._patcher.get_model_object("latent_format").latent_channels
            if latent.shape[1] != wanted:
                raise LoomError(f"vae: made latents with {latent.shape[1]} channels, the model reads {wanted}; wire the VAE that belongs to this model.")
            if self._model.latent_format.latent_dimensions == 3 and latent.ndim == 4:
                latent = latent.unsqueeze(2)
        return latent.clone()

    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, standard deviation) of the latents, both in the model's units. Raises LoomError for a VAE that gives one answer only."""
        form, seen = getattr(getattr(self._vae, "first_stage_model", None), "regularization", None), []
        if not isinstance(form, DiagonalGaussianRegularizer):
            raise LoomError("data.latents: this VAE gives one answer, not a mean and a spread; choose mean.")
        forward = form.forward
        with override(form, "forward", lambda z: seen.append(z) or forward(z)):
            mean = self.encode_picture(pixels)
        if len(seen) != 1:
            raise LoomError("data.latents: the VAE had to encode in tiles, which have no common spread; choose mean, or lower data.resolution.")
        with torch.inference_mode():
            deviation = (0.5 * seen[0].float().chunk(2, 1)[1].clamp(-30, 20)).exp().to(mean.device)
            raw = self._model.process_latent_out(mean.float())
            spread = self._model.process_latent_in(raw + deviation.view_as(raw)) - self._model.process_latent_in(raw)
        return mean, spread.clone()

    def encode_wired(self, samples: torch.Tensor) -> torch.Tensor:
        """Latents as they travel between nodes -> the model's units."""
        with torch.inference_mode():
            wanted = self._patcher.get_model_object("latent_format").latent_channels
            if samples.shape[1] != wanted:
                raise LoomError(f"dataset: a latent has {samples.shape[1]} channels, the model reads {wanted}; encode the pictures with this model's VAE.")
            return self._model.process_latent_in(samples).clone()

    def picture_fingerprint(self) -> str:
        vae, form = self._vae, self._patcher.get_model_object("latent_format")
        if not isinstance(getattr(vae, "first_stage_model", None), nn.Module):
            return f"{UNKNOWN_ENCODER} {uuid.uuid4()}"  # another pack's VAE, which we cannot tell from others: encoded anew each time
        made_by = (type(vae.first_stage_model).__name__, getattr(vae, "vae_dtype", None), type(form).__name__)
        scale = tuple(getattr(form, name, None) for name in ("scale_factor", "shift_factor"))
        return f"{whole_fingerprint(vae.first_stage_model)} {made_by} {scale}"

    def keep_texts(self, store: Store) -> None:
        hooked = getattr(self._clip.patcher, "forced_hooks", None) is not None or getattr(self._clip, "apply_hooks_to_conds", None) is not None
        self._store, self._identity = store, () if hooked else (TEXTS, self.text_fingerprint())  # what hooks do is not part of a fingerprint

    def know_text(self, caption: str, file: Path) -> None:
        self._wired[caption] = wired(file)

    def text_length(self, caption: str) -> TextLength:
        return length_of(literal(caption), self._clip)

    def encode_texts(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        for done, caption in enumerate(captions):
            progress(done, len(captions))
            self._text(literal(caption), keep=True)

    def forget_texts(self) -> None:
        self._texts.clear()
        self._conds.clear()
        self._texts_bytes = self._conds_bytes = 0

    def _text(self, caption: str, keep: bool = False) -> list:
        """The caption encoded by the host itself, without gradients; known until text encoders or tokens are trained, with `keep` in the store."""
        if caption in self._wired:
            return self._wired[caption]
        if self._trained.trains_text:
            return self._encode(caption)
        if caption not in self._texts:
            if self._texts_bytes > MAX_TEXTS_BYTES:  # only captions that vary get here; start anew rather than grow without end
                self.forget_texts()
            kept = self._stored(caption) if keep and self._identity and not self._trained.changes_text else None
            encoded = kept or self._encode(caption)
            width, wanted = encoded[0][0].shape[-1], self.context_width
            if isinstance(wanted, int) and type(self.network).__name__ == "UNetModel" and width != wanted:
                raise LoomError(f"clip: encodes text with width {width}, the model reads {wanted}; wire the CLIP that belongs to this model.")
            self._texts[caption] = encoded
            self._texts_bytes += 0 if kept else encoded[0][0].nbytes  # what is in the store is mapped from there
        return self._texts[caption]

    def _stored(self, caption: str) -> list | None:
        """The caption from the store, encoded and put there when it is new; None for what cannot be kept. (The file of an embedding may change.)"""
        if "embedding:" in caption:
            return None
        key = key_of("host text", *self._identity, caption)
        known = self._store.get(key)
        if known is not None:
            return unpacked(known)
        whole = packed(self._encode(caption))
        return None if whole is None else unpacked(self._store.put(key, whole))

    def _encode(self, caption: str) -> list:
        with torch.inference_mode():
            return self._text_clip.encode_from_tokens_scheduled(self._text_clip.tokenize(written(caption, self._trained.tokens)))

    def _encode_live(self, caption: str) -> list:
        """As the host encodes it (`CLIP.encode_from_tokens`), outside of inference mode, with gradients to adapters and tokens."""
        clip, encoder = self._text_clip, self._text_clip.cond_stage_model
        encoder.reset_clip_options()
        if clip.layer_idx is not None:
            encoder.set_clip_options({"layer": clip.layer_idx})
        encoder.set_clip_options({"execution_device": self.text_device})
        out = encoder.encode_token_weights(clip.tokenize(written(caption, self._trained.tokens)))
        return [[out[0], {"pooled_output": out[1], **(out[2] if len(out) > 2 else {})}]]

    def _conditioning(self, batch: Batch, x_t: torch.Tensor) -> list[tuple[list[int], dict[str, Any]]]:
        """(sample indices, model arguments) of each forward pass, every sample with its own caption, size and crop.

        One pass for the whole batch, unless the model takes text of varying length and the captions differ in it.
        """
        groups: list[tuple[list[int], list[dict[str, Any]]]] = []
        for i, (caption, fit) in enumerate(zip(batch.captions, batch.fits, strict=True)):
            part = self._one_conditioning(literal(caption), fit, x_t[i : i + 1], batch.latents[i : i + 1])
            for indices, parts in groups:
                if parts[0].keys() == part.keys() and all(parts[0][k].can_concat(part[k]) for k in part):
                    indices.append(i)
                    parts.append(part)
                    break
            else:
                groups.append(([i], [part]))
        with contextlib.nullcontext() if self._live else torch.inference_mode():
            joined = [(indices, comfy.samplers.cond_cat(parts)) for indices, parts in groups]
        return [(indices, _normal_copy(conds)) for indices, conds in joined]

    @property
    def _live(self) -> bool:
        """Whether texts are encoded with gradients in this pass."""
        return self._trained.trains_text and torch.is_grad_enabled()

    def _one_conditioning(self, caption: str, fit: Fit, noise: torch.Tensor, latent: torch.Tensor) -> dict[str, Any]:
        if self._live:
            return self._model_conds(self._encode_live(caption), fit, noise, latent)
        key = (caption, fit, tuple(noise.shape))
        if key not in self._conds:
            with torch.inference_mode():
                done = self._model_conds(self._text(caption), fit, noise, latent)
            size = sum(v.cond.nbytes for v in done.values() if torch.is_tensor(getattr(v, "cond", None)))
            if self._model.concat_keys or self._trained.trains_text or self._conds_bytes + size > MAX_CONDS_BYTES:  # what depends on more than the key
                return done
            self._conds[key] = done
            self._conds_bytes += size
        return self._conds[key]

    def _model_conds(self, text: list, fit: Fit, noise: torch.Tensor, latent: torch.Tensor) -> dict[str, Any]:
        """What the model takes for an encoded text, a size and a crop, by the host's own `extra_conds`."""
        (width, height), (left, top), (target_w, target_h) = fit.original, fit.crop, fit.bucket
        conds = comfy.sampler_helpers.convert_cond(text[:1])
        conds[0].update(width=width, height=height, crop_w=left, crop_h=top, target_width=target_w, target_height=target_h)
        conds[0].setdefault("guidance", TRAINING_GUIDANCE)
        conds = comfy.samplers.encode_model_conds(
            self._model.extra_conds, conds, noise, self.device, "positive", latent_image=latent, denoise_mask=None, seed=0, latent_shapes=[tuple(noise.shape)]
        )
        return {k: v.process_cond(batch_size=1, area=None, device=self.device) for k, v in conds[0]["model_conds"].items()}

    # ---- training ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def training(
        self, layers: Mapping[str, nn.Module], adapters: AdapterSet, checkpointing: bool | str, largest: tuple[int, ...] = ()
    ) -> Iterator[None]:
        if adapters.changes_text and self._wired:
            raise LoomError("dataset: its text comes encoded from other nodes, so neither text encoders nor tokens can be trained; give captions.")
        names = set(text_file_names(self._clip, self.family).values()) if adapters.changes_text else set()
        own, texts = ({n: m for n, m in layers.items() if (n in names) == wanted} for wanted in (False, True))
        borrowing = Borrowing(self.network, own, adapters.only(own), bool(checkpointing))
        self._patcher.set_injections(KEY, [_injection(borrowing)])
        self._trained, self._borrowing = adapters, borrowing
        if adapters.changes_text:
            self.forget_texts()
            self._text_clip = for_training(self._clip, adapters.tokens)
            self._text_borrowing = Borrowing(self._clip.cond_stage_model, texts, adapters.only(texts), checkpointing=False, guard=True)
            self._text_clip.patcher.set_injections(KEY, [_injection(self._text_borrowing)])
        else:
            self._text(next(iter(self._texts), ""))  # before the model is loaded: the text encoder might take its place
        activations = self._model.memory_required(list(largest or (1, 4, 64, 64))) * (1 if checkpointing else ACTIVATION_FACTOR)
        self._needed_bytes = int(adapters.count() * 4 * 4 + activations)  # adapters, gradients and two Adam moments in fp32
        try:
            with torch.inference_mode(False), self._kernels:
                self._load()
                self._check_text()
                if not is_pure(self.network):
                    verify(self.network, own, adapters.only(own), borrowing, self._tiny_forward, self.dtype)
                yield
        finally:
            self._hand_back()

    def _hand_back(self) -> None:
        """Takes everything off again that training put on."""
        with torch.inference_mode():
            self._patcher.eject_model()
            if self._text_borrowing is not None:
                self._text_clip.patcher.eject_model()
                self._text_borrowing.eject()
                self._clip.cond_stage_model.reset_clip_options()
        if self._borrowing is not None:
            self._borrowing.eject()
        self._patcher.remove_injections(KEY)
        if self._trained.changes_text:
            self._texts.clear()
        self._conds.clear()
        self._conds_bytes = 0
        self._borrowing = self._text_borrowing = None
        self._text_clip, self._trained = self._clip, AdapterSet({})

    def _check_text(self) -> None:
        """Refuses a CLIP whose text the model cannot read, by one forward pass on a tiny latent. A UNet's was checked by its width."""
        if isinstance(self.context_width, int) and type(self.network).__name__ == "UNetModel":
            return
        try:
            with torch.no_grad():
                self._tiny_forward()
        except (RuntimeError, TypeError, AttributeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).splitlines()[0][:120]
            raise LoomError(f"clip: the model cannot run on a test input with its text ({reason}); wire the CLIP that belongs to this model.") from error

    def _tiny_forward(self) -> torch.Tensor:
        """A prediction for fixed noise of 8 x 8 latent pixels and any caption."""
        form = self._patcher.get_model_object("latent_format")
        shape = (1, form.latent_channels, *[1] * (form.latent_dimensions - 2), 8, 8)
        x_t = torch.linspace(-1.5, 1.5, math.prod(shape), device=self.device).view(shape)
        sigma = self._patcher.get_model_object("model_sampling").sigmas
        caption, side = next(iter(self._texts), ""), 8 * self.latent_step_px
        size = Fit((side, side), (side, side), (0, 0), (side, side))
        batch = Batch(x_t, [caption], [size], ["self-test"], torch.ones(1))
        return self._predict(x_t, sigma[len(sigma) // 2].reshape(1), batch)

    def _load(self) -> None:
        wanted = [self._patcher, self._text_clip.patcher] if self._trained.trains_text else [self._patcher]
        with torch.inference_mode():
            comfy.model_management.load_models_gpu(wanted, memory_required=self._needed_bytes)

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        captions = [] if self._trained.trains_text else [literal(caption) for caption in batch.captions]
        new = [caption for caption in captions if caption not in self._texts and caption not in self._wired]
        for caption in new:
            self._text(caption)
        needed = [self._borrowing, self._text_borrowing if self._trained.trains_text else None]
        if self._borrowing is not None and (new or self._reload or any(b is not None and not b.installed for b in needed)):
            self._reload = False
            self._load()  # the text encoder, or something else, may have taken the model's place since the last step
        return self._predict(x_t, sigma, batch)

    def _predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        sigma = sigma.to(x_t.device, torch.float32)
        groups = self._conditioning(batch, x_t)
        if len(groups) == 1:
            return self._apply_model(x_t, sigma, groups[0][1])
        parts = [self._apply_model(x_t[indices], sigma[indices], conds) for indices, conds in groups]
        order = torch.tensor([i for indices, _ in groups for i in indices], device=x_t.device)
        return torch.cat(parts)[order.argsort()]

    def _apply_model(self, x_t: torch.Tensor, sigma: torch.Tensor, conds: dict[str, Any]) -> torch.Tensor:
        options = dict(self._patcher.model_options.get("transformer_options", {}))
        options |= {"optimized_attention_override": _sdpa, "cond_or_uncond": [0], "sigmas": sigma}
        with _raw_output(self._model.model_sampling):
            return self._model.apply_model(x_t, sigma, transformer_options=options, **conds)

    # ---- sampling ----------------------------------------------------------------------------------------------------

    def sample(self, job: SampleJob) -> list[Image.Image]:
        config = job.config
        step = self.latent_step_px
        with self._paused(), self._loaded_after(), torch.inference_mode():
            latent = torch.zeros(1, 4, job.height_px // step, job.width_px // step, device=comfy.model_management.intermediate_device())
            latent = comfy.sample.fix_empty_latent_channels(self._patcher, latent)
            noise = comfy.sample.prepare_noise(latent, config.seed)
            latents = comfy.sample.sample(
                self._patcher, noise, config.steps, config.cfg, config.sampler, config.scheduler,
                self._text(job.prompt), self._text(config.negative), latent, seed=config.seed, disable_pbar=True,
            )  # fmt: skip
            pixels = self._vae.decode(latents)
            array = (pixels.reshape(-1, *pixels.shape[-3:]).clamp(0, 1) * 255).round().byte().cpu().numpy()
        return [Image.fromarray(a) for a in array]

    @contextlib.contextmanager
    def _loaded_after(self) -> Iterator[None]:
        """Makes the next step load the model again when sampling has taken its place, also after a sample that failed."""
        try:
            yield
        finally:
            self._reload = self._borrowing is not None

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """The host's normal kernels for as long as it samples."""
        was_on = self._kernels.on
        self._kernels.stop()
        try:
            yield
        finally:
            if was_on:
                self._kernels.start()


def _injection(borrowing: Borrowing) -> comfy.patcher_extension.PatcherInjection:
    return comfy.patcher_extension.PatcherInjection(lambda patcher: borrowing.inject(), lambda patcher: borrowing.eject())


def _patched_fingerprint(patcher: Any, module: nn.Module, prefix: str, of: Callable[..., str] = weights_fingerprint) -> str:
    """Of the weights without the host's patches, plus the patches, so it does not depend on whether the model is loaded."""
    backup = {k.removeprefix(prefix): v.weight for k, v in patcher.backup.items()}
    patches = {k: [(p[0], _patch_values(p[1]), p[2]) for p in v] for k, v in sorted(patcher.patches.items())}
    return hashlib.sha256(f"{of(module, backup)}{patches}".encode()).hexdigest()[:32]


def _patch_values(patch: Any) -> list:
    """A few numbers of every tensor in a host patch and everything else in it, to tell two patches of equal strength apart."""
    weights = getattr(patch, "weights", patch)
    parts = weights if isinstance(weights, list | tuple) else [weights]
    return [_few(part) if torch.is_tensor(part) else str(part) for part in parts if not torch.is_tensor(part) or part.numel()]


def _few(tensor: torch.Tensor) -> list[float]:
    return [*tensor.detach().float().flatten()[:: max(1, tensor.numel() // 4)][:4].tolist(), float(tensor.detach().float().sum())]


def _sdpa(original: Callable, *args, **kwargs):
    """PyTorch attention whatever the host would choose: differentiable, O(n) memory, and the same in forward and recompute."""
    return attention_pytorch(*args, **kwargs)


def _raw_output(sampling: Any) -> contextlib.AbstractContextManager[None]:
    """For one call of apply_model: hands back what the network said instead of the denoised latents."""
    return override(sampling, "calculate_denoised", lambda sigma, out, x: out)


def _normal_copy(value: Any) -> Any:
    """Copies of inference tensors, so the step may use them under autograd."""
    if torch.is_tensor(value):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {k: _normal_copy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_normal_copy(v) for v in value)
    return value
