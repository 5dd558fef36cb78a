"""Every kind of adapter through everything that can be done with it, on the toy model: one short run a kind, and what follows from its file."""

import dataclasses
import json
import re

import pytest
import torch
from lora_loom.convert import is_lora, products, read, write
from lora_loom.convert.lora import FormatError, applied, kind_of
from lora_loom.convert.merge import merge, resize, weighted
from lora_loom.convert.report import inspect
from lora_loom.convert.results import starting_point
from lora_loom.convert.writers import approximated, peft_directories
from lora_loom.lora_core.algebra import NAMES
from lora_loom.lora_core.algebra.kind import NORMS, WEIGHTS
from lora_loom.lora_core.algebra.kinds import KINDS
from lora_loom.lora_core.events import Control, Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs import saves
from lora_loom.lora_core.training import sampling
from lora_loom.lora_core.training.build import make_adapters

LAYERS = r"mid_block\.(attentions\.0\.(proj_in|transformer_blocks\.0\.(attn1\.to_(q|out\.0)|norm1))|resnets\.0\.(conv1|norm1))$"
# What the header of a file says: module, arguments, whether it has a dimension.
LYCORIS = "lycoris.kohya"
HEADERS = {
    "lora": ("networks.lora", {}, "2"), "dora": (LYCORIS, {"algo": "lora", "dora_wd": "True"}, "2"), "loha": (LYCORIS, {"algo": "loha"}, "2"),
    "lokr": (LYCORIS, {"algo": "lokr"}, "2"), "oft": (LYCORIS, {"algo": "diag-oft"}, "2"),
    "boft": (LYCORIS, {"algo": "boft"}, "6"),  # 48 outputs in an even number of blocks, a power of two of them
    "glora": (LYCORIS, {"algo": "glora"}, "2"), "ia3": (LYCORIS, {"algo": "ia3"}, None), "full": (LYCORIS, {"algo": "full"}, None),
    "norm": (LYCORIS, {"algo": "lora", "train_norm": "True"}, None), "bias": (LYCORIS, {"algo": "full"}, None),
}  # fmt: skip
ADDS_UP = ("lora", "loha", "lokr", "glora", "ia3", "norm", "bias", "full")
NEEDS_BASE = ("oft", "boft", "glora", "ia3")
PROPORTIONAL = [kind for kind in NAMES if kind not in ("dora", "oft", "boft")]


class StopAfterTwo(Listener):
    def __init__(self):
        self.control = Control()

    def on_step(self, report):
        if report.step == 2:
            self.control.stop_and_keep()


@pytest.fixture(scope="module")
def config(toy_config):
    return lambda kind: toy_config(
        name="m",
        steps=3,
        adapter={"algorithm": kind, "rank": 2, "alpha": 1.0, "targets": "regex", "include": LAYERS},
        optimizer={"lr": 0.02},
    )


@pytest.fixture(scope="module")
def made(config, toy_backend, tmp_path_factory):
    """`made(kind)` -> (result of an unbroken run, its LoRA as read), trained once."""
    from lora_loom.lora_core.data.folder import open_sets
    from lora_loom.lora_core.training.job import Job
    from lora_loom.lora_core.training.trainer import train

    known = {}

    def of(kind):
        if kind not in known:
            job = config(kind)
            folder = tmp_path_factory.mktemp(kind)
            result = train(
                Job(job, toy_backend, open_sets(job), folder.parent), folder, lambda s, f: products(s, "m", "sd1", f)
            )
            known[kind] = result, read(result.tensors, result.metadata, family="sd1")
        return known[kind]

    return of


def weights_of(backend):
    """Canonical name -> the toy's own weight."""
    return {f"unet.{path}": layer.weight.detach() for path, layer in backend.layers().items()}


def changes(lora, backend):
    """Canonical name -> what the file adds to the toy's own weight."""
    weights = weights_of(backend)
    return {name: applied(weights[name], m) - weights[name] for name, m in lora.modules.items() if m.changes_weight}


def same(one, two, limit=1e-5):
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] - two[name]).norm() <= limit * one[name].norm(), name


@pytest.mark.parametrize("kind", NAMES)
def test_it_trains_and_a_run_that_was_stopped_and_continued_is_the_unbroken_one(kind, made, config, run_toy, tmp_path):
    whole, lora = made(kind)
    assert len(lora.modules) == whole.facts["layers"] >= 2
    assert all(any(part.any() for part in m.parts.values()) for m in lora.modules.values())
    stop = StopAfterTwo()
    run_toy(config(kind), tmp_path / "parts", stop, control=stop.control)
    parts = run_toy(config(kind), tmp_path / "parts", resume=True)
    assert parts.losses == whole.losses
    assert parts.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(parts.tensors[key], whole.tensors[key]) for key in whole.tensors)


@pytest.mark.parametrize("kind", NAMES)
def test_a_save_of_the_run_is_its_result_file(kind, made):
    result, _ = made(kind)
    (save,) = saves.all_saves(result.folder)
    written = products(saves.weights(result.folder, save), "m", "sd1", {})["m"][0]
    assert written.keys() == result.tensors.keys()
    assert all(torch.equal(written[key], result.tensors[key]) for key in written)


@pytest.mark.parametrize("kind", NAMES)
def test_a_run_starts_from_its_file_and_other_kinds_refuse_it_by_name(kind, made, config, toy_backend):
    result, lora = made(kind)
    names = [toy_backend.file_name(path) for path in toy_backend.layers()]
    start = starting_point(lora, names, kind)
    _, adapters = make_adapters(config(kind), toy_backend, "", start)
    state = saves.weights(result.folder, saves.all_saves(result.folder)[0])
    begun = adapters.state_dict()
    assert begun.keys() == state.keys()
    assert all(torch.equal(begun[key].float(), state[key].float().reshape(begun[key].shape)) for key in state)
    other = "loha" if kind != "loha" else "lokr"
    with pytest.raises(
        FormatError,
        match=rf"adapter.algorithm = {kind}\), and this run trains {other}; choose the algorithm of the file",
    ):
        starting_point(lora, names, other)
    if KINDS[kind].trains == WEIGHTS:
        with pytest.raises(LoomError, match=rf"adapter.algorithm = {kind}\), this run trains {other}"):
            make_adapters(config(other), toy_backend, "", start)
    if kind in ("norm", "bias"):
        with pytest.raises(FormatError, match="changes norms and biases alone"):
            starting_point(lora, names, "lora")


@pytest.mark.parametrize("kind", NAMES)
def test_a_file_is_sampled_at_any_strength_its_kind_defines(kind, made, toy_backend):
    _, lora = made(kind)
    worn = sampling.of_start(
        "m", toy_backend, starting_point(lora, [toy_backend.file_name(path) for path in toy_backend.layers()], kind)
    )
    name, layer = next(iter(worn.layers.items()))
    x = torch.randn(2, 8, layer.normalized_shape[0]) if hasattr(layer, "normalized_shape") else None
    x = (
        x
        if x is not None
        else torch.randn(
            2, *((layer.in_channels, 5, 5) if hasattr(layer, "in_channels") else (8, getattr(layer, "in_features", 0)))
        )
    )
    if hasattr(layer, "num_channels"):
        x = torch.randn(2, layer.num_channels, 5, 5)

    def output(strength):
        with sampling.attached(worn, toy_backend, strength), torch.no_grad():
            return layer(x)

    with torch.no_grad():
        plain = layer(x)
    assert torch.equal(output(0.0), plain)
    whole = output(1.0) - plain
    assert whole.abs().max() > 0
    if kind in PROPORTIONAL:
        torch.testing.assert_close(output(0.5) - plain, whole / 2, rtol=1e-3, atol=1e-5 * plain.abs().max().item())
    else:
        with pytest.raises(
            LoomError, match=f"strength: 0.5 is not defined for {KINDS[kind].title} alike in all programs; use 0 or 1"
        ):
            output(0.5)


@pytest.mark.parametrize("kind", NAMES)
def test_the_header_names_the_kind(kind, made):
    result, _ = made(kind)
    module, arguments, dimension = HEADERS[kind]
    assert is_lora(result.tensors)
    assert result.metadata["ss_network_module"] == module
    assert json.loads(result.metadata["ss_network_args"]) == arguments
    assert result.metadata.get("ss_network_dim") == dimension
    assert result.metadata.get("ss_network_alpha") == {"oft": "0.0", "boft": "0.0"}.get(kind, dimension and "1.0")


@pytest.mark.parametrize("kind", NAMES)
def test_inspect_tells_kind_and_norm(kind, made):
    _, lora = made(kind)
    report = inspect(lora)
    assert set(report.kinds) == {KINDS[kind].form or kind}
    assert kind == "bias" or all(block.norm > 0 for block in report.blocks)
    assert not any("changes nothing" in str(problem) for problem in report.problems)
    assert any("of their own numbers" in str(problem) for problem in report.problems) == (kind in NEEDS_BASE)
    if report.loaders and kind == "ia3":
        assert str(report.loaders["ComfyUI"]) == "nothing (ia3 modules)"


@pytest.mark.parametrize("kind", NAMES)
def test_merging_adds_the_changes_or_says_why_not_and_what_to_do(kind, made, toy_backend):
    _, lora = made(kind)
    if kind not in ADDS_UP:
        with pytest.raises(FormatError, match="bake it into a checkpoint"):
            merge([(lora, 0.5), (lora, 1.0)])
        return
    merged = merge([(lora, 0.5), (lora, 1.0)]).lora
    same({name: 1.5 * change for name, change in changes(lora, toy_backend).items()}, changes(merged, toy_backend))
    for name, module in lora.modules.items():
        if "diff_b" in module.parts:
            torch.testing.assert_close(merged.modules[name].parts["diff_b"], 1.5 * module.parts["diff_b"].float())


@pytest.mark.parametrize("kind", NAMES)
def test_a_strength_is_put_into_the_file_or_refused(kind, made, toy_backend):
    _, lora = made(kind)
    if kind not in ADDS_UP:
        with pytest.raises(FormatError, match=r"unet\..*strength"):
            weighted(lora, 0.5)
        return
    same(
        {name: 0.5 * change for name, change in changes(lora, toy_backend).items()},
        changes(weighted(lora, 0.5), toy_backend),
    )


@pytest.mark.parametrize("kind", NAMES)
def test_resizing_makes_plain_loras_smaller_and_names_what_keeps_its_size(kind, made, toy_backend):
    _, lora = made(kind)
    outcome = resize(lora, 1)
    if kind == "lora":
        assert {m.rank for m in outcome.lora.modules.values()} == {1}
        return
    assert any(
        f"not plain LoRA ({KINDS[kind].form if kind == 'bias' else kind}) keep their size" in str(note)
        for note in outcome.lora.notes
    )
    same(changes(lora, toy_backend), changes(outcome.lora, toy_backend), 0.0)


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
@pytest.mark.parametrize("kind", NAMES)
def test_it_keeps_its_effect_in_the_forms_that_hold_it(kind, form, made, toy_backend):
    _, lora = made(kind)
    again = read(write(lora, form), family="sd1")
    assert again.modules.keys() == lora.modules.keys()
    assert {m.kind for m in again.modules.values()} == {KINDS[kind].form or kind}
    same(changes(lora, toy_backend), changes(again, toy_backend))
    for name, module in lora.modules.items():
        assert torch.equal(
            again.modules[name].parts.get("diff_b", torch.zeros(1)), module.parts.get("diff_b", torch.zeros(1))
        )


@pytest.mark.parametrize("form", ["diffusers", "peft"])
@pytest.mark.parametrize("kind", NAMES)
def test_where_it_has_no_form_the_sentence_names_a_way_out_that_works(kind, form, made, toy_backend):
    _, lora = made(kind)

    def written(one):
        return peft_directories(one) if form == "peft" else write(one, form)

    if kind == "lora" or (kind == "loha" and form == "peft"):
        assert written(lora)
        return
    with pytest.raises(FormatError) as told:
        written(lora)
    sentence = str(told.value)
    assert re.match(r"unet\.|mid_block|down_blocks|up_blocks", sentence)
    if "approximate" in sentence:
        out, _ = approximated(lora, 4)
        assert any("left out" in str(note) for note in out.notes) == (kind in ("norm", "bias", "full"))
        assert kind in ("norm", "bias") or written(out)
    else:
        assert (
            "bake it into a checkpoint (Merge into Checkpoint, bake), then Extract" in sentence
            or "magnitudes belong to inputs" in sentence
        )
        with pytest.raises(FormatError, match="bake it into a checkpoint|extract it from a merged checkpoint"):
            approximated(lora, 4)
        assert changes(lora, toy_backend)  # baking works


@pytest.mark.parametrize("kind", NAMES)
def test_a_file_of_another_model_is_refused_before_it_is_used(kind, made, config, toy_backend):
    _, lora = made(kind)
    names = [toy_backend.file_name(path) for path in toy_backend.layers()]
    start = starting_point(lora, names, kind)
    name, parts = next(iter(start.items()))
    longest = max(parts, key=lambda part: parts[part].numel())
    start[name] = {**parts, longest: torch.cat([parts[longest]] * 3, 0 if parts[longest].shape[0] > 1 else 1)}
    with pytest.raises(LoomError, match="lora: "):
        make_adapters(config(kind), toy_backend, "", start)


def test_norms_are_targets_of_the_norm_kind_alone(config, toy_backend):
    for kind in NAMES:
        _, adapters = make_adapters(config(kind), toy_backend)
        assert {adapter.walk.norm is not None for _, adapter in adapters} == {KINDS[kind].trains == NORMS}


@pytest.mark.parametrize("kind", ["oft", "boft", "ia3", "norm", "bias"])
def test_dropout_is_refused_where_there_are_no_inputs_of_its_own(kind, config, toy_backend):
    job = config(kind)
    job = dataclasses.replace(job, adapter=dataclasses.replace(job.adapter, dropout=0.1))
    with pytest.raises(LoomError, match=f"adapter.dropout: {kind} has no inputs"):
        make_adapters(job, toy_backend)


def test_norms_of_text_encoders_are_refused(toy_config, toy_backend):
    with pytest.raises(LoomError, match="text_encoder.train: norm is trained on norms"):
        make_adapters(toy_config(adapter={"algorithm": "norm"}, text_encoder={"train": True}), toy_backend)


def test_kind_of_is_told_for_parts_nobody_knows():
    lora = read({"lora_unet_mid_block_attentions_0_proj_in.oft_diag": torch.ones(2, 3, 3)}, family="sd1")
    with pytest.raises(FormatError, match=r"oft_diag.*can only be renamed"):
        kind_of(next(iter(lora.modules.values())))
