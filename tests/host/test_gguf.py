"""Training on bases as the GGUF pack really loads them: its own reader, layers and patcher, on files made here."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import architectures
import comfy.supported_models
import pytest
import torch
from lora_loom.lora_core.config import Recompute
from lora_loom.nodes.host.engine.backend import HostBackend
from stand_ins import NoVae, RandomClip
from test_gradients import loss_and_gradients, make_adapters, make_batch, reference
from test_weights import error_between

PACK = Path(os.environ.get("LOOM_PROGRAMS", "~/programs")).expanduser() / "ComfyUI-GGUF"
gguf = pytest.importorskip("gguf", reason="no package gguf, which the pack reads its files with")
pytestmark = pytest.mark.skipif(not PACK.is_dir(), reason=f"no checkout of ComfyUI-GGUF at {PACK}")

STORED = ["Q8_0", "Q5_1", "Q4_0", "BF16", "F16"]
LEAST_SIDE = 16
IN_A_BLOCK = 32  # values that share a scale


@pytest.fixture(scope="module")
def pack() -> Any:
    """The pack's module, imported as the host imports it."""
    spec = importlib.util.spec_from_file_location(
        "gguf_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["gguf_pack"] = module
    spec.loader.exec_module(module)
    from gguf_pack import dequant, loader, nodes, ops

    return {"dequant": dequant, "loader": loader, "nodes": nodes, "ops": ops}


def write_file(path: Path, name: str, stored: str) -> Path:
    """The tiny model `name` with its larger matrices as `stored`, the others as float32."""
    storage, plain = gguf.GGMLQuantizationType[stored], gguf.GGMLQuantizationType.F32
    writer = gguf.GGUFWriter(str(path), arch="flux")
    for key, value in architectures.build(name).model.diffusion_model.state_dict().items():
        packs = value.ndim == 2 and min(value.shape) >= LEAST_SIDE and value.shape[1] % IN_A_BLOCK == 0
        kind = storage if packs else plain
        writer.add_tensor(key, gguf.quants.quantize(value.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def loaded(pack: Any, name: str, path: Path) -> Any:
    """The file as the pack's loader gives it, but for the host's guess of the model, which knows no widths as small as these."""
    weights = pack["loader"].gguf_sd_loader(str(path))
    class_name, unet_config, *_ = architectures.row_of(name)
    place = torch.device("cpu")
    with torch.inference_mode():
        config = getattr(comfy.supported_models, class_name)(dict(unet_config))
        config.set_inference_dtype(torch.float32, None)
        config.custom_operations = pack["ops"].GGMLOps
        model = config.get_model({}, "", device=place)
        model.diffusion_model.load_state_dict(weights, strict=False)
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=place, offload_device=place)
        return pack["nodes"].GGUFModelPatcher.clone(patcher)


def plain_values(pack: Any, path: Path) -> dict[str, torch.Tensor]:
    weights = pack["loader"].gguf_sd_loader(str(path))
    unpacked = {key: pack["dequant"].dequantize_tensor(value, torch.float32) for key, value in weights.items()}
    return {key: torch.Tensor(value).clone() for key, value in unpacked.items()}


def use_as_reference(monkeypatch, values: dict[str, torch.Tensor]) -> None:
    """From now on the tiny model is an ordinary one with these values."""
    build = architectures.build

    def dense(name: str) -> Any:
        patcher = build(name)
        with torch.inference_mode():
            for key, value in patcher.model.diffusion_model.state_dict().items():
                value.copy_(values[key].view(value.shape))
        return patcher

    monkeypatch.setattr(architectures, "build", dense)


def bytes_of(patcher: Any) -> dict[str, bytes]:
    """What the model stores, packed as it is."""
    with torch._C.DisableTorchFunctionSubclass():
        plain = {key: value.as_subclass(torch.Tensor).contiguous() for key, value in patcher.model.named_parameters()}
        return {key: value.view(torch.uint8).numpy().tobytes() for key, value in plain.items()}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", ["Flux", "Wan", "QwenImage", "SD15", "LTXV"])
def test_a_base_from_a_gguf_file_trains_with_the_gradients_of_its_dequantised_weights(
    monkeypatch, tmp_path, pack, name, stored
):
    path, batch = write_file(tmp_path / "base.gguf", name, stored), make_batch(name)
    patcher = loaded(pack, name, path)
    assert any(type(value) is pack["ops"].GGMLTensor for value in patcher.model.parameters())
    use_as_reference(monkeypatch, plain_values(pack, path))
    _, expected = reference(name, batch)
    before, modules = bytes_of(patcher), [type(module) for module in patcher.model.modules()]
    for recompute in (Recompute.NONE, Recompute.ALL):
        with torch.inference_mode(False):
            backend = HostBackend(patcher, RandomClip(name), NoVae(patcher))
            layers, adapters = make_adapters(backend)
            assert backend.find_non_finite() is None
            with backend.training(layers, adapters, recompute, tuple(batch.latents.shape)):
                _, gradients = loss_and_gradients(backend, adapters, batch)
        assert error_between(gradients, expected) <= 1e-5  # fp32
    assert bytes_of(patcher) == before
    assert [type(module) for module in patcher.model.modules()] == modules


def test_a_lora_that_the_pack_applies_while_it_dequantises_is_part_of_the_base(monkeypatch, tmp_path, pack):
    name, batch = "Flux", make_batch("Flux")
    path = write_file(tmp_path / "base.gguf", name, "Q8_0")
    patcher, key = loaded(pack, name, path).clone(), "diffusion_model.single_blocks.0.linear1.weight"
    values = plain_values(pack, path)
    change = 0.3 * torch.randn(
        values["single_blocks.0.linear1.weight"].shape, generator=torch.Generator().manual_seed(1)
    )
    patcher.add_patches({key: ("diff", (change,))}, 0.5)
    values["single_blocks.0.linear1.weight"] += 0.5 * change
    use_as_reference(monkeypatch, values)
    _, expected = reference(name, batch)
    with torch.inference_mode(False):
        backend = HostBackend(patcher, RandomClip(name), NoVae(patcher))
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, Recompute.NONE, tuple(batch.latents.shape)):
            _, gradients = loss_and_gradients(backend, adapters, batch)
    assert error_between(gradients, expected) <= 1e-5
    assert key in patcher.patches
