"""Which base model a LoRA was trained on, as each trainer writes it."""

import json

import pytest
from lora_cases import kohya, lora
from lora_loom.convert import read
from lora_loom.convert.files.jobs import inspected
from lora_loom.convert.origin import in_card, in_config, trained_on
from lora_loom.convert.report import inspect
from safetensors.torch import save_file

STATE = kohya("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", lora(320, 320))


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ({}, []),
        ({"ss_sd_model_name": "C:\\models\\dream.safetensors", "ss_new_sd_model_hash": "ab12"}, ["dream.safetensors", "ab12"]),
        ({"ss_sd_model_name": "/home/me/base.safetensors", "ss_sd_model_hash": "None"}, ["base.safetensors"]),
        ({"ss_sd_model_name": "stabilityai/stable-diffusion-xl-base-1.0"}, ["stabilityai/stable-diffusion-xl-base-1.0"]),
        ({"ss_base_model_version": "wan22_14b", "software": '{"name": "ai-toolkit"}'}, ["wan22_14b"]),
        ({"ot_config": json.dumps({"base_model_name": "black-forest-labs/FLUX.1-dev", "vae": {"model_name": ""}})}, ["black-forest-labs/FLUX.1-dev"]),
        ({"lora_adapter_metadata": json.dumps({"transformer": {"base_model_name_or_path": "a/b"}})}, ["a/b"]),
        ({"lora_adapter_metadata": json.dumps({"transformer.base_model_name_or_path": "a/b"})}, ["a/b"]),
        ({"ot_config": "{broken", "ss_sd_model_name": "x"}, ["x"]),
        ({"ot_config": '{"a":' * 4000 + "1" + "}" * 4000}, []),
    ],
)  # fmt: skip
def test_a_header_names_the_base_without_a_path_of_somebodys_disk(header, names):
    assert [name for name, _ in trained_on(header)] == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("---\nbase_model: a/b\ntags: []\n---\n# x", ["a/b"]),
        ('---\ntags:\n- lora\nbase_model: "a/b"\n---\n', ["a/b"]),
        ("---\nbase_model:\n- a/b\n  - c/d\nlicense: mit\n---\n", ["a/b", "c/d"]),
        ("---\nbase_model: [a/b, c/d]\n---\n", ["a/b", "c/d"]),
        ("---\nbase_model:\n---\n", []),
        ("# base_model: a/b\n", []),
        ("---\nlicense: mit\n---\nbase_model: a/b\n", []),
    ],
)
def test_the_card_of_a_repository_names_the_base_in_its_front_matter(text, names):
    assert [name for name, _ in in_card(text)] == names


def test_a_peft_config_names_the_base():
    assert in_config({"base_model_name_or_path": "/x/y/z/base"})[0][0] == "base"
    assert in_config({"base_model_name_or_path": None}) == ()


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "my.safetensors"])
def test_inspect_of_a_repository_folder_says_what_its_card_and_its_file_say(file, tmp_path):
    save_file(STATE, tmp_path / file, {"ss_sd_model_name": "sd.safetensors"})
    (tmp_path / "README.md").write_text("---\nbase_model: runwayml/stable-diffusion-v1-5\n---\n", encoding="utf-8")
    report = inspect(inspected(tmp_path))
    told = [str(line) for line in report.messages()]
    assert "trained on: runwayml/stable-diffusion-v1-5 (README.md: base_model)" in told
    assert "trained on: sd.safetensors (ss_sd_model_name)" in told


def test_a_file_without_any_word_of_its_base_says_none():
    assert inspect(read(STATE)).origins == ()
