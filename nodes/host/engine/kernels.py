"""ComfyUI's differentiable kernels in place of those without gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch

from ....lora_core.borrowing.aliases import replaced


class TrainingKernels:
    """The host's own switch to differentiable code paths, and eager kernels where it has none. `stop` puts back what was there."""

    def __init__(self) -> None:
        self._undo: contextlib.ExitStack | None = None

    @property
    def on(self) -> bool:
        return self._undo is not None

    def start(self) -> None:
        with contextlib.ExitStack() as undo:
            if hasattr(comfy.model_management, "in_training"):
                undo.enter_context(replaced(comfy.model_management, "in_training", True))
            for module, name, value in (*_eager_kernels(), *_language_models()):
                undo.enter_context(replaced(module, name, value))
            self._undo = undo.pop_all()

    def stop(self) -> None:
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo.close()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The host's normal kernels, for as long as it samples."""
        was_on = self.on
        self.stop()
        try:
            yield
        finally:
            if was_on:
                self.start()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def torch_attention(original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    """PyTorch attention whatever the host would choose: differentiable, O(n) memory, and the same in forward and recompute."""
    return attention_pytorch(*args, **kwargs)


class _Torch:
    """torch for a module of the host that has sums written over their input (`torch.add(..., out=x)`), which autograd refuses: here they are new tensors."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def add(
        one: torch.Tensor, other: torch.Tensor, *, alpha: float = 1, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.add(one, other, alpha=alpha)


def _language_models() -> list[tuple[Any, str, Any]]:
    """The host's language models (Qwen, Gemma, Mistral, Llama), whose blocks write their sums over their input."""
    try:
        import comfy.text_encoders.llama as llama
    except ImportError:  # hosts before them
        return []
    return [(llama, "torch", _Torch())]


def _eager_kernels() -> list[tuple[Any, str, Any]]:
    """(module, name, eager function) for the rope and norm kernels that lack autograd."""
    try:
        import comfy_kitchen
        from comfy_kitchen.backends.eager import adaln, rope
    except ImportError:  # hosts before comfy_kitchen
        return []
    sources = [(rope, ("apply_rope", "rms_rope")), (adaln, ("adaln", "rms_adaln"))]
    kernels = []
    for source, prefixes in sources:
        names = [name for name in vars(source) if name.startswith(prefixes) and hasattr(comfy_kitchen, name)]
        kernels += [(comfy_kitchen, name, getattr(source, name)) for name in names]
    return kernels
