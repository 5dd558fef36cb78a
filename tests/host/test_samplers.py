"""Samplers and schedules of samples by name: the host would take its first one for a name it does not have."""

from __future__ import annotations

import architectures
import comfy.samplers
import pytest
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.prompts import require_drawable
from lora_loom.nodes.host.engine.backend import HostBackend
from stand_ins import NoVae, RandomClip


@pytest.fixture(scope="module")
def backend():
    patcher = architectures.build("SD15")
    return HostBackend(patcher, RandomClip("SD15"), NoVae(patcher))


@pytest.mark.parametrize(("setting", "name"), [("sampler", "dpm++ 2m"), ("scheduler", "karass")])
def test_a_name_the_host_does_not_have_is_refused_before_the_first_step(setting, name, backend):
    with pytest.raises(LoomError, match=rf"^samples.{setting}: .* cannot be used with this model here; allowed are "):
        require_drawable(parse({"samples": {setting: name}}), backend)


def test_every_name_of_the_host_is_drawn(backend):
    for name in comfy.samplers.KSampler.SAMPLERS:
        require_drawable(parse({"samples": {"sampler": name}}), backend)
    for name in comfy.samplers.KSampler.SCHEDULERS:
        require_drawable(parse({"samples": {"scheduler": name}}), backend)
