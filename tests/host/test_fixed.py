"""A LoRA that acts in training alone, in the host: exact gradients above it on UNets and transformers, fused layers too; through a real server."""

from __future__ import annotations

import json

import architectures
import pytest
import torch
from live_server import Graph, running
from lora_loom.convert import read
from lora_loom.convert.files.jobs import open_lora
from lora_loom.lora_core.algebra.walk import weight_shape
from lora_loom.lora_core.config import Recompute, parse
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.build import with_fixed
from lora_loom.nodes.jobs.formats import fixed_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_gradients import loss_and_gradients, make_adapters, make_batch, opened

FUSED = "diffusion_model.layers.0.attention.qkv"


def as_file(name: str, backend) -> dict[str, torch.Tensor]:
    """A random LoRA for every third layer; for Z-Image its fused layer cut into three, under diffusers' names, as training adapters come."""
    rng, tensors, layers = torch.Generator().manual_seed(5), {}, backend.layers()
    for path in list(layers)[::3]:
        weight, layer = weight_shape(layers[path]), backend.file_name(path)
        if layer != FUSED and len(weight) > 1:
            tensors |= _random(layer, weight, rng)
    if name == "ZImage":
        side = layers[FUSED.removeprefix("diffusion_model.")].weight.shape[1]
        for part in ("to_q", "to_k", "to_v"):
            tensors |= _random(f"diffusion_model.layers.0.attention.{part}", (side, side), rng)
    return tensors


def without_texts(name: str):
    """A backend on a random model, whose stand-in for a CLIP has no layers."""
    backend = opened(name, architectures.build(name))
    backend.texts.layers = lambda: {}
    return backend


def _random(name: str, weight: tuple[int, ...], rng: torch.Generator) -> dict[str, torch.Tensor]:
    kohya = name.startswith("lora_")
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    values = {
        f"{name}.{down}.weight": torch.randn(2, *weight[1:], generator=rng) * 0.1,
        f"{name}.{up}.weight": torch.randn(weight[0], 2, *[1] * (len(weight) - 2), generator=rng) * 0.1,
    }
    return values | ({f"{name}.alpha": torch.tensor(2.0)} if kohya else {})


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.ALL], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("name", ["SD15", "Flux", "ZImage", "QwenImage"])
def test_gradients_are_those_on_a_base_with_the_lora_in_its_weights(name, recompute):
    batch = make_batch(name)
    with torch.inference_mode(False):
        backend = without_texts(name)
        before = {k: v.clone() for k, v in backend.network.state_dict().items()}
        config = parse({"adapter": {"fixed": "x.safetensors"}})
        tensors = as_file(name, backend)
        fixed = fixed_of(lambda family: read(dict(tensors), family=family), backend, config)
        layers, adapters = make_adapters(backend)
        carried, above, left_out = with_fixed(layers, adapters, backend, fixed)
        assert not left_out
        with backend.training(carried, above, recompute, tuple(batch.latents.shape)):
            above.prepare()
            loss, gradients = loss_and_gradients(backend, above, batch)
        assert all(torch.equal(v, before[k]) for k, v in backend.network.state_dict().items())

        merged = without_texts(name)
        theirs, adapters = make_adapters(merged)
        everywhere = {merged.file_name(path): layer for path, layer in merged.layers().items()}
        assert name != "ZImage" or FUSED in above.fixed
        for key, adapter in above.fixed.items():
            weight = everywhere[key].weight
            with torch.inference_mode():
                weight += adapter.delta_weight().view(weight.shape)
        with merged.training(theirs, adapters, recompute, tuple(batch.latents.shape)):
            wanted_loss, wanted = loss_and_gradients(merged, adapters, batch)
    whole = torch.cat([v.flatten() for v in wanted.values()]).norm()
    error = torch.cat([(gradients[k] - wanted[k]).flatten() for k in wanted]).norm() / whole
    print(f"{name}: {error:.2e}")
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert error <= 1e-5


def test_a_lora_of_another_family_is_refused_in_one_sentence():
    with torch.inference_mode(False):
        backend, other = map(without_texts, ("Flux", "SD15"))
        tensors = as_file("SD15", other)
        with pytest.raises(LoomError) as told:
            fixed_of(
                lambda family: read(dict(tensors), family=family),
                backend,
                parse({"adapter": {"fixed": "unet.safetensors"}}),
            )
    assert told.value.message.field == "adapter.fixed"


def test_through_the_server_samples_and_file_are_without_it(tmp_path):
    with running(tmp_path / "comfy") as server:
        graph = Graph(server)
        base = graph.add("LoraLoomLoadToyModel")
        data = graph.add("LoraLoomLoadFolder", folder="toy: object", trigger="zog")
        wires = {"model": [base, 0], "clip": [base, 1], "vae": [base, 2], "dataset": [data, 0]}
        small = {"steps": 2, "sample_every": 0, "batch_size": 2}
        graph.add("LoraLoomTrainLora", **wires, **small, name="first", learning_rate=0.05)
        graph.run()
        loras = server.base / "models" / "loras"
        made = next(iter(loras.rglob("first.safetensors")), server.base / "output" / "loras" / "first.safetensors")
        strong = {k: v * 20 if "up" in k else v for k, v in load_file(made).items()}
        loras.mkdir(parents=True, exist_ok=True)
        save_file(strong, loras / "adapter.safetensors")
        settings = {"fixed_lora": "adapter.safetensors", "fixed_strength": 0.8}
        for name, more in (("with", settings), ("without", {})):
            graph = Graph(server)
            base = graph.add("LoraLoomLoadToyModel")
            data = graph.add("LoraLoomLoadFolder", folder="toy: object", trigger="zog")
            wires = {"model": [base, 0], "clip": [base, 1], "vae": [base, 2], "dataset": [data, 0]}
            adapter = graph.add("LoraLoomAdapterSettings", **more)
            graph.add("LoraLoomTrainLora", **wires, **small, name=name, settings=[adapter, 0])
            graph.run()
        runs = server.base / "output" / "lora_loom"
        losses = {n: [json.loads(row)["loss"] for row in (runs / n / "log.jsonl").open()] for n in ("with", "without")}
        assert losses["with"][0] > 1.05 * losses["without"][0]
        with safe_open(runs / "with" / "with.safetensors", "pt") as file:
            header = file.metadata()
        assert (header["ss_fixed_lora"], header["ss_fixed_lora_strength"]) == ("adapter.safetensors", "0.8")
        lora = open_lora(runs / "with" / "with.safetensors", "sd1")
        assert lora.modules
