"""reForge's text encoders as ComfyUI's backend asks them: hidden layers, and vectors of tokens that are trained.

Its pictures ask the networks, which are transformers' own. Its copy of ComfyUI's encoders asks them too, but takes the pooled text for the hidden layer
(Stable Diffusion 2 and XL, or *Clip skip*); so these get the network's answers here in the order in which they look for them. And it copies an embedding's
vectors into a new table, through which no gradient comes back; here they stand beside the table instead.
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ....lora_core.adapters.attach import override, override_forward

Answers = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]


class Transformer:
    """Stands for the network of `encoder`: (last layer, hidden layer, projected pooled text, pooled text)."""

    def __init__(self, encoder: Any):
        self._encoder, self._network = encoder, encoder.transformer
        self._vectors: list[torch.Tensor] = []  # of the texts that are read now

    def get_input_embeddings(self) -> Any:
        return self._network.get_input_embeddings()

    def set_input_embeddings(self, embeddings: Any) -> None:
        self._network.set_input_embeddings(embeddings)

    def numbered(self, texts: Sequence[Sequence[Any]], table: Any) -> list[list[int]]:
        """Token ids of texts of ids and vectors; the vectors are numbered on behind the table's last row."""
        (rows, width), padding = table.weight.shape, self._encoder.special_tokens["pad"]
        self._vectors, numbered = [], []
        for text in texts:
            ids = []
            for token in text:
                if isinstance(token, numbers.Integral):
                    ids.append(int(token))
                elif token.shape[0] == width:
                    ids.append(rows + len(self._vectors))
                    self._vectors.append(token)
            numbered.append(ids + [padding] * (len(text) - len(ids)))
        return numbered

    def __call__(self, tokens: torch.Tensor, attention_mask: Any = None, intermediate_output: Any = None) -> Answers:
        all_states = intermediate_output is not None
        with self._vectors_beside(self.get_input_embeddings()):
            made = self._network(input_ids=tokens, attention_mask=attention_mask, output_hidden_states=all_states)
        hidden = made.hidden_states[intermediate_output] if all_states else None
        if hidden is not None and self._encoder.layer_norm_hidden_state:
            hidden = self._network.text_model.final_layer_norm(hidden)
        pooled = made.pooler_output
        projection = self._encoder.text_projection.to(pooled.device)
        return made.last_hidden_state, hidden, pooled.float() @ projection.float(), pooled

    @contextlib.contextmanager
    def _vectors_beside(self, table: Any) -> Iterator[None]:
        """Inside, the table answers for the vectors too."""
        if not self._vectors:
            yield
            return
        of_table, last = table.forward, table.weight.shape[0] - 1

        def rows(ids: torch.Tensor) -> torch.Tensor:
            plain = of_table(ids.clamp(max=last))
            vectors = torch.stack([vector.to(plain) for vector in self._vectors])
            return torch.where((ids > last)[..., None], vectors[(ids - last - 1).clamp(min=0)], plain)

        with override_forward(table, rows):
            yield


@contextlib.contextmanager
def readable(encoders: nn.Module) -> Iterator[None]:
    """Inside, the host's encoders find the hidden layer they ask for, and gradients come back to the vectors in a text."""
    with contextlib.ExitStack() as undo:
        for encoder in encoders.children():
            if hasattr(getattr(encoder, "transformer", None), "text_model"):
                network = Transformer(encoder)
                undo.enter_context(override(encoder, "transformer", network))
                undo.enter_context(override(encoder, "set_up_textual_embeddings", network.numbered))
        yield
