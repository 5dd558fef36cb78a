"""A LoRA that acts on the model in training alone: with a training adapter on, a distilled model is trained as if it were not distilled."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Fixed:
    """`name`: of its file. `parts`: layer name -> lora_down, lora_up, alpha, ... . `strength`: multiplies its change."""

    name: str
    parts: Mapping[str, Mapping[str, torch.Tensor]]
    strength: float = 1.0

    def digest(self) -> str:
        """Of every number in it."""
        digest = hashlib.sha256()
        for layer, parts in sorted(self.parts.items()):
            for key, value in sorted(parts.items()):
                digest.update(f"{layer}.{key}{tuple(value.shape)}".encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def as_json(self) -> dict[str, Any]:
        """For the run folder and the header of the result."""
        return {"file": self.name, "sha256": self.digest(), "strength": self.strength}
