"""What a training step keeps beside the weights, counted for models as they are published: no memory is taken, no GPU is asked.

    ~/comfy/venv/bin/python benchmarks/activations.py [MODEL ...] > benchmarks/results/activations.json

Each model of tests/host/full_size.py is built with fake tensors and trained for one step through ComfyUI's own classes and our own layers: rank 16 on
attention, bf16, batch 1, 1024 px (SD1.5: 512), attention that keeps its inputs and not its matrix. `kept`: GiB at the highest, all blocks kept.
`again`: the same with checkpointing, which keeps each block's inputs and one block at a time.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import json
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOST = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
RANK, SHARED = 16, 0.5  # what more than half of the blocks are given is kept once
ROWS: dict[str, tuple[tuple[int, ...], int, int, int | None, dict[str, Any]]] = {  # latent, tokens and width of the text, pooled, more
    "sd1.5": ((4, 64, 64), 77, 768, None, {}),
    "sdxl": ((4, 128, 128), 77, 2048, 2816, {}),
    "sd3.5-medium": ((16, 128, 128), 154, 4096, 2048, {}),
    "sd3.5-large": ((16, 128, 128), 154, 4096, 2048, {}),
    "flux.1-dev": ((16, 128, 128), 512, 4096, 768, {"guidance": True}),
    "chroma": ((16, 128, 128), 512, 4096, None, {"guidance": True}),
    "flux.2-klein-4b": ((128, 64, 64), 512, 7680, None, {}),
    "flux.2-klein-9b": ((128, 64, 64), 512, 12288, None, {}),
    "z-image": ((16, 128, 128), 128, 2560, None, {"num_tokens": 128, "attention_mask": None}),
    "qwen-image": ((16, 1, 128, 128), 128, 3584, None, {}),
    "wan2.1-1.3b": ((16, 1, 128, 128), 512, 4096, None, {}),
    "wan2.1-14b": ((16, 1, 128, 128), 512, 4096, None, {}),
}  # fmt: skip


def opened() -> None:
    """ComfyUI and this checkout as modules."""
    sys.path[:0] = [str(HOST), str(ROOT / "tests" / "host")]
    before, sys.argv = sys.argv, ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401 - reads sys.argv once

    sys.argv = before
    if "lora_loom" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "lora_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules["lora_loom"] = module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]


def published(name: str) -> Any:
    import full_size as full

    kin = {
        "flux.2-klein-9b": ("flux2", "Flux2", {**full.KLEIN_4B, "hidden_size": 4096, "num_heads": 32, "depth": 8, "depth_single_blocks": 24,
                                               "context_in_dim": 12288}),
        "wan2.1-14b": ("wan", "WAN21_T2V", {**full.WAN_1B, "dim": 5120, "num_heads": 40, "ffn_dim": 13824, "num_layers": 40}),
    }  # fmt: skip
    return full.Published(*kin[name], 0, 0) if name in kin else full.MODELS[name]


@contextlib.contextmanager
def flash_attention() -> Iterator[None]:
    """PyTorch's attention as a GPU computes it: no matrix of tokens by tokens is kept."""
    import torch

    def flash(q: Any, k: Any, v: Any, attn_mask: Any = None, *_: Any, **__: Any) -> Any:
        width = q.shape[-1]
        q, k, v = (torch.nn.functional.pad(t, (0, -width % 8)) for t in (q, k, v))
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False)[0][..., :width]

    usual = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = flash  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = usual  # type: ignore[assignment]


def counting(known: set[int]) -> Any:
    """A mode that counts the bytes alive; what is `known` before counts nothing."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Live(TorchDispatchMode):
        now, peak = 0, 0

        def __init__(self) -> None:
            super().__init__()
            self.ids: set[int] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    self.met(tensor.untyped_storage())
            return out

        def met(self, storage: Any) -> None:
            key, size = storage._cdata, storage.nbytes()
            if key in self.ids or key in known:
                return
            self.ids.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.gone, key, size)

        def gone(self, key: int, size: int) -> None:
            self.ids.discard(key)
            self.now -= size

    return Live()


class Blocks:
    """What each block keeps of a forward pass, and what it is given."""

    def __init__(self, blocks: list[Any], live: Any, known: set[int]):
        self.kept: dict[Any, int] = {}
        self.given: dict[Any, dict[int, int]] = {}
        self._live, self._known = live, known
        for block in blocks:
            block.register_forward_pre_hook(self._before, with_kwargs=True)
            block.register_forward_hook(self._after, with_kwargs=True)

    def _before(self, block: Any, args: Any, kwargs: Any) -> None:
        from torch import Tensor
        from torch.utils._pytree import tree_leaves

        storages = [t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self.given[block] = {s._cdata: s.nbytes() for s in storages if s._cdata not in self._known}
        self.kept[block] = -self._live.now

    def _after(self, block: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.kept[block] += self._live.now

    def inputs(self) -> int:
        """Bytes that checkpointing keeps: each block's own inputs, and what most blocks share once."""
        counts = collections.Counter(key for sizes in self.given.values() for key in sizes)
        shared = {key for key, count in counts.items() if count > max(2, SHARED * len(self.given))}
        own_bytes = sum(size for sizes in self.given.values() for key, size in sizes.items() if key not in shared)
        return own_bytes + sum(
            {key: size for g in self.given.values() for key, size in g.items() if key in shared}.values()
        )


def count(name: str) -> dict[str, Any]:
    """One training step of a published model: billions of weights, GiB `kept` without and `again` with checkpointing."""
    import comfy.supported_models as sm
    import torch
    from lora_loom.lora_core.adapters import AdapterSet, KindAdapter, Shape, choose_targets
    from lora_loom.lora_core.algebra.kinds import KINDS
    from lora_loom.lora_core.algebra.walk import weight_shape
    from lora_loom.lora_core.borrowing.borrow import Borrowing, Measures
    from lora_loom.lora_core.borrowing.guards import blocks
    from lora_loom.lora_core.config import AdapterConfig
    from lora_loom.nodes.host.engine.kernels import TrainingKernels, torch_attention
    from lora_loom.nodes.host.engine.layers import LAYERS, is_pure
    from torch._subclasses.fake_tensor import FakeTensorMode

    shape, tokens, width, pooled, more = ROWS[name]
    row = published(name)
    with FakeTensorMode(allow_non_fake_inputs=True), flash_attention(), TrainingKernels():
        config = getattr(sm, row.cls)(dict(row.config))
        config.set_inference_dtype(torch.bfloat16, None)
        model = config.get_model({}, "", device="cpu")
        network = model.diffusion_model.requires_grad_(False)
        kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
        layers = {path: m for path, m in network.named_modules() if isinstance(m, kinds)}
        chosen = {path: layers[path] for path in choose_targets(layers, AdapterConfig())}
        cpu = torch.device("cpu")
        adapters = AdapterSet({
            path: KindAdapter(KINDS["lora"], path, m, Shape(weight_shape(m), RANK, float(RANK)), 0, cpu)
            for path, m in chosen.items()
        })  # fmt: skip
        borrowing = Borrowing(network, chosen, adapters, LAYERS, Measures(guard=not is_pure(network), place=None))
        x, text = torch.randn(1, *shape), torch.randn(1, tokens, width, dtype=torch.bfloat16)
        inputs = {key: torch.ones(1) if value is True else value for key, value in more.items()}
        if pooled:
            inputs["y"] = torch.randn(1, pooled, dtype=torch.bfloat16)
        before = [*network.parameters(), *network.buffers(), *adapters.parameters(), x, text]
        known = {tensor.untyped_storage()._cdata for tensor in before}
        live = counting(known)
        held = Blocks(blocks(network), live, known)
        adapters.prepare()
        borrowing.inject()
        options = {"optimized_attention_override": torch_attention}
        with live:
            out = model.apply_model(x, torch.full((1,), 0.5), c_crossattn=text, transformer_options=options, **inputs)
            (out.float() ** 2).mean().backward()
        again = live.peak - sum(held.kept.values()) + held.inputs() + max(held.kept.values())
        values = sum(p.numel() for p in network.parameters())
    return {
        "family": row.family, "billions": round(values / 1e9, 2), "kept": round(live.peak / 2**30, 2),
        "again": round(again / 2**30, 2), "px": 8 * shape[-1] if shape[0] != 128 else 16 * shape[-1],
        "adapter_millions": round(sum(p.numel() for p in adapters.parameters()) / 1e6, 1),
    }  # fmt: skip


def main() -> None:
    opened()
    counted = {name: count(name) for name in sys.argv[1:] or ROWS}
    sys.stdout.write(json.dumps(counted, indent=1) + "\n")


if __name__ == "__main__":
    main()
