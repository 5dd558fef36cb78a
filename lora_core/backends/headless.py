"""What every headless backend does: one frozen network on one device, its layers, texts encoded once, adapters attached for as long as it is lent."""

from __future__ import annotations

import abc
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from torch import nn

from ..adapters import AdapterSet, attach
from ..adapters.base import Choice
from ..adapters.tokens import TokenTable
from ..algebra.walk import is_norm
from ..borrowing.frozen import is_ordinary, resident_only
from ..config import ObjectiveConfig, Recompute
from ..data.batches import Batch
from ..data.lengths import TextLength
from ..data.store import Memory, Store, key_of
from ..messages.blame import blamed
from ..messages.errors import LoomError
from ..objectives import Objective
from .base import TEXT_VERSION, Backend, NamesSamplers, SampleJob, Samplers, weights_fingerprint, whole_fingerprint
from .base_model import BaseModel
from .clip_text import Text, length_of
from .marks import Marks
from .networks import blocks, compiled, local_part, recomputing, unsplit, whole_weight
from .stored import FP8, Streamed, as_fp8

Module = TypeVar("Module", bound=nn.Module)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_TEXTS = 4000
CAPTION_PART = 60  # characters of a caption inside a sentence


def nearest_timestep(table: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(B,) entries of `table` (T,) that are closest to `sigma` (B,), both float64 on one device, on a logarithmic scale."""
    return (sigma.log()[:, None] - table.log()).abs().argmin(1)


class Headless(abc.ABC):
    """A subclass names `network` and says how pictures and texts are encoded, what the network is asked, and how pictures are drawn."""

    network: Any
    latent_step_px: int
    parts: Mapping[str, Any]  # by the name of their folder
    prefix: str  # of the network's layers in files

    def __init__(self, precision: str, device: str, stored: torch.dtype = torch.float32):
        self.device = self.text_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.fp8 = stored == FP8
        self.dtype = DTYPES.get(precision) or _arithmetic(stored, self.device)
        self.lent = False  # to a run, between whose steps encoders are not needed
        self._idle: list[nn.Module] = []
        self._first_fingerprint = ""
        self._streamed: Streamed | None = None
        self._compiles = False
        self.marks = Marks()  # what its file or folder tells
        self._texts: dict[str, Text] = {}
        self._trained = AdapterSet({})
        self._store: Store = Memory()

    @property
    @abc.abstractmethod
    def family(self) -> str:
        """The base model's family in the words of the file formats."""

    @property
    def side_px(self) -> int:
        """Of the square pictures that the model draws where nobody says a size, as far as its configs tell."""
        return 512

    @abc.abstractmethod
    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        """What this model was found to be, decided with what the job says of it."""

    @property
    def stored_type(self) -> str:
        """How the network's weights are kept, in a word: the type most of their values have."""
        sizes: Counter[str] = Counter()
        for p in self.network.parameters():
            sizes[str(p.dtype).removeprefix("torch.")] += p.numel()
        return sizes.most_common(1)[0][0] if sizes else "float32"

    @abc.abstractmethod
    def objective(self, config: ObjectiveConfig) -> Objective:
        """Noise schedule and prediction type of this model."""

    @abc.abstractmethod
    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The network's raw output, as the protocol says."""

    @abc.abstractmethod
    def sample(self, job: SampleJob) -> list[Image.Image]:
        """Pictures drawn by the model's own sampler."""

    @abc.abstractmethod
    def samplers(self) -> Samplers:
        """What samples are drawn with."""

    def use_vae(self, place: Path) -> None:
        """From now on pictures are encoded and decoded by the VAE at `place`. Raises LoomError where it cannot stand in."""
        raise LoomError("base_vae.impossible", field="base_vae", family=self.family)

    @property
    def recomputes(self) -> tuple[Recompute, ...]:
        if not getattr(self.network, "_supports_gradient_checkpointing", False):
            return ()
        if self._streamed:  # selective checkpointing would count the copies from main memory as results
            return (Recompute.ALL,)
        return (Recompute.CHEAP, Recompute.ALL)

    def compile_blocks(self) -> None:
        """From now on the network's blocks run compiled while it is lent. Raises LoomError for a network that is not made of blocks."""
        if not blocks(self.network):
            raise LoomError("compile.no_blocks", field="compile", network=type(self.network).__name__)
        self._compiles = True

    def remember_fingerprint(self) -> None:
        """The weights are about to be split or narrowed; what they are called stays."""
        self._first_fingerprint = self.fingerprint()

    def place(self, module: Module) -> Module:
        return module.to(self.device).eval().requires_grad_(False)

    def place_network(self, network: Module) -> Module:
        """On the device; linear weights that are stored in fp8 stay so."""
        if self.fp8:
            as_fp8(blocks(network))
        return self.place(network)

    @property
    def stored(self) -> bool:
        """Whether weights are in fp8 or in main memory."""
        return self.fp8 or self._streamed is not None

    def idle(self, module: Module) -> Module:
        """Takes an encoder that is on the device only while it is needed."""
        self._idle.append(module.eval().requires_grad_(False))
        return module

    def wake(self, module: Module) -> Module:
        return module.to(self.device)

    def rest(self) -> None:
        """Takes all encoders off the device."""
        if self.device.type != "cpu":
            for module in self._idle:
                module.to("cpu")

    def to_device(self, device: str) -> None:
        """Where everything but the network goes from now on."""
        self.device = self.text_device = torch.device(device)

    def store(self, storage: str, offload: float, device: str = "") -> None:
        """Keeps linear weights in fp8 where asked, the last `offload` of the blocks in main memory, and puts the rest on the device.

        The network has to be on the CPU with nothing attached; it stays so for good.
        """
        repeated = blocks(self.network)
        if not repeated:
            raise LoomError("storage.no_blocks", field="storage", network=type(self.network).__name__)
        self.remember_fingerprint()
        self.to_device(device)
        if storage == "fp8" and not self.fp8:
            as_fp8(repeated)
            self.fp8 = True
        if offload:
            count = round(offload * len(repeated))
            self._streamed = Streamed(repeated[len(repeated) - count :], self.device)
        streamed = self._streamed
        for module in self.network.modules():
            for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if streamed is None or value is not getattr(module, "weight", None) or module not in streamed:
                    value.data = value.data.to(self.device)

    # ---- what can be trained -----------------------------------------------------------------------------------------

    def layers(self) -> Mapping[str, nn.Module]:
        return {
            path: m for path, m in self.network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) or is_norm(m)
        }

    def text_layers(self) -> Mapping[str, nn.Module]:
        return {}

    def token_tables(self) -> Mapping[str, TokenTable]:
        return {}

    def file_name(self, path: str) -> str:
        return f"{self.prefix}.{path}"

    @contextlib.contextmanager
    def weight(self, layer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        weight = whole_weight(layer).to(self.device, torch.float32)
        yield weight, None if layer.bias is None else unsplit(layer.bias).to(self.device, torch.float32)

    def fingerprint(self) -> str:
        return self._first_fingerprint or weights_fingerprint(self.network)

    def find_non_finite(self) -> str | None:
        for name, p in self.network.named_parameters():
            if not torch.isfinite(local_part(p).float()).all():
                return name
        return None

    # ---- pictures ----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, H, W, 3) float32 in [0, 1] -> latents (1, C, [T,] h, w) in the model's own units."""

    @abc.abstractmethod
    def picture_encoders(self) -> Sequence[nn.Module]:
        """The modules that `encode_picture` and `encode_beside` run."""

    def picture_fingerprint(self) -> str:
        return " ".join([type(self).__name__, *map(whole_fingerprint, self.picture_encoders())])

    # ---- texts -------------------------------------------------------------------------------------------------------

    def text_encoders(self) -> Sequence[nn.Module]:
        """The modules that `encode` runs."""
        return []

    @abc.abstractmethod
    def encode(self, texts: Sequence[str]) -> Text:
        """A batch of texts, with gradients where the caller has them on."""

    def text_fingerprint(self) -> str:
        return ""

    def keep_texts(self, store: Store) -> None:
        self._store = store

    def know_text(self, caption: str, file: Path) -> None:
        raise LoomError("base.no_wired_texts", file=file.name)

    def text_length(self, caption: str) -> TextLength:
        return length_of(caption, self.parts["tokenizer"])

    @torch.no_grad()
    def encode_texts(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        made_by = [TEXT_VERSION, type(self).__name__, self.text_fingerprint()] if captions else []
        for done, caption in enumerate(captions):
            progress(done, len(captions))
            if caption in self._texts:
                continue
            key = key_of("text", *made_by, caption)
            stored = self._store.get(key)
            if stored is None:
                stored = self._store.put(key, self._encode_awake([caption]).tensors())
            self._texts[caption] = Text(**stored)
        progress(len(captions), len(captions))

    def forget_texts(self) -> None:
        self._texts.clear()

    def encoded(self, texts: Sequence[str]) -> Text:
        """One batch of texts: while text encoders or tokens are trained, encoded anew; else each encoded once."""
        if self._trained.trains_text:
            return self._encode_awake(texts)
        for text in dict.fromkeys(texts):
            if text not in self._texts:  # only captions that vary get here: kept for a while, in memory
                if len(self._texts) > MAX_TEXTS:
                    self._texts.clear()
                with torch.no_grad():
                    self._texts[text] = self._encode_awake([text])
                if self.lent:
                    self.rest()
        return Text.joined([self._texts[t] for t in texts]).on(self.device)

    def _encode_awake(self, texts: Sequence[str]) -> Text:
        caption = repr(texts[0] if len(texts[0]) <= CAPTION_PART else f"{texts[0][:CAPTION_PART]}…")
        with blamed("base.text_failed", "base", memory="base.text_memory", family=self.family, caption=caption):
            for module in self.text_encoders():
                self.wake(module)
            return self.encode(texts)

    def _choices(self, recompute: Recompute) -> Callable[[nn.Module], Choice | None]:
        """Which layers run as one node with their adapter: ordinary ones, unless operators are compiled, or picked out one by one to be kept."""
        apart = self._compiles or recompute == Recompute.CHEAP
        return (lambda layer: None) if apart else _resident

    # ---- training ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def training(
        self,
        layers: Mapping[str, nn.Module],
        adapters: AdapterSet,
        recompute: Recompute = Recompute.NONE,
        largest: tuple[int, ...] = (),
    ) -> Iterator[None]:
        self._trained = adapters
        if adapters.changes_text:
            self.forget_texts()
        self.rest()
        with (
            attach(layers, adapters, self._choices(recompute)),
            compiled(blocks(self.network) if self._compiles else ()),
        ):
            try:
                self.lent = True
                with recomputing(self.network, recompute):
                    yield
            finally:
                self.lent = False
                self.network.eval()
                if adapters.changes_text:
                    self.forget_texts()
                self._trained = AdapterSet({})


def _resident(layer: nn.Module) -> Choice | None:
    return resident_only(layer) if is_ordinary(layer) else None


def _arithmetic(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The type a network computes in that is stored as `stored`: the same, where the device is quick in it."""
    if stored == FP8:
        return torch.bfloat16
    return torch.float32 if stored == torch.float16 and device.type == "cpu" else stored


if TYPE_CHECKING:

    def _fulfils_the_protocols(backend: Headless) -> tuple[Backend, NamesSamplers]:
        return backend, backend
