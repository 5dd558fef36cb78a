"""The ComfyUI backend: trains on the MODEL, CLIP and VAE that the host has loaded, through the host's own `apply_model` and sampler.

Host code runs inside inference mode, as everywhere in the host; only the step's own mathematics runs outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from PIL import Image
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.tokens import TokenTable
from ....lora_core.algebra.walk import is_norm
from ....lora_core.backends.base import Backend, EncodesSpread, NamesSamplers, Remarks, SampleJob, Samplers, TakesWired
from ....lora_core.backends.base_model import BaseModel
from ....lora_core.borrowing.aliases import as_normal
from ....lora_core.borrowing.borrow import Borrowing, Measures
from ....lora_core.borrowing.comparison import writing
from ....lora_core.borrowing.frozen import place_of
from ....lora_core.compat import OutOfMemoryError
from ....lora_core.config import ObjectiveConfig, Recompute
from ....lora_core.data.batches import Batch
from ....lora_core.data.buckets import Fit
from ....lora_core.data.lengths import TextLength
from ....lora_core.data.store import Store
from ....lora_core.messages.blame import blamed, first_line, is_foreign, passing
from ....lora_core.messages.errors import LoomError, NonFiniteError
from ....lora_core.messages.message import Message
from .base_model import described, further_input, reached
from .blame import misfit_width
from .captions import KEY, Conds, HostTexts, injection
from .conditioning import HostConditioning
from .fingerprints import patched_fingerprint
from .kernels import TrainingKernels, torch_attention
from .layers import LAYERS, fetched_weights, foreign_layers, input_factor, is_linear, is_pure, is_unet
from .naming import base_family, file_names
from .objective import HostObjective, host_objective, kind_of, raw_output, sampling_for
from .pictures import HostPictures
from .texts import literal
from .trials import Trials
from .verify import DIFFUSION, prove_layers, verify

ACTIVATION_FACTOR = 3  # of a forward and backward over the host's estimate for sampling
CLIP_SKIPPED = ("sd1", "sd2", "sd2-v")
BYTES_PER_VALUE = 4 * 4  # an adapter's value, its gradient and two Adam moments in fp32


class HostBackend:
    """Lends a MODEL (a ModelPatcher), with the CLIP and VAE that belong to it. The user's objects are never changed: we work on a clone."""

    # Frozen layers keep nothing here, and what they give cannot be kept by selective checkpointing.
    recomputes = (Recompute.ALL,)

    def __init__(self, model: Any, clip: Any, vae: Any):
        with blamed("model.unopened", "model"):
            self._open(model, clip, vae)

    def _open(self, model: Any, clip: Any, vae: Any) -> None:
        self._patcher = model.clone()
        self._model = self._patcher.model
        self.device: torch.device = self._patcher.load_device
        self.dtype: torch.dtype = self._model.manual_cast_dtype or self._model.get_dtype()
        self._further = further_input(self._model)
        self._sampling = self._patcher.get_model_object("model_sampling")
        self._names = file_names(self._model)
        self._borrowing: Borrowing | None = None
        self._kernels = TrainingKernels()
        self._needed_bytes = 0
        self._reload = False
        self._remarks: list[Message] = []
        self.texts = HostTexts(clip, self.family, self._text_width)
        self.conditioning = HostConditioning(self._model, self.texts, self.device)
        self.pictures = HostPictures(self._patcher, vae)

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
    def _text_width(self) -> int | None:
        """The same, where it is what a CLIP has to encode with; other networks map texts of several encoders to it."""
        width = self.context_width
        return width if isinstance(width, int) and is_unet(self.network) else None

    # ---- what can be trained -----------------------------------------------------------------------------------------

    def layers(self) -> Mapping[str, nn.Module]:
        named = {
            path: m for path, m in self.network.named_modules() if path in self._names and reached(self._model, path)
        }
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

    def text_layers(self) -> Mapping[str, nn.Module]:
        return self.texts.layers()

    def token_tables(self) -> Mapping[str, TokenTable]:
        return self.texts.token_tables()

    @property
    def text_device(self) -> torch.device:
        return self.texts.device

    @contextlib.contextmanager
    def weight(self, layer: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        with torch.inference_mode(), fetched_weights(layer, torch.float32, self.device) as (weight, bias):
            factor = input_factor(layer, weight)
            effective = weight if factor is None else weight * factor
            yield as_normal(effective), None if bias is None else as_normal(bias)

    def file_name(self, path: str) -> str:
        return self._names[path] if path in self._names else self.texts.names[path]

    def fingerprint(self) -> str:
        return patched_fingerprint(self._patcher, self.network, "diffusion_model.")

    @property
    def clip_skip(self) -> int | None:
        """As CLIP Set Last Layer has it, for models whose text is read from a chosen layer."""
        return self.texts.clip_skip if self.family in CLIP_SKIPPED else None

    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        with blamed("model.unopened", "model"):
            model = described(self._patcher, self._sampling, config)
        return dataclasses.replace(model, clip_skip=self.clip_skip)

    def objective(self, config: ObjectiveConfig) -> HostObjective:
        prediction, sampling = self.base_model(config).predicts.prediction, self._sampling
        if prediction != kind_of(sampling):  # as the job wants it; samples are drawn so too
            sampling = sampling_for(prediction, sampling)
            self._patcher.add_object_patch("model_sampling", sampling)
        return host_objective(sampling, config)

    def find_non_finite(self) -> str | None:
        for name, p in self.network.named_parameters():
            at_hand = p.is_floating_point() and p.device.type != "meta" and not hasattr(p, "_qdata")
            if at_hand and not torch.isfinite(p.detach().float()).all():
                return name
        return None

    # ---- pictures and texts ------------------------------------------------------------------------------------------

    @property
    def latent_step_px(self) -> int:
        return self.pictures.step_px

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._further is not None:  # a picture comes with a caption alone
            raise self._further.error("model")
        return self.pictures.encode(pixels)

    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pictures.encode_spread(pixels)

    def encode_wired(self, samples: torch.Tensor) -> torch.Tensor:
        return self.pictures.encode_wired(samples)

    def picture_fingerprint(self) -> str:
        return self.pictures.fingerprint()

    def text_fingerprint(self) -> str:
        return self.texts.fingerprint

    def keep_texts(self, store: Store) -> None:
        self.texts.keep(store)

    def know_text(self, caption: str, file: Path) -> None:
        self.texts.know(caption, file)

    def text_length(self, caption: str) -> TextLength:
        return self.texts.length(caption)

    def encode_texts(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        self.texts.encode_ahead(captions, progress)

    def forget_texts(self) -> None:
        self.texts.forget()

    # ---- training ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def training(
        self,
        layers: Mapping[str, nn.Module],
        adapters: AdapterSet,
        recompute: Recompute = Recompute.NONE,
        largest: tuple[int, ...] = (),
    ) -> Iterator[None]:
        if adapters.changes_text and self.texts.any_wired:
            raise LoomError("dataset.texts_encoded", field="dataset")
        self._require_further_input()
        text_names = set(self.texts.names.values()) if adapters.changes_text else set()
        ours = {name: m for name, m in layers.items() if name not in text_names}
        theirs = {name: m for name, m in layers.items() if name in text_names}
        place = place_of(self.device, self.dtype)
        measures = Measures(bool(recompute), guard=not is_pure(self.network), place=place)
        borrowing = Borrowing(self.network, ours, adapters.only(ours), LAYERS, measures)
        self._borrowing = borrowing
        try:
            self._patcher.set_injections(KEY, [injection(borrowing)])
            self.texts.lend(adapters, theirs)
            self._needed_bytes = self._memory_for(adapters, recompute, largest)
            with torch.inference_mode(False), self._kernels:
                self._load()
                self._require_further_input()
                adapters.prepare()  # some kinds cannot run before
                self._prove(borrowing, adapters.only(ours), self._trials(largest, measures))
                adapters.weights_changed()  # what was derived from them belongs to the test, and to inference mode
                with writing(borrowing.measures):
                    yield
        finally:
            self._hand_back()

    def remarks(self) -> Sequence[Message]:
        """What there is to say about how the model is trained, since `training` was entered."""
        return tuple(self._remarks)

    def _prove(self, borrowing: Borrowing, adapters: AdapterSet, trials: Trials) -> None:
        """The self-test. Raises LoomError for what cannot be trained, and says what is at fault; chooses the first way that is exact."""
        self._remarks = []
        borrowing.eject()
        prove_layers(self.network, place_of(self.device, self.dtype), DIFFUSION)
        self.texts.prove()
        borrowing.inject()
        shapes = trials.that_run(self._check)
        if not borrowing.measures.guard or not adapters.parameters():
            return
        for shape in shapes:
            try:
                trial = functools.partial(self._trial, shape)
                verdict = verify(self.network, adapters, borrowing, trial, self.dtype)
            except OutOfMemoryError:
                if shape == shapes[-1]:
                    raise
                continue
            self._remarks = [verdict.remark] if verdict.remark else []
            return

    def _require_further_input(self, captions: Sequence[str] = ()) -> None:
        """Refuses a model that reads more than noise and text.

        Unless the conditioning that came from other nodes gives it, for each of `captions`, or for all there are.
        """
        if self._further is None:
            return
        encoded = self.texts.wired_for(captions)
        if not encoded or not all(text is not None and self._further.given_in(text[0][1]) for text in encoded):
            raise self._further.error("model")

    @contextlib.contextmanager
    def given_back(self) -> Iterator[None]:
        """Inside, the host has its models as they were before the run and may use them; the next step takes them again."""
        with self._kernels.paused():
            with torch.inference_mode():
                self._patcher.eject_model()
                self.texts.set_aside()
            yield
        self._reload = self._borrowing is not None

    def _hand_back(self) -> None:
        """Takes everything off again that training put on."""
        with torch.inference_mode():
            self._patcher.eject_model()
        self.texts.take_back()
        if self._borrowing is not None:
            self._borrowing.eject()
        self._patcher.remove_injections(KEY)
        self._borrowing = None

    def _memory_for(self, adapters: AdapterSet, recompute: Recompute, largest: tuple[int, ...]) -> int:
        """Bytes a step takes beside the model."""
        activations = self._model.memory_required(list(largest or (1, 4, 64, 64)))
        return int(adapters.count() * BYTES_PER_VALUE + activations * (1 if recompute else ACTIVATION_FACTOR))

    def _load(self) -> None:
        with blamed("model.unopened", "model"), torch.inference_mode():
            wanted = [self._patcher, *self.texts.patchers]
            comfy.model_management.load_models_gpu(wanted, memory_required=self._needed_bytes)
        self._further = further_input(self._model)  # a control LoRA widens the first layer when the host loads it

    def _trials(self, largest: tuple[int, ...], measures: Measures) -> Trials:
        form = self._patcher.get_model_object("latent_format")
        plain = (1, form.latent_channels, *[1] * (form.latent_dimensions - 2), *[64] * min(2, form.latent_dimensions))
        quick = measures.checkpointing or self._text_width is not None
        return Trials(plain, (1, *largest[1:]) if largest else None, small_first=quick)

    def _check(self, shape: tuple[int, ...]) -> None:
        """One forward pass on latents of this shape with a caption. Raises LoomError that blames the text or the model."""
        try:
            with torch.no_grad():
                answer = self._trial(shape)
        except BaseException as error:
            if not is_foreign(error):
                raise
            passing(error)
            caption = self.texts.any_caption()
            misfit = misfit_width(error, self.network, self.texts.text(literal(caption)))
            if misfit:
                raise LoomError("clip.width", field="clip", width=misfit[0], wanted=misfit[1]) from error
            raise self._stopped(shape, first_line(error)) from error
        if not torch.isfinite(answer).all():
            weight = self.find_non_finite()
            if weight:
                raise NonFiniteError("base.damaged", weight=weight, step=1)

    def _stopped(self, shape: tuple[int, ...], reason: str) -> LoomError:
        size = " x ".join(map(str, shape))
        return LoomError("model.stopped", field="model", network=type(self.network).__name__, size=size, reason=reason)

    def _trial(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A prediction for fixed noise of this shape and any caption."""
        x_t = torch.linspace(-1.5, 1.5, math.prod(shape), device=self.device).view(shape)
        sigma = self._patcher.get_model_object("model_sampling").sigmas
        height, width = shape[-2:] if len(shape) > 3 else (8, 8)
        side = (width * self.latent_step_px, height * self.latent_step_px)
        batch = Batch(x_t, [self.texts.any_caption()], [Fit(side, side, (0, 0), side)], ["self-test"], torch.ones(1))
        return self._predict(x_t, sigma[len(sigma) // 2].reshape(1), batch)

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        self._require_further_input(batch.captions)
        encoded_more = self.texts.learn(batch.captions)
        if self._borrowing is not None:
            off = not self._borrowing.installed or not self.texts.ready
            if encoded_more or self._reload or off:
                # The text encoder, or something else, may have taken the model's place since the last step.
                self._reload = False
                self._load()
            self._borrowing.choose_again()
        return self._predict(x_t, sigma, batch)

    @property
    def _one_level_a_pass(self) -> bool:
        """Whether the network (HunyuanImage, distilled to mean flow) is also told the level it should step to, one for the whole batch."""
        return getattr(self.network, "time_r_in", None) is not None

    def _predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        sigma = sigma.to(x_t.device, torch.float32)
        groups = self.conditioning.of(batch, x_t, apart=self._one_level_a_pass)
        if len(groups) == 1:
            return self._apply_model(x_t, sigma, groups[0][1])
        parts = [self._apply_model(x_t[indices], sigma[indices], conds) for indices, conds in groups]
        order = torch.tensor([i for indices, _ in groups for i in indices], device=x_t.device)
        return torch.cat(parts)[order.argsort()]

    def _apply_model(self, x_t: torch.Tensor, sigma: torch.Tensor, conds: Conds) -> torch.Tensor:
        options = dict(self._patcher.model_options.get("transformer_options", {}))
        options |= {"optimized_attention_override": torch_attention, "cond_or_uncond": [0], "sigmas": sigma}
        if self._one_level_a_pass:
            options["sample_sigmas"] = sigma[:1].repeat(2)  # the next level is this one: the velocity at a point
        with raw_output(self._model.model_sampling):
            return self._model.apply_model(x_t, sigma, transformer_options=options, **conds)

    # ---- sampling ----------------------------------------------------------------------------------------------------

    def samplers(self) -> Samplers:
        """Those of the host, which takes its first one for a name it does not have."""
        return Samplers(comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS)

    def sample(self, job: SampleJob) -> list[Image.Image]:
        config, step = job.config, self.latent_step_px
        with self._kernels.paused(), self._loaded_after(), torch.inference_mode():
            device = comfy.model_management.intermediate_device()
            latent = torch.zeros(1, 4, job.height_px // step, job.width_px // step, device=device)
            latent = comfy.sample.fix_empty_latent_channels(self._patcher, latent)
            latents = comfy.sample.sample(
                self._patcher,
                comfy.sample.prepare_noise(latent, config.seed),
                config.steps,
                config.cfg,
                config.sampler,
                config.scheduler,
                self.texts.text(job.prompt),
                self.texts.text(config.negative),
                latent,
                seed=config.seed,
                disable_pbar=True,
            )
            return self.pictures.decode(latents)

    @contextlib.contextmanager
    def _loaded_after(self) -> Iterator[None]:
        """Makes the next step load the model again when sampling has taken its place, also after a sample that failed."""
        try:
            yield
        finally:
            self._reload = self._borrowing is not None


if TYPE_CHECKING:

    def _fulfils_the_protocols(
        backend: HostBackend,
    ) -> tuple[Backend, EncodesSpread, TakesWired, Remarks, NamesSamplers]:
        return backend, backend, backend, backend, backend
