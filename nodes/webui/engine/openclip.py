"""OpenCLIP's attention with its projections as layers of their own, so that adapters can act on them: its own forward never calls a Linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

PARTS = ("q_proj", "k_proj", "v_proj")


class Projection(nn.Linear):
    """Rows of a `MultiheadAttention`'s input projection as a layer; weight and bias are views of the attention's own."""

    def __init__(self, attention: nn.MultiheadAttention, part: int):
        nn.Module.__init__(self)
        self.in_features = self.out_features = attention.embed_dim
        self._attention, self._part = [attention], part  # in a list: the attention is not a part of this

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self._attention[0].in_proj_weight.chunk(3, 0)[self._part]

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]
        bias = self._attention[0].in_proj_bias
        return None if bias is None else bias.chunk(3, 0)[self._part]


def projections(attention: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """q_proj, k_proj, v_proj and out_proj of an attention."""
    parts: dict[str, nn.Linear] = {name: Projection(attention, n) for n, name in enumerate(PARTS)}
    return {**parts, "out_proj": attention.out_proj}


def through(attention: nn.MultiheadAttention, layers: dict[str, nn.Linear]) -> Callable[..., Any]:
    """A forward for a self-attention that goes through `layers`. Input and output (length, batch, width), or with batch_first (batch, length, width)."""

    def forward(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, attn_mask: Any = None, **__: Any
    ) -> tuple[torch.Tensor, None]:
        inputs = [x if attention.batch_first else x.transpose(0, 1) for x in (query, key, value)]
        batch, length, width = inputs[0].shape
        heads = attention.num_heads
        q, k, v = (
            layers[name](x).view(batch, -1, heads, width // heads).transpose(1, 2)
            for name, x in zip(PARTS, inputs, strict=True)
        )
        mask = attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = layers["out_proj"](out.transpose(1, 2).reshape(batch, length, width))
        return (out if attention.batch_first else out.transpose(0, 1)), None

    return forward
