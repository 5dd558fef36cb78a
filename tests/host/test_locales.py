"""What ComfyUI shows of our nodes: every input and output explained, nodes found by the words people use, texts served in four languages."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from pathlib import Path

import pytest
from live_server import ROOT, running

CATEGORY = "training/LoRA Loom"
WORDS = ("kohya", "dreambooth", "train", "finetune", "textual inversion", "lycoris", "a1111", "webui", "merge", "captions", "ziplora")
spec = importlib.util.spec_from_file_location("make_locales", ROOT / "tests" / "reference" / "make_locales.py")
make_locales = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_locales)


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


def test_english_texts_are_those_of_the_schemas_and_all_are_translated():
    texts = make_locales.node_texts()
    for name, content in make_locales.locale_files(texts).items():
        assert json.loads((make_locales.LOCALES / name).read_text(encoding="utf-8")) == content, f"{name}: run tests/reference/make_locales.py"
    for language in make_locales.LANGUAGES:
        known = make_locales.translations(language)
        assert make_locales.every_text(texts) - known.keys() == set(), language
        unused = known.keys() - make_locales.every_text(texts) - set(make_locales.CATEGORIES)
        assert unused == set(), f"{language}: no node says this any more"


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
                assert json.loads(answer.read()) == json.loads(Path(ROOT / "js" / "locales" / f"{language}.json").read_text(encoding="utf-8"))
