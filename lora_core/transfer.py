"""Numbers on their way to the device, for which nobody waits."""

from __future__ import annotations

import torch


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on the device. An ordinary copy to a GPU first waits for all that the GPU has been given to do; this one is put behind it."""
    if x.device.type != "cpu" or device.type in ("cpu", "mps"):
        return x.to(device)
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
