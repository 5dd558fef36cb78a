"""What makes host modules differentiable in place: block checkpointing, guards against in-place updates, differentiable kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import torch
import torch.utils.checkpoint
from torch import nn

from .frozen import as_normal, fetched_weights

# Diffusion models whose blocks never update a tensor autograd still needs (checked by tests/host/test_gradients.py). All others get guards.
PURE = frozenset({"UNetModel", "OpenAISignatureMMDITWrapper", "NextDiT", "QwenImageTransformer2DModel", "WanModel", "MMDiT"})
_UNET_BLOCKS = frozenset({"ResBlock", "BasicTransformerBlock"})


def is_pure(model: nn.Module) -> bool:
    return type(model).__name__ in PURE


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules worth recomputing: a UNet's ResBlocks and transformer blocks, else the members of top-level module lists."""
    if type(model).__name__ == "UNetModel":
        return [m for m in model.modules() if type(m).__name__ in _UNET_BLOCKS]
    return [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]


def norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if "norm" in type(m).__name__.lower() and not any(True for _ in m.children())]


def cloned_input(norm: nn.Module) -> Callable[..., Any]:
    """Forward of a norm on a copy of its input: the block may then update the input in place without spoiling the norm's backward."""
    original = norm.forward

    def forward(x: torch.Tensor, *args, **kwargs):
        if torch.is_grad_enabled() and x.requires_grad and not torch.is_inference_mode_enabled():
            x = x.clone()
        return original(x, *args, **kwargs)

    return forward


def fetched_norm(norm: nn.Module) -> Callable[..., Any]:
    """Forward of a norm whose weights are streamed or patched on the fly: it runs on small copies of them, which autograd may keep."""
    original = norm.forward

    def forward(x: torch.Tensor, *args, **kwargs):
        here = norm.weight is None or (norm.weight.device == x.device and not norm.weight_function and not norm.bias_function)
        if here or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return original(x, *args, **kwargs)
        with torch.inference_mode(), fetched_weights(norm, x.dtype, x.device) as (weight, bias):
            copies = {"weight": weight.clone(), "bias": None if bias is None else bias.clone()}
        tables = {key: norm._parameters[key] for key in copies if key in norm._parameters}
        flags = {"comfy_cast_weights": False, "weight_function": [], "bias_function": []}
        with contextlib.ExitStack() as undo:
            for name, value in flags.items():
                undo.enter_context(replaced(norm, name, value))
            undo.callback(norm._parameters.update, tables)
            for key in tables:
                copy = copies[key]
                norm._parameters[key] = None if copy is None else nn.Parameter(as_normal(copy), requires_grad=False)
            return original(x, *args, **kwargs)

    return forward


def checkpointed(block: nn.Module, pure: bool) -> Callable[..., Any]:
    """Forward of a block that keeps only its inputs and recomputes the rest in backward. Impure blocks run on copies of their inputs."""
    original = block.forward

    def again(*args, **kwargs):
        if not pure:
            args, kwargs = _private(args), _private(kwargs)
        return original(*args, **kwargs)

    def forward(*args, **kwargs):
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return original(*args, **kwargs)
        return torch.utils.checkpoint.checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return forward


def _private(value: Any) -> Any:
    """Floating tensors cloned, containers copied: what the block writes to stays its own."""
    if torch.is_tensor(value):
        return value.clone() if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(map(_private, value))
    if type(value) is dict:
        return {k: _private(v) if torch.is_tensor(v) or isinstance(v, list | tuple) else v for k, v in value.items()}
    return value


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
            for module, name, value in _eager_kernels():
                undo.enter_context(replaced(module, name, value))
            self._undo = undo.pop_all()

    def stop(self) -> None:
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo.close()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _eager_kernels() -> list[tuple[Any, str, Any]]:
    """(module, name, eager function) for the rope and norm kernels that lack autograd."""
    try:
        import comfy_kitchen
        from comfy_kitchen.backends.eager import adaln, rope
    except ImportError:  # hosts before comfy_kitchen
        return []
    sources = [(rope, ("apply_rope", "rms_rope")), (adaln, ("adaln", "rms_adaln"))]
    return [
        (comfy_kitchen, name, getattr(source, name))
        for source, prefixes in sources
        for name in vars(source)
        if name.startswith(prefixes) and hasattr(comfy_kitchen, name)
    ]
