"""Bases whose weights lie in fp8, nf4, int8 or in main memory: what is computed is what the same numbers compute, and gradients follow."""

from __future__ import annotations

import copy
import functools
import shutil

import pytest
import tiny_flow
import torch
from lora_loom.convert import products
from lora_loom.lora_core.backends.networks import blocks
from lora_loom.lora_core.backends.opening import open_backend
from lora_loom.lora_core.backends.stored import FP8, Streamed, as_fp8, heavy
from lora_loom.lora_core.config import Recompute, parse
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import fit
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.build import make_adapters
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.trainer import train
from lora_loom.nodes.jobs.headless import open_base
from safetensors.torch import load_file, save_file
from shapes import MODEL
from slow_rows import mostly_slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {"toy": MODEL, "flux1": tiny_flow.saved("flux1", tmp_path_factory.mktemp("stored"))}


def opened(base, **settings):
    return open_base(parse({"base": str(base), **settings}), "cpu")


def gradients(backend, recompute, channels):
    config = parse({"adapter": {"rank": 4, "targets": "linear"}})
    layers, adapters = make_adapters(config, backend)
    for _, p in adapters.named_parameters():
        p.data.normal_(std=0.05, generator=torch.Generator().manual_seed(p.numel()))
    x, how = torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(1)), fit(64, 64, 64, 8)
    with backend.training(layers, adapters, recompute):
        out = backend.predict(
            x, torch.tensor([0.3, 0.8]), Batch(x, ["a red circle", "two"], [how] * 2, ["a", "b"], torch.ones(2))
        )
        out.square().mean().backward()
    return [out.detach(), *(p.grad for p in adapters.parameters())]


@functools.cache
def plain_gradients(folder, rounded, channels):
    """Of whole layers that nothing is computed again for; `rounded`: their weights have gone through fp8."""
    plain = open_backend(str(folder), device="cpu")
    if rounded:
        for block in blocks(plain.network):
            for layer in (m for m in heavy(block) if m.weight.ndim == 2):
                layer.weight.data = layer.weight.data.to(FP8).float()
    return gradients(plain, Recompute.NONE, channels)


@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize(("family", "channels"), [("toy", 8), ("flux1", 4)])
@pytest.mark.parametrize(
    ("storage", "offload"),
    mostly_slow([("fp8", 0.0), ("auto", 1.0), ("auto", 0.5), ("fp8", 0.6)], (("auto", 1.0), ("fp8", 0.6)).__contains__),
)
def test_gradients_are_those_of_plain_layers_with_the_same_numbers(
    storage, offload, family, channels, recompute, folders
):
    stored = opened(folders[family], storage=storage, offload=offload)
    if recompute and recompute not in stored.recomputes:
        assert (recompute, bool(offload)) == ("cheap", True)
        return
    for ours, theirs in zip(
        gradients(stored, recompute, channels),
        plain_gradients(folders[family], storage == "fp8", channels),
        strict=True,
    ):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max())
        )  # plain layers are one node with their adapters: the same sums in another order, fp32


def test_fp8_halves_the_memory_of_bf16_and_rounds_to_three_bits(folders):
    backend = open_backend(str(folders["flux1"]), precision="bf16", device="cpu")
    layer = heavy(blocks(backend.network)[0])[0]
    before = layer.weight.detach().clone()
    as_fp8(blocks(backend.network))
    assert layer.weight.dtype == FP8
    assert layer.weight.nbytes * 2 == before.nbytes
    normal = before.abs() > 2**-6  # e4m3: below it numbers have fewer bits
    assert float(((layer.weight.to(before.dtype) - before).abs() / before.abs())[normal].max()) <= 2**-4 + 1e-3


@pytest.mark.parametrize("single", [False, True], ids=["folder", "single file"])
def test_a_model_stored_in_fp8_stays_in_fp8(single, folders, tmp_path, pictures):
    folder = tmp_path / "narrow"
    shutil.copytree(folders["flux1"], folder)
    file = next((folder / "transformer").glob("*.safetensors"))
    save_file(
        {k: v.to(FP8) if v.ndim == 2 else v.bfloat16() for k, v in load_file(file).items()}, file, {"format": "pt"}
    )
    if single:
        file = file.rename(tmp_path / "narrow.safetensors")
    backend = opened(file, base_config=str(folder)) if single else opened(folder)
    stored = load_file(file)
    assert backend.dtype == torch.bfloat16
    weight = backend.network.transformer_blocks[0].attn.to_q.weight
    assert weight.dtype == FP8
    assert torch.equal(weight.float(), stored["transformer_blocks.0.attn.to_q.weight"].float())  # bit for bit
    assert trained(backend, pictures, tmp_path)


def trained(backend, pictures, tmp_path):
    """A short run on the backend leaves the base as it was and learns something finite."""
    config = parse({
        "name": "st", "steps": 2, "data": {"folder": str(pictures), "resolution": 32, "bucket_step_px": 8}, "adapter": {"rank": 4, "algorithm": "dora"},
        "samples": {"every": 0},
    })  # fmt: skip
    before = {name: copy.deepcopy(p.data) for name, p in backend.network.named_parameters()}
    result = train(
        Job(config, backend, scan(config.data), tmp_path),
        tmp_path / "st",
        lambda s, f: products(s, "st", backend.family, f),
    )
    assert all(
        torch.equal(before[n].view(torch.uint8), p.data.view(torch.uint8))
        for n, p in backend.network.named_parameters()
    )
    return any(float(v.abs().max()) > 0 for k, v in result.tensors.items() if "lora_B" in k or "lora_up" in k)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_layers_of_bitsandbytes_are_trained_as_they_are(kind, folders, tmp_path, pictures):
    """diffusers reads such folders on a GPU only; here the same layers are put in by hand."""
    bnb = pytest.importorskip("bitsandbytes")
    backend = open_backend(str(folders["flux1"]), device="cpu")
    for block in blocks(backend.network):
        for name, layer in [
            (n, m) for n, m in block.named_modules() if type(m) is torch.nn.Linear and m.in_features % 32 == 0
        ]:
            if kind == "nf4":
                packed = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, quant_type="nf4", compute_dtype=torch.float32
                )
            else:
                packed = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False)
            packed.load_state_dict(layer.state_dict())
            block.set_submodule(name, packed.to("cpu").requires_grad_(False))
    layer, x = backend.network.transformer_blocks[0].attn.to_q, torch.randn(5, 32)
    with backend.weight(layer) as (weight, bias):
        assert weight.shape == (32, 32)
        error = (torch.nn.functional.linear(x, weight, bias) - layer(x)).abs().max()
    assert float(error) <= {"nf4": 1e-6, "int8": 0.03}[kind] * float(layer(x).abs().max())  # int8 rounds its input too
    assert trained(backend, pictures, tmp_path)


@pytest.mark.parametrize("listed", [[0, 1, 2, 3, 4], [3, 0, 4, 1, 2]], ids=["as they run", "in another order"])
def test_two_blocks_at_most_are_on_the_device_and_the_next_one_is_on_its_way(listed):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        *(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8)) for _ in range(5))
    )
    plain = copy.deepcopy(network)
    streamed, seen, order = Streamed([network[n] for n in listed], torch.device("cpu")), [], []
    arrive, copied = streamed._arrive, streamed._copied
    streamed._arrive = lambda n: (arrive(n), seen.append(len(streamed._here)))
    streamed._copied = lambda n: (order.append(listed[n]), copied(n))[1]
    x = torch.randn(3, 8, requires_grad=True)
    for _ in range(2):
        out = network(x)
        (ours,) = torch.autograd.grad(out.square().sum(), x)
    assert max(seen) == 2
    assert order == [
        0,
        1,
        2,
        3,
        4,
        2,
        1,
        0,
        1,
        2,
        3,
        4,
        2,
        1,
        0,
    ]  # the last two stay for the way back; none is copied in vain
    (theirs,) = torch.autograd.grad(plain(x).square().sum(), x)
    assert torch.equal(out, plain(x))
    assert torch.equal(ours, theirs)


def test_what_streams_is_not_compiled(folders):
    with pytest.raises(LoomError, match="compile: blocks that are loaded from main memory cannot be compiled"):
        opened(folders["flux1"], compile=True, offload=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recompute", "storage"), [(Recompute.NONE, "auto"), (Recompute.ALL, "auto"), (Recompute.NONE, "fp8")]
)
def test_compiled_blocks_compute_the_same(folders, recompute, storage):
    pytest.importorskip("torch._inductor")
    if shutil.which("g++") is None:
        pytest.skip("compiling for a CPU needs a C++ compiler")
    backend = opened(folders["flux1"], storage=storage)
    plain = gradients(backend, recompute, 4)
    backend.compile_blocks()
    fused = gradients(backend, recompute, 4)
    assert all(block._compiled_call_impl is None for block in blocks(backend.network))
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=3e-5 * float(theirs.abs().max())
        )  # fused kernels sum in another order
    assert len(torch._dynamo.utils.counters["graph_break"]) == 0
