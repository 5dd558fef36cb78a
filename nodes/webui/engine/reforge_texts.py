"""reForge's text encoders where one of their hidden layers is read (Stable Diffusion 2 and XL, or *Clip skip*).

Its pictures ask the networks, which are transformers' own. Its copy of ComfyUI's encoders asks them too, but takes the pooled text for the hidden layer;
so these get the network's answers here in the order in which they look for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ....lora_core.adapters.base import override

Answers = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]


class Transformer:
    """Stands for the network of `encoder`: (last layer, hidden layer, projected pooled text, pooled text)."""

    def __init__(self, encoder: Any):
        self._encoder, self._network = encoder, encoder.transformer

    def get_input_embeddings(self) -> Any:
        return self._network.get_input_embeddings()

    def set_input_embeddings(self, embeddings: Any) -> None:
        self._network.set_input_embeddings(embeddings)

    def __call__(self, tokens: torch.Tensor, attention_mask: Any = None, intermediate_output: Any = None) -> Answers:
        wanted = intermediate_output is not None
        made = self._network(input_ids=tokens, attention_mask=attention_mask, output_hidden_states=wanted)
        hidden = made.hidden_states[intermediate_output] if wanted else None
        if hidden is not None and self._encoder.layer_norm_hidden_state:
            hidden = self._network.text_model.final_layer_norm(hidden)
        pooled = made.pooler_output
        projection = self._encoder.text_projection.to(pooled.device)
        return made.last_hidden_state, hidden, pooled.float() @ projection.float(), pooled


@contextlib.contextmanager
def hidden_layers(encoders: nn.Module) -> Iterator[None]:
    """Inside, the host's encoders find the hidden layer they ask for."""
    with contextlib.ExitStack() as undo:
        for encoder in encoders.children():
            if hasattr(getattr(encoder, "transformer", None), "text_model"):
                undo.enter_context(override(encoder, "transformer", Transformer(encoder)))
        yield
