"""What the hosts' small checkpoints are made with is there on a fresh machine, or it is said what is missing."""

import json

import hub
import pytest


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with a tokenizer such as ComfyUI has, which cuts no text."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in hub.FILES:
        (folder / name).write_text(json.dumps({"model_max_length": 8192, "name": name}))
    return folder


def test_a_hub_is_made_of_another_checkouts_tokenizer(tokenizer, tmp_path):
    assert hub.made_hub(tmp_path / "hf", [tmp_path / "none", tokenizer]) == ""
    model = tmp_path / "hf" / "hub" / "models--openai--clip-vit-large-patch14"
    snapshot = model / "snapshots" / (model / "refs" / "main").read_text()
    assert {file.name for file in snapshot.iterdir()} == {*hub.FILES, "config.json"}
    assert json.loads((snapshot / "tokenizer_config.json").read_text())["model_max_length"] == 77
    assert json.loads((snapshot / "vocab.json").read_text())["name"] == "vocab.json"
    assert json.loads((snapshot / "config.json").read_text())["text_config"]["hidden_size"] == 768


def test_a_hub_that_is_there_stays_as_it_is(tokenizer, tmp_path):
    hub.made_hub(tmp_path / "hf", [tokenizer])
    made = next((tmp_path / "hf").rglob("config.json"))
    made.write_text("of the user")
    assert hub.made_hub(tmp_path / "hf", []) == ""
    assert made.read_text() == "of the user"


def test_without_a_tokenizer_it_is_said_where_one_was_looked_for(tokenizer, tmp_path):
    (tokenizer / "vocab.json").unlink()
    said = hub.made_hub(tmp_path / "hf", [tokenizer])
    assert str(tokenizer) in said
    assert "WEBUI_HF_HOME" in said
    assert not (tmp_path / "hf").exists()
