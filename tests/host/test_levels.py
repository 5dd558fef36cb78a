"""The noise levels of a run are those its model is sampled at: the host's own workflows give some another time shift than they are loaded with."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import architectures
import comfy.model_sampling
import comfy_extras.nodes_model_advanced as advanced
import pytest
import torch
from comfy_extras.nodes_ideogram4 import Ideogram4Scheduler
from comfy_extras.nodes_lt import LTXVScheduler
from lora_loom.lora_core.config import ObjectiveConfig, parse
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.step import losses_of
from lora_loom.nodes.host.engine.backend import HostBackend
from lora_loom.nodes.host.engine.model import HostModel
from stand_ins import NoVae, RandomClip
from test_audit import batch_of

# Model -> its shift, the host's workflow that samples it so, the node that gives it there.
IN_WORKFLOWS = {
    "Chroma": (1.0, "image_chroma_text_to_image", "ModelSamplingAuraFlow"),
    "Chroma Radiance": (1.0, "image_chroma1_radiance_text_to_image", "ModelSamplingAuraFlow"),
    "Kandinsky 5": (5.0, "video_kandinsky5_t2v", "ModelSamplingSD3"),
    "Ovis": (3.0, "image_ovis_text_to_image", "ModelSamplingAuraFlow"),
}


def model(name: str) -> HostModel:
    return HostModel(architectures.build(name))


def quantiles(name: HostModel, **config: Any) -> list[float]:
    """Of 2,000 drawn levels: a tenth, the half, nine tenths."""
    objective = name.objective(ObjectiveConfig(timesteps="uniform", **config), "flow")
    drawn = objective.draw_sigma(2000, torch.Generator().manual_seed(1)).double()
    return torch.quantile(drawn, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()


def shifted(shift: float) -> list[float]:
    return [shift * u / (1 + (shift - 1) * u) for u in (0.1, 0.5, 0.9)]


def workflow(name: str) -> dict | None:
    """One of the host's own, where they are installed."""
    spec = importlib.util.find_spec("comfyui_workflow_templates_json")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or []]
    files = [file for place in places for file in place.rglob(f"{name}.json")]
    return json.loads(files[0].read_text(encoding="utf-8")) if files else None


def nodes_of(graph: dict) -> list[dict]:
    inside = [node for part in graph.get("definitions", {}).get("subgraphs", []) for node in part["nodes"]]
    return [*graph["nodes"], *inside]


@pytest.mark.parametrize("name", IN_WORKFLOWS)
def test_levels_are_drawn_as_the_hosts_workflows_sample_the_model(name):
    shift, file, kind = IN_WORKFLOWS[name]
    assert quantiles(model(name)) == pytest.approx(shifted(shift), abs=0.03)
    assert model(name).described(ObjectiveConfig(), None).shift == shift
    graph = workflow(file)
    if graph is None:
        pytest.skip("the host's workflows are not installed here: the shift was compared with the table alone")
    assert [node["widgets_values"][0] for node in nodes_of(graph) if node["type"] == kind] == [shift]


@pytest.mark.parametrize("name", IN_WORKFLOWS)
def test_a_job_and_a_node_before_the_model_say_another_shift(name):
    assert quantiles(model(name), shift=2.0) == pytest.approx(shifted(2.0), abs=0.03)
    [patched] = advanced.ModelSamplingSD3().patch(architectures.build(name), 4.0)
    assert quantiles(HostModel(patched)) == pytest.approx(shifted(4.0), abs=0.03)


def test_a_shift_of_cosmos_reaches_all_of_its_levels():
    """Its levels are ratios of noise to picture, up to 80."""
    plain, shifted_to = (quantiles(model("Cosmos Predict2 picture"), **config) for config in ({}, {"shift": 3.0}))
    assert [sigma / (1 + sigma) for sigma in shifted_to] == pytest.approx(shifted(3.0), abs=0.03)
    assert max(plain) > 1


def test_a_model_that_makes_the_answer_in_one_step_is_refused():
    """FlowRVS gives its input to the network as it is: there is no noise to take away."""
    patcher = architectures.build("Wan")
    kind = type("Sampling", (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.IMG_TO_IMG_FLOW), {})
    patcher.add_object_patch("model_sampling", kind())
    with pytest.raises(LoomError) as refused:
        HostModel(patcher).described(ObjectiveConfig(), None)
    assert refused.value.message.code == "model.sampling_type"


def test_a_model_that_the_hosts_samplers_give_no_noise_of_its_scale_is_refused():
    """CogVideoX: what the host's sampler gives the network at the first step is thousands of times as large as the noise it was trained on."""
    patcher = architectures.build("CogVideoX")
    sampling = patcher.get_model_object("model_sampling")
    noise = torch.ones(1)
    assert (
        float(
            sampling.calculate_input(sampling.sigma_max, sampling.noise_scaling(sampling.sigma_max, noise, 0 * noise))
        )
        > 1000
    )
    with pytest.raises(LoomError) as refused:
        HostModel(patcher).described(ObjectiveConfig(), None)
    assert refused.value.message.code == "model.void_sampling"


def by_the_hosts_node(name: str, shape: tuple[int, ...]) -> list[float]:
    """The levels at a tenth, the half and nine tenths of the way to noise that the host's scheduler of the model gives latents (1, C, [T,] h, w)."""
    if name == "Ideogram 4":
        sigmas = Ideogram4Scheduler.execute(10, shape[-1] * 16, shape[-2] * 16, 0.0, 1.75)[0]
    else:
        sigmas = LTXVScheduler.execute(10, 2.05, 0.95, False, 0.1, {"samples": torch.zeros(shape)})[0]
    return [float(sigmas[n]) for n in (9, 5, 1)]


@pytest.mark.parametrize(("name", "shapes"), [
    ("LTXV", [(1, 128, 1, 16, 24), (1, 128, 13, 16, 24)]), ("LTXAV", [(1, 128, 4, 12, 12)]), ("Ideogram 4", [(1, 128, 32, 32), (1, 128, 64, 96)]),
])  # fmt: skip
def test_levels_of_models_with_a_scheduler_of_their_own_depend_on_the_size_as_there(name, shapes):
    objective = model(name).objective(ObjectiveConfig(), "flow")
    assert model(name).described(ObjectiveConfig(), None).sized
    for shape in shapes:
        u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        if name == "Ideogram 4":  # whose levels are quantiles of a normal distribution, as ours are drawn
            u = torch.sigmoid(torch.special.ndtri(u))
        assert objective.of_shape(shape).levels(u).tolist() == pytest.approx(by_the_hosts_node(name, shape), abs=1e-5)
    asked = model(name).objective(ObjectiveConfig(shift=3.0), "flow")
    assert asked.of_shape(shapes[0]) is asked
    assert not model(name).described(ObjectiveConfig(shift=3.0), None).sized


def test_a_step_draws_the_levels_of_its_own_latents(monkeypatch):
    """Not those of another size in the same run."""
    backend, seen = HostBackend(architectures.build("LTXV"), RandomClip("LTXV"), NoVae(architectures.build("LTXV"))), []
    objective = backend.objective(ObjectiveConfig(timesteps="uniform"))
    for frames in (1, 13):
        batch = batch_of("LTXV", ["zog"])
        batch = dataclasses.replace(batch, latents=torch.zeros(1, 128, frames, 16, 24))
        run = SimpleNamespace(
            backend=SimpleNamespace(predict=lambda x, sigma, batch: seen.append(float(sigma)) or x), config=parse({})
        )
        list(losses_of(run, SimpleNamespace(lesson=None), objective, batch, torch.Generator().manual_seed(1)))
    u = float(objective.draw_share(1, torch.Generator().manual_seed(1)))
    wanted = [float(objective.of_shape((1, 128, frames, 16, 24)).levels(torch.tensor([u]))) for frames in (1, 13)]
    assert seen == pytest.approx(wanted)
    assert seen[0] < seen[1]
