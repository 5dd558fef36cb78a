"""How a layer goes over its input, apart from its weight: linear, a convolution with its strides, or a norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CONVS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def conv_settings(layer: Any) -> dict[str, Any]:
    """How a convolution layer walks over its input, as the functions of CONVS take it."""
    return dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


def weight_shape(layer: Any) -> tuple[int, ...]:
    """The layer's logical weight shape, (out, in, *kernel) or (channels,) of a norm, also when the stored weight is packed or quantised."""
    if hasattr(layer, "kernel_size"):
        return (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    if is_norm(layer):
        return tuple(layer.weight.shape)
    return (layer.out_features, layer.in_features)


def is_norm(layer: Any) -> bool:
    """Whether this is a LayerNorm, GroupNorm or RMSNorm with a weight of its own."""
    is_norm_class = isinstance(layer, nn.LayerNorm | nn.GroupNorm) or "RMSNorm" in type(layer).__name__
    return is_norm_class and getattr(layer, "weight", None) is not None


def has_bias(layer: Any) -> bool:
    return getattr(layer, "bias", None) is not None


@dataclasses.dataclass(frozen=True)
class Walk:
    """`conv`: settings of a convolution, None elsewhere. `norm`: input -> what a norm multiplies by its weight, None elsewhere.

    `axis`: where the channels of the output are. `bias`: whether the layer has one.
    """

    conv: Mapping[str, Any] | None = None
    norm: Callable[[torch.Tensor], torch.Tensor] | None = None
    axis: int = -1
    bias: bool = False

    def __call__(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The product of input and weight, as the layer makes it, without a bias."""
        if self.conv is None:
            return F.linear(x, weight)
        return CONVS[weight.ndim](x, weight, **self.conv)

    def spread(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(channels,) or a norm's weight in a shape that multiplies `x`, in its type."""
        values = values.to(x.dtype)
        return values if self.axis == -1 else values.flatten().view(-1, *[1] * (x.ndim - 2))


def walk_of(layer: Any) -> Walk:
    """Of a Linear, Conv or norm layer."""
    if hasattr(layer, "kernel_size"):
        return Walk(conv_settings(layer), None, 1, has_bias(layer))
    if not is_norm(layer):
        return Walk(bias=has_bias(layer))
    if isinstance(layer, nn.GroupNorm):
        return Walk(
            norm=lambda x: F.group_norm(x, layer.num_groups, None, None, layer.eps), axis=1, bias=has_bias(layer)
        )
    if isinstance(layer, nn.LayerNorm):
        return Walk(norm=lambda x: F.layer_norm(x, layer.normalized_shape, None, None, layer.eps), bias=has_bias(layer))
    eps, axes = getattr(layer, "eps", getattr(layer, "variance_epsilon", None)), tuple(range(-layer.weight.ndim, 0))
    return Walk(norm=lambda x: _root_mean_square(x, axes, eps), bias=has_bias(layer))


def _root_mean_square(x: torch.Tensor, axes: tuple[int, ...], eps: float | None) -> torch.Tensor:
    """x over the root of its mean square; the statistic in float32 at least, as every RMSNorm has it."""
    wide = x if x.dtype == torch.float64 else x.float()
    small = torch.finfo(x.dtype).eps if eps is None else eps
    return (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + small)).to(x.dtype)
