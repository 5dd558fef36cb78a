"""A model's blocks compiled while they are trained: the same gradients, one graph for blocks that are alike, eager and told wherever there is none."""

from __future__ import annotations

import dataclasses
import shutil

import architectures
import pytest
import torch
import torch._dynamo as dynamo
from lora_loom.lora_core.borrowing import compiling
from lora_loom.lora_core.borrowing.guards import blocks
from lora_loom.lora_core.config import Recompute
from lora_loom.nodes.host.engine import layers as host_layers
from lora_loom.nodes.host.engine import verify
from test_gradients import loss_and_gradients, make_adapters, make_batch, opened
from test_weights import error_between

WITHOUT_CODE = "aot_eager"  # the graph is made, differentiated and run operator by operator: no C++ compiler is asked


def gradients(patcher, name, batch, recompute=Recompute.NONE, compiles=True):
    """(gradients of two passes, codes of what was said, blocks that ran as graphs)."""
    with torch.inference_mode(False):
        backend = opened(name, patcher)
        if compiles:
            backend.compile_blocks()
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, recompute, tuple(batch.latents.shape)):
            codes = [message.code for message in backend.remarks()]
            first = loss_and_gradients(backend, adapters, batch)[1]
            second = loss_and_gradients(backend, adapters, batch)[1]
            count = len(backend.lending.borrowing.compiled)
    assert error_between(second, first) == 0
    return first, codes, count


@pytest.fixture
def graphs(monkeypatch):
    """Graphs are made without a C++ compiler; how many were: `graphs()`."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    monkeypatch.setattr(
        compiling, "compiled", lambda function: torch.compile(function, dynamic=None, backend=WITHOUT_CODE)
    )
    yield lambda: dynamo.utils.counters["stats"]["unique_graphs"]
    dynamo.reset()


QUICK = ("Flux", "Wan")  # the others take a minute each
WAYS = [
    pytest.param(name, recompute, id=f"{name}-{word}", marks=[] if name in QUICK else [pytest.mark.slow])
    for name in architectures.MODELS
    for recompute, word in ((Recompute.NONE, "plain"), (Recompute.ALL, "checkpointed"))
]


@pytest.mark.parametrize(("name", "recompute"), WAYS)
def test_compiled_blocks_give_the_gradients_of_the_model_as_it_is(graphs, name, recompute):
    batch = make_batch(name)
    expected, _, none = gradients(architectures.build(name), name, batch, recompute, compiles=False)
    patcher = architectures.build(name)
    modules = [(type(module), "forward" in vars(module)) for module in patcher.model.modules()]
    weights = {key: value.detach().clone() for key, value in patcher.model.state_dict().items()}
    random, limit = torch.get_rng_state(), dynamo.config.recompile_limit
    compiled, codes, count = gradients(patcher, name, batch, recompute)
    assert torch.equal(torch.get_rng_state(), random)
    assert dynamo.config.recompile_limit == limit
    assert {key for key, value in patcher.model.state_dict().items() if not torch.equal(value, weights[key])} == set()
    assert none == 0
    assert codes == []
    assert count == len(blocks(patcher.model.diffusion_model))
    assert graphs() > 0
    assert dynamo.utils.counters["graph_break"] == {}
    assert error_between(compiled, expected) <= 1e-5  # fp32
    assert [(type(module), "forward" in vars(module)) for module in patcher.model.modules()] == modules


def test_blocks_that_are_alike_share_a_graph_and_a_second_size_makes_it_one_for_any(graphs, monkeypatch):
    class_name, config, *rest = architectures.MODELS["Wan"]
    monkeypatch.setitem(architectures.MODELS, "Wan", (class_name, {**config, "num_layers": 6}, *rest))
    batch = make_batch("Wan")
    _, _, count = gradients(architectures.build("Wan"), "Wan", batch)
    assert count == 6
    assert graphs() <= 8  # of kinds of inputs, not of blocks: 6 blocks, two texts, the trial's size and the batch's


def test_graphs_outlive_the_hosts_taking_us_off_and_are_gone_after_the_run(graphs):
    """As around each sample and each load of another model."""
    name, batch = "Wan", make_batch("Wan")
    with torch.inference_mode(False):
        backend = opened(name, architectures.build(name))
        backend.compile_blocks()
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, Recompute.NONE, tuple(batch.latents.shape)):
            loss_and_gradients(backend, adapters, batch)
            before = graphs()
            with backend.given_back():
                pass
            loss_and_gradients(backend, adapters, batch)
            assert len(backend.lending.borrowing.compiled) == len(blocks(backend.model.network))
            assert graphs() == before
    assert dynamo.eval_frame._debug_get_cache_entry_list(compiling.run_block) == []


def test_samples_and_validation_run_as_ever(graphs):
    """Where nothing is differentiated no graph is made, for sizes and batches of its own."""
    name, batch = "Wan", make_batch("Wan")
    with torch.inference_mode(False):
        backend = opened(name, architectures.build(name))
        backend.compile_blocks()
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, Recompute.NONE, tuple(batch.latents.shape)):
            before = graphs()
            with torch.no_grad():
                backend.predict(batch.latents, torch.full((2,), 0.5), batch)
            assert graphs() == before


def test_weights_that_are_fetched_are_not_compiled_and_that_is_said(graphs, monkeypatch):
    monkeypatch.setattr(host_layers.ComfyLayers, "resident", lambda self, layer, place: False)
    name, batch = "Flux", make_batch("Flux")
    expected, _, _ = gradients(architectures.build(name), name, batch, compiles=False)
    result, codes, count = gradients(architectures.build(name), name, batch)
    assert (codes, count, graphs()) == (["compile.not_ready"], 0, 0)
    assert error_between(result, expected) == 0


def test_a_compiler_that_fails_is_told_and_the_model_runs_as_it_is(monkeypatch):
    def refuse(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiling, "compiled", lambda function: torch.compile(function, backend=refuse))
    name, batch = "Flux", make_batch("Flux")
    expected, _, _ = gradients(architectures.build(name), name, batch, compiles=False)
    result, codes, count = gradients(architectures.build(name), name, batch)
    assert (codes, count) == (["compile.failed"], 0)
    assert error_between(result, expected) == 0


def test_graphs_that_give_other_gradients_are_told_and_not_used(graphs, monkeypatch):
    good = compiling.compiled

    def wrong(function):
        graph = good(function)
        return lambda *args, **kwargs: torch.utils._pytree.tree_map(lambda x: x * 1.05, graph(*args, **kwargs))

    monkeypatch.setattr(compiling, "compiled", wrong)
    name, batch = "Wan", make_batch("Wan")
    _, codes, count = gradients(architectures.build(name), name, batch)
    assert (codes, count) == (["compile.differs"], 0)


def test_a_size_that_cannot_be_compiled_in_the_middle_of_a_run_goes_on_as_it_is(graphs, monkeypatch):
    name, batch = "Wan", make_batch("Wan")
    with torch.inference_mode(False):
        backend = opened(name, architectures.build(name))
        backend.compile_blocks()
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, Recompute.NONE, tuple(batch.latents.shape)):
            expected = loss_and_gradients(backend, adapters, batch)[1]
            borrowing = backend.lending.borrowing

            def refuse(graph, inputs):
                raise RuntimeError("no compiler here")

            monkeypatch.setattr(compiling, "compiled", lambda function: torch.compile(function, backend=refuse))
            borrowing.inject()
            result = loss_and_gradients(backend, adapters, batch)[1]
            assert "no compiler here" in borrowing.compiler.failure
    assert error_between(result, expected) <= 1e-5


def test_a_way_that_watches_what_autograd_saves_is_not_compiled():
    measures = dataclasses.replace(verify.Measures(), exact=True)
    remark = verify.compiled_if_exact(type("Installed", (), {"measures": measures})(), None, None, torch.float32)
    assert remark.code == "compile.slow_way"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs a C++ compiler")
@pytest.mark.parametrize("name", ["SD15", "Flux", "ZImage", "Wan"])
def test_graphs_of_torchs_own_compiler_give_the_same_gradients(name):
    batch = make_batch(name)
    expected, _, _ = gradients(architectures.build(name), name, batch, compiles=False)
    result, codes, _ = gradients(architectures.build(name), name, batch)
    assert codes == []
    assert error_between(result, expected) <= 1e-5
