"""Headless backends whose frozen network may be split over several processes."""

from __future__ import annotations

import torch

from ..compat import fully_shard
from .headless import Headless
from .networks import blocks


class Sharded(Headless):
    """A backend of one network. (Those of two stages read parts of their network whole.)"""

    def shard(self, device: str) -> None:
        """Splits the frozen network over all processes (PyTorch FSDP2): each keeps a part, and a block is whole only while it computes.

        The network has to be on the CPU, so a device never holds more than its part and one block.
        """
        from torch.distributed.device_mesh import init_device_mesh

        split = fully_shard()
        self.remember_fingerprint()
        self.to_device(device)
        mesh = init_device_mesh(self.device.type, (torch.distributed.get_world_size(),))
        for block in blocks(self.network):
            split(block, mesh=mesh)
        split(self.network, mesh=mesh)
