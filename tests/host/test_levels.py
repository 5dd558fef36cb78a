"""The noise levels of a run are those its model is sampled at: the host's own workflows give some another time shift than they are loaded with."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import architectures
import comfy.model_sampling
import comfy_extras.nodes_model_advanced as advanced
import pytest
import torch
from lora_loom.lora_core.config import ObjectiveConfig
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.host.engine.model import HostModel

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
