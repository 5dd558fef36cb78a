"""A LoRA that acts in training alone: exact gradients above it, absent from samples, files and saves, named in the header, asked for again on resume."""

import dataclasses

import pytest
import torch
from lora_loom.lora_core.adapters import AdapterSet
from lora_loom.lora_core.adapters.attach import attach
from lora_loom.lora_core.algebra.walk import weight_shape
from lora_loom.lora_core.backends.base_model import BaseModel
from lora_loom.lora_core.config import ObjectiveConfig, Recompute
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import fit
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.events import Control, Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.messages.message import Message
from lora_loom.lora_core.training.build import make_adapters, with_fixed
from lora_loom.lora_core.training.fixed import Fixed
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.step import diffusion_loss
from lora_loom.lora_core.training.trainer import train
from lora_loom.nodes.jobs.formats import exporter
from lora_loom.nodes.jobs.headless import with_fixed as job_with_fixed
from safetensors.torch import load_file, save_file

ONLY_FIXED = "lora_unet_mid_block_resnets_0_conv1"


@pytest.fixture
def parts(toy_backend):
    """Of a random LoRA on the attention and on one convolution that no run here trains."""
    rng = torch.Generator().manual_seed(3)
    layers = {toy_backend.file_name(path): layer for path, layer in toy_backend.layers().items()}
    chosen = [name for name in layers if name.endswith(("to_q", "to_v"))] + [ONLY_FIXED]
    return {name: _random(weight_shape(layers[name]), rng) for name in chosen}


def _random(weight, rng):
    down = torch.randn(2, *weight[1:], generator=rng) * 0.2
    up = torch.randn(weight[0], 2, *[1] * (len(weight) - 2), generator=rng) * 0.2
    return {"lora_down": down, "lora_up": up, "alpha": torch.tensor(1.0)}


@pytest.fixture
def file(parts, tmp_path):
    tensors = {f"{name}.{_FILE[key]}": v for name, given in parts.items() for key, v in given.items()}
    path = tmp_path / "de-distill.safetensors"
    save_file(tensors, path)
    return path


_FILE = {"lora_down": "lora_down.weight", "lora_up": "lora_up.weight", "alpha": "alpha"}


def batch():
    latents = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(7))
    return Batch(latents, ["a red cat", "two"], [fit(64, 64, 64, 8)] * 2, ["1.png", "2.png"], torch.ones(2))


def gradients(backend, layers, adapters, recompute):
    backend.encode_texts(batch().captions, lambda n, of: None)
    with backend.training(layers, adapters, recompute):
        for p in adapters.parameters():
            p.grad = None
        objective, rng = backend.objective(ObjectiveConfig()), torch.Generator().manual_seed(3)
        loss = diffusion_loss(backend.predict, batch(), objective, rng).mean()
        loss.backward()
    return loss.item(), {key: p.grad.clone() for key, p in adapters.named_parameters()}


def trained(backend, config):
    layers, adapters = make_adapters(config, backend)
    with torch.no_grad():
        for n, (_, adapter) in enumerate(adapters):
            adapter.lora_up.normal_(std=0.05, generator=torch.Generator().manual_seed(n))
    return layers, adapters


@pytest.mark.parametrize("recompute", list(Recompute), ids=["plain", "cheap", "checkpointed"])
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_gradients_above_a_fixed_lora_are_those_on_a_base_that_has_it_in_its_weights(
    toy_backend, toy_config, parts, recompute, strength
):
    layers, adapters = trained(toy_backend, toy_config())
    carried, above, left_out = with_fixed(layers, adapters, toy_backend, Fixed("x", parts, strength))
    assert not left_out
    assert ONLY_FIXED in carried
    assert ONLY_FIXED not in layers
    loss, got = gradients(toy_backend, carried, above, recompute)
    plain_loss, without = gradients(toy_backend, layers, adapters, recompute)
    whole = with_fixed(*trained(toy_backend, toy_config()), toy_backend, Fixed("x", parts, 1.0))[1]
    before = {}
    try:
        with torch.no_grad():
            for name, adapter in whole.fixed.items():
                before[name] = carried[name].weight.clone()
                carried[name].weight += strength * adapter.delta_weight()
        wanted_loss, wanted = gradients(toy_backend, layers, adapters, recompute)
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                carried[name].weight.copy_(weight)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert loss != pytest.approx(plain_loss, rel=1e-3)
    assert off(got, wanted) <= 1e-5 < 1e-2 < off(without, wanted)
    assert not any(p.requires_grad or p.grad is not None for a in above.fixed.values() for p in a.parameters())


def off(got, wanted):
    error = torch.cat([(got[k] - wanted[k]).flatten() for k in wanted]).norm()
    return float(error / torch.cat([v.flatten() for v in wanted.values()]).norm())


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "glora", "norm"])
def test_any_kind_of_adapter_can_be_fixed(toy_backend, toy_config, kind):
    config = toy_config(adapter={"algorithm": kind, "targets": "linear" if kind != "norm" else "attention"})
    layers, adapters = make_adapters(config, toy_backend)
    with torch.no_grad():
        for n, (_, p) in enumerate(adapters.named_parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(n)) * 0.05)
    with torch.no_grad(), attach(layers, adapters):
        adapters.prepare()
        wanted = [layers[name](_input(layers[name])) for name, _ in adapters]
    given = {name: {k: v.detach() for k, v in a.named_parameters()} | a.facts() for name, a in adapters}
    carried, fixed, _ = with_fixed({}, AdapterSet({}), toy_backend, Fixed("x", given))
    with torch.no_grad(), attach(carried, fixed):
        fixed.prepare()
        got = [carried[name](_input(carried[name])) for name in given]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, wanted, strict=True))


def _input(layer):
    shape = (2, *([weight_shape(layer)[1]] if len(weight_shape(layer)) > 1 else [weight_shape(layer)[0]]))
    return torch.randn(*shape, *[4] * (len(weight_shape(layer)) - 2), generator=torch.Generator().manual_seed(0))


class Drawn:
    """What `backend.sample` found on the model, instead of pictures."""

    def __init__(self, backend, monkeypatch):
        self.outputs, layers = [], backend.layers()
        self.layer = next(layer for path, layer in layers.items() if backend.file_name(path) == ONLY_FIXED)
        original = backend.sample

        def sample(job):
            with torch.no_grad():
                self.outputs.append(self.layer(_input(self.layer)))
            return original(job)

        monkeypatch.setattr(backend, "sample", sample)


def go(backend, config, folder, listener=None, resume=False):
    job = dataclasses.replace(_job(backend, config, folder), listener=listener or Listener())
    return train(job_with_fixed(job), folder, exporter("toy_test", "sd1"), resume)


def _job(backend, config, folder):
    return Job(config, backend, open_sets(config), folder.parent)


def test_it_is_off_in_samples_and_not_in_the_file_and_the_header_names_it(
    toy_backend, toy_config, file, tmp_path, monkeypatch
):
    drawn = Drawn(toy_backend, monkeypatch)
    untouched = {k: v.clone() for k, v in toy_backend.network.state_dict().items()}
    with torch.no_grad():
        bare = drawn.layer(_input(drawn.layer))
    config = toy_config(
        adapter={"fixed": str(file), "fixed_strength": 0.5},
        samples={"every": 2, "steps": 1, "width_px": 32, "height_px": 32},
    )
    result = go(toy_backend, config, tmp_path / "run")
    assert len(drawn.outputs) >= 3
    assert all(torch.equal(out, bare) for out in drawn.outputs)
    assert all(torch.equal(v, untouched[k]) for k, v in toy_backend.network.state_dict().items())
    assert not any(key.startswith(ONLY_FIXED) for key in result.tensors)
    [saved, *_] = sorted((tmp_path / "run" / "checkpoints").glob("step-*/adapter.safetensors"))
    assert not any(key.startswith(ONLY_FIXED) for key in load_file(saved))
    header = result.metadata
    assert (header["ss_fixed_lora"], header["ss_fixed_lora_strength"]) == (file.name, "0.5")
    assert len(header["ss_fixed_lora_hash"]) == 64
    other = go(toy_backend, toy_config(), tmp_path / "without")
    assert "ss_fixed_lora" not in other.metadata
    assert any(not torch.equal(other.tensors[k], result.tensors[k]) for k in result.tensors)


class StopAfter(Listener):
    def __init__(self, step):
        self.step, self.control = step, Control()

    def on_step(self, report):
        if report.step == self.step:
            self.control.stop_and_keep()


def test_a_run_goes_on_bit_for_bit_with_the_same_one_wherever_it_lies_and_not_with_another(
    toy_backend, toy_config, file, parts, tmp_path
):
    config = toy_config(adapter={"fixed": str(file)})
    whole = go(toy_backend, config, tmp_path / "whole")
    stop = StopAfter(2)
    job = dataclasses.replace(_job(toy_backend, config, tmp_path / "run"), listener=stop, control=stop.control)
    train(job_with_fixed(job), tmp_path / "run", exporter("toy_test", "sd1"))
    with pytest.raises(LoomError, match="the fixed LoRA of the training is another one"):
        go(toy_backend, toy_config(), tmp_path / "run", resume=True)
    moved = file.rename(tmp_path / "elsewhere.safetensors")
    again = go(toy_backend, toy_config(adapter={"fixed": str(moved)}), tmp_path / "run", resume=True)
    assert all(torch.equal(again.tensors[k], whole.tensors[k]) for k in whole.tensors)
    with pytest.raises(LoomError, match="adapter.fixed_strength"):
        go(
            toy_backend,
            toy_config(steps=5, adapter={"fixed": str(moved), "fixed_strength": 0.5}),
            tmp_path / "run",
            resume=True,
        )


def test_a_lora_of_another_model_is_refused_before_anything_is_trained(toy_backend, toy_config, parts, tmp_path):
    foreign = {
        f"lora_unet_nowhere_{n}.{_FILE[k]}": v for n, given in enumerate(parts.values()) for k, v in given.items()
    }
    path = tmp_path / "foreign.safetensors"
    save_file(foreign, path)
    with pytest.raises(LoomError, match=r"adapter\.fixed: "):
        go(toy_backend, toy_config(adapter={"fixed": str(path)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_distilled_base_is_warned_of_without_one_alone(toy_backend):
    base = toy_backend.base_model(ObjectiveConfig())
    distilled = dataclasses.replace(base, distilled=Message.of("base.sign.name", name="turbo"))
    assert isinstance(base, BaseModel)
    assert "base.distilled" in [m.code for m in distilled.warnings(ObjectiveConfig())]
    assert "base.distilled" not in [m.code for m in distilled.warnings(ObjectiveConfig(), fixed=True)]


def test_layers_of_text_encoders_are_left_out_and_told(toy_backend, toy_config, parts, tmp_path):
    text = next(iter(toy_backend.text_layers()))
    name, layer = toy_backend.file_name(text), toy_backend.text_layers()[text]
    given = {**parts, name: _random(weight_shape(layer), torch.Generator().manual_seed(1))}
    _, _, left_out = with_fixed({}, AdapterSet({}), toy_backend, Fixed("x", given))
    assert left_out == [name]
    with pytest.raises(LoomError, match="changes no layer of this model"):
        with_fixed({}, AdapterSet({}), toy_backend, Fixed("x", {name: given[name]}))
