"""What a WebUI's model reads in further channels beside its noise: the picture an edit model starts from, or a mask and what it leaves of a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ....lora_core.data.shown import Showing, Shown
from ....lora_core.messages.errors import LoomError

FILLED, EDITED = (
    5,
    4,
)  # further channels: a mask before the latents of what it leaves, or the latents of a whole picture


@dataclasses.dataclass(frozen=True)
class Joined:
    """`channels`: FILLED or EDITED. `factor`: by what latents in the model's own units are multiplied before the network reads them."""

    channels: int
    factor: float = 1.0

    @property
    def filled(self) -> bool:
        return self.channels == FILLED

    def showing(self) -> Showing:
        return Showing(1, needed=True, as_target=True, filled=self.filled)

    def of(self, shown: Sequence[Shown], x_t: torch.Tensor) -> torch.Tensor:
        """(B, channels, h, w) beside x_t (B, C, h, w). Raises LoomError where nothing is shown of a picture."""
        bare = len(x_t) - sum(bool(one.latents) for one in shown)
        if bare and self.filled:
            raise LoomError("data.input_mask.needed", field="data.input_mask")
        if bare:
            raise LoomError("data.controls.needed", field="data.controls", count=bare)
        size = (int(x_t.shape[-2]), int(x_t.shape[-1]))
        return torch.cat([self._of_one(one, size) for one in shown]).to(x_t)

    def of_sample(self, shown: Shown, size: tuple[int, int]) -> torch.Tensor | None:
        """(1, channels, h, w) of a sample; None for what the host does by itself: it lets an inpainting model fill everything."""
        if shown.latents:
            return self._of_one(shown, size)
        return None if self.filled else torch.zeros(1, self.channels, *size)

    def example(self, x_t: torch.Tensor) -> Shown:
        """Something to be shown beside x_t (1, C, h, w)."""
        mask = torch.ones(1, 1, *x_t.shape[-2:], device=x_t.device) if self.filled else None
        return Shown((x_t * 0.5,), identity="self-test", mask=mask)

    def _of_one(self, shown: Shown, size: tuple[int, int]) -> torch.Tensor:
        latents = shown.latents[0]
        if latents.shape[-2:] != size:
            latents = F.interpolate(latents, size, mode="bilinear", align_corners=False)
        if shown.mask is None:
            return latents
        return torch.cat([F.interpolate(shown.mask.to(latents), size), latents], 1)
