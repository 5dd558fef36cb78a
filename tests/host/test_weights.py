"""Training through weights that are not plain resident tensors: other storage dtypes, fp8, quantised, patched on the fly."""

from __future__ import annotations

import contextlib
import json

import architectures
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.supported_models as sm
import pytest
import torch
from lora_loom.lora_core.borrowing import proof
from lora_loom.lora_core.borrowing.frozen import frozen, place_of
from lora_loom.lora_core.config import Recompute
from lora_loom.nodes.host.engine import layers as host_layers
from lora_loom.nodes.host.engine.backend import HostBackend
from lora_loom.nodes.host.engine.layers import LAYERS
from stand_ins import NoVae, RandomClip, packed_model, packed_weights, unpack
from test_gradients import loss_and_gradients, make_adapters, make_batch, reference

NAME = "SD15"


def model_with(storage: torch.dtype, compute: torch.dtype | None, values: dict[str, torch.Tensor]):
    """The tiny SD1.5 whose weights are stored as `storage` and computed in `compute`, filled with `values`."""
    with torch.inference_mode():
        config = getattr(sm, architectures.MODELS[NAME][0])(dict(architectures.MODELS[NAME][1]))
        config.set_inference_dtype(storage, compute)
        model = config.get_model({}, "", device=torch.device("cpu"))
        for key, p in model.diffusion_model.named_parameters():
            p.copy_(values[key].to(p.dtype))
        return comfy.model_patcher.ModelPatcher(
            model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
        )


def gradients(patcher, prepare=None) -> dict[str, torch.Tensor]:
    """Adapter gradients; `prepare()` runs once the host has loaded the model, since loading resets what is patched on the fly."""
    with torch.inference_mode(False):
        backend = HostBackend(patcher, RandomClip(NAME), NoVae(patcher))
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters):
            if prepare:
                prepare()
            return loss_and_gradients(backend, adapters, make_batch(NAME))[1]


def error_between(found: dict, wanted: dict) -> float:
    whole = torch.cat([wanted[k].flatten() for k in wanted]).norm()
    return float(torch.cat([(found[k] - wanted[k]).flatten() for k in wanted]).norm() / whole)


@pytest.fixture(scope="module")
def values() -> dict[str, torch.Tensor]:
    return {k: p.detach().clone() for k, p in architectures.build(NAME).model.diffusion_model.named_parameters()}


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=["fp16", "bf16", "fp8"])
def test_stored_low_and_computed_in_fp32(values, storage):
    rounded = {k: v.to(storage).float() for k, v in values.items()}
    wanted = gradients(model_with(torch.float32, None, rounded))
    found = gradients(model_with(storage, torch.float32, values))
    assert error_between(found, wanted) <= 1e-5  # the same numbers after the cast; only the order of sums may differ


def test_computed_in_bf16(values):
    wanted = gradients(model_with(torch.float32, None, {k: v.bfloat16().float() for k, v in values.items()}))
    found = gradients(model_with(torch.bfloat16, None, values))
    assert error_between(found, wanted) <= 0.1  # bf16 keeps 8 bits, through some twenty layers forward and back


def test_weights_patched_on_the_fly_are_trained_through(values):
    """As the host does with a LoRA on a partly loaded model: a function turns the stored weight into the one that is used."""
    key = next(k for k in values if k.endswith("attn1.to_v.weight"))
    wanted = gradients(model_with(torch.float32, None, {k: v * 1.5 if k == key else v for k, v in values.items()}))
    patcher = model_with(torch.float32, None, values)
    layer = patcher.model.diffusion_model.get_submodule(key.removesuffix(".weight"))
    plain = gradients(model_with(torch.float32, None, values))
    found = gradients(patcher, lambda: setattr(layer, "weight_function", [lambda w: w * 1.5]))
    assert error_between(found, wanted) <= 1e-5
    assert error_between(plain, wanted) > 1e-3  # the patch matters


def test_streamed_weights_are_fetched_again_for_backward(values):
    """As with offloading through one reused buffer: after each forward the buffer holds another layer's weight."""
    wanted = gradients(model_with(torch.float32, None, values))
    patcher = model_with(torch.float32, None, values)
    buffer: dict[torch.Size, torch.Tensor] = {}

    def stream(weight: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            place = buffer.setdefault(weight.shape, torch.empty_like(weight))
            return place.copy_(weight)

    def start_streaming() -> None:
        for module in patcher.model.diffusion_model.modules():
            if hasattr(module, "weight_function") and getattr(module, "weight", None) is not None:
                module.weight_function = [stream]

    assert error_between(gradients(patcher, start_streaming), wanted) <= 1e-5
    assert len(buffer) > 5  # the weights did go through the buffers


def test_a_hooked_layer_keeps_its_hook(values):
    """Another pack's forward override (the host's own bypass LoRA works so) stays in the path and gets its gradient."""
    key = next(k for k in values if k.endswith("attn1.to_out.0.weight"))
    wanted = gradients(
        model_with(
            torch.float32,
            None,
            {k: v * 2 if k in (key, key.replace("weight", "bias")) else v for k, v in values.items()},
        )
    )
    patcher = model_with(torch.float32, None, values)
    layer = patcher.model.diffusion_model.get_submodule(key.removesuffix(".weight"))
    plain = layer.forward
    layer.forward = hooked = lambda x: 2 * plain(x)
    assert error_between(gradients(patcher), wanted) <= 1e-5
    assert layer.__dict__["forward"] is hooked


QUANTISATIONS = list(getattr(comfy.quant_ops, "QUANT_ALGOS", {}))
QUANTISED = pytest.mark.skipif(
    not hasattr(comfy.ops, "mixed_precision_ops"), reason="this host has no quantised layers"
)


def quantised_layer(quantisation: str):
    """A Linear (256 -> 256, which the rotations of some formats need) as a checkpoint of this format fills it."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    rng = torch.Generator().manual_seed(2)
    weight = torch.randn(256, 256, generator=rng).bfloat16()
    quantised = QuantizedTensor.from_float(weight, QUANT_ALGOS[quantisation]["comfy_tensor_layout"])
    state = {**quantised.state_dict("weight"), "bias": torch.randn(256, generator=rng).bfloat16()}
    state["comfy_quant"] = torch.tensor(list(json.dumps({"format": quantisation}).encode()), dtype=torch.uint8)
    layer = comfy.ops.mixed_precision_ops({"mixed_ops": True}, torch.bfloat16).Linear(
        256, 256, device="cpu", dtype=torch.bfloat16
    )
    layer.load_state_dict(state)
    return layer


def smoothed_layer(quantisation: str, factor: torch.Tensor | None):
    """A quantised Linear of the host (32 -> 16), as a checkpoint with a factor on its input (ModelOpt's AWQ) fills it, on a device without 4-bit products."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    rng = torch.Generator().manual_seed(2)
    quantised = QuantizedTensor.from_float(
        torch.randn(16, 32, generator=rng).bfloat16(), QUANT_ALGOS[quantisation]["comfy_tensor_layout"]
    )
    state = {**quantised.state_dict("weight"), "bias": torch.randn(16, generator=rng).bfloat16()}
    state["comfy_quant"] = torch.tensor(list(json.dumps({"format": quantisation}).encode()), dtype=torch.uint8)
    layer = comfy.ops.mixed_precision_ops({"mixed_ops": True}, torch.bfloat16, full_precision_mm=True).Linear(
        32, 16, device="cpu", dtype=torch.bfloat16
    )
    layer.load_state_dict(state if factor is None else {**state, "pre_quant_scale": factor})
    return layer


@QUANTISED
@pytest.mark.parametrize("smoothed", [False, True], ids=["plain", "smoothed"])
def test_the_input_gradient_of_an_nvfp4_layer_is_that_of_the_dequantised_product(smoothed):
    factor = (0.25 + 2 * torch.rand(32, generator=torch.Generator().manual_seed(3))).bfloat16() if smoothed else None
    layer = smoothed_layer("nvfp4", factor)
    x, probe = torch.randn(5, 32).bfloat16().requires_grad_(), torch.randn(5, 16)
    with torch.inference_mode(False):
        (found,) = torch.autograd.grad((frozen(layer, LAYERS)(x).float() * probe).sum(), x)
        scaled = x if factor is None else x * factor
        plain = torch.nn.functional.linear(scaled, layer.weight.dequantize().bfloat16(), layer.bias.detach())
        (wanted,) = torch.autograd.grad((plain.float() * probe).sum(), x)
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-2  # bf16 through one product


@QUANTISED
def test_the_weight_that_adapters_are_measured_against_holds_the_factor_on_the_layers_input():
    factor = (0.25 + 2 * torch.rand(32, generator=torch.Generator().manual_seed(3))).bfloat16()
    layer, x = smoothed_layer("nvfp4", factor), torch.randn(5, 32)
    backend = HostBackend(architectures.build(NAME), RandomClip(NAME), NoVae(architectures.build(NAME)))
    with backend.weight(layer) as (weight, bias):
        ours = torch.nn.functional.linear(x, weight, bias)
    theirs = torch.nn.functional.linear(
        x * factor.float(), layer.weight.dequantize().float(), layer.bias.detach().float()
    )
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-2  # the host dequantises to bf16


PACKED = pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.ALL], ids=["plain", "checkpointed"])


@PACKED
@pytest.mark.parametrize("name", ["Flux", "Wan", "LTXV"])  # guarded, trusted, and the slow exact way
def test_layers_that_dequantise_their_own_weights_train_exactly(monkeypatch, name, recompute):
    """As with the GGUF pack: packed bytes in a tensor class of its own, also around what is not packed."""
    weights, build, batch = packed_weights(name), architectures.build, make_batch(name)

    def dense(wanted):
        patcher = build(wanted)
        with torch.inference_mode():
            for key, value in patcher.model.diffusion_model.state_dict().items():
                packed = weights[key]
                plain = unpack(packed) if packed.tensor_type == "Q8" else packed.as_subclass(torch.Tensor)
                value.copy_(plain.view(value.shape))
        return patcher

    monkeypatch.setattr(architectures, "build", dense)
    _, wanted = reference(name, batch)
    patcher = packed_model(name, weights)
    before = {key: value.data_ptr() for key, value in patcher.model.named_parameters()}
    with torch.inference_mode(False):
        backend = HostBackend(patcher, RandomClip(name), NoVae(patcher))
        layers, adapters = make_adapters(backend)
        assert backend.fingerprint()
        assert backend.find_non_finite() is None
        with backend.training(layers, adapters, recompute, tuple(batch.latents.shape)):
            _, ours = loss_and_gradients(backend, adapters, batch)
    assert error_between(ours, wanted) <= 1e-5  # fp32
    assert {key: value.data_ptr() for key, value in patcher.model.named_parameters()} == before
    assert type(next(iter(layers.values())).weight) is type(next(iter(weights.values())))


@QUANTISED
@pytest.mark.parametrize("quantisation", QUANTISATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_one_layer_of_each_quantisation_passes_the_self_test_and_fails_it_with_a_weight_that_is_off(
    monkeypatch, quantisation, dtype
):
    layer = quantised_layer(quantisation)
    error = proof.error_of(layer, LAYERS, place_of("cpu", dtype))
    assert proof.tolerable(error, dtype), error
    fetched = host_layers.fetched_weights

    @contextlib.contextmanager
    def off(layer, dtype, device):
        with fetched(layer, dtype, device) as (weight, bias):
            yield weight * 1.05, bias

    monkeypatch.setattr(host_layers, "fetched_weights", off)
    assert not proof.tolerable(proof.error_of(layer, LAYERS, place_of("cpu", dtype)), dtype)


@QUANTISED
@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_a_factor_on_the_input_that_is_left_out_is_seen_by_the_self_test(monkeypatch, spread):
    factor = (1 + spread * torch.rand(32, generator=torch.Generator().manual_seed(3))).bfloat16()
    layer = smoothed_layer("nvfp4", factor)
    assert proof.tolerable(proof.error_of(layer, LAYERS, place_of("cpu", torch.bfloat16)), torch.bfloat16)
    monkeypatch.setattr(host_layers, "input_factor", lambda layer, like: None)
    assert not proof.tolerable(proof.error_of(layer, LAYERS, place_of("cpu", torch.bfloat16)), torch.bfloat16)


@pytest.mark.parametrize(
    "make", [lambda: comfy.ops.manual_cast.Linear(8, 6), lambda: comfy.ops.manual_cast.GroupNorm(2, 8)]
)
def test_a_layer_that_lets_nothing_through_is_no_wrong_gradient(make):
    layer = make()
    for p in layer.parameters():
        p.data.zero_()
    assert proof.error_of(layer, LAYERS, place_of("cpu", torch.float32)) == 0.0
