"""What the backends of A1111, Forge and Forge classic have in common: a model lent in place, settled first, given back for each picture the host draws."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import nn

from ....convert.results import kohya_name_of_native
from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.tokens import TokenTable
from ....lora_core.algebra.walk import is_norm
from ....lora_core.backends.base import (
    Backend,
    EncodesSpread,
    NamesSamplers,
    SampleJob,
    Samplers,
    ShowsControls,
    SkipsLayers,
    weights_fingerprint,
)
from ....lora_core.backends.base_model import BaseModel, Strength, Witness, predicts
from ....lora_core.borrowing.borrow import Borrowing, Measures
from ....lora_core.borrowing.frozen import place_of
from ....lora_core.borrowing.layers import HostLayers
from ....lora_core.config import ObjectiveConfig, Recompute
from ....lora_core.data.batches import Batch
from ....lora_core.data.buckets import Fit
from ....lora_core.data.lengths import TextLength
from ....lora_core.data.shown import Showing
from ....lora_core.data.store import Store
from ....lora_core.messages.errors import LoomError
from ....lora_core.messages.message import Message
from ....lora_core.objectives import NoiseLevels, Objective
from . import drawing
from .captions import Captions, Encoded, TextEncoders, lengthened
from .check import require_exact
from .host import loaded_model, model_file
from .joined import Joined
from .lending import Lending

PROBE_PX = 64  # of the latent on which a lent model is tried out
ACTIVATION_FACTOR = 3  # of a forward and backward over a host's estimate for sampling
BYTES_PER_VALUE = 4 * 4  # an adapter's value, its gradient and two Adam moments in fp32


class WebUIBackend(abc.ABC):
    """A subclass says where the host keeps its model, and how it is asked.

    `settled`: what the last picture had left in the model and was taken out. `joined`: what the network reads beside the noise, where it does.
    """

    recomputes = (Recompute.ALL,)
    latent_step_px = 8
    device: torch.device
    text_device: torch.device
    dtype: torch.dtype
    host: HostLayers
    pure = True  # blocks never update a tensor that autograd still needs
    joined: Joined | None = None

    def __init__(self, encoders: TextEncoders):
        self._encoders, self.captions = encoders, Captions(encoders)
        self.settled: list[Message] = []
        self._lending: Lending | None = None
        self._levels: NoiseLevels | None = None  # of the objective that was asked for last
        self._adapters = AdapterSet({})
        self._largest: tuple[int, ...] = ()  # shape of the largest batch
        self._identity = ""  # of the network while it is lent

    # ---- what a host has to say --------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def network(self) -> nn.Module:
        """The diffusion model."""

    @property
    @abc.abstractmethod
    def family(self) -> str:
        """In the words of the file formats."""

    @property
    def context_width(self) -> int | None:
        """Width of the text the model reads; None where the family says it all."""
        return None

    @property
    @abc.abstractmethod
    def prediction(self) -> str:
        """epsilon, v or flow, as the host has the model loaded. Raises LoomError for others."""

    @property
    def ends_in_noise(self) -> bool:
        """Whether the host's last noise level is pure noise."""
        return False

    @property
    def guidance(self) -> float | None:
        """What the model embeds and is trained at; None where it embeds none."""
        return None

    def shift(self, config: ObjectiveConfig) -> float | None:
        """The time shift of a flow model."""
        return None

    @abc.abstractmethod
    def objective_of(self, config: ObjectiveConfig) -> Objective:
        """Noise schedule and prediction type."""

    @abc.abstractmethod
    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, standard deviation) of the latents."""

    @abc.abstractmethod
    def picture_fingerprint(self) -> str:
        """Identifies the VAE."""

    @abc.abstractmethod
    def settle(self) -> list[Message]:
        """Takes out what pictures leave in the model, and says what it was. Raises LoomError for what cannot be taken out."""

    @abc.abstractmethod
    def at_hand(self) -> bool:
        """Whether the host still has this model loaded, where it can be asked."""

    @abc.abstractmethod
    def load(self) -> None:
        """Asks the host to put the model where it runs, before a step that may find it elsewhere."""

    @abc.abstractmethod
    def ask(
        self, x_t: torch.Tensor, sigma: torch.Tensor, texts: Encoded, fits: Sequence[Fit], beside: torch.Tensor | None
    ) -> torch.Tensor:
        """The network's raw output for x_t (B, ...) at sigma (B,), with what it reads `beside` the noise (B, ...)."""

    def join(self, texts: Sequence[Encoded]) -> Encoded | None:
        """The texts of a batch as one; None for texts that cannot be."""
        parts = {name: [text[name] for text in texts] for name in texts[0]}
        longest = max(part.shape[1] for part in parts["crossattn"])
        parts["crossattn"] = [lengthened(part, longest) for part in parts["crossattn"]]
        return {name: torch.cat(of_texts) for name, of_texts in parts.items()}

    @abc.abstractmethod
    def draw(self, job: SampleJob, adapters: AdapterSet) -> list[Image.Image]:
        """Pictures by the host's own sampler."""

    def differentiable(self) -> AbstractContextManager[None]:
        """A block in which the host computes by code that has gradients, where they are wanted."""
        return contextlib.nullcontext()

    @property
    def clip_skip(self) -> int | None:
        """The host's option *Clip skip*, for models whose captions are read by it."""
        return self._encoders.clip_skip

    def samplers(self) -> Samplers:
        """Those of the host, which would take Euler for a name it does not have."""
        return drawing.samplers()

    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        loaded = Witness(Message.of("base.source.host"), self.prediction, self.ends_in_noise, Strength.WEIGHTS)
        decided = predicts([loaded], config, "model", (self.prediction,))  # samples are drawn as the host has it
        stored = str(next(self.network.parameters()).dtype).removeprefix("torch.")
        return BaseModel(
            self.family,
            decided,
            self._channels(),
            stored,
            self.guidance,
            self.shift(config),
            field="model",
            clip_skip=self.clip_skip,
            file=model_file(loaded_model()),
        )

    def objective(self, config: ObjectiveConfig) -> Objective:
        made = self.objective_of(config)
        self._levels = made.levels
        return made

    # ---- what can be trained -----------------------------------------------------------------------------------------

    def layers(self) -> Mapping[str, nn.Module]:
        convolutions = nn.Conv1d | nn.Conv2d | nn.Conv3d
        named = self.network.named_modules()
        return {path: m for path, m in named if self.host.is_linear(m) or isinstance(m, convolutions) or is_norm(m)}

    def text_layers(self) -> Mapping[str, nn.Module]:
        return self.text_projections()

    @contextlib.contextmanager
    def weight(self, layer: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        with torch.inference_mode(), self.host.fetched(layer, torch.float32, self.device) as (weight, bias):
            yield self.host.alias(weight.detach()), None if bias is None else self.host.alias(bias.detach())

    def file_name(self, path: str) -> str:
        encoder = path.split(".", 1)[0]
        if encoder in ("clip_l", "clip_g", "clip_h", "t5xxl"):
            return self.text_file_name(path)
        if self.family in ("sd1", "sd2", "sd2-v", "sdxl"):
            return kohya_name_of_native(self.family, path)
        return f"diffusion_model.{path}"

    def fingerprint(self) -> str:
        return weights_fingerprint(self.network)

    def find_non_finite(self) -> str | None:
        for name, p in self.network.named_parameters():
            if p.is_floating_point() and not torch.isfinite(p.detach().float()).all():
                return name
        return None

    # ---- pictures and texts ------------------------------------------------------------------------------------------

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encode_spread(pixels)[0]

    def showing(self) -> Showing | None:
        return self.joined.showing() if self.joined is not None else None

    def encode_shown(self, pixels: torch.Tensor) -> torch.Tensor:
        assert self.joined is not None
        return self.joined.factor * self.encode_picture(pixels)

    def text_length(self, caption: str) -> TextLength:
        return self._encoders.length(caption)

    def text_projections(self) -> Mapping[str, nn.Module]:
        return self._encoders.layers()

    def text_modules(self) -> Sequence[nn.Module]:
        return self._encoders.modules()

    def text_file_name(self, path: str) -> str:
        return self._encoders.file_name(path)

    def token_tables(self) -> Mapping[str, TokenTable]:
        return self._encoders.token_tables()

    def keep_texts(self, store: Store) -> None:
        self.captions.keep(store)

    def know_text(self, caption: str, file: Path) -> None:
        raise LoomError("base.no_wired_texts", file=file.name)

    def encode_texts(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        self.captions.encode_ahead(captions, progress)

    def text_fingerprint(self) -> str:
        return self.captions.fingerprint

    def forget_texts(self) -> None:
        self.captions.forget()

    # ---- training ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def training(
        self,
        layers: Mapping[str, nn.Module],
        adapters: AdapterSet,
        recompute: Recompute = Recompute.NONE,
        largest: tuple[int, ...] = (),
    ) -> Iterator[None]:
        text_names = {self.text_file_name(path) for path in self.text_projections()} if adapters.changes_text else set()
        ours = {name: m for name, m in layers.items() if name not in text_names}
        theirs = {name: m for name, m in layers.items() if name in text_names}
        place = place_of(self.device, self.dtype)
        measures = Measures(bool(recompute), guard=not self.pure, place=place)
        network = Borrowing(self.network, ours, adapters.only(ours), self.host, measures)
        borrowings, modules = [network], [self.network]
        if adapters.changes_text:
            parts = nn.ModuleList([*self.text_modules(), *theirs.values()])
            text_measures = Measures(guard=not self.pure)
            borrowings.append(Borrowing(parts, theirs, adapters.only(theirs), self.host, text_measures))
            modules.append(parts)
        self.settled += self.settle()
        self._identity = self.fingerprint()
        self._adapters, self._largest = adapters, largest
        self._lending = Lending(borrowings, modules, self.differentiable)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                self.captions.lend(adapters)
                if not adapters.changes_text:
                    self.captions.of("")  # before the network is loaded: the text encoder might take its place
                self.load()
                self._lending.on()
                adapters.prepare()  # some kinds cannot run before
                if len(ours):
                    require_exact(self.network, adapters.only(ours), network, self._tiny_forward, self.dtype)
                adapters.weights_changed()  # what was derived from them belongs to the self-test
                yield
        finally:
            self._lending.off()
            self._lending, self._adapters = None, AdapterSet({})
            self.captions.lend(AdapterSet({}))

    @contextlib.contextmanager
    def given_back(self) -> Iterator[None]:
        """Inside, the host has its model as it was before the run and may draw pictures. Raises LoomError when it has another one afterwards."""
        lending = self._lending if self._lending is not None and self._lending.installed else None
        if lending is not None:
            lending.off()
        yield
        self.require_at_hand()
        self.settle()
        if lending is not None:
            if self.fingerprint() != self._identity:
                raise LoomError("webui.model_changed")
            self.load()
            lending.on()

    @contextlib.contextmanager
    def _taken_off(self) -> Iterator[None]:
        """Inside, nothing of the run is on the host's model, which may be moved."""
        lending = self._lending if self._lending is not None and self._lending.installed else None
        if lending is not None:
            lending.off()
        yield
        if lending is not None:
            lending.on()

    def _bytes_beside(self, for_sampling: Callable[[tuple[int, ...]], float]) -> float:
        """What a run needs beside the model, by the host's estimate for sampling latents of a shape."""
        shape = self._largest if len(self._largest) == 4 else (1, self._channels(), 64, 64)
        return BYTES_PER_VALUE * self._adapters.count() + ACTIVATION_FACTOR * for_sampling(shape)

    def require_at_hand(self) -> None:
        """Raises LoomError when the host has unloaded the model or taken another one."""
        if not self.at_hand():
            raise LoomError("webui.model_changed")

    def _tiny_forward(self) -> torch.Tensor:
        """A prediction at the middle noise level for a tiny latent drawn from a fixed seed."""
        side, channels = PROBE_PX // self.latent_step_px, self._channels()
        rng = torch.Generator().manual_seed(0)
        x_t = torch.randn(1, channels, side, side, generator=rng).to(self.device)
        levels = self._levels or self.objective(ObjectiveConfig()).levels
        sigma = levels(torch.tensor([0.5], dtype=torch.float64)).to(self.device)
        size = Fit((PROBE_PX, PROBE_PX), (PROBE_PX, PROBE_PX), (0, 0), (PROBE_PX, PROBE_PX))
        beside = self.joined.of([self.joined.example(x_t)], x_t) if self.joined is not None else None
        return self.ask(x_t, sigma, {k: v.detach() for k, v in self.captions.of("").items()}, [size], beside)

    def _channels(self) -> int:
        return 4

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        self.require_at_hand()
        texts = [self.captions.of(caption) for caption in batch.captions]
        self.load()  # the text encoder, a sample or the host's user may have taken the network's place
        if self._lending is not None:
            self._lending.choose_again()
        beside = self.joined.of(batch.shown, x_t) if self.joined is not None else None
        together = self.join(texts)
        if together is not None:
            return self.ask(x_t, sigma, together, batch.fits, beside)
        questions = [(x_t[n : n + 1], sigma[n : n + 1], text, [batch.fits[n]]) for n, text in enumerate(texts)]
        return torch.cat([self.ask(*one, None) for one in questions])  # texts that cannot be joined are Flux.1's

    def sample(self, job: SampleJob) -> list[Image.Image]:
        self.require_at_hand()
        try:
            return self.draw(job, self._adapters)
        finally:
            self.load()

    def beside(self, job: SampleJob) -> torch.Tensor | None:
        """What the network reads beside the noise of a sample; None where that is for the host to say."""
        size = (job.height_px // self.latent_step_px, job.width_px // self.latent_step_px)
        return self.joined.of_sample(job.shown, size) if self.joined is not None else None


if TYPE_CHECKING:

    def _fulfils_the_protocols(
        backend: WebUIBackend,
    ) -> tuple[Backend, EncodesSpread, NamesSamplers, SkipsLayers, ShowsControls]:
        return backend, backend, backend, backend, backend
