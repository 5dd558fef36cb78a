"""What ComfyUI shows of our nodes: every input and output explained, nodes found by the words people use, texts served in four languages."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from pathlib import Path

import pytest
from live_server import ROOT, running

CATEGORY = "training/LoRA Loom"
WORDS = (
    "kohya",
    "dreambooth",
    "train",
    "finetune",
    "textual inversion",
    "lycoris",
    "a1111",
    "webui",
    "merge",
    "captions",
    "ziplora",
)
spec = importlib.util.spec_from_file_location("stand_in_schemas", ROOT / "tests" / "reference" / "schemas.py")
stand_in = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stand_in)


@pytest.fixture(scope="module")
def schemas():
    from lora_loom.nodes.extension import NODES

    return [node.GET_SCHEMA() for node in NODES]


def test_everything_on_a_node_is_explained(schemas):
    for schema in schemas:
        assert schema.display_name
        assert schema.description.endswith("."), schema.node_id
        assert schema.category in (CATEGORY, f"{CATEGORY}/settings")
        assert schema.node_id.startswith("LoraLoom")
        assert [x.id for x in (*schema.inputs, *schema.outputs) if not x.tooltip] == [], schema.node_id
        assert len(schema.search_aliases) >= 2, schema.node_id


def test_the_words_people_search_for_find_a_node(schemas):
    aliases = {alias.lower() for schema in schemas for alias in schema.search_aliases}
    assert [word for word in WORDS if not any(word in alias for alias in aliases)] == []


def test_schemas_made_without_the_host_are_the_real_ones(schemas):
    ours = stand_in.schemas()
    assert list(ours) == [schema.node_id for schema in schemas]
    for schema in schemas:
        other = ours[schema.node_id]
        assert (other.display_name, other.description, other.category) == (
            schema.display_name,
            schema.description,
            schema.category,
        )
        assert [(i.id, i.kind, i.tooltip) for i in other.inputs] == [
            (i.id, i.get_io_type(), i.tooltip) for i in schema.inputs
        ], schema.node_id
        assert [(o.display_name, o.kind, o.tooltip) for o in other.outputs] == [
            (o.display_name, o.get_io_type(), o.tooltip) for o in schema.outputs
        ]
        for mine, real in zip(other.inputs, schema.inputs, strict=True):
            for name in ("default", "min", "max", "step", "optional", "advanced"):
                assert (getattr(mine, name) or None) == (getattr(real, name, None) or None), (
                    f"{schema.node_id}.{mine.id}.{name}"
                )


def test_the_server_serves_them(tmp_path):
    with running(tmp_path / "base") as server:
        served = server.get("/i18n")
        for language in ("en", "zh", "ko", "ja"):
            assert served[language]["nodeDefs"]["LoraLoomTrainLora"]["inputs"]["rank"]["name"]
            assert "settings" in served[language]["nodeCategories"]
        assert served["ja"]["nodeDefs"]["LoraLoomTrainLora"]["inputs"]["rank"]["name"] == "ランク"
        base = f"http://127.0.0.1:{server.port}/extensions/ComfyUI-LoRA-Loom_1.0"
        for language in ("en", "zh", "ko", "ja"):
            with urllib.request.urlopen(f"{base}/locales/{language}.json", timeout=30) as answer:
                assert json.loads(answer.read()) == json.loads(
                    Path(ROOT / "js" / "locales" / f"{language}.json").read_text(encoding="utf-8")
                )
