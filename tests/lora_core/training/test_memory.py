"""A choice of memory decides what nobody else does, by counted figures; what was not counted is said to be unknown and measured."""

from __future__ import annotations

import dataclasses
import json

import pytest
from lora_loom.lora_core.config import TrainConfig, from_values
from lora_loom.lora_core.training.memory import COUNTED, GIB, RESERVED_GIB, Weights, chosen, counted, decided, narrowed


def config(memory: str, resolution: int = 1024, **values) -> TrainConfig:
    plain = TrainConfig(memory=memory, **values)
    return dataclasses.replace(plain, data=dataclasses.replace(plain.data, resolution=resolution))


def weights(name: str, bytes_per_value: int = 2) -> Weights:
    row = next(row for row in COUNTED if row.name == name)
    return Weights(int(row.billions * 1e9), int(row.billions * 1e9 * bytes_per_value))


def test_the_figures_are_those_of_the_benchmark(root):
    file = json.loads((root / "benchmarks" / "results" / "activations.json").read_text())
    assert {row.name for row in COUNTED} == file.keys()
    for row in COUNTED:
        assert {**dataclasses.asdict(row), "name": None} == {**file[row.name], "name": None}
        assert row.again < row.kept


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: row.name)
@pytest.mark.parametrize("memory", ["8 GB", "12 GB", "16 GB", "24 GB or more"])
def test_what_is_chosen_fits_by_the_figures_or_is_said_not_to(row, memory):
    budget = float(memory.split()[0]) - RESERVED_GIB
    for size in (1, 2):
        asked = config(memory, row.px, batch_size=4)
        job, message = decided(asked, row.family, weights(row.name, size))
        need = weights(row.name, size).bytes / GIB + row.step_gib(job.checkpointing, job.batch_size, row.px)
        assert job.batch_size * job.grad_accum == 4
        assert (need <= budget) == (message.code == "memory.decided")
        if message.code == "memory.exceeded":
            assert (job.checkpointing, job.batch_size) == (True, 1)


def test_more_memory_recomputes_less():
    for memory, checkpointing in (("8 GB", True), ("12 GB", True), ("16 GB", False), ("24 GB or more", False)):
        assert chosen(config(memory), "sdxl", weights("sdxl"))["checkpointing"] is checkpointing, memory


def test_what_a_job_says_itself_stays(tmp_path):
    job = from_values({"memory": "8 GB", "checkpointing": False, "data": {"resolution": 1024}}, tmp_path)
    found, message = decided(job, "sdxl", weights("sdxl"))
    assert not found.checkpointing
    assert message.code == "memory.exceeded"
    assert message.values["kept"] == "checkpointing"
    job = from_values({"memory": "8 GB", "batch_size": 4, "data": {"resolution": 1024}}, tmp_path)
    found, _ = decided(job, "sdxl", weights("sdxl"))
    assert (found.batch_size, found.grad_accum, found.checkpointing) == (4, 1, True)


def test_the_batch_of_a_recipe_is_split_and_not_changed(tmp_path):
    job = from_values({"recipe": "character_and_style", "memory": "8 GB", "data": {"resolution": 1024}}, tmp_path)
    found, _ = decided(job, "sdxl", weights("sdxl"))
    assert found.batch_size < job.batch_size
    assert found.batch_size * found.grad_accum == job.batch_size * job.grad_accum


def test_a_model_nobody_counted_is_tried_and_said_to_be_unknown():
    found, message = decided(config("12 GB"), "sdxl", Weights(10**9, 2 * 10**9))
    assert (found.auto_fit, found.checkpointing, message.code) == (True, True, "memory.unknown")
    found, message = decided(config("measure"), "sdxl", weights("sdxl"))
    assert (found.auto_fit, found.checkpointing, message.code) == (True, False, "memory.measured")
    assert counted("anima", 10**9) is None


def test_nothing_is_chosen_unless_it_is_asked_for():
    plain = config("as set")
    assert decided(plain, "sdxl", weights("sdxl")) == (plain, None)


def test_headless_weights_lie_in_fp8_and_in_main_memory_where_they_do_not_fit():
    roomy = narrowed(config("24 GB or more"), "sdxl", weights("sdxl"))
    assert (roomy.storage, roomy.offload) == ("auto", 0.0)
    flux = narrowed(config("16 GB"), "flux1", weights("flux.1-dev"))
    assert (flux.storage, flux.offload) == ("fp8", 0.0)
    small = narrowed(config("8 GB"), "flux1", weights("flux.1-dev"))
    assert small.storage == "fp8"
    assert 0 < small.offload < 1
    mine = narrowed(config("8 GB", offload=0.2, memory_keeps="offload"), "flux1", weights("flux.1-dev"))
    assert (mine.storage, mine.offload) == ("auto", 0.2)
