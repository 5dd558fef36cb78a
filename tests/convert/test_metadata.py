import datetime
import hashlib
import json

import pytest
import torch
from lora_loom.convert import lora_metadata, to_file
from lora_loom.convert.metadata import BASES, hashes, tag_frequency, within_limit
from lora_loom.lora_core.config import TrainConfig, as_dict, parse
from safetensors.torch import save

TENSORS = to_file({"lora_unet_a.lora_down": torch.ones(4, 8), "lora_unet_a.lora_up": torch.ones(8, 4), "lora_unet_a.alpha": torch.tensor(2.0)})


def facts(**changes):
    config = as_dict(parse({"steps": 100, "batch_size": 2, "grad_accum": 3, "data": {"trigger": "zog", "folder": "/home/someone/private"}, **changes}))
    return {"config": config, "step": 40, "repeats": [2, 1], "captions": ["zog, red", "zog, blue"], "per_epoch": 12}


@pytest.mark.parametrize("base", [*BASES, "unheard-of"])
@pytest.mark.parametrize("given", [{}, facts()])
def test_every_key_and_value_is_a_string_that_is_not_empty(base, given):
    for key, value in lora_metadata(TENSORS, "x", base, given).items():
        assert isinstance(key, str)
        assert isinstance(value, str)
        assert value


@pytest.mark.parametrize(
    ("base", "version", "v2"),
    [
        ("sd1", "sd_v1", "False"), ("sd2", "sd_v2", "True"), ("sd2-v", "sd_v2_v", "True"), ("sdxl", "sdxl_base_v1-0", "False"),
        ("flux1", "flux1", "False"), ("other", "other", "False"),
    ],
)  # fmt: skip
def test_the_base_model_version_is_always_written_in_the_words_webuis_know(base, version, v2):
    header = lora_metadata(TENSORS, "x", base, {})
    assert (header["ss_base_model_version"], header["ss_v2"]) == (version, v2)


def test_sdxl_is_named_as_the_model_spec_has_it():
    header = lora_metadata(TENSORS, "x", "sdxl", {})
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert header["modelspec.resolution"] == "1024x1024"


def test_the_facts_of_the_run_are_written_in_kohyas_words():
    header = lora_metadata(TENSORS, "my lora", "sd1", facts())
    expected = {
        "ss_output_name": "my lora", "modelspec.title": "my lora", "ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_network_module": "networks.lora",
        "ss_steps": "40", "ss_max_train_steps": "100", "ss_learning_rate": "0.0001", "ss_total_batch_size": "6", "ss_num_train_images": "3", "ss_epoch": "10",
        "ss_resolution": "(512, 512)", "modelspec.trigger_phrase": "zog", "modelspec.resolution": "512x512", "format": "pt",
    }  # fmt: skip
    assert {k: header[k] for k in expected} == expected
    assert json.loads(header["ss_network_args"]) == {}
    datetime.datetime.fromisoformat(header["modelspec.date"])


def test_captions_stay_out_unless_asked_for_and_paths_always():
    quiet, open_ = (lora_metadata(TENSORS, "x", "sd1", facts(), with_captions=asked) for asked in (False, True))
    assert "blue" not in json.dumps(quiet)
    assert json.loads(open_["ss_tag_frequency"]) == {"x": {"zog": 2, "red": 1, "blue": 1}}
    assert not any("private" in value or "/home" in value for value in open_.values())


def test_tags_are_counted_by_their_text_between_commas():
    assert tag_frequency(["a, b,a", " b ,,c d"]) == {"a": 2, "b": 2, "c d": 1}


def test_the_header_drops_its_tag_table_before_it_grows_past_what_galleries_read():
    given = facts() | {"captions": [", ".join(f"tag number {n} of picture {p}" for n in range(40)) for p in range(400)]}
    header = lora_metadata(TENSORS, "x", "sd1", given, with_captions=True)
    assert "ss_tag_frequency" not in header
    assert header["ss_steps"] == "40"
    assert sum(len(k.encode()) + len(v.encode()) for k, v in header.items()) < 256 * 1024
    small = {"a": "b", "ss_tag_frequency": "{}"}
    assert within_limit(small) == small


def test_hashes_are_the_sha256_of_the_data_section():
    data = save(TENSORS, {"any": "metadata"})
    section = data[8 + int.from_bytes(data[:8], "little") :]
    digest = hashlib.sha256(section).hexdigest()
    assert hashes(TENSORS) == {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}


def test_hashes_do_not_depend_on_key_order_or_metadata_but_on_every_value():
    assert hashes(dict(reversed(TENSORS.items()))) == hashes(TENSORS)
    changed = {k: v.clone() for k, v in TENSORS.items()}
    changed["lora_unet_a.lora_up.weight"][0, 0] += 1
    assert hashes(changed) != hashes(TENSORS)
    header = lora_metadata(TENSORS, "x", "sd1", {})
    assert header["sshs_model_hash"] == hashes(TENSORS)["sshs_model_hash"]


def test_defaults_of_a_run_are_enough_for_a_header():
    given = {"config": as_dict(TrainConfig()), "step": 0, "repeats": [], "captions": [], "per_epoch": 0}
    assert lora_metadata(TENSORS, "x", "sd1", given)["ss_epoch"] == "0"
