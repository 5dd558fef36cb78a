"""What differs between the oldest and the newest PyTorch, Pillow and Python the engine runs on: 2.1, 9.5 and 3.10 are what WebUIs pin.

Nothing else asks which version is there. What an old library lacks is done here in another way, or named with the version that has it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import checkpoint

from .messages.blame import first_line
from .messages.errors import LoomError

if TYPE_CHECKING or hasattr(torch.amp, "GradScaler"):  # PyTorch 2.3
    from torch.amp import GradScaler
else:

    class GradScaler(torch.cuda.amp.GradScaler):
        def __init__(self, device: str, **options: Any):
            super().__init__(**options)


OutOfMemoryError: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # 2.5
TOML = ("tomllib", "tomli", "pip._vendor.tomli")  # Python 3.11; the package; the copy that pip carries
MAX_GRAPHS = 256  # compiled for one kind of block; above it torch would fall back to slow steps without a word
_GRAPHS = (
    ("recompile_limit", "cache_size_limit"),
    ("accumulated_recompile_limit", "accumulated_cache_size_limit"),
)  # 2.6


def needed(module: str, since: str = "") -> Any:
    """A module that not every host has, or has in an older version than `since`. Raises LoomError that names the package."""
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise LoomError("package.missing", package=(error.name or module).partition(".")[0]) from error
    except Exception as error:  # a package of another version, or built for another system, raises what it likes
        raise LoomError("package.broken", package=module.partition(".")[0], reason=first_line(error)) from error
    if since and _numbers(version := importlib.metadata.version(module)) < _numbers(since):
        raise LoomError("package.too_old", package=module, version=version, since=since)
    return imported


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def parse_toml(text: str) -> dict[str, Any]:
    """TOML text as nested dicts. Raises ValueError when it is none, LoomError where nothing here reads TOML."""
    for name in TOML:
        try:
            reader = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        return reader.loads(text)
    raise LoomError("package.missing", package="tomli")


def has_accelerator() -> bool:
    """Whether there is a device other than the CPU; before 2.6 only CUDA's and ROCm's are known of."""
    return torch.accelerator.is_available() if hasattr(torch, "accelerator") else torch.cuda.is_available()


def _autocasting(device: str) -> bool:
    return torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled()


# (kind of device) -> whether operations choose their own number type there; asked for every layer, so nothing stands
# between where torch has it (2.4)
autocasting: Callable[[str], bool] = torch.is_autocast_enabled if hasattr(torch, "get_autocast_dtype") else _autocasting


def adamw(groups: list[dict[str, Any]], fused: bool, **options: Any) -> torch.optim.AdamW:
    """AdamW with fused kernels where `fused` and this PyTorch has them for the device (on the CPU since 2.4)."""
    try:
        return torch.optim.AdamW([dict(group) for group in groups], fused=fused, **options)  # it writes into them
    except RuntimeError:
        return torch.optim.AdamW(groups, fused=False, **options)


def keeping(dear: Collection[Any]) -> dict[str, Any]:
    """What torch's checkpoint takes to keep the results of these operators; before 2.4 nothing: it makes everything again."""
    if not hasattr(checkpoint, "CheckpointPolicy"):
        return {}
    policy = checkpoint.CheckpointPolicy

    def choose(context: Any, op: Any, *args: Any, **kwargs: Any) -> checkpoint.CheckpointPolicy:
        return policy.MUST_SAVE if op in dear else policy.PREFER_RECOMPUTE

    return {"context_fn": functools.partial(checkpoint.create_selective_checkpoint_contexts, choose)}


def compiled_graphs() -> Any:
    """A `with` block in which one kind of block may be compiled for many shapes."""
    import torch._dynamo.config as config

    limits: dict[str, int] = {}
    for names, limit in zip(_GRAPHS, (MAX_GRAPHS, 8 * MAX_GRAPHS)):
        known = [name for name in names if hasattr(config, name)]
        limits |= dict.fromkeys(known[:1], limit)
    return config.patch(limits)  # type: ignore[attr-defined]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of it: a graph for the first shape, then one for any."""
    return torch.compile(function, dynamic=None)


def compile_errors() -> tuple[type[Exception], ...]:
    """What a function from torch.compile raises where no graph could be made."""
    import torch._dynamo.exc as exc

    return (exc.TorchDynamoException,)


def forget_compiled(function: Callable[..., Any]) -> None:
    """Drops the graphs that were made of this function or method."""
    from torch._dynamo.eval_frame import remove_from_cache

    remove_from_cache(function)


def fully_shard() -> Callable[..., Any]:
    """PyTorch's FSDP2. Raises LoomError before 2.6."""
    import torch.distributed.fsdp as fsdp

    if not hasattr(fsdp, "fully_shard"):
        raise LoomError("accelerate.torch_old", field="accelerate", version=torch.__version__)
    return fsdp.fully_shard
