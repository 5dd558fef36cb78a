"""locales/, the tables of the help pages and example_workflows/ are what one command makes of the nodes as they are, without ComfyUI."""

from __future__ import annotations

import importlib
import json
import re
import sys

import pytest

AGAIN = "run tests/reference/make_texts.py"


@pytest.fixture(scope="module")
def scripts(root):
    """The scripts by name."""
    sys.path.insert(0, str(root / "tests" / "reference"))
    yield {
        name: importlib.import_module(name)
        for name in ("schemas", "make_locales", "make_docs", "make_workflows", "make_switching", "make_widget_names")
    }
    sys.path.remove(str(root / "tests" / "reference"))


@pytest.fixture(scope="module")
def schemas(scripts):
    return scripts["schemas"].schemas()


def test_no_module_of_the_host_is_left_behind(scripts, schemas):
    assert len(schemas) > 30
    kind = scripts["schemas"].StandIn
    assert [name for name, module in sys.modules.items() if isinstance(module, kind)] == []


def test_locales_are_those_of_the_nodes_and_every_text_is_translated(scripts, schemas):
    script = scripts["make_locales"]
    texts = script.node_texts(schemas)
    for name, content in script.locale_files(texts).items():
        assert json.loads((script.LOCALES / name).read_text(encoding="utf-8")) == content, f"{name}: {AGAIN}"
    assert script.untranslated(texts) == []
    for language in script.LANGUAGES:
        unused = script.translations(language).keys() - script.every_text(texts) - set(script.CATEGORIES)
        assert unused == set(), f"{language}: no node says this any more"


def test_the_page_knows_the_widget_of_every_field_by_the_nodes_tables(scripts):
    script = scripts["make_widget_names"]
    assert script.PLACE.read_text(encoding="utf-8") == script.text(), AGAIN
    assert '"optimizer.lr": ["learning_rate"]' in script.text()


def test_every_zero_that_is_no_amount_says_in_the_graph_what_it_stands_for(scripts, schemas, root):
    """Where the sentence of a widget explains 0, its label does."""
    script = scripts["make_widget_names"]
    assert script.ZEROS.read_text(encoding="utf-8") == script.zeros(schemas), AGAIN
    words = importlib.import_module("lora_loom.lora_core.config.settings").ZEROS
    texts = [json.loads(file.read_text(encoding="utf-8")) for file in (root / "js" / "locales").glob("*.json")]
    for node, schema in schemas.items():
        for entry in schema.inputs:
            if entry.kind in ("INT", "FLOAT") and not entry.force_input:
                explained = (
                    re.search(r"(?<!Above )(?<!below )(?<![\d.])\b0\b(?![\d.]+\d)", entry.tooltip or "") is not None
                )
                assert explained == bool(entry.zero), (node, entry.id, entry.tooltip)
                assert not entry.zero or entry.zero in words
    assert len(texts) == 4
    assert all(f"zero.{word}" in text for word in words for text in texts)


def test_help_pages_name_every_input_and_output(scripts, schemas):
    for path, text in scripts["make_docs"].pages(schemas).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: {AGAIN}"


def test_the_page_for_those_who_come_from_another_trainer_is_made_of_the_tables_of_the_import(scripts, schemas):
    script = scripts["make_switching"]
    assert script.PLACE.read_text(encoding="utf-8") == script.text(), AGAIN
    assert all(line.count("|") - line.count("\\|") == 3 for line in script.text().splitlines() if line.startswith("|"))


def test_workflows_are_what_the_nodes_defaults_and_their_script_make(scripts, schemas, tmp_path, monkeypatch, root):
    script = scripts["make_workflows"]
    monkeypatch.setattr(script, "OUT", tmp_path)
    script.write(schemas)
    ours = {path.name: path.read_text(encoding="utf-8") for path in (root / "example_workflows").glob("*.json")}
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == ours, AGAIN


def test_the_figures_of_the_family_templates_stand_in_the_documentation_with_their_sources(scripts, schemas, root):
    script = scripts["make_workflows"]
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), AGAIN
    for family in script.FAMILIES:
        (path,) = [path for path in script.OUT.glob("*.json") if path.stem == family.title]
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        note = next(node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
        assert family.source in note
        assert "27a03a91" in family.source or "30c658c" in family.source or "48d368fa" in family.source


def test_each_family_template_fits_the_memory_it_names_by_the_counted_figures(scripts, schemas):
    memory = importlib.import_module("lora_loom.lora_core.training.memory")
    config = importlib.import_module("lora_loom.lora_core.config")
    counted = {
        "10": "flux.1-dev",
        "11": "flux.2-klein-4b",
        "12": "z-image",
        "13": "qwen-image",
        "14": "sd3.5-large",
        "15": "chroma",
        "16": "wan2.1-1.3b",
    }
    for family in scripts["make_workflows"].FAMILIES:
        row = next(row for row in memory.COUNTED if row.name == counted[family.title.partition(" ")[0]])
        values = int(row.billions * 1e9)
        weights = memory.Weights(values, values * (1 if "fp8" in family.title else 2))
        data = config.DataConfig(resolution=family.train["resolution"])
        _, message = memory.decided(config.TrainConfig(memory=family.memory, data=data), row.family, weights)
        assert message.code == "memory.decided", (family.title, str(message))


def test_a_workflow_that_names_a_widget_its_node_lacks_is_refused(scripts, schemas):
    with pytest.raises(KeyError, match="LoraLoomTrainLora has no widget"):
        scripts["make_workflows"].with_defaults(schemas["LoraLoomTrainLora"], {"no_such_widget": 1})


def test_widgets_that_may_be_absent_stand_behind_the_others(schemas):
    """ComfyUI lays them there; a workflow's values lie by position, so another order in the schema would give them to other widgets."""
    kinds = {"INT", "FLOAT", "STRING", "COMBO", "BOOLEAN"}
    for name, schema in schemas.items():
        widgets = [one for one in schema.inputs if one.kind in kinds and not one.force_input]
        optional = [bool(one.optional) for one in widgets]
        assert optional == sorted(optional), f"{name}: {[one.id for one in widgets if one.optional]}"
