"""Textual inversion files: every form in, the form of each program out."""

import pytest
import torch
from lora_cases import random
from lora_loom.convert import FormatError
from lora_loom.convert.embedding import (
    EMBEDDING_TARGETS,
    WIDTHS,
    Embedding,
    bundled,
    is_embedding,
    read_embedding,
    trigger_problems,
    unbundled,
    write_embedding,
)
from lora_loom.convert.files.disk import load_any, save

L, H, G, T5 = (random(n, 3, width) for n, width in enumerate((768, 1024, 1280, 4096)))


def a1111(value, **more):
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": value},
        "name": "zog",
        "step": 400,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        **more,
    }


FORMS = {
    "a1111": (a1111(L), {"clip_l": L}, "zog", "sd1"),
    "a1111 with a parameter dict": (
        a1111(L, string_to_param=torch.nn.ParameterDict({"*": torch.nn.Parameter(L)})),
        {"clip_l": L},
        "zog",
        "sd1",
    ),
    "a1111 for sd2": (a1111(H), {"clip_h": H}, "zog", "sd2"),
    "learned_embeds": ({"<zog>": L}, {"clip_l": L}, "<zog>", "sd1"),
    "learned_embeds of one vector": ({"<zog>": L[0]}, {"clip_l": L[:1]}, "<zog>", "sd1"),
    "learned_embeds for sd2": ({"<zog>": H}, {"clip_h": H}, "<zog>", "sd2"),
    "kohya": ({"emb_params": L}, {"clip_l": L}, "", "sd1"),
    "kohya for sd2": ({"emb_params": H}, {"clip_h": H}, "", "sd2"),
    "kohya of one vector": ({"emb_params": L[0]}, {"clip_l": L[:1]}, "", "sd1"),
    "sdxl": ({"clip_l": L, "clip_g": G}, {"clip_l": L, "clip_g": G}, "", "sdxl"),
    "sdxl pivotal": ({"text_encoders_0": L, "text_encoders_1": G}, {"clip_l": L, "clip_g": G}, "", "sdxl"),
    "flux of diffusers": ({"clip_l": L, "t5": T5}, {"clip_l": L, "t5xxl": T5}, "", "flux1"),
    "flux of comfyui": ({"clip_l": L, "t5xxl": T5}, {"clip_l": L, "t5xxl": T5}, "", "flux1"),
    "sd3 of comfyui": ({"clip_l": L, "clip_g": G, "t5xxl": T5}, {"clip_l": L, "clip_g": G, "t5xxl": T5}, "", "sd3"),
    "clip_h": ({"clip_h": H}, {"clip_h": H}, "", "sd2"),
    "clip_g alone": ({"clip_g": G}, {"clip_g": G}, "", "sdxl"),
    "half precision": ({"emb_params": L.half()}, {"clip_l": L.half()}, "", "sd1"),
    "onetrainer sdxl": (
        {"clip_l": L, "clip_g": G, "clip_l_out": L, "clip_g_out": G},
        {"clip_l": L, "clip_g": G},
        "",
        "sdxl",
    ),
    "onetrainer sd1": ({"emb_params": L, "emp_params_out": L}, {"clip_l": L}, "", "sd1"),
    "qwen": ({"qwen3_4b": random(9, 2, 2560)}, {"qwen3_4b": random(9, 2, 2560)}, "", ""),
    "toy": ({"emb_params": random(1, 2, 64)}, {"clip_l": random(1, 2, 64)}, "", "toy"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form):
    data, vectors, token, _ = FORMS[form]
    assert is_embedding(data)
    got = read_embedding(data)
    assert got.token == token
    assert set(got.vectors) == set(vectors)
    for name, value in vectors.items():
        assert got.vectors[name].shape == value.shape
        assert torch.equal(got.vectors[name], value)
        assert not got.vectors[name].requires_grad


@pytest.mark.parametrize("form", [f for f in FORMS if f != "qwen"])
def test_the_base_model_is_told_from_the_encoders(form):
    assert read_embedding(FORMS[form][0]).family == FORMS[form][3]


def test_embeddings_for_encoders_stable_diffusion_does_not_have_are_not_taken_for_sd1():
    assert read_embedding({"qwen25_7b": random(9, 2, 3584)}).family == "qwen-image"
    assert read_embedding({"qwen3_4b": random(9, 2, 2560)}).family != "sd1"  # Z-Image or Flux.2-klein


def test_an_a1111_file_keeps_its_step_and_ignores_a_strange_one():
    assert read_embedding(a1111(L)).step == 400
    assert read_embedding(a1111(L, step=None)).step == 0
    assert read_embedding(a1111(L, step="many", name=None)).token == ""


def test_output_embeddings_are_left_out_and_told():
    assert any("clip_l_out, clip_g_out" in str(n) for n in read_embedding(FORMS["onetrainer sdxl"][0]).notes)
    assert read_embedding(FORMS["sdxl"][0]).notes == ()


def test_vectors_are_copies():
    value = L.clone()
    read_embedding({"emb_params": value}).vectors["clip_l"].zero_()
    assert torch.equal(value, L)


@pytest.mark.parametrize(
    "data",
    [{}, {"lora_unet_a.lora_down.weight": random(1, 4, 768)}, {"a": L, "b": L}, {"weight": random(1, 4, 320)}, {"x": random(1, 2, 2, 768)}, {"x": 3}],
)  # fmt: skip
def test_other_files_do_not_look_like_embeddings(data):
    assert not is_embedding(data)


NAN = float("nan")
WRONG = {
    "nothing": ({}, "keys"),
    "two unknown keys": ({"a": L, "b": L}, "a, b"),
    "no tensor": ({"emb_params": 3}, "emb_params"),
    "text": ({"clip_l": "x", "clip_g": G}, "clip_l"),
    "no text encoder of this width": ({"<zog>": random(1, 3, 320)}, "width 320"),
    "kohya of a strange width": ({"emb_params": random(1, 3, 1)}, "width 1"),
    "clip_l as wide as clip_g": ({"clip_l": random(1, 3, 1280), "clip_g": G}, "clip_l"),
    "clip_g as wide as clip_l": ({"clip_l": L, "clip_g": random(1, 3, 768)}, "clip_g"),
    "t5 of a strange width": ({"clip_l": L, "t5xxl": random(1, 3, 2048)}, "t5xxl"),
    "clip_h as wide as clip_l": ({"clip_h": L}, "clip_h"),
    "different numbers of vectors": ({"clip_l": L, "clip_g": G[:2]}, "clip_l has 3 vectors and clip_g 2"),
    "no vectors": ({"emb_params": random(1, 0, 768)}, "emb_params|0 vectors"),
    "vectors of nothing": ({"emb_params": torch.zeros(3, 0)}, "emb_params|embedding"),
    "an empty tensor": ({"<zog>": torch.zeros(0)}, "zog"),
    "a number": ({"<zog>": torch.tensor(1.0)}, "zog"),
    "three dimensions": ({"emb_params": random(1, 1, 3, 768)}, "embedding"),
    "too many vectors": ({"emb_params": torch.zeros(5000, 768)}, "5000 vectors"),
    "not finite": ({"emb_params": torch.full((2, 768), NAN)}, "not finite"),
    "integers": ({"emb_params": torch.ones(2, 768, dtype=torch.int64)}, "floating"),
    "complex": ({"emb_params": torch.ones(2, 768, dtype=torch.complex64)}, "floating"),
    "no table in an a1111 file": ({"string_to_param": [L]}, "string_to_param"),
    "an empty table": ({"string_to_param": {}}, "string_to_param: has 0"),
    "two entries": ({"string_to_param": {"*": L, "+": L}}, "string_to_param: has 2"),
    "an entry that is no tensor": ({"string_to_param": {"*": [1.0]}}, "embedding"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_by_name(case):
    data, message = WRONG[case]
    with pytest.raises(FormatError, match=message):
        read_embedding(data)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_every_floating_type_is_read(dtype):
    got = read_embedding({"emb_params": torch.ones(2, 768).to(dtype)})
    assert torch.equal(write_embedding(got)["emb_params"], torch.ones(2, 768))


# --- out ----------------------------------------------------------------------------------------------------------------------------------

SD1, SD2 = Embedding({"clip_l": L}, "<zog>"), Embedding({"clip_h": H})
SDXL, FLUX, SD3 = (
    Embedding({"clip_l": L, "clip_g": G}),
    Embedding({"clip_l": L, "t5xxl": T5}),
    Embedding({"clip_l": L, "clip_g": G, "t5xxl": T5}),
)


@pytest.mark.parametrize(
    ("embedding", "target", "keys"),
    [
        (SD1, "webui", {"emb_params"}), (SD2, "webui", {"emb_params"}), (SDXL, "webui", {"clip_l", "clip_g"}), (FLUX, "webui", {"clip_l", "t5xxl"}),
        (SD1, "comfyui", {"emb_params"}), (SDXL, "comfyui", {"clip_l", "clip_g"}), (FLUX, "comfyui", {"clip_l", "t5xxl"}),
        (SD3, "comfyui", {"clip_l", "clip_g", "t5xxl"}), (SD1, "diffusers", {"<zog>"}), (SD2, "diffusers", {"token"}),
        (SDXL, "diffusers", {"clip_l", "clip_g"}), (FLUX, "diffusers", {"clip_l", "t5"}), (SD3, "webui", {"clip_l", "clip_g", "t5xxl"}),
    ],
)  # fmt: skip
def test_each_program_gets_the_keys_it_reads(embedding, target, keys):
    file = write_embedding(embedding, target)
    assert set(file) == keys
    assert all(v.dtype == torch.float32 and v.is_contiguous() for v in file.values())


@pytest.mark.parametrize("target", EMBEDDING_TARGETS)
@pytest.mark.parametrize("embedding", [SD1, SD2, SDXL, FLUX, SD3], ids=lambda e: e.family)
def test_every_form_out_is_read_again_bit_for_bit(embedding, target):
    again = read_embedding(write_embedding(embedding, target)).vectors
    assert set(again) == set(embedding.vectors)
    assert all(torch.equal(again[k], v) for k, v in embedding.vectors.items())


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_files_of_torch_come_out_as_they_went_in(suffix, tmp_path):
    for n, data in enumerate(
        (a1111(L), a1111(L, string_to_param=torch.nn.ParameterDict({"*": torch.nn.Parameter(L)})), {"<zog>": L})
    ):
        torch.save(data, tmp_path / f"{n}{suffix}")
        got = read_embedding(load_any(tmp_path / f"{n}{suffix}")[0])
        assert torch.equal(got.vectors["clip_l"], L)


def test_a_file_of_the_forms_survives_the_disk(tmp_path):
    save(tmp_path / "zog.safetensors", write_embedding(SDXL), {"modelspec.title": "zog"})
    data, metadata = load_any(tmp_path / "zog.safetensors")
    assert torch.equal(read_embedding(data).vectors["clip_g"], G)
    assert metadata == {"modelspec.title": "zog"}


def test_clip_g_alone_is_refused_for_webuis_which_want_both():
    with pytest.raises(FormatError, match="CLIP-G alone"):
        write_embedding(Embedding({"clip_g": G}), "webui")
    assert set(write_embedding(Embedding({"clip_g": G}, "zog"), "diffusers")) == {"zog"}


def test_an_unknown_target_is_refused():
    with pytest.raises(FormatError, match="webui, comfyui, diffusers"):
        write_embedding(SD1, "forge")


# --- bundles ------------------------------------------------------------------------------------------------------------------------------


def test_bundled_embeddings_are_taken_out_of_a_lora_file():
    lora = {"lora_unet_a.lora_down.weight": torch.ones(1, 2)}
    rest, found = unbundled(
        {**lora, "bundle_emb.zog.clip_l": L, "bundle_emb.zog.clip_g": G, "bundle_emb.old.string_to_param.*": L}
    )
    assert rest.keys() == lora.keys()
    assert {token: read_embedding(state).family for token, state in found.items()} == {"zog": "sdxl", "old": "sd1"}
    assert torch.equal(read_embedding(found["zog"]).vectors["clip_g"], G)
    assert unbundled(lora) == (lora, {})


def test_bundles_are_written_as_a1111_reads_them_and_read_again():
    keys = bundled({"zog": SDXL, "old": SD1})
    assert set(keys) == {"bundle_emb.zog.clip_l", "bundle_emb.zog.clip_g", "bundle_emb.old.string_to_param.*"}
    rest, found = unbundled(keys)
    assert rest == {}
    assert torch.equal(read_embedding(found["old"]).vectors["clip_l"], L)


@pytest.mark.parametrize("key", ["bundle_emb.", "bundle_emb.zog", "bundle_emb.zog.", "bundle_emb..clip_l"])
def test_a_bundle_key_without_token_or_part_is_refused(key):
    with pytest.raises(FormatError, match="bundle_emb"):
        unbundled({key: L})


# --- triggers -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zog", "zog_emb", "zog-2", "7zog", "z", "cat_emb", "cat7"])
def test_names_that_work_in_every_program(name):
    assert trigger_problems(name, {"other"}) == []


@pytest.mark.parametrize(
    "name", ["", "Zog", "zog.v2", "zog)", "<zog>", "zog emb", "zög", "_zog", "-zog", "zog\n", "zog,", "a/b", "zog[1]"]
)
def test_names_that_some_program_does_not_find(name):
    assert any("does not work everywhere" in str(p) for p in trigger_problems(name))


@pytest.mark.parametrize("name", ["cat", "woman", "style"])
def test_ordinary_words_are_warned_about(name):
    assert any("ordinary word" in str(p) for p in trigger_problems(name))


def test_the_name_of_a_lora_is_warned_about():
    assert any("zog_emb" in str(p) for p in trigger_problems("zog", {"zog"}))


def test_every_known_width_has_an_encoder():
    assert {
        768: "clip_l",
        1024: "clip_h",
        1280: "clip_g",
        4096: "t5xxl",
        2560: "qwen3_4b",
        3584: "qwen25_7b",
    }.items() <= WIDTHS.items()
