"""The model that reForge has loaded: its `ldm_patched` is a ComfyUI of its own, so ComfyUI's backend trains there.

The names `comfy` stand for `ldm_patched` only while our own files are imported: a real `comfy` of another extension is left alone.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from ldm_patched.modules.model_sampling import rescale_zero_terminal_snr_sigmas
from modules import shared

from ....lora_core.messages.errors import LoomError
from ....lora_core.messages.message import Message
from .first_forge import untiled
from .host import loaded_model, model_file, pictures_end_in_noise, wanted_model
from .reforge_texts import readable

PURE_NOISE = 1000.0  # sigma of a last noise level with next to no signal; usual schedules end at 15
LAYERS_LEFT_OUT = 2  # at least, by the text encoders of Stable Diffusion 2 and XL, from the last one
_PARTS = {"comfy.ldm": "ldm_patched.ldm", "comfy": "ldm_patched.modules"}  # the longer names first


def _real_name(name: str) -> str | None:
    for ours, theirs in _PARTS.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    return None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives `comfy.x` as the very module `ldm_patched.modules.x`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        real = _real_name(name)
        if real is None:
            return None
        module = importlib.import_module(real)
        self._specs[name] = module, module.__spec__
        return importlib.machinery.ModuleSpec(name, self, is_package=hasattr(module, "__path__"))

    def __init__(self) -> None:
        self._specs: dict[str, tuple[ModuleType, Any]] = {}

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self._specs[spec.name][0]

    def exec_module(self, module: ModuleType) -> None:
        """It is loaded already."""

    def give_back(self) -> None:
        """The modules say again who they are: importing them under another name has changed it."""
        for module, spec in self._specs.values():
            module.__spec__, module.__name__ = spec, spec.name
            module.__loader__, module.__package__ = spec.loader, spec.parent


@contextlib.contextmanager
def comfy_names() -> Iterator[None]:
    """Inside, `import comfy` means the host's own ComfyUI; afterwards the name is as it was."""
    before = {name: module for name, module in sys.modules.items() if name == "comfy" or name.startswith("comfy.")}
    for name in before:
        del sys.modules[name]
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n == "comfy" or n.startswith("comfy.")]:
            del sys.modules[name]
        sys.modules.update(before)
        finder.give_back()


def _to_pure_noise(unet: Any) -> Any:
    """The MODEL with the noise levels of pictures: where they end in pure noise, the host puts those in for the time of each picture alone."""
    sampling = unet.get_model_object("model_sampling")
    if not hasattr(sampling, "set_sigmas") or float(sampling.sigmas[-1]) > PURE_NOISE:
        return unet
    drawn, levels = unet.clone(), copy.deepcopy(sampling)
    levels.set_sigmas(rescale_zero_terminal_snr_sigmas(sampling.sigmas))
    drawn.add_object_patch("model_sampling", levels)
    return drawn


with comfy_names():
    from ...host.engine.backend import HostBackend


class Loan:
    """ComfyUI's backend on reForge's objects. Raises LoomError where no checkpoint is loaded."""

    def __init__(self) -> None:
        self._model = wanted_model()
        objects = getattr(self._model, "forge_objects_original", None)
        if objects is None:
            raise LoomError("webui.no_model", host="reForge")
        self.settled = self.settle()
        ends_in_noise = pictures_end_in_noise() or bool(getattr(self._model, "ztsnr", False))
        unet = _to_pure_noise(objects.unet) if ends_in_noise else objects.unet
        self.backend = HostBackend(unet, self._read(objects.clip), objects.vae)
        self.backend.file = model_file(self._model)
        self.backend.texts.reading = functools.partial(readable, objects.clip.cond_stage_model)
        self.backend.texts.copies_vectors = False  # inside of that

    def _read(self, clip: Any) -> Any:
        """The text encoders as the option *Clip skip* has pictures' prompts read."""
        skip = int(shared.opts.CLIP_stop_at_last_layers)
        if skip > (1 if getattr(self._model, "is_sd1", False) else LAYERS_LEFT_OUT):
            clip = clip.clone()
            clip.clip_layer(-skip)
        return clip

    def settle(self) -> list[Message]:
        """Tiling alone: LoRAs are patches of clones, which the host takes off when it loads ours."""
        return untiled(self._model)

    @contextlib.contextmanager
    def given_back(self) -> Iterator[None]:
        with self.backend.given_back():
            yield
        if loaded_model() is not self._model:
            raise LoomError("webui.model_changed")
        self.settle()
