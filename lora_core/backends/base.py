"""What the engine asks of a base model. A backend lends one model and takes it back unchanged when its `training` block ends."""

from __future__ import annotations

import dataclasses
import hashlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import nn

from ..adapters import AdapterSet
from ..adapters.tokens import TokenTable
from ..config import ObjectiveConfig, Recompute, SampleConfig
from ..data.batches import Batch
from ..data.lengths import TextLength
from ..data.shown import NOTHING, OfFrames, Showing, Shown
from ..data.store import Store
from ..messages.message import Message
from ..objectives import Objective
from .base_model import BaseModel


@dataclasses.dataclass(frozen=True)
class SampleJob:
    """One sample picture to draw, or with more than one of `frames` a clip; sizes in px. `shown`: the control pictures that it is an edit of.

    `frame_rate`: frames a second at which a clip is played; 0 where that is unknown.
    """

    prompt: str
    width_px: int
    height_px: int
    config: SampleConfig
    shown: Shown = NOTHING
    frames: int = 1
    frame_rate: float = 0.0

    def rng(self) -> torch.Generator:
        """The picture's own noise: on the CPU, so it is the same on every device."""
        return torch.Generator().manual_seed(self.config.seed)


UNKNOWN_ENCODER = "unknown"  # how the fingerprint of a picture encoder begins that cannot be told from others
TEXT_VERSION = 2  # of encoded captions in a store: counted up when the same caption would be read another way
TRAINING_GUIDANCE = 1.0  # guidance-distilled models (Flux.1-dev) are trained at 1, as sd-scripts and ai-toolkit do


@runtime_checkable
class EncodesSpread(Protocol):
    """A backend whose picture encoder is a distribution, from which latents can be drawn anew."""

    def encode_spread(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, H, W, 3) float32 in [0, 1] -> (mean, standard deviation), each (1, C, [T,] h, w) in the model's units."""


@runtime_checkable
class EncodesBeside(Protocol):
    """A backend whose network is told more about a picture than its latent and caption."""

    def encode_beside(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, H, W, 3) float32 in [0, 1] -> what the network gets beside the caption, with a batch dimension of 1."""


@runtime_checkable
class ShowsControls(Protocol):
    """A backend whose network is shown control pictures beside the caption."""

    def showing(self) -> Showing | None:
        """How it takes them; None for a model that takes none."""

    def encode_shown(self, pixels: torch.Tensor) -> torch.Tensor:
        """A control picture (1, H, W, 3) float32 in [0, 1] -> (1, C, [T,] h, w), as `predict` finds it in `Batch.shown`."""


def showing_of(backend: Backend) -> Showing | None:
    """How a backend shows control pictures, or first frames; None where it takes none."""
    return backend.showing() if isinstance(backend, ShowsControls) else None


@runtime_checkable
class EncodesClips(Protocol):
    """A backend whose picture encoder takes (frames, H, W, 3) as one clip and gives (1, C, T, h, w), if its model films."""

    def clip_lengths_near(self, frames: int) -> tuple[int, int] | None:
        """The allowed lengths at most and at least as long (0 where none is shorter); None for a model of single pictures."""


@runtime_checkable
class ShowsFirstFrames(Protocol):
    """A backend whose `showing` may be of films."""

    def encode_first_frame(self, pixels: torch.Tensor, last: bool = False) -> OfFrames:
        """A clip (frames, H, W, 3) float32 in [0, 1] -> what the network is shown of its first frame, each with a batch dimension of 1.

        `last`: of its last frame too.
        """

    def frame_fingerprint(self) -> str:
        """Identifies what sees those frames beside the VAE, an image encoder; empty where nothing does."""


@runtime_checkable
class TrainsInTurn(Protocol):
    """A backend of several networks, one of which is trained at a time for `switch_every` steps."""

    trains_in_turn: bool


@runtime_checkable
class HasNetwork(Protocol):
    """A backend whose network lies in memory as a whole, or in parts that know their sizes."""

    network: nn.Module


@runtime_checkable
class EncodesShownTexts(Protocol):
    """A backend whose text encoder sees the control pictures too."""

    def encode_shown_texts(self, texts: Sequence[tuple[str, Shown]], progress: Callable[[int, int], None]) -> None:
        """Encodes captions with what is shown beside them ahead of time; `predict` finds them, as `encode_texts` has it."""


@runtime_checkable
class TakesWired(Protocol):
    """A backend that takes latents as other nodes of its host have them."""

    def encode_wired(self, samples: torch.Tensor) -> torch.Tensor:
        """(1, C, [T,] h, w) in the host's units -> the model's own units."""


@runtime_checkable
class Remarks(Protocol):
    """A backend that chooses by itself how its network is trained."""

    def remarks(self) -> Sequence[Message]:
        """What there is to say about the choice, inside `training`."""


@dataclasses.dataclass(frozen=True)
class Samplers:
    """What a backend draws samples with. `names` and `schedules`: those it follows, by the names of settings.

    `negative`: it reads a negative prompt; `guided`: guidance changes something; `fixed`: the sampler it has in place of one that can be named.
    """

    names: Sequence[str]
    schedules: Sequence[str]
    negative: bool = True
    guided: bool = True
    fixed: str = ""


@runtime_checkable
class NamesSamplers(Protocol):
    """A backend that says beforehand what it draws samples with."""

    def samplers(self) -> Samplers:
        """Whatever is asked for besides is refused or told before the first step."""


@runtime_checkable
class SkipsLayers(Protocol):
    """A backend that knows from which layer of CLIP captions are read."""

    @property
    def clip_skip(self) -> int | None:
        """Counted from the end, as WebUIs do; None for models that always read the same layers."""


@runtime_checkable
class CompilesBlocks(Protocol):
    """Of a model with repeated blocks."""

    def compile_blocks(self) -> None:
        """From now on they run compiled while the model is lent. Raises LoomError for a model that is not made of blocks."""


@runtime_checkable
class Splits(Protocol):
    """A backend whose frozen network can be split over several processes."""

    def shard(self, device: str) -> None:
        """Leaves this process its part of the network, on `device`."""


class Backend(Protocol):
    """A frozen text-to-image model."""

    @property
    def device(self) -> torch.device:
        """Where the network runs."""

    @property
    def text_device(self) -> torch.device:
        """Where the text encoders run while they are trained."""

    @property
    def dtype(self) -> torch.dtype:
        """The base model's arithmetic."""

    @property
    def latent_step_px(self) -> int:
        """Pictures must be multiples of this."""

    @property
    def recomputes(self) -> tuple[Recompute, ...]:
        """What it can make again in the backward pass, from the way that costs least time."""

    @property
    def family(self) -> str:
        """The base model's family in the words of the file formats, such as sd1 or flux1."""

    def layers(self) -> Mapping[str, nn.Module]:
        """Linear, convolution and norm layers that can carry an adapter, by the model's own module path."""

    def text_layers(self) -> Mapping[str, nn.Module]:
        """Linear layers of the text encoders that can carry an adapter, by `<encoder>.<path>`; empty where text encoders cannot be trained."""

    def token_tables(self) -> Mapping[str, TokenTable]:
        """The input embeddings of each CLIP text encoder, by ComfyUI's name for it (clip_l, clip_g, clip_h)."""

    def weight(self, layer: nn.Module) -> AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]:
        """The layer's (weight, bias) as its forward uses them, float32 on the training device, valid inside the block."""

    def file_name(self, path: str) -> str:
        """The layer's name in the file that will be written, e.g. lora_unet_mid_block_attentions_0_proj_in."""

    def fingerprint(self) -> str:
        """Identifies the base weights; two models that differ give different strings."""

    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        """What this model was found to be, decided with what the job says of it. Raises LoomError for what has to be said and is not."""

    def objective(self, config: ObjectiveConfig) -> Objective:
        """Noise schedule and prediction type of this model."""

    def encode_picture(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, H, W, 3) float32 in [0, 1] -> latents (1, C, [T,] h, w) in the model's own units."""

    def picture_fingerprint(self) -> str:
        """Identifies everything `encode_picture` depends on: the weights of the VAE, whole, and how its answer is scaled."""

    def keep_texts(self, store: Store) -> None:
        """From now on encoded captions are looked up in `store` first and kept there, while text encoders and tokens are the loaded ones."""

    def know_text(self, caption: str, file: Path) -> None:
        """Takes what stands for `caption` from a file that other nodes' conditioning was written to. Raises LoomError where there is no such thing."""

    def text_length(self, caption: str) -> TextLength:
        """How much of a caption the text encoders read, and in how many pieces."""

    def encode_texts(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        """Encodes captions ahead of time; `predict` finds them by text, as long as text encoders and tokens are not trained."""

    def text_fingerprint(self) -> str:
        """Identifies the weights of the text encoders."""

    def forget_texts(self) -> None:
        """Drops what was encoded: the text encoders or tokens have changed."""

    def training(
        self,
        layers: Mapping[str, nn.Module],
        adapters: AdapterSet,
        recompute: Recompute = Recompute.NONE,
        largest: tuple[int, ...] = (),
    ) -> AbstractContextManager[None]:
        """Adapters attached and the model ready for `predict` on batches up to the shape `largest`; all taken off again on exit, however the block ends."""

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The network's raw output for corrupted latents x_t (B, ...) at sigma (B,), float32, with gradients to the adapters."""

    def sample(self, job: SampleJob) -> list[Image.Image]:
        """Pictures drawn by the model's own sampler with whatever adapters are attached."""

    def find_non_finite(self) -> str | None:
        """Name of a base weight that is not finite, or None."""


def weights_checksum(module: nn.Module, instead: Mapping[str, torch.Tensor] | None = None) -> str:
    """Hash over sums of every weight's bits, so one changed number shows; for encoders too large to be hashed byte by byte at each start.

    `instead` gives the values of weights that are replaced at the moment.
    """
    return _digest(module, instead, _sums)


def _sums(value: torch.Tensor) -> torch.Tensor:
    """Of the bits as whole numbers in rows of 4096: all, and weighted by column and by row, so numbers that change places show too."""
    bits = value.contiguous().reshape(-1).view(torch.uint8)
    words = torch.nn.functional.pad(bits, (0, -len(bits) % 4)).view(torch.int32)
    table = torch.nn.functional.pad(words, (0, -len(words) % 4096)).view(-1, 4096)
    out = []
    for axis in (0, 1):
        sums = table.sum(axis, dtype=torch.int64)
        out += [sums.sum(), (sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum()]
    return torch.stack(out)


def _digest(
    module: nn.Module, instead: Mapping[str, torch.Tensor] | None, of: Callable[[torch.Tensor], torch.Tensor]
) -> str:
    """Hash over names, shapes, types and what `of` makes of the values that are at hand."""
    digest = hashlib.sha256()
    for name, p in module.named_parameters():
        value = (instead or {}).get(name, p).detach()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        if value.device.type != "meta" and value.numel() and not hasattr(value, "_qdata"):
            digest.update(of(value).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


_whole: weakref.WeakKeyDictionary[nn.Module, tuple[str, str]] = weakref.WeakKeyDictionary()


def whole_fingerprint(module: nn.Module) -> str:
    """Hash over every byte of every weight and buffer. Remembered for a module whose `weights_fingerprint` has not changed."""
    quick = weights_fingerprint(module)
    cached = _whole.get(module)
    if cached is None or cached[0] != quick:
        digest = hashlib.sha256()
        for name, value in module.state_dict().items():
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            if value.device.type != "meta":
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        cached = _whole[module] = quick, digest.hexdigest()
    return cached[1]


def weights_fingerprint(module: nn.Module, instead: Mapping[str, torch.Tensor] | None = None) -> str:
    """Hash over names, shapes and a few values of every weight: tells two models apart in milliseconds without reading them whole.

    `instead` gives the values of weights that are replaced at the moment.
    """
    return _digest(module, instead, _few)


def _few(value: torch.Tensor) -> torch.Tensor:
    """At most four of its values, spread over it, float32."""
    return value.reshape(-1)[:: max(1, value.numel() // 4)][:4].float()
