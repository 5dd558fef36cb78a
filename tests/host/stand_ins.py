"""A CLIP and a VAE for random models without real ones: the text is a seed, the latents are given."""

from __future__ import annotations

import zlib
from typing import Any

import architectures


class RandomClip:
    """Encodes a caption as random numbers that depend on the caption alone; longer captions give more tokens."""

    def __init__(self, name: str):
        self._name = name

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        return architectures.conditioning(self._name, zlib.crc32(text.encode()), tokens=4 + len(text.split()))


class NoVae:
    """Fits any model; never asked to encode in tests that bring their own latents."""

    downscale_ratio = 8

    def __init__(self, model: Any):
        self.latent_channels = model.get_model_object("latent_format").latent_channels
