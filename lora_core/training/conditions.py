"""What a run must find again to go on bit for bit: the arithmetic of this machine. It is kept with every checkpoint; what differs is told."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import torch

from ..backends.base import Backend
from ..messages.message import Message

LIBRARIES = ("torch", "numpy", "pillow", "safetensors", "diffusers", "transformers", "bitsandbytes", "prodigyopt")


def conditions_of(backend: Backend) -> dict[str, str]:
    """Everything outside of the job that may change the last bit of a step."""
    conditions = {
        "device": _device(backend.device),
        "dtype": str(backend.dtype),
        "threads": str(torch.get_num_threads()),
        "instructions": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "matmul": f"{torch.get_float32_matmul_precision()}, TF32 {torch.backends.cuda.matmul.allow_tf32}",
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        "system": platform.system(),
    }
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            conditions[library] = importlib.metadata.version(library)
    conditions["torch"] = str(torch.__version__)
    return conditions


def _device(device: torch.device) -> str:
    """The kind of device and its name, with the driver's and libraries' versions where the device has some."""
    if device.type != "cuda":
        return device.type
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {cudnn}"


def difference(then: Any, now: Mapping[str, str]) -> Message | None:
    """What to say before a run goes on under other conditions than it was saved under; None where they are the same or nothing is kept."""
    if not isinstance(then, dict) or not then:
        return None
    names = sorted({*then, *now})
    changes = [
        Message.of("resume.condition", name=name, then=then.get(name, "-"), now=now.get(name, "-"))
        for name in names
        if then.get(name) != now.get(name)
    ]
    return Message.of("resume.conditions", changes=changes) if changes else None
