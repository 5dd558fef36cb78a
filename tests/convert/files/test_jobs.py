"""Files in, files out: what is opened, what is written, what is refused, and that nothing of the user's is ever lost."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from lora_cases import dense, error, kohya, loha, lora, random
from lora_loom.convert import FormatError, Lora, Module, read
from lora_loom.convert.embedding import Embedding, read_embedding
from lora_loom.convert.files.disk import header, load, save
from lora_loom.convert.files.jobs import (
    Options,
    Size,
    convert,
    extract_file,
    inspected,
    merge_files,
    open_embedding,
    open_file,
    open_lora,
    resize_file,
    write_embedding_file,
    write_lora,
)
from lora_loom.convert.merge import weighted
from lora_loom.lora_core.messages.figures import percent
from peft import LoraConfig, get_peft_model
from torch import nn

# Factors and roots of scales are rounded to float32 a few times, 6e-8 each.
ROUNDING = 1e-6
Q, K = (f"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn{n}" for n in ("1.to_q", "2.to_k"))
CONV, TEXT = "unet.down_blocks.1.resnets.0.conv1", "clip_l.text_model.encoder.layers.3.mlp.fc1"
FP32 = Options("kohya", "fp32")


def a_lora(seed: int = 0, rank: int = 4, alpha: float | None = 2.0, **more) -> Lora:
    modules = {
        Q: lora(16, 16, rank, alpha, seed=seed), K: lora(16, 768, rank, alpha, seed=seed + 1), CONV: lora(16, 8, rank, alpha, (3, 3), seed=seed + 2),
        TEXT: lora(48, 12, rank, alpha, seed=seed + 3),
    }  # fmt: skip
    return Lora("sd1", modules, **more)


def keys(seed: int = 0, **more) -> dict[str, torch.Tensor]:
    """The same as a Kohya file, its names written by hand."""
    out = {}
    for name, module in a_lora(seed, **more).modules.items():
        prefix = "lora_te_" if name == TEXT else "lora_unet_"
        out |= kohya(prefix + name.partition(".")[2].replace(".", "_"), module)
    return out


def same(got: Lora, wanted: dict[str, Module], tolerance: float = ROUNDING) -> None:
    assert set(got.modules) == set(wanted)
    for name, module in wanted.items():
        assert error(dense(got.modules[name]), dense(module)) < tolerance, name


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# --- opening ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".pth", ".ckpt"])
def test_a_lora_is_opened_from_a_safetensors_or_a_torch_file(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    save(path, keys()) if suffix == ".safetensors" else torch.save(keys(), path)
    opened = open_file(path)
    assert isinstance(opened, Lora)
    assert (opened.family, opened.source) == ("sd1", "kohya")
    same(opened, a_lora().modules, 1e-12)


def test_the_header_of_a_safetensors_file_comes_along(tmp_path):
    save(tmp_path / "x.safetensors", keys(), {"ss_steps": "7"})
    assert open_lora(tmp_path / "x.safetensors").metadata == {"ss_steps": "7"}


@pytest.mark.parametrize(
    ("name", "data", "encoders"),
    [
        ("x.pt", {"string_to_param": {"*": random(1, 3, 768)}, "name": "zog", "step": 5, "string_to_token": {"*": 265}}, {"clip_l": 3}),
        ("x.bin", {"<zog>": random(1, 768)}, {"clip_l": 1}), ("x.safetensors", {"emb_params": random(1, 2, 1024)}, {"clip_h": 2}),
        ("x.safetensors", {"clip_l": random(1, 2, 768), "clip_g": random(2, 2, 1280)}, {"clip_l": 2, "clip_g": 2}),
    ],
)  # fmt: skip
def test_an_embedding_is_opened_as_one(name, data, encoders, tmp_path):
    save(tmp_path / name, data) if name.endswith("safetensors") else torch.save(data, tmp_path / name)
    opened = open_file(tmp_path / name)
    assert isinstance(opened, Embedding)
    assert {k: len(v) for k, v in opened.vectors.items()} == encoders
    with pytest.raises(FormatError, match=f"{name}: is an embedding, not a LoRA"):
        open_lora(tmp_path / name)


def test_a_lora_is_no_embedding(tmp_path):
    save(tmp_path / "x.safetensors", keys())
    with pytest.raises(FormatError, match="x.safetensors: is a LoRA, not an embedding"):
        open_embedding(tmp_path / "x.safetensors")


class Block(nn.Module):
    """Layers under the paths they have in a UNet or a text encoder."""

    def __init__(self, paths: dict[str, nn.Module]):
        super().__init__()
        for path, layer in paths.items():
            *above, last = path.split(".")
            place = self
            for name in above:
                if name not in dict(place.named_children()):
                    place.add_module(name, nn.Module())
                place = place.get_submodule(name)
            place.add_module(last, layer)


def peft_folder(folder: Path, component: str, **settings) -> dict[str, torch.Tensor]:
    """An adapter as peft itself saves it, and the change of every layer that peft computes."""
    layers = {Q: nn.Linear(16, 16), K: nn.Linear(768, 16)} if component == "unet" else {TEXT: nn.Linear(12, 48)}
    model = Block({name.partition(".")[2]: layer for name, layer in layers.items()})
    wrapped = get_peft_model(
        model,
        LoraConfig(r=4, target_modules=[n.partition(".")[2] for n in layers], init_lora_weights=False, **settings),
    )
    wrapped.save_pretrained(folder)
    return {
        name: wrapped.base_model.model.get_submodule(name.partition(".")[2]).get_delta_weight("default").detach()
        for name in layers
    }


@pytest.mark.parametrize(
    "settings",
    [{"lora_alpha": 8}, {"lora_alpha": 3, "use_rslora": True}, {"lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 16}}],
)
def test_a_directory_saved_by_peft_is_opened_with_its_scale(settings, tmp_path):
    wanted = peft_folder(tmp_path / "adapter", "unet", **settings)
    opened = open_file(tmp_path / "adapter", "sd1")
    assert opened.source == "peft"
    assert set(opened.modules) == set(wanted)
    assert all(error(dense(opened.modules[n]), d) < ROUNDING for n, d in wanted.items())


@pytest.mark.parametrize("torch_file", [False, True])
def test_a_directory_of_peft_directories_is_one_lora_each_with_its_own_scale(torch_file, tmp_path):
    wanted = peft_folder(tmp_path / "all" / "unet", "unet", lora_alpha=8) | peft_folder(
        tmp_path / "all" / "text_encoder", "text_encoder", lora_alpha=1
    )
    if torch_file:
        for file in tmp_path.rglob("*.safetensors"):
            torch.save(load(file)[0], file.with_suffix(".bin"))
            file.unlink()
    opened = open_file(tmp_path / "all")
    assert (opened.family, opened.source) == ("sd1", "peft")
    assert "lora_adapter_metadata" not in opened.metadata
    assert set(opened.modules) == set(wanted)
    assert all(error(dense(opened.modules[n]), d) < ROUNDING for n, d in wanted.items())


def broken(place: Path, name: str, content: bytes | None) -> None:
    (place / name).unlink() if content is None else (place / name).write_bytes(content)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("adapter_config.json", b"no json", "is not JSON"), ("adapter_config.json", b"[1]", "no table of settings"),
        ("adapter_config.json", b"\xff", "is not JSON"),
        ("adapter_config.json", b"[" * 100_000, "is not JSON"), ("adapter_config.json", b'{"peft_type": "IA3"}', "peft_type is IA3"),
        ("adapter_model.safetensors", None, "no adapter_model.safetensors"), ("adapter_model.safetensors", b"rubbish", "not a safetensors file"),
        ("adapter_config.json", b'{"lora_alpha": "four"}', "lora_alpha is '?four"),
    ],
)  # fmt: skip
def test_a_damaged_peft_directory_is_refused_with_file_and_directory_named(file, content, says, tmp_path):
    peft_folder(tmp_path / "my adapter", "unet")
    broken(tmp_path / "my adapter", file, content)
    with pytest.raises(FormatError, match=says) as caught:
        open_file(tmp_path / "my adapter", "sd1")
    assert file.partition(".")[0] in str(caught.value)


@pytest.mark.parametrize("damage", ["config", "tensor"])
def test_an_error_inside_a_peft_directory_names_the_directory(damage, tmp_path):
    folder = tmp_path / "my adapter"
    peft_folder(folder, "unet")
    if damage == "config":
        (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    else:
        state, _ = load(folder / "adapter_model.safetensors")
        save(folder / "adapter_model.safetensors", dict(list(state.items())[:1]))
    with pytest.raises(FormatError, match="my adapter"):
        open_file(folder, "sd1")


def test_a_directory_without_an_adapter_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="empty: holds no adapter_config.json"):
        open_file(tmp_path / "empty")


HALF = {k: v for k, v in keys().items() if "lora_up" not in k}
DAMAGED = {
    "x.safetensors": [b"", b"rubbish", b"\x10" + bytes(7) + b'{"a": 1}        '], "x.pt": [b"", b"rubbish", b"PK\x03\x04"],
    "x.bin": [HALF, {"a": torch.ones(2, 2)}, [torch.ones(2)], {"lora_unet_a.alpha": "text"}, {}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(n, c) for n, contents in DAMAGED.items() for c in contents])
def test_every_error_names_the_file_once(name, content, tmp_path):
    (tmp_path / name).write_bytes(content) if isinstance(content, bytes) else torch.save(content, tmp_path / name)
    with pytest.raises(FormatError) as caught:
        open_file(tmp_path / name)
    assert str(caught.value).startswith(f"{name}: ")
    assert str(caught.value).count(name) == 1


def test_what_is_wrong_with_a_key_names_file_and_key(tmp_path):
    save(tmp_path / "x.safetensors", HALF)
    with pytest.raises(FormatError, match="x.safetensors: lora_(unet|te)_.*: has down but lacks up"):
        open_file(tmp_path / "x.safetensors")


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("x.safetensors", "x.pt"):
        with pytest.raises(FormatError, match=f"{name}: cannot be read"):
            open_file(tmp_path / name)


@pytest.mark.parametrize("text", ["no json", "[" * 100_000, '"text"'], ids=["text", "deep", "string"])
def test_a_header_whose_adapter_settings_are_damaged_is_refused_or_ignored_but_never_a_crash(text, tmp_path):
    save(
        tmp_path / "x.safetensors",
        {"unet." + Q.partition(".")[2] + f".lora_{n}.weight": random(1, 4, 4) for n in "AB"},
        {"lora_adapter_metadata": text},
    )
    with contextlib.suppress(FormatError):
        assert isinstance(open_file(tmp_path / "x.safetensors"), Lora)


def test_inspecting_tells_a_hash_that_is_not_that_of_the_data(tmp_path):
    write_lora(a_lora(), tmp_path / "x.safetensors", FP32)
    assert not any("hash" in str(note) for note in inspected(tmp_path / "x.safetensors").notes)
    state, metadata = load(tmp_path / "x.safetensors")
    state[next(k for k in state if "lora_up" in k)] += 1
    save(tmp_path / "y.safetensors", state, metadata)
    assert "hash" in str(inspected(tmp_path / "y.safetensors").notes[0])
    assert any(isinstance(inspected(p), Lora) for p in tmp_path.iterdir())


# --- writing ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("target", ["universal", "kohya", "comfyui", "diffusers", "peft"])
def test_a_lora_written_in_any_form_and_opened_again_has_the_same_effect(target, dtype, tmp_path):
    path = tmp_path / ("out" if target == "peft" else "out.safetensors")
    written = write_lora(a_lora(), path, Options(target, dtype))
    assert written.path == path
    assert written.notes == []
    # Both factors are rounded once: to 24, 11 or 8 bits.
    same(open_lora(path, "sd1"), a_lora().modules, {"fp32": ROUNDING, "fp16": 1e-3, "bf16": 8e-3}[dtype])
    files = names(tmp_path)
    if target == "peft":
        assert files == [
            f"out/{c}/adapter_{f}" for c in ("text_encoder", "unet") for f in ("config.json", "model.safetensors")
        ]
    else:
        assert files == ["out.safetensors"]
        kind = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[dtype]
        assert {e["dtype"] for k, e in header(path)[0].items() if not k.endswith("alpha")} == {kind}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("target", ["universal", "peft"])
def test_an_existing_file_is_replaced_only_when_told_and_a_directory_never(target, overwrite, tmp_path):
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"mine")
    options = Options(target, overwrite=overwrite)
    if overwrite and target != "peft":
        write_lora(a_lora(), path, options)
        same(open_lora(path), a_lora().modules, 1e-3)  # 11 bits
        return
    with pytest.raises(FormatError, match="out.safetensors: exists already; choose another name"):
        write_lora(a_lora(), path, options)
    assert path.read_bytes() == b"mine"
    assert names(tmp_path) == ["out.safetensors"]


def test_numbers_too_large_for_the_type_are_refused_and_nothing_is_written(tmp_path):
    big = a_lora()
    big.modules[Q] = big.modules[Q].replaced(up=big.modules[Q].parts["up"] * 1e6)
    for target in ("kohya", "peft"):
        with pytest.raises(FormatError, match="attn1.?to_q.*do not fit fp16; save as fp32 or bf16"):
            write_lora(big, tmp_path / "out.safetensors", Options(target, "fp16"))
    assert not any(p.is_file() and "unet" in str(p) for p in tmp_path.rglob("*"))
    write_lora(big, tmp_path / "fits.safetensors", Options("kohya", "bf16"))


def test_a_refused_peft_adapter_leaves_no_half_of_itself(tmp_path):
    big = a_lora()
    big.modules[Q] = big.modules[Q].replaced(up=big.modules[Q].parts["up"] * 1e6)
    big.modules = dict(sorted(big.modules.items()))  # clip_l first
    with pytest.raises(FormatError, match="fp16"):
        write_lora(big, tmp_path / "out", Options("peft", "fp16"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("target", ["kohya", "peft"])
def test_values_that_became_zero_are_told(target, tmp_path):
    small = a_lora()
    small.modules[Q] = small.modules[Q].replaced(down=small.modules[Q].parts["down"] * 1e-9)
    notes = write_lora(small, tmp_path / "out", Options(target, "fp16")).notes
    assert any("too small for fp16 and became zero" in str(note) for note in notes)
    assert not any("zero" in str(note) for note in write_lora(small, tmp_path / "fp32", Options(target, "fp32")).notes)


def test_other_kinds_become_a_lora_of_the_rank_asked_for_and_the_error_is_told(tmp_path):
    one = Lora("sd1", {Q: loha(16, 16, 3, 1.0), K: lora(16, 768, 2)})
    with pytest.raises(FormatError, match="no form for a module of kind loha"):
        write_lora(one, tmp_path / "out.safetensors", Options("diffusers", "fp32"))
    assert names(tmp_path) == []
    written = write_lora(one, tmp_path / "out.safetensors", Options("diffusers", "fp32", approximate=4))
    made = open_lora(written.path).modules
    spectrum = torch.linalg.svdvals(dense(one.modules[Q]))
    best = float((spectrum[4:].square().sum() / spectrum.square().sum()).sqrt())  # Eckart and Young
    assert (made[Q].kind, made[Q].rank) == ("lora", 4)
    assert error(dense(made[Q]), dense(one.modules[Q])) == pytest.approx(best, rel=1e-4)
    note = next(str(note) for note in written.notes if "1 module became LoRA of rank 4" in str(note))
    assert float(note.partition("relative error ")[2].partition("%")[0]) / 100 == pytest.approx(best, rel=5e-3)
    assert error(dense(made[K]), dense(one.modules[K])) < ROUNDING


def test_an_approximation_that_leaves_out_biases_says_so(tmp_path):
    one = Lora("sd1", {Q: lora(16, 16).replaced(diff_b=torch.ones(16))})
    written = write_lora(one, tmp_path / "out.safetensors", Options("diffusers", "fp32", approximate=4))
    assert any("bias of 1 layer" in str(note) for note in written.notes)


SAID = {
    "ss_tag_frequency": '{"x": {"secret": 3}}', "ss_dataset_dirs": '{"secret": 1}', "ss_steps": "7", "sshs_model_hash": "stale", "ss_network_dim": "99",
    "ss_sd_model_name": "/home/secret/base.safetensors", "ss_own": "kept", "own": "secret",
}  # fmt: skip


def test_captions_and_folders_are_kept_only_when_asked_for(tmp_path):
    one = a_lora(metadata=SAID)
    quiet = load(write_lora(one, tmp_path / "quiet.safetensors", FP32).path)[1]
    assert "secret" not in json.dumps(quiet)
    told = load(write_lora(one, tmp_path / "told.safetensors", Options("kohya", "fp32", details=True)).path)[1]
    assert (told["ss_tag_frequency"], told["ss_dataset_dirs"]) == (SAID["ss_tag_frequency"], SAID["ss_dataset_dirs"])
    for metadata, name in ((quiet, "quiet"), (told, "told")):
        assert (metadata["ss_own"], metadata["ss_steps"], metadata["ss_output_name"], metadata["ss_network_dim"]) == (
            "kept",
            "7",
            name,
            "4",
        )
        assert metadata["sshs_model_hash"] != "stale"
        assert metadata["ss_sd_model_name"] == "base.safetensors"


def test_a_header_stays_within_what_galleries_read(tmp_path):
    huge = {
        **SAID,
        "ss_tag_frequency": json.dumps({"x": {f"tag number {n}": n for n in range(20_000)}}),
        "modelspec.thumbnail": "x" * 300_000,
    }
    path = write_lora(a_lora(metadata=huge), tmp_path / "x.safetensors", Options("kohya", "fp32", details=True)).path
    metadata = header(path)[1]
    assert sum(len(k) + len(v) for k, v in metadata.items()) <= 256 * 1024
    assert metadata["ss_output_name"] == "x"
    assert metadata["ss_own"] == "kept"


def test_an_unheard_of_model_keeps_its_names(tmp_path):
    state = {
        f"model.blocks.3.q.lora_{part}.weight": random(1, *shape) for part, shape in (("A", (2, 5)), ("B", (6, 2)))
    }
    save(tmp_path / "x.safetensors", state)
    convert(open_lora(tmp_path / "x.safetensors"), tmp_path / "y.safetensors", Options("universal", "fp32"))
    assert set(load(tmp_path / "y.safetensors")[0]) == set(state)


# --- converting ---------------------------------------------------------------------------------------------------------------------------

TOKENS = {"bundle_emb.zog.string_to_param.*": random(1, 2, 768), "bundle_emb.my hat.emb_params": random(2, 1, 768)}


@pytest.fixture
def bundle(tmp_path):
    save(tmp_path / "in" / "pack.safetensors", {**keys(), **TOKENS})
    return tmp_path / "in" / "pack.safetensors"


def test_bundled_embeddings_become_files_beside_the_lora(bundle, tmp_path):
    out = convert(open_lora(bundle), tmp_path / "out" / "made.safetensors", FP32)
    assert out[0].path.name == "made.safetensors"
    assert names(tmp_path / "out") == ["made.safetensors", "made_emb_my_hat.safetensors", "made_emb_zog.safetensors"]
    assert not any("bundle" in k for k in load(out[0].path)[0])
    same(open_lora(out[0].path), a_lora().modules)
    for name, key in (
        ("made_emb_zog", "bundle_emb.zog.string_to_param.*"),
        ("made_emb_my_hat", "bundle_emb.my hat.emb_params"),
    ):
        place = tmp_path / "out" / f"{name}.safetensors"
        written = next(w for w in out if w.path == place)
        assert any(name in str(note) for note in written.notes)  # the trigger it has now
        assert torch.equal(open_embedding(place).vectors["clip_l"], TOKENS[key])
    assert any("zog" in str(note) for note in out[0].notes)


def test_embeddings_stay_in_the_file_when_asked_for(bundle, tmp_path):
    out = convert(open_lora(bundle), tmp_path / "out" / "made.safetensors", Options("kohya", "fp32", bundle=True))
    assert names(tmp_path / "out") == ["made.safetensors"]
    again = open_lora(out[0].path)
    assert set(again.embeddings) == {"zog", "my hat"}
    state, _ = load(out[0].path)
    assert torch.equal(state["bundle_emb.zog.string_to_param.*"], TOKENS["bundle_emb.zog.string_to_param.*"])
    same(again, a_lora().modules)


def test_an_embedding_file_can_be_bundled_into_a_lora_and_comes_out_again(two, tmp_path):
    vectors = torch.randn(2, 768, generator=torch.Generator().manual_seed(4))
    write_embedding_file(read_embedding({"emb_params": vectors}), tmp_path / "zog_emb.safetensors")
    convert(open_lora(two[0]), tmp_path / "both.safetensors", FP32, embed=[tmp_path / "zog_emb.safetensors"])
    assert torch.equal(load(tmp_path / "both.safetensors")[0]["bundle_emb.zog_emb.string_to_param.*"], vectors)
    again = open_lora(tmp_path / "both.safetensors")
    assert torch.equal(read_embedding(again.embeddings["zog_emb"]).vectors["clip_l"], vectors)


def test_embeddings_that_stay_in_the_file_are_not_said_to_be_taken_out(bundle, tmp_path):
    out = convert(open_lora(bundle), tmp_path / "made.safetensors", Options("kohya", "fp32", bundle=True))
    assert not any("taken out" in str(note) for note in out[0].notes)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_embedding_never_takes_the_place_of_the_lora_it_came_with(overwrite, bundle, tmp_path):
    target = tmp_path / "out" / "zog.safetensors"  # also the name of a token in it
    (tmp_path / "out").mkdir()
    with contextlib.suppress(
        FormatError
    ):  # a refusal is fine, as long as it leaves no embedding where the LoRA belongs
        convert(open_lora(bundle), target, Options("kohya", "fp32", overwrite=overwrite))
    if target.exists():
        same(open_lora(target), a_lora().modules)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_embedding_of_the_user_is_not_replaced_by_a_bundled_one(overwrite, bundle, tmp_path):
    (tmp_path / "out").mkdir()
    mine = [tmp_path / "out" / f"{name}.safetensors" for name in ("zog", "made_emb_zog", "made_emb_zog_2")]
    for place in mine:
        place.write_bytes(b"mine")
    out = convert(
        open_lora(bundle), tmp_path / "out" / "made.safetensors", Options("kohya", "fp32", overwrite=overwrite)
    )
    assert all(place.read_bytes() == b"mine" for place in mine)
    made = next(w.path for w in out if "zog" in w.path.stem)
    assert torch.equal(open_embedding(made).vectors["clip_l"], TOKENS["bundle_emb.zog.string_to_param.*"])


def test_bundled_embeddings_go_to_a_folder_of_their_own_when_one_is_named(tmp_path):
    save(tmp_path / "x.safetensors", {**keys(), "bundle_emb.zog.string_to_param.*": random(1, 2, 768)})
    convert(
        open_lora(tmp_path / "x.safetensors"),
        tmp_path / "loras" / "made.safetensors",
        FP32,
        embeddings_to=tmp_path / "embeddings",
    )
    assert names(tmp_path) == ["embeddings/made_emb.safetensors", "loras/made.safetensors", "x.safetensors"]


def test_scale_and_blocks_are_converted_along(tmp_path):
    save(tmp_path / "x.safetensors", keys())
    lora = weighted(open_lora(tmp_path / "x.safetensors"), 0.5, {"BASE": -1.0, "attn2": 0.0})
    convert(lora, tmp_path / "y.safetensors", FP32)
    made = open_lora(tmp_path / "y.safetensors").modules
    for name, module in a_lora().modules.items():
        factor = -0.5 if name == TEXT else 0.0 if name == K else 0.5
        assert (dense(made[name]) - factor * dense(module)).norm() <= ROUNDING * dense(module).norm()


def test_the_source_is_never_touched(bundle, tmp_path):
    before = bundle.read_bytes()
    convert(open_lora(bundle), tmp_path / "made.safetensors", FP32)
    with pytest.raises(FormatError, match="pack.safetensors: exists already"):
        convert(open_lora(bundle), bundle, FP32)
    assert bundle.read_bytes() == before


@pytest.mark.parametrize("target", ["webui", "comfyui", "diffusers"])
def test_an_embedding_is_written_under_the_name_that_prompts_use_and_never_over_another(target, tmp_path):
    embedding = Embedding({"clip_l": random(1, 2, 768)})
    written = write_embedding_file(embedding, tmp_path / "zog.safetensors", target)
    state, metadata = load(written.path)
    assert set(state) == {"zog" if target == "diffusers" else "emb_params"}
    assert metadata["modelspec.trigger_phrase"] == "zog"
    before = written.path.read_bytes()
    with pytest.raises(FormatError, match="zog.safetensors: exists already"):
        write_embedding_file(embedding, tmp_path / "zog.safetensors", target)
    assert written.path.read_bytes() == before
    write_embedding_file(Embedding({"clip_l": random(2, 2, 768)}), tmp_path / "zog.safetensors", target, overwrite=True)
    assert torch.equal(open_embedding(tmp_path / "zog.safetensors").vectors["clip_l"], random(2, 2, 768))


# --- merging and the like -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    save(tmp_path / "one.safetensors", keys(1), {"modelspec.trigger_phrase": "zog, hat", **SAID})
    save(tmp_path / "two.safetensors", keys(9, rank=2), {"modelspec.trigger_phrase": "hat, fox"})
    return tmp_path / "one.safetensors", tmp_path / "two.safetensors"


def test_merged_files_are_the_weighted_sum_and_name_what_they_are_made_of(two, tmp_path):
    written = merge_files([(two[0], 0.5), (two[1], -1.0)], tmp_path / "sum.safetensors", FP32)
    made = open_lora(written.path)
    one, other = a_lora(1).modules, a_lora(9, rank=2).modules
    for name, module in made.modules.items():
        assert error(dense(module), 0.5 * dense(one[name]) - dense(other[name])) < 2 * ROUNDING
    assert made.metadata["modelspec.merged_from"] == "one (0.5), two (-1)"
    assert made.metadata["modelspec.trigger_phrase"] == "zog, hat, fox"
    assert made.metadata["ss_output_name"] == "sum"
    assert "secret" not in json.dumps(made.metadata)
    assert not any("error" in str(note) for note in written.notes)


def test_a_merge_to_a_rank_tells_its_error_over_all_and_where_it_is_worst(two, tmp_path):
    written = merge_files([(two[0], 1.0), (two[1], 1.0)], tmp_path / "sum.safetensors", FP32, rank=2)
    made = open_lora(written.path).modules
    one, other = a_lora(1).modules, a_lora(9, rank=2).modules
    sums = {n: dense(one[n]) + dense(other[n]) for n in one}
    lost = {n: error(dense(made[n]), s) for n, s in sums.items()}
    overall = (
        sum(float((dense(made[n]) - s).square().sum()) for n, s in sums.items())
        / sum(float(s.square().sum()) for s in sums.values())
    ) ** 0.5
    worst = max(lost, key=lost.get)
    note = next(n for n in written.notes if n.code == "note.error")
    assert f"{percent(overall)} over all, {percent(lost[worst])} in {worst}" in str(note)


def test_files_merged_at_weight_zero_give_a_file_that_can_be_read_or_a_refusal(two, tmp_path):
    try:
        merge_files([(two[0], 0.0)], tmp_path / "sum.safetensors", FP32)
    except FormatError:
        assert not (tmp_path / "sum.safetensors").exists()
        return
    assert not any(dense(m).any() for m in open_lora(tmp_path / "sum.safetensors").modules.values())


def test_a_damaged_file_among_those_to_merge_is_named_and_nothing_is_written(two, tmp_path):
    two[1].write_bytes(b"rubbish")
    with pytest.raises(FormatError, match="two.safetensors: "):
        merge_files([(two[0], 1.0), (two[1], 1.0)], tmp_path / "sum.safetensors", FP32)
    assert names(tmp_path) == ["one.safetensors", "two.safetensors"]


def test_a_merge_that_is_stopped_writes_nothing(two, tmp_path):
    def stop(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_files([(two[0], 1.0), (two[1], 1.0)], tmp_path / "sum.safetensors", FP32, progress=stop)
    assert names(tmp_path) == ["one.safetensors", "two.safetensors"]


def test_a_resized_file_keeps_its_header_and_tells_its_error(two, tmp_path):
    written = resize_file(two[0], tmp_path / "small.safetensors", FP32, Size(1, conv_rank=2))
    made = open_lora(written.path)
    assert {n: m.rank for n, m in made.modules.items()} == {Q: 1, K: 1, CONV: 2, TEXT: 1}
    assert (made.metadata["ss_own"], made.metadata["modelspec.trigger_phrase"]) == ("kept", "zog, hat")
    assert made.metadata["ss_network_dim"] == "Dynamic"
    assert any(n.code == "note.error" for n in written.notes)
    exact = resize_file(two[0], tmp_path / "same.safetensors", FP32, Size(8))
    assert not any("error" in str(n) for n in exact.notes)
    same(open_lora(exact.path), a_lora(1).modules)


def test_an_extracted_file_reads_as_the_difference(tmp_path):
    key = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    base, change = random(1, 16, 768), dense(lora(16, 768, 2)).float()
    save(tmp_path / "base.safetensors", {key: base})
    save(tmp_path / "tuned.safetensors", {key: base + change})
    written = extract_file(
        (tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"), tmp_path / "made.safetensors", FP32, Size(4)
    )
    made = open_lora(written.path)
    assert (made.family, made.source) == ("sd1", "kohya")
    assert error(dense(made.modules[K]), change) < 1e-4  # the difference of two float32 numbers of order 1 to 10
    assert read(*load(written.path)).modules.keys() == {K}
