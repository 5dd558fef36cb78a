"""Which blocks a finished LoRA needs: blocks that change nothing cost nothing, what is left out together is measured together, and the smaller file is it."""

import dataclasses

import pytest
from lora_loom.__main__ import main
from lora_loom.convert.files.disk import load, save
from lora_loom.convert.merge import block_of
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.usefulness import BlockUse, _idle, usefulness
from lora_loom.nodes.jobs.blocks import finished_job, layers_by_block, lora_for


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    """A finished run whose middle block was made to change nothing."""
    place = tmp_path_factory.mktemp("blocks")
    job = place / "job.toml"
    job.write_text(
        f'name = "cat"\nsteps = 12\nbatch_size = 2\n[data]\nfolder = {str(pictures)!r}\nresolution = 32\nbucket_step_px = 16\ntrigger = "zog"\n'
        "[adapter]\nrank = 2\n[optimizer]\nlr = 3e-3\n[samples]\nevery = 0\n[validation]\nlevels = 2\n"
    )
    assert main(["train", str(job), "--out", str(place / "runs")]) == 0
    folder = place / "runs" / "cat"
    tensors, header = load(folder / "cat.safetensors")
    for key, value in tensors.items():
        if "mid_block" in key and "lora_up" in key:
            tensors[key] = value * 0
    save(folder / "cat.safetensors", tensors, header)
    return folder


@pytest.fixture(scope="module")
def found(run):
    job, file = finished_job(run)
    blocks = layers_by_block(file, job.backend)
    return usefulness(dataclasses.replace(job, listener=Listener()), blocks, 0.3), blocks


def blocks_in(file):
    lora = lora_for(file, "sd1")
    return {block_of(lora.family, name) for name in lora.modules}


def test_each_layer_of_the_file_stands_in_one_block(run, found):
    _, blocks = found
    layers = [layer for names in blocks.values() for layer in names]
    assert len(layers) == len({*layers}) == len(lora_for(run / "cat.safetensors", "sd1").modules)
    assert blocks_in(run / "cat.safetensors") == {*blocks}


def test_a_block_that_changes_nothing_costs_nothing_and_is_not_needed(found):
    use, _ = found
    middle = next(block for block in use.blocks if block.name == "MID")
    assert (middle.loss, middle.share) == (use.whole, 0.0)
    assert "MID" in use.idle
    assert use.base > use.whole
    assert any(block.share > 0.01 for block in use.blocks)
    assert use.lost <= use.bound
    assert use.held_out is False


def test_the_terminal_shows_a_table_draws_it_and_writes_a_smaller_file_that_is_as_good(run, found, tmp_path, capsys):
    use, _ = found
    small, drawn = tmp_path / "small.safetensors", tmp_path / "blocks.png"
    assert main(["blocks", str(run), "--bound", "30", "--to", str(small), "--picture", str(drawn)]) == 0
    told = capsys.readouterr().out
    assert all(f"{block.name}: {block.layers} layer" in told for block in use.blocks)
    assert told.count("not needed") >= len(use.idle)
    assert drawn.stat().st_size > 0
    assert small.stat().st_size < (run / "cat.safetensors").stat().st_size
    assert blocks_in(small) == blocks_in(run / "cat.safetensors") - {*use.idle}
    job, file = finished_job(run)
    tensors, header = load(file)
    save(file, *load(small))
    try:
        job, _ = finished_job(run)
        again = usefulness(dataclasses.replace(job, listener=Listener()), layers_by_block(file, job.backend), 0.0)
    finally:
        save(file, tensors, header)
    assert again.whole == pytest.approx(use.without_idle, rel=1e-6)
    assert again.base == pytest.approx(use.base, rel=1e-6)


def test_what_is_left_out_together_stays_within_the_bound_and_is_never_all():
    costs = {"a": 0.0, "b": 0.1, "c": 0.2, "d": 5.0}
    rows = [BlockUse(name, 1, 1.0 + cost, cost) for name, cost in costs.items()]
    blocks = {name: [name] for name in costs}

    def without(names):
        return 1.0 + sum(costs[name] for name in names) * 1.5

    assert _idle(rows, blocks, 1.0, 1.2, without) == (["a", "b"], pytest.approx(1.15))
    assert _idle(rows, blocks, 1.0, 0.9, without) == ([], 1.0)
    assert _idle(rows, blocks, 1.0, 99.0, without)[0] == ["a", "b", "c"]


def test_what_has_no_lora_or_no_effect_is_refused_in_one_sentence(run, tmp_path, capsys):
    assert main(["blocks", str(tmp_path)]) == 1
    assert main(["blocks", str(run), "--bound", "200"]) == 1
    assert "--bound: found 200;" in capsys.readouterr().err
    job, file = finished_job(run)
    tensors, header = load(file)
    save(file, {k: v * 0 if "lora_up" in k else v for k, v in tensors.items()}, header)
    try:
        job, _ = finished_job(run)
        with pytest.raises(LoomError) as caught:
            usefulness(dataclasses.replace(job, listener=Listener()), layers_by_block(file, job.backend), 0.01)
    finally:
        save(file, tensors, header)
    assert caught.value.message.code == "blocks.no_effect"
