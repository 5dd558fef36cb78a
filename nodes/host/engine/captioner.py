"""The host's own text-generating models as captioners: a picture and a question in, by its CLIP's tokenizer and generate, as its Generate Text does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ....lora_core.messages.errors import LoomError, is_memory, reason_of
from ....lora_core.rng import preserved_rng


class HostCaptioner:
    """Fulfils captioning.base.Captioner with a CLIP of the host that writes text and looks at pictures."""

    writes_tags = False

    def __init__(self, clip: Any, max_tokens: int):
        """Raises LoomError for a CLIP of a host that generates no text."""
        if not all(callable(getattr(clip, name, None)) for name in ("tokenize", "generate", "decode")):
            raise LoomError("captioning.old_host", field="clip")
        self._clip, self._max_tokens = clip, max_tokens

    def caption(self, image: Image.Image, instruction: str) -> str:
        """The likeliest answer, word by word. Raises LoomError for a model that writes no text, or looks at no picture."""
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255.0)[
            None
        ]  # (1, H, W, 3) in [0, 1], as its nodes have it
        with torch.inference_mode(), preserved_rng(0):
            tokens = self._tokens(instruction, pixels)
            try:
                ids = self._clip.generate(tokens, do_sample=False, max_length=self._max_tokens, seed=0)
            except (AttributeError, TypeError, NotImplementedError) as error:
                raise LoomError("captioning.no_text_model", field="clip", reason=reason_of(error)) from error
            except Exception as error:
                if is_memory(error):
                    raise LoomError("captioning.no_memory", file="clip") from error
                raise
            return str(self._clip.decode(ids))

    def _tokens(self, instruction: str, pixels: torch.Tensor) -> Any:
        """The question with the picture in it. Raises LoomError where the model's tokenizer left the picture out."""
        try:
            tokens = self._clip.tokenize(instruction, image=pixels, skip_template=False, min_length=1, thinking=False)
            if not looks(tokens):  # of some models the tokenizer knows pictures by another name
                tokens = self._clip.tokenize(instruction, images=[pixels], min_length=1)
        except (AttributeError, TypeError) as error:
            raise LoomError("captioning.no_text_model", field="clip", reason=reason_of(error)) from error
        if not looks(tokens):
            raise LoomError("captioning.blind", field="clip")
        return tokens


def looks(tokens: Any) -> bool:
    """Whether a picture stands among tokens, as the host's tokenizers put it there: a dict in the place of a number."""
    if isinstance(tokens, dict):
        return tokens.get("type") == "image" or any(looks(part) for part in tokens.values())
    return isinstance(tokens, list | tuple) and any(looks(part) for part in tokens)
