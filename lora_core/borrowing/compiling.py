"""A host's repeated blocks compiled while they are borrowed: one graph for blocks that are alike, eager wherever none can be made.

A second shape makes the graph one for any size (torch.compile's own rule), so that buckets and captions of many lengths do not each compile anew.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ..compat import compile_errors, compiled, forget_compiled
from ..messages.blame import first_line
from ..messages.message import Message
from .guards import private
from .layers import Forward

log = logging.getLogger(__name__)


def run_block(block: Forward, pure: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A block's forward, of all blocks the code that graphs are kept for. One that is not `pure` may write over its inputs: it runs on copies."""
    return block(*args, **kwargs) if pure else block(*private(args), **private(kwargs))


class Compiler:
    """`failure`: why nothing is compiled any more; empty as long as all goes well."""

    def __init__(self) -> None:
        self.failure: Message | str = ""

    def forward(self, block: nn.Module, pure: bool) -> Forward:
        """The block's forward as a graph in training; by itself where nothing is differentiated, and from the first failure on."""
        eager, graph = block.forward, compiled(run_block)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.failure or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
                return eager(*args, **kwargs)
            try:
                return graph(eager, pure, args, kwargs)
            except compile_errors() as error:
                self.failure = first_line(error)
                log.warning("%s could not be compiled and runs as it is: %s", type(block).__name__, self.failure)
            return eager(*args, **kwargs)

        return forward

    @staticmethod
    def forget() -> None:
        """Drops all graphs, and what memory they hold."""
        forget_compiled(run_block)
