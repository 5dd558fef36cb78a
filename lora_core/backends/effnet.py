"""The picture encoder of Würstchen v2."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..messages.blame import blamed
from ..messages.errors import LoomError
from .whole import require_none, short_name

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures, which the backbone was trained on


class EfficientNet(nn.Module):
    """EfficientNetV2-S features and a 1x1 map to 16 channels, (B, 3, H, W) -> (B, 16, H / 32, W / 32)."""

    def __init__(self, channels: int = 16):
        super().__init__()
        try:
            from torchvision.models import efficientnet_v2_s
        except ImportError as error:
            raise LoomError("base.needs_torchvision", field="base") from error
        self.backbone = efficientnet_v2_s().features
        self.mapper = nn.Sequential(nn.Conv2d(1280, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mapper(self.backbone(x))

    @staticmethod
    def read(folder: Path, field: str = "base") -> EfficientNet:
        """From effnet/model.safetensors, the `effnet_state_dict` of the published model_v2_stage_b. `field` names the folder. Raises LoomError."""
        file = folder / "effnet" / "model.safetensors"
        if not file.is_file():
            raise LoomError("base.no_effnet", field=field, folder=folder)
        encoder = EfficientNet()
        with blamed("base.unreadable", field, memory="base.no_memory", file=short_name(file)):
            weights = load_file(file)
            require_none(encoder.state_dict().keys() - weights.keys(), file, field)
            encoder.load_state_dict(weights)
        return encoder


@torch.no_grad()
def features(effnet: nn.Module, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1] -> (1, 16, H / 32, W / 32) on `device`, where `effnet` is."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    return effnet(((pixels.permute(0, 3, 1, 2) - mean) / std).to(device))
