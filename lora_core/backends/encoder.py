"""What a backend makes of pictures before training, as the cache of latents asks for it."""

from __future__ import annotations

from ..data.encoder import Encoder
from .base import Backend, EncodesBeside, EncodesSpread, ShowsControls, ShowsFirstFrames, TakesWired, showing_of


def encoder_of(backend: Backend) -> Encoder:
    """The backend's picture encoder, with what it can do beyond the latent itself."""
    showing = showing_of(backend)
    guided = showing is not None and showing.of_film and isinstance(backend, ShowsFirstFrames)
    also = backend.frame_fingerprint() if guided and isinstance(backend, ShowsFirstFrames) else ""
    return Encoder(
        backend.encode_picture,
        " ".join(filter(None, (backend.picture_fingerprint(), also))),
        spread=backend.encode_spread if isinstance(backend, EncodesSpread) else None,
        beside=backend.encode_beside if isinstance(backend, EncodesBeside) else None,
        wired=backend.encode_wired if isinstance(backend, TakesWired) else None,
        shown=backend.encode_shown if showing is not None and isinstance(backend, ShowsControls) else None,
        showing=showing,
        guide=backend.encode_first_frame if guided and isinstance(backend, ShowsFirstFrames) else None,
    )
