import datetime
import hashlib
import json

import pytest
import torch
from lora_loom.convert import lora_metadata
from lora_loom.convert.detect import declared_family
from lora_loom.convert.embedding import Embedding, write_embedding
from lora_loom.convert.families import FAMILIES, TOYS
from lora_loom.convert.files.disk import header, save
from lora_loom.convert.metadata import (
    BASES,
    converted_metadata,
    describe,
    embedding_metadata,
    hashes,
    tag_frequency,
    within_limit,
)
from lora_loom.lora_core.config import TrainConfig, as_dict, parse
from lora_loom.lora_core.optim.optimizers import filled
from safetensors.torch import save as library_save

TENSORS = {
    "lora_unet_a.lora_down.weight": torch.ones(4, 8),
    "lora_unet_a.lora_up.weight": torch.ones(8, 4),
    "lora_unet_a.alpha": torch.tensor(2.0),
}


def facts(**changes):
    job = {
        "steps": 100,
        "batch_size": 2,
        "grad_accum": 3,
        "data": {"trigger": "zog", "folder": "/home/someone/private"},
        **changes,
    }
    config = as_dict(filled(parse(job)))
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


def test_options_that_were_on_are_noted_and_others_are_not():
    options = ("ss_text_encoder_lr", "ss_prior_loss_weight", "ss_min_snr_gamma", "ss_noise_offset")
    assert not set(options) & set(lora_metadata(TENSORS, "x", "sd1", facts()))
    on = facts(
        text_encoder={"train": True, "lr": 5e-5},
        prior={"prompt": "a dog", "weight": 0.5},
        objective={"weighting": "min_snr", "noise_offset": 0.05},
    )
    header = lora_metadata(TENSORS, "x", "sd1", on)
    assert {k: header[k] for k in options} == dict(zip(options, ("5e-05", "0.5", "5.0", "0.05"), strict=True))


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
    data = library_save(TENSORS, {"any": "metadata"})
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


# --- who reads it -------------------------------------------------------------------------------------------------------------------------


def a1111_version(metadata: dict[str, str]) -> str:
    """The version A1111 1.10 gives a LoRA; it hides those of another version than the checkpoint's."""
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if metadata else "Unknown"


def forge_version(metadata: dict[str, str]) -> str:
    """The same for Forge."""
    architecture = metadata.get("modelspec.architecture", "")
    if (
        metadata.get("modelspec.implementation") == "https://github.com/black-forest-labs/flux"
        or architecture == "flux-1-dev/lora"
    ):
        return "Flux"
    if architecture == "stable-diffusion-xl-v1-base/lora" or metadata.get("ss_base_model_version", "").startswith(
        "sdxl_"
    ):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if architecture == "stable-diffusion-v1/lora" else "Unknown"


@pytest.mark.parametrize(
    "make",
    [lambda base: lora_metadata(TENSORS, "x", base, facts()), lambda base: converted_metadata({}, TENSORS, "x", base)],
)
@pytest.mark.parametrize(
    ("base", "a1111", "forge"),
    [
        ("sd1", "SD1", "SD1"),
        ("sd2", "SD2", "SD2"),
        ("sd2-v", "SD2", "SD2"),
        ("sdxl", "SDXL", "SDXL"),
        ("sdxl-refiner", "SDXL", "SDXL"),
        ("flux1", "SD1", "Flux"),
    ],
)
def test_webuis_show_the_file_under_its_base_model(base, a1111, forge, make):
    assert a1111_version(make(base)) == a1111
    assert forge_version(make(base)) == forge


def test_a_file_without_more_than_a_format_would_be_hidden_under_sdxl():
    assert a1111_version({"format": "pt"}) == "SD1"
    assert a1111_version(converted_metadata({"format": "pt"}, TENSORS, "x", "sdxl")) == "SDXL"


def test_the_metadata_dialog_of_a1111_can_read_what_it_looks_into():
    written = lora_metadata(TENSORS, "x", "sd1", facts(), with_captions=True)
    assert all(
        int(d["n_repeats"]) >= 0 and int(d["img_count"]) >= 0 for d in json.loads(written["ss_dataset_dirs"]).values()
    )
    assert all(isinstance(n, int) for tags in json.loads(written["ss_tag_frequency"]).values() for n in tags.values())
    json.loads(written["ss_network_args"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_header_names_a_family_that_is_read_from_it_again(family):
    same = {
        **dict.fromkeys(TOYS, "sd1"),
        "sdxl-refiner": "sdxl",
    }  # small Stable Diffusions 1; the layers tell the two parts of SDXL
    assert declared_family(lora_metadata(TENSORS, "x", family, {})) == same.get(family, family)


# --- converted files ----------------------------------------------------------------------------------------------------------------------

OLD = {
    "format": "np", "sshs_model_hash": "0" * 64, "sshs_legacy_hash": "e3b0c442", "modelspec.hash_sha256": "0x" + "0" * 64, "lora_adapter_metadata": "{}",
    "ss_network_dim": "128", "ss_network_alpha": "64.0", "ss_network_module": "networks.lora", "ss_network_args": "{\"conv_dim\": 4}", "ss_output_name": "old",
    "modelspec.title": "old", "modelspec.implementation": "old", "modelspec.sai_model_spec": "1.0.0", "ss_base_model_version": "sd_v1", "ss_v2": "False",
    "ss_steps": "1200", "ss_learning_rate": "0.0001", "ss_training_comment": "mine", "modelspec.author": "someone", "modelspec.trigger_phrase": "zog",
    "ss_sd_model_name": "/home/someone/models/base.safetensors", "ss_vae_name": "C:\\Users\\someone\\vae.pt",
    "ss_tag_frequency": "{\"1_private\": {\"zog\": 3}}", "ss_dataset_dirs": "{\"1_private\": {\"n_repeats\": 1, \"img_count\": 3}}",
    "ss_reg_dataset_dirs": "{\"private\": {}}", "ss_datasets": "[{\"dir\": \"private\"}]", "ss_bucket_info": "{}", "workflow": "private", "prompt": "private",
}  # fmt: skip


def test_what_is_no_longer_true_of_a_converted_file_is_dropped_or_written_anew():
    new = converted_metadata(OLD, TENSORS, "new", "sd1", details=True)
    assert "lora_adapter_metadata" not in new
    assert "sshs_legacy_hash" not in new
    expected = {
        "ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_network_args": "{}", "ss_output_name": "new", "modelspec.title": "new", "format": "pt",
        "modelspec.implementation": "diffusers", "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": "stable-diffusion-v1/lora", **hashes(TENSORS),
    }  # fmt: skip
    assert {k: new[k] for k in expected} == expected


def test_what_is_still_true_is_kept():
    new = converted_metadata(OLD, TENSORS, "new", "sd1")
    kept = ("ss_steps", "ss_learning_rate", "ss_training_comment", "modelspec.author", "modelspec.trigger_phrase")
    assert {k: new[k] for k in kept} == {k: OLD[k] for k in kept}


def test_captions_and_folders_go_along_only_when_asked_for():
    quiet, full = (converted_metadata(OLD, TENSORS, "new", "sd1", details=asked) for asked in (False, True))
    private = (
        "ss_tag_frequency",
        "ss_dataset_dirs",
        "ss_reg_dataset_dirs",
        "ss_datasets",
        "ss_bucket_info",
        "workflow",
        "prompt",
    )
    assert not set(quiet) & set(private)
    assert "private" not in json.dumps(quiet)
    assert {k: full[k] for k in private} == {k: OLD[k] for k in private}


@pytest.mark.parametrize("details", [False, True])
def test_paths_of_models_are_cut_to_the_name_of_the_file(details):
    new = converted_metadata(OLD, TENSORS, "new", "sd1", details)
    assert (new["ss_sd_model_name"], new["ss_vae_name"]) == ("base.safetensors", "vae.pt")
    assert not any("someone" in v for k, v in new.items() if k != "modelspec.author")


def test_new_entries_win():
    assert converted_metadata(OLD, TENSORS, "new", "sd1", ss_training_comment="ours")["ss_training_comment"] == "ours"


def test_the_base_model_is_the_one_found_in_the_file_not_the_one_an_old_header_named():
    new = converted_metadata({**OLD, "modelspec.architecture": "stable-diffusion-v1/lora"}, TENSORS, "new", "sdxl")
    assert new["ss_base_model_version"] == "sdxl_base_v1-0"
    assert new["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


@pytest.mark.parametrize(
    ("base", "architecture"),
    [("sd3", "stable-diffusion-3-medium/lora"), ("flux1", "flux-1-schnell/lora"), ("sd2", "stable-diffusion-v2-768-v/lora")],
)  # fmt: skip
def test_a_variant_of_the_family_that_the_old_header_named_is_kept(base, architecture):
    assert (
        converted_metadata({"modelspec.architecture": architecture}, TENSORS, "new", base)["modelspec.architecture"]
        == architecture
    )


def test_sd2_with_v_prediction_stays_so():
    new = converted_metadata({"ss_base_model_version": "sd_v2_v", "ss_v2": "True"}, TENSORS, "new", "sd2")
    assert (new["ss_base_model_version"], new["ss_v2"], new["modelspec.architecture"]) == (
        "sd_v2_v",
        "True",
        "stable-diffusion-v2-768-v/lora",
    )


def test_the_version_of_a_model_nobody_knows_is_kept():
    assert (
        converted_metadata({"ss_base_model_version": "hunyuan-image-2.1"}, TENSORS, "new", "unknown")[
            "ss_base_model_version"
        ]
        == "hunyuan-image-2.1"
    )


def test_lycoris_modules_are_declared_as_such():
    loha = {f"lora_unet_a.hada_{n}": torch.ones(2, 2) for n in ("w1_a", "w1_b", "w2_a", "w2_b")}
    lokr = {"lora_unet_a.lokr_w1": torch.ones(2, 2), "lora_unet_a.lokr_w2": torch.ones(2, 2)}
    for tensors, algo in ((loha, "loha"), (lokr, "lokr")):
        new = converted_metadata({}, tensors, "new", "sd1")
        assert new["ss_network_module"] == "lycoris.kohya"
        assert json.loads(new["ss_network_args"]) == {"algo": algo}


@pytest.mark.parametrize(
    "make",
    [lambda: lora_metadata(TENSORS, "x", "sdxl", facts()), lambda: converted_metadata(OLD, TENSORS, "x", "sdxl")],
)
def test_the_hash_in_a_written_file_is_the_hash_of_its_data_section(make, tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, TENSORS, make())
    data = path.read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    written = header(path)[1]
    assert (written["sshs_model_hash"], written["modelspec.hash_sha256"]) == (digest, f"0x{digest}")


def test_hashes_of_mixed_types_are_those_of_the_file_that_is_written(tmp_path):
    mixed = {
        "b": torch.ones(3, dtype=torch.float16),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "c": torch.tensor(2.0),
        "d": torch.ones(5, dtype=torch.int8),
    }
    save(tmp_path / "x.safetensors", mixed)
    data = (tmp_path / "x.safetensors").read_bytes()
    assert (
        hashes(mixed)["sshs_model_hash"] == hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    )


# --- rank and alpha -----------------------------------------------------------------------------------------------------------------------


def module(name, rank, alpha=None, kohya=True):
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    out = {f"{name}.{down}.weight": torch.ones(rank, 8), f"{name}.{up}.weight": torch.ones(8, rank)}
    return out if alpha is None else {**out, f"{name}.alpha": torch.tensor(alpha)}


@pytest.mark.parametrize(
    ("tensors", "wanted"),
    [
        (module("lora_unet_a", 3, 1.5), ("3", "1.5")), (module("unet.a", 3, kohya=False), ("3", "3.0")), ({}, ("", "")),
        ({**module("lora_unet_a", 3, 1.5), **module("lora_unet_b", 4, 1.5)}, ("Dynamic", "1.5")),
        ({**module("lora_unet_a", 3, 1.5), **module("lora_unet_b", 3, 2.0)}, ("3", "Dynamic")),
        ({**module("lora_unet_a", 3), **module("lora_unet_b", 4)}, ("Dynamic", "Dynamic")),
    ],
)  # fmt: skip
def test_rank_and_alpha_are_told_when_all_modules_share_them(tensors, wanted):
    assert describe(tensors) == wanted


# --- embeddings ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectors", "architecture", "version"),
    [({"clip_l": 768}, "stable-diffusion-v1", "sd_v1"), ({"clip_h": 1024}, "stable-diffusion-v2-512", "sd_v2"),
     ({"clip_l": 768, "clip_g": 1280}, "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"), ({"clip_l": 768, "t5xxl": 4096}, "flux-1-dev", "flux1")],
)  # fmt: skip
def test_embeddings_are_named_as_the_model_spec_has_it(vectors, architecture, version):
    embedding = Embedding({k: torch.ones(2, n) for k, n in vectors.items()}, step=300)
    tensors = write_embedding(embedding)
    written = embedding_metadata(embedding, tensors, "zog_emb")
    expected = {"modelspec.architecture": f"{architecture}/textual-inversion", "modelspec.title": "zog_emb", "modelspec.trigger_phrase": "zog_emb",
                "ss_base_model_version": version, "ss_steps": "300", **hashes(tensors)}  # fmt: skip
    assert {k: written[k] for k in expected} == expected
    assert "modelspec.is_negative_embedding" not in written
    assert embedding_metadata(embedding, tensors, "zog", negative=True)["modelspec.is_negative_embedding"] == "true"
    assert all(isinstance(v, str) and v for v in written.values())


def test_the_largest_entries_go_when_the_tag_table_was_not_enough():
    big = {"a": "x" * 300_000, "b": "y" * 1000, "ss_tag_frequency": "z" * 1000}
    assert within_limit(big) == {"b": "y" * 1000}
    assert set(big) == {"a", "b", "ss_tag_frequency"}


def test_what_programs_need_to_show_a_file_survives_the_limit():
    written = converted_metadata(
        {"modelspec.thumbnail": "data:image/jpeg;base64," + "A" * 400_000, "ss_steps": "7"}, TENSORS, "x", "sdxl"
    )
    assert "modelspec.thumbnail" not in written
    assert (a1111_version(written), written["ss_steps"]) == ("SDXL", "7")
