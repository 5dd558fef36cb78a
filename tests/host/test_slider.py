"""Training without pictures in the host: exact gradients at both strengths on a UNet and on flow models, and Train Slider through a real server."""

from __future__ import annotations

import json
import types

import architectures
import pytest
import torch
from live_server import Graph, running
from lora_loom.lora_core.config import ObjectiveConfig, Recompute, SliderConfig
from lora_loom.lora_core.losses import MSE
from lora_loom.lora_core.training.slider import Slider, axes_of, partly_drawn
from lora_loom.nodes.host.engine.kernels import TrainingKernels
from PIL import Image
from safetensors.torch import load_file
from test_gradients import make_adapters, make_batch, opened

CONFIG = SliderConfig(target="a cat", positive="an old cat", negative="a young cat", preserve="two dogs", guidance=2.0)


def run_of(backend, adapters):
    """As much of a run as a lesson asks for."""
    return types.SimpleNamespace(backend=backend, adapters=adapters, objective=backend.objective(ObjectiveConfig()))


def lesson_on(x_t: torch.Tensor, sigma: torch.Tensor) -> Slider:
    """A slider whose noisy latents are these, preserved at strength 1."""
    lesson = Slider(CONFIG, axes_of(CONFIG), MSE, True, 1.0)
    object.__setattr__(lesson, "_noisy", lambda *_: (x_t, sigma))
    return lesson


def noisy(name, backend):
    batch = make_batch(name)
    objective = backend.objective(ObjectiveConfig())
    sigma = objective.levels(torch.full((2,), 0.6, dtype=torch.float64))
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(2))
    return batch, objective.corrupt(batch.latents, noise, sigma), sigma


def gradients(adapters):
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in adapters.parameters()]
    )


def normal(patcher):
    """With ordinary tensors, which autograd may keep, in place of those that the host made in inference mode."""
    for module in patcher.model.modules():
        for key, p in module._parameters.items():
            if p is not None and p.is_inference():
                module._parameters[key] = torch.nn.Parameter(p.clone(), requires_grad=False)
        for key, value in module._buffers.items():
            if value is not None and value.is_inference():
                module._buffers[key] = value.clone()
    return patcher


def by_plain_autograd(name: str, strength: float, prompt: str, goal_of) -> torch.Tensor:
    """On an ordinary copy with W + strength * scale * up @ down for weights, of the loss to `goal_of(answers of an untouched copy)`."""
    with torch.inference_mode(False):
        frozen, moved = (opened(name, normal(architectures.build(name))) for _ in range(2))
        batch, x_t, sigma = noisy(name, moved)
        asked = lambda text: type(batch)(**{**vars(batch), "captions": [text] * 2})  # noqa: E731
        with torch.no_grad():
            said = {
                p: frozen.predict(x_t, sigma, asked(p)).float()
                for p in ("a cat", "an old cat", "a young cat", "two dogs")
            }
        layers, adapters = make_adapters(moved)
        for key, adapter in adapters:
            weight = layers[key]._parameters.pop("weight")
            layers[key].weight = weight.detach() + strength * adapter.delta_weight().view(weight.shape)
        with TrainingKernels(), torch.autograd.graph.allow_mutation_on_saved_tensors():
            answer = moved.predict(x_t, sigma, asked(prompt)).float()
            (answer - goal_of(said)).square().mean().backward()
        return gradients(adapters)


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.ALL], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("name", ["SD15", "Flux", "ZImage"])
def test_gradients_at_both_strengths_are_those_of_plain_autograd(name, recompute):
    with torch.inference_mode(False):
        backend = opened(name, architectures.build(name))
        before = {k: v.clone() for k, v in backend.network.state_dict().items()}
        batch, x_t, sigma = noisy(name, backend)
        layers, adapters = make_adapters(backend)
        found = []
        with backend.training(layers, adapters, recompute, tuple(batch.latents.shape)):
            adapters.prepare()
            rng = torch.Generator().manual_seed(0)
            for part in lesson_on(x_t, sigma).losses(run := run_of(backend, adapters), run.objective, batch, rng):
                for p in adapters.parameters():
                    p.grad = None
                part.mean().backward()
                found.append(gradients(adapters))
        assert all(torch.equal(v, before[k]) for k, v in backend.network.state_dict().items())
        rng = torch.Generator().manual_seed(0)
        torch.randint(1, (1,), generator=rng)
        kept_at = (1.0, -1.0)[int(torch.randint(2, (1,), generator=rng))]
    way = lambda said: 2.0 * (said["an old cat"] - said["a young cat"])  # noqa: E731
    wanted = [
        by_plain_autograd(name, 1.0, "a cat", lambda said: said["a cat"] + way(said)) / 2,
        by_plain_autograd(name, -1.0, "a cat", lambda said: said["a cat"] - way(said)) / 2,
        by_plain_autograd(name, kept_at, "two dogs", lambda said: said["two dogs"]),
    ]
    assert len(found) == 3
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
    print(f"{name}: {', '.join(f'{error:.1e}' for error in errors)}")
    assert max(errors) <= 1e-5


@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_latents_drawn_to_the_end_are_what_the_hosts_own_sampler_makes(name):
    """Euler's method on the host's levels at guidance 1, against its `sample_euler` on the same levels and noise."""
    import comfy.k_diffusion.sampling as theirs

    with torch.inference_mode(False), torch.no_grad():
        backend = opened(name, architectures.build(name))
        layers, adapters = make_adapters(backend)
        batch = make_batch(name)
        batch = type(batch)(**{**vars(batch), "captions": ["a cat"] * 2})
        noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(2))
        run = run_of(backend, adapters)
        with backend.training(layers, adapters, Recompute.NONE, tuple(noise.shape)):
            x, sigma = partly_drawn(run, run.objective, batch, 0.3, noise, 10, 1.0)
            levels = run.objective.levels(torch.linspace(1.0, 0.3, 8, dtype=torch.float64))
            first = run.objective.corrupt(torch.zeros_like(noise), noise, levels[:1].repeat(2))

            def denoised(latents, level, **_):
                return run.objective.denoised(latents, backend.predict(latents, level, batch), level)

            wanted = theirs.sample_euler(denoised, first, levels.float(), disable=True)
    assert sigma.tolist() == levels[-1:].repeat(2).tolist()
    x, wanted = x.detach(), wanted.detach()
    assert float((x - wanted).norm() / wanted.norm()) <= 1e-4
    assert float((x - first).norm() / first.norm()) > 0.05


PROMPTS = {
    "target": "a red circle on a gray ground",
    "positive": "a red circle on a white ground",
    "negative": "a red circle on a black ground",
}
SMALL = {"steps": 3, "sample_every": 100, "sample_prompt": "a red circle", "sampler_steps": 3, "learning_rate": 0.01}


def write_pairs(folder):
    """Three grounds that turn from dark to light."""
    (folder / "control").mkdir(parents=True)
    for n, (dark, light) in enumerate((("#202020", "#e0e0e0"), ("#301010", "#f0d0d0"), ("#102030", "#d0e0f0"))):
        for colour, place in ((dark, folder / "control"), (light, folder)):
            Image.new("RGB", (64, 64), colour).save(place / f"{n}.png")
        (folder / f"{n}.txt").write_text("a red circle", encoding="utf-8")


def wires(graph):
    base = graph.add("LoraLoomLoadToyModel")
    return {"model": [base, 0], "clip": [base, 1], "vae": [base, 2]}


def test_a_slider_is_trained_without_a_picture_through_the_server(tmp_path):
    with running(tmp_path / "comfy") as server:
        graph = Graph(server)
        graph.add("LoraLoomTrainSlider", **wires(graph), **SMALL, **PROMPTS, name="whole")
        graph.run()
        for steps, resume in ((2, "new run"), (3, "continue last")):
            graph = Graph(server)
            more = {**SMALL, "steps": steps, "resume": resume}
            graph.add("LoraLoomTrainSlider", **wires(graph), **more, **PROMPTS, name="parts")
            graph.run()
        runs = server.base / "output" / "lora_loom"
        whole, parts = (load_file(runs / n / f"{n}.safetensors") for n in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
        assert any(float(value.abs().max()) > 0 for key, value in whole.items() if "lora_up" in key or "lora_B" in key)
        with Image.open(runs / "whole" / "samples" / "step-3.png") as sheet:
            assert sheet.width > 4 * 192  # five strengths beside each other
        config = json.loads((runs / "whole" / "config.json").read_text(encoding="utf-8"))
        assert (config["method"], config["slider"]["positive"]) == ("slider", PROMPTS["positive"])

        graph = Graph(server)
        data = graph.add("LoraLoomLoadFolder", folder="toy: object", trigger="zog")
        graph.add("LoraLoomTrainSlider", **wires(graph), **SMALL, **PROMPTS, name="on_pictures", dataset=[data, 0])
        graph.run()
        assert (runs / "on_pictures" / "on_pictures.safetensors").is_file()

        write_pairs(server.base / "input" / "pairs")
        graph = Graph(server)
        data = graph.add("LoraLoomLoadFolder", folder="pairs", controls="auto")
        graph.add("LoraLoomTrainSlider", **wires(graph), **SMALL, mode="pairs", name="of_pairs", dataset=[data, 0])
        graph.run()
        of_pairs = load_file(runs / "of_pairs" / "of_pairs.safetensors")
        assert any(float(value.abs().max()) > 0 for key, value in of_pairs.items() if "lora_up" in key)
        with Image.open(runs / "of_pairs" / "samples" / "step-3.png") as sheet:
            assert sheet.width > 4 * 192

        graph = Graph(server)
        graph.add("LoraLoomTrainSlider", **wires(graph), **SMALL, **{**PROMPTS, "positive": ""}, name="nowhere")
        with pytest.raises(Exception, match="positive"):
            graph.run()
        assert not (runs / "nowhere").exists()
