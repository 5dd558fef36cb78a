"""What version 0.1.0 wrote still opens: its LoRA and embedding files, and every workflow made of its nodes."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from lora_loom.convert.embedding import Embedding
from lora_loom.convert.files import jobs
from lora_loom.convert.lora import Module, delta
from lora_loom.convert.writers import write

HERE = Path(__file__).resolve().parent / "data" / "0.1.0"
NUMBERS = json.loads((HERE / "files" / "numbers.json").read_text(encoding="utf-8"))
NODES = json.loads((HERE / "nodes.json").read_text(encoding="utf-8"))
WORKFLOWS = sorted((HERE / "workflows").glob("*.json"))
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def few(values: torch.Tensor) -> list[float]:
    """Sum, norm and three values."""
    flat = values.double().reshape(-1)
    return [float(x) for x in (flat.sum(), flat.norm(), flat[0], flat[len(flat) // 2], flat[-1])]


def numbers(path: Path) -> dict[str, list[float]]:
    """What numbers.json holds of a file: changes of weights without DoRA's magnitudes, those magnitudes, and vectors of tokens."""
    opened = jobs.open_file(path)
    if isinstance(opened, Embedding):
        return {encoder: few(vectors) for encoder, vectors in opened.vectors.items()}
    out = {}
    for name, module in opened.modules.items():
        parts = {part: value for part, value in module.parts.items() if part != "dora"}
        out[name] = few(delta(Module(module.kind, parts, module.alpha)))
        if "dora" in module.parts:
            out[f"{name} magnitude"] = few(module.parts["dora"])
    for token, table in opened.embeddings.items():
        out |= {f"bundled {token}/{encoder}": few(vectors) for encoder, vectors in table.items()}
    return out


def test_there_is_a_file_of_every_kind_and_form():
    assert {path.name for path in (HERE / "files").iterdir()} - {"numbers.json"} == NUMBERS.keys()
    assert {name.partition("_")[0] for name in NUMBERS} >= {"lora", "locon", "dora", "loha", "lokr", "pivotal", "dax"}
    assert {f"lora_{form}" for form in ("universal", "kohya", "comfyui", "diffusers")} <= {
        Path(name).stem for name in NUMBERS
    }
    assert {
        "lora_peft",
        "dora_peft",
        "dax_webui.safetensors",
        "dax_diffusers.safetensors",
        "pivotal_bundled.safetensors",
    } <= NUMBERS.keys()


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_file_is_read_with_the_numbers_it_was_written_with(name):
    ours, theirs = numbers(HERE / "files" / name), NUMBERS[name]
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        scale = max(map(abs, values))  # a sum of values that nearly cancel is exact to the rounding of its parts
        assert ours[key] == pytest.approx(values, rel=1e-5, abs=1e-6 * scale), key


@pytest.mark.parametrize(
    "name", [name for name in sorted(NUMBERS) if name.startswith(("lora_", "loha_", "lokr_", "dora_"))]
)
def test_a_file_can_be_written_again(name):
    lora = jobs.open_lora(HERE / "files" / name)
    assert len(write(lora, "universal")) >= 2 * len(lora.modules)


@pytest.fixture(scope="module")
def schemas(root):
    """Today's nodes, with the host stood in for."""
    sys.path.insert(0, str(root / "tests" / "reference"))
    yield importlib.import_module("schemas").schemas()
    sys.path.remove(str(root / "tests" / "reference"))


@pytest.mark.parametrize("node", sorted(NODES))
def test_a_node_takes_the_values_and_wires_of_an_old_workflow(schemas, node):
    """Values are stored by position and wires into outputs by slot: what was there stays where it was, what is new follows."""
    schema, old = schemas[node], NODES[node]
    widgets = [[i.id, i.kind] for i in schema.inputs if i.kind in WIDGETS]
    assert widgets[: len(old["widgets"])] == old["widgets"]
    assert dict(old["wires"]).items() <= {i.id: i.kind for i in schema.inputs}.items()
    outputs = [[o.display_name, o.kind] for o in schema.outputs]
    assert outputs[: len(old["outputs"])] == old["outputs"]


def test_the_eleven_workflows_are_there():
    assert len(WORKFLOWS) == 11
    kinds = {node["type"] for path in WORKFLOWS for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
    assert len(kinds & NODES.keys()) >= 9


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_value_of_an_old_workflow_is_one_its_widget_takes(schemas, path):
    make_docs = importlib.import_module("make_docs")
    checked = 0
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        if node["type"] not in NODES:
            continue
        rows = [
            row
            for i in schemas[node["type"]].inputs
            if i.kind in WIDGETS
            for row in ([i, None] if i.id == "seed" else [i])
        ]
        assert len(node["widgets_values"]) <= len(rows)
        for row, value in zip(rows, node["widgets_values"]):
            if row is not None:  # behind a seed the page stores what happens to it after a run
                assert takes(row, value, row.id in make_docs.PLACES), f"{node['type']}.{row.id} = {value!r}"
                checked += 1
    assert checked >= 10


def takes(row, value, place: bool) -> bool:
    if row.kind == "COMBO":
        return isinstance(value, str) and (place or value in row.options)
    if row.kind == "BOOLEAN" or row.kind == "STRING":
        return isinstance(value, bool if row.kind == "BOOLEAN" else str)
    number = isinstance(value, int if row.kind == "INT" else int | float) and not isinstance(value, bool)
    return number and (row.min is None or value >= row.min) and (row.max is None or value <= row.max)


def test_a_value_in_the_wrong_place_is_noticed(schemas):
    rows = {i.id: i for i in schemas["LoraLoomTrainLora"].inputs}
    assert not takes(rows["rank"], "16", False)
    assert not takes(rows["rank"], 10**9, False)
    assert not takes(rows["targets"], "everything", False)
    assert not takes(rows["checkpointing"], 1, False)
