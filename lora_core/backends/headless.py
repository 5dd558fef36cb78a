"""What every headless backend does: one frozen network on one device, its layers, texts encoded once, adapters attached for as long as it is lent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..adapters import AdapterSet, attach
from ..adapters.tokens import TokenTable
from ..algebra.walk import is_norm
from ..data.lengths import TextLength
from ..data.store import Memory, Store, key_of
from ..messages.errors import LoomError
from .base import weights_fingerprint, whole_fingerprint
from .clip_text import Text, length_of
from .recompute import ALL, CHEAP, recomputed, worthwhile
from .stored import FP8, Streamed, as_fp8

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEXTS = 2  # counted up when the same caption would be read another way
MAX_TEXTS = 4000
MAX_GRAPHS = 256  # compiled for one kind of block; above it torch would fall back to slow steps without a word
LOCAL: dict[str, Any] = {"local_files_only": True}  # nothing is ever downloaded


def nearest_timestep(table: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(B,) entries of `table` (T,) that are closest to `sigma` (B,), both float64 on one device, on a logarithmic scale."""
    return (sigma.log()[:, None] - table.log()).abs().argmin(1)


class Headless:
    """A subclass names `network` and says how pictures and texts are encoded, what the network is asked, and how pictures are drawn."""

    network: Any
    latent_step_px: int
    parts: dict[str, Any]  # by the name of their folder
    prefix: str  # of the network's layers in files

    def __init__(self, precision: str, device: str, stored: torch.dtype = torch.float32):
        self.device = self.text_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        slow = stored == torch.float16 and self.device.type == "cpu"
        self.fp8 = stored == FP8
        self.dtype = DTYPES.get(precision, torch.float32 if slow else torch.bfloat16 if self.fp8 else stored)  # auto: as it is stored
        self.lent = False  # to a run, between whose steps encoders are not needed
        self._idle: list[Any] = []
        self._known_fingerprint = ""
        self._streamed: Streamed | None = None
        self.compile = False  # the blocks, while the network is lent
        self._texts: dict[str, Text] = {}
        self._trained = AdapterSet({})
        self._store: Store = Memory()

    @property
    def recomputes(self) -> tuple[str, ...]:
        if not getattr(self.network, "_supports_gradient_checkpointing", False):
            return ()
        return (ALL,) if self._streamed else (CHEAP, ALL)  # selective checkpointing would count the copies from main memory as results

    def place(self, module: Any) -> Any:
        return module.to(self.device).eval().requires_grad_(False)

    def place_network(self, network: Any) -> Any:
        """On the device; linear weights that are stored in fp8 stay so."""
        if self.fp8:
            as_fp8(blocks(network))
        return self.place(network)

    @property
    def stored(self) -> bool:
        """Whether weights are in fp8 or in main memory."""
        return self.fp8 or self._streamed is not None

    def idle(self, module: Any) -> Any:
        """Takes an encoder that is on the device only while it is needed."""
        self._idle.append(module.eval().requires_grad_(False))
        return module

    def wake(self, module: Any) -> Any:
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
        own = blocks(self.network)
        if not own:
            raise LoomError(f"storage: {type(self.network).__name__} does not say which of its parts are blocks; leave storage and offload alone.")
        self._known_fingerprint = self.fingerprint()
        self.to_device(device)
        if storage == "fp8" and not self.fp8:
            as_fp8(own)
            self.fp8 = True
        self._streamed = streamed = Streamed(own[len(own) - round(offload * len(own)) :], self.device) if offload else None
        for module in self.network.modules():
            for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if streamed is None or value is not getattr(module, "weight", None) or module not in streamed:
                    value.data = value.data.to(self.device)

    def shard(self, device: str) -> None:
        """Splits the frozen network over all processes (PyTorch FSDP2): each keeps a part, and a block is whole only while it computes.

        The network has to be on the CPU, so a device never holds more than its part and one block.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._known_fingerprint = self.fingerprint()
        self.to_device(device)
        mesh = init_device_mesh(self.device.type, (torch.distributed.get_world_size(),))
        for block in blocks(self.network):
            fully_shard(block, mesh=mesh)
        fully_shard(self.network, mesh=mesh)

    # ---- what can be trained -----------------------------------------------------------------------------------------

    def layers(self) -> Mapping[str, nn.Module]:
        return {path: m for path, m in self.network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) or is_norm(m)}

    def text_layers(self) -> Mapping[str, nn.Module]:
        return {}

    def token_tables(self) -> Mapping[str, TokenTable]:
        return {}

    def file_name(self, path: str) -> str:
        return f"{self.prefix}.{path}"

    @contextlib.contextmanager
    def weight(self, layer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        weight, bias = _whole(layer), None if layer.bias is None else _plain(layer.bias)
        yield weight.to(self.device, torch.float32), None if bias is None else bias.to(self.device, torch.float32)

    def fingerprint(self) -> str:
        return self._known_fingerprint or weights_fingerprint(self.network)  # as read, before it was split or narrowed

    def find_non_finite(self) -> str | None:
        return next((name for name, p in self.network.named_parameters() if not torch.isfinite(_own(p).float()).all()), None)

    # ---- pictures ----------------------------------------------------------------------------------------------------

    def picture_encoders(self) -> Sequence[nn.Module]:
        """The modules that `encode_picture` and `encode_beside` run."""
        raise NotImplementedError(f"{type(self).__name__} must name what encodes its pictures")

    def picture_fingerprint(self) -> str:
        return " ".join([type(self).__name__, *map(whole_fingerprint, self.picture_encoders())])

    # ---- texts -------------------------------------------------------------------------------------------------------

    def text_encoders(self) -> Sequence[nn.Module]:
        """The modules that `encode` runs."""
        return []

    def encode(self, texts: Sequence[str]) -> Text:
        """A batch of texts, with gradients where the caller has them on."""
        raise NotImplementedError(f"{type(self).__name__} must say how it encodes texts")

    def text_fingerprint(self) -> str:
        return ""

    def keep_texts(self, store: Store) -> None:
        self._store = store

    def know_text(self, caption: str, file: Path) -> None:
        raise LoomError(f"{file.name}: conditioning from other nodes belongs to a model in ComfyUI; train it there, or give pictures.")

    def text_length(self, caption: str) -> TextLength:
        return length_of(caption, self.parts["tokenizer"])

    @torch.no_grad()
    def encode_texts(self, captions: Sequence[str], progress: Callable[[int, int], None]) -> None:
        made_by = [TEXTS, type(self).__name__, self.text_fingerprint()] if captions else []
        for done, caption in enumerate(captions):
            progress(done, len(captions))
            if caption in self._texts:
                continue
            key = key_of("text", *made_by, caption)
            known = self._store.get(key)
            if known is None:
                known = self._store.put(key, {name: t for name, t in vars(self._encode_awake([caption])).items() if t is not None})
            self._texts[caption] = Text(**known)

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
        for module in self.text_encoders():
            self.wake(module)
        return self.encode(texts)

    # ---- training ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def training(self, layers: Mapping[str, nn.Module], adapters: AdapterSet, checkpointing: bool | str, largest: tuple[int, ...] = ()) -> Iterator[None]:
        network = self.network
        before, self._trained = getattr(network, "is_gradient_checkpointing", False), adapters
        if adapters.changes_text:
            self.forget_texts()
        self.rest()
        with attach(layers, adapters), compiled(blocks(network) if self.compile else ()):
            try:
                self.lent = True
                if checkpointing:
                    network.enable_gradient_checkpointing(
                        lambda module, x, *args: recomputed(module.__call__, checkpointing, x, *args) if worthwhile(module, x) else module(x, *args)
                    )
                    network.train()  # diffusers checkpoints only in training mode
                    for module in network.modules():
                        if isinstance(module, nn.Dropout):
                            module.eval()  # the base model is not regularised, and a recomputed block must be the same
                yield
            finally:
                self.lent = False
                network.eval()
                if checkpointing and not before:
                    network.disable_gradient_checkpointing()
                if adapters.changes_text:
                    self.forget_texts()
                self._trained = AdapterSet({})


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated parts of a diffusers network, as its own class names them."""
    kinds = set(getattr(network, "_no_split_modules", None) or ())
    found = [m for m in network.modules() if type(m).__name__ in kinds]
    inside = {id(inner) for m in found for inner in m.modules() if inner is not m}
    return [m for m in found if id(m) not in inside]


@contextlib.contextmanager
def compiled(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, each of the blocks runs compiled: one graph for each shape, shared by blocks that are alike."""
    if not blocks:
        yield
        return
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS, accumulated_recompile_limit=8 * MAX_GRAPHS):
        try:
            for block in blocks:
                block.compile(dynamic=False)
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None


def _whole(layer: Any) -> torch.Tensor:
    """The layer's weight, put together from all processes where it is split over them, and as numbers where bitsandbytes has packed it."""
    weight = layer.weight
    if getattr(weight, "quant_state", None) is not None:  # nf4, fp4
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    scales = getattr(weight, "SCB", None)
    if scales is None and hasattr(layer, "state"):
        scales = getattr(layer.state, "SCB", None)
    return _plain(weight) if scales is None else weight.data.float() * scales[:, None] / 127  # int8, a scale for each row


def _plain(weight: torch.Tensor) -> torch.Tensor:
    weight = weight.detach()
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _own(weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of it."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
