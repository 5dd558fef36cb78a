"""The nodes that work on files, run by a real server: what they write, what they say, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from live_server import running
from lora_loom.convert import read, write
from lora_loom.convert.families import FAMILIES
from lora_loom.convert.files.disk import load, save
from lora_loom.convert.files.jobs import open_lora
from lora_loom.convert.lora import applied, delta
from PIL import Image
from toy_layers import toy_lora

RNG = torch.Generator().manual_seed(0)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RNG) * 0.1


def a_lora(rank: int = 8, attn2: int = 768) -> dict:
    """A diffusers-spelled SD1 LoRA over one block of attention and one convolution, which ComfyUI reads only in part."""
    block, state = "unet.down_blocks.1.attentions.0.transformer_blocks.0", {}
    for name, inner in (("attn1.to_q", 64), ("attn2.to_k", attn2), ("attn2.to_out.0", 64)):
        state[f"{block}.{name}.lora_A.weight"], state[f"{block}.{name}.lora_B.weight"] = (
            rand(rank, inner),
            rand(64, rank),
        )
    (
        state["unet.down_blocks.1.resnets.0.conv1.lora_A.weight"],
        state["unet.down_blocks.1.resnets.0.conv1.lora_B.weight"],
    ) = (
        rand(rank, 32, 3, 3),
        rand(64, rank, 1, 1),
    )
    return state


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("files") / "base") as server:
        loras = server.base / "output" / "loras"
        save(
            loras / "one.safetensors",
            a_lora(),
            {"ss_tag_frequency": json.dumps({"x": {"zog": 3}}), "sshs_model_hash": "stale"},
        )
        save(loras / "two.safetensors", a_lora(4))
        save(loras / "other.safetensors", a_lora(4, attn2=1024))
        (loras / "broken.safetensors").write_bytes(b"not a safetensors file")
        embeddings = server.base / "models" / "embeddings"
        embeddings.mkdir(parents=True, exist_ok=True)
        save(embeddings / "pair.safetensors", {"clip_l": rand(2, 768), "clip_g": rand(2, 1280)})
        checkpoints = server.base / "models" / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        save(checkpoints / "small.safetensors", small_checkpoint())
        yield server


def small_checkpoint() -> dict:
    """An SD1 checkpoint in the single-file layout, cut down to the layers of `a_lora` and some that no LoRA touches."""
    block = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0"
    return {
        f"{block}.attn1.to_q.weight": rand(64, 64).half(), f"{block}.attn2.to_k.weight": rand(64, 768).half(),
        f"{block}.attn2.to_out.0.weight": rand(64, 64).half(),
        "model.diffusion_model.input_blocks.4.0.in_layers.2.weight": rand(64, 32, 3, 3).half(), "model.diffusion_model.out.2.bias": rand(4),
        "first_stage_model.decoder.conv_in.weight": rand(8, 4, 3, 3).half(),
    }  # fmt: skip


def run(server, kind: str, **inputs) -> dict:
    """One node, executed; its node's ui output."""
    entry = server.execute({"1": {"class_type": kind, "inputs": inputs}})
    assert entry["status"]["status_str"] == "success", server.error_of(entry)
    return entry["outputs"]["1"]


def refused(server, kind: str, **inputs) -> str:
    entry = server.execute({"1": {"class_type": kind, "inputs": inputs}})
    assert entry["status"]["status_str"] == "error"
    return server.error_of(entry)


OUT = {"destination": "output/loras", "dtype": "fp32", "on_exists": "new number"}
CONVERT = {
    **OUT,
    "scale": 1.0,
    "block_weights": "",
    "base_model": "auto",
    "approximate_rank": 0,
    "keep_captions": False,
    "drop_unknown": False,
}
SLOTS = {f"file_{n}": "none" for n in (2, 3, 4)} | {f"strength_{n}": 1.0 for n in (1, 2, 3, 4)}


@pytest.mark.parametrize("form", ["universal", "kohya", "comfyui", "diffusers", "peft"])
def test_convert_writes_a_lora_of_the_same_effect(server, form):
    run(server, "LoraLoomConvertLora", file="one.safetensors", form=form, name=f"as_{form}", **CONVERT)
    loras = server.base / "output" / "loras"
    made = open_lora(loras / (f"as_{form}" if form == "peft" else f"as_{form}.safetensors"), "sd1")
    for name, module in open_lora(loras / "one.safetensors").modules.items():
        torch.testing.assert_close(
            delta(made.modules[name]), delta(module), rtol=1e-6, atol=1e-8
        )  # one rounding of each factor


def test_convert_does_not_overwrite_and_drops_captions_and_stale_hashes(server):
    for scale in (1.0, 0.5):  # ComfyUI does not run equal inputs twice
        run(
            server,
            "LoraLoomConvertLora",
            file="one.safetensors",
            form="kohya",
            name="twice",
            **{**CONVERT, "scale": scale},
        )
    loras = server.base / "output" / "loras"
    assert (loras / "twice.safetensors").exists()
    _, metadata = load(loras / "twice_2.safetensors")
    assert metadata["ss_output_name"] == "twice_2"
    assert "ss_tag_frequency" not in metadata
    assert metadata["sshs_model_hash"] != "stale"


def test_block_weights_and_scale_reach_the_file(server):
    run(
        server,
        "LoraLoomConvertLora",
        file="one.safetensors",
        form="kohya",
        name="blocks",
        **{**CONVERT, "scale": 0.5, "block_weights": r"attn2=0, IN04=2"},
    )
    made = open_lora(server.base / "output" / "loras" / "blocks.safetensors", "sd1").modules
    before = open_lora(server.base / "output" / "loras" / "one.safetensors").modules
    for name, module in before.items():
        factor = 0.0 if "attn2" in name else 1.0  # 0.5 * 2, and 0 for cross-attention
        torch.testing.assert_close(delta(made[name]), factor * delta(module), rtol=1e-6, atol=1e-8)


def test_inspect_says_what_the_file_is_and_draws_it(server):
    shown = run(server, "LoraLoomInspect", file="one.safetensors", base_model="auto")
    text = shown["text"][0]
    assert "Stable Diffusion 1.x" in text
    assert "rank: 8" in text
    assert "zog" in text
    assert "hash in the header is not that of the data" in text
    assert "A1111: nothing" in text  # a diffusers spelling
    image = shown["images"][0]
    picture = np.asarray(Image.open(server.base / "temp" / image["filename"]).convert("RGB"))
    assert (picture == (30, 90, 200)).all(-1).sum() > 100  # bars


def test_inspect_reads_embeddings(server):
    text = run(server, "LoraLoomInspect", file="embedding: pair.safetensors", base_model="auto")["text"][0]
    assert "clip_g: 2 vectors of width 1280" in text
    assert "embedding:pair" in text


def test_merge_is_the_weighted_sum(server):
    widgets = {**SLOTS, "file_1": "one.safetensors", "file_2": "two.safetensors", "strength_1": 0.5, "strength_2": -1.0}
    run(
        server,
        "LoraLoomMergeLoras",
        **widgets,
        rank=0,
        name="sum",
        form="universal",
        base_model="auto",
        approximate_rank=0,
        **OUT,
    )
    loras = server.base / "output" / "loras"
    made, one, two = (open_lora(loras / f"{n}.safetensors", "sd1").modules for n in ("sum", "one", "two"))
    for name in one:
        torch.testing.assert_close(
            delta(made[name]), 0.5 * delta(one[name]) - delta(two[name]), rtol=1e-5, atol=1e-6
        )  # twelve products summed in another order
        assert made[name].rank == 12


def test_merging_loras_of_different_models_is_refused(server):
    widgets = {**SLOTS, "file_1": "one.safetensors", "file_2": "other.safetensors"}
    message = refused(
        server,
        "LoraLoomMergeLoras",
        **widgets,
        rank=0,
        name="x",
        form="universal",
        base_model="auto",
        approximate_rank=0,
        **OUT,
    )
    assert "different models (sd1, sd2)" in message
    assert not (server.base / "output" / "loras" / "x.safetensors").exists()


def test_resize_tells_its_error(server):
    shown = run(
        server,
        "LoraLoomResizeLora",
        file="one.safetensors",
        rank=2,
        energy=1.0,
        conv_rank=0,
        name="small",
        form="universal",
        base_model="auto",
        **OUT,
    )
    assert "Relative error" in shown["text"][0]
    made = open_lora(server.base / "output" / "loras" / "small.safetensors", "sd1")
    assert {m.rank for m in made.modules.values()} == {2}


def test_a_lora_baked_into_a_checkpoint_and_extracted_again_is_the_lora(server):
    widgets = {**SLOTS, "file_1": "one.safetensors", "strength_1": 1.0}
    run(
        server,
        "LoraLoomMergeIntoCheckpoint",
        checkpoint="checkpoints/small.safetensors",
        **widgets,
        name="baked",
        destination="output/checkpoints",
        on_exists="new number",
    )
    baked, metadata = load(server.base / "output" / "checkpoints" / "baked.safetensors")
    before, _ = load(server.base / "models" / "checkpoints" / "small.safetensors")
    assert "one" in metadata["modelspec.merged_from"]
    lora = open_lora(server.base / "output" / "loras" / "one.safetensors")
    table = FAMILIES["sd1"].table
    for key, value in before.items():
        found = (
            table.find(key.removeprefix("model.diffusion_model.").removesuffix(".weight"))
            if key.endswith("weight") and "diffusion" in key
            else None
        )
        wanted = applied(value, lora.modules[f"unet.{found.diffusers(found.rows[0])}"]).half() if found else value
        assert torch.equal(baked[key], wanted), key
    run(
        server, "LoraLoomExtractLora", base="checkpoints/small.safetensors", tuned="checkpoints/baked.safetensors", rank=8, energy=1.0, conv_rank=0,
        text_encoders=True, name="extracted", form="universal", **OUT,
    )  # fmt: skip
    made = open_lora(server.base / "output" / "loras" / "extracted.safetensors", "sd1").modules
    for name, module in lora.modules.items():
        change = delta(module)
        assert (
            delta(made[name]) - change
        ).norm() < 0.02 * change.norm()  # the checkpoints are fp16: each weight is rounded to 11 bits


def test_embeddings_are_converted_and_saved(server):
    place = {"destination": "models/embeddings", "on_exists": "new number"}
    prompt = {
        "1": {
            "class_type": "LoraLoomConvertEmbedding",
            "inputs": {"file": "pair.safetensors", "form": "diffusers", "name": "conv_emb", **place},
        },
        "2": {
            "class_type": "LoraLoomSaveEmbedding",
            "inputs": {"embedding": ["1", 0], "name": "saved_emb", "form": "webui", **place},
        },
    }
    entry = server.execute(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    folder = server.base / "models" / "embeddings"
    before, _ = load(folder / "pair.safetensors")
    for name in ("conv_emb", "saved_emb"):
        after, metadata = load(folder / f"{name}.safetensors")
        assert all(torch.equal(after[k], before[k]) for k in before)
        assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"


@pytest.mark.parametrize(
    ("kind", "inputs", "says"),
    [
        (
            "LoraLoomConvertLora",
            {"file": "broken.safetensors", "form": "kohya", "name": "x", **CONVERT},
            "broken.safetensors: is not a safetensors file",
        ),
        (
            "LoraLoomConvertLora",
            {"file": "one.safetensors", "form": "kohya", "name": "../x", **CONVERT},
            "contains a path",
        ),
        (
            "LoraLoomConvertLora",
            {"file": "one.safetensors", "form": "kohya", "name": "x", **CONVERT, "block_weights": "IN04"},
            "BLOCK=FACTOR",
        ),
        ("LoraLoomInspect", {"file": "broken.safetensors", "base_model": "auto"}, "is not a safetensors file"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(server, kind, inputs, says):
    before = sorted(server.base.rglob("*.safetensors"))
    assert says in refused(server, kind, **inputs)
    assert sorted(server.base.rglob("*.safetensors")) == before


def test_a_file_outside_the_lists_is_never_opened(server):
    import urllib.error

    with pytest.raises((urllib.error.HTTPError, AssertionError)):
        run(server, "LoraLoomInspect", file="../../../../etc/passwd", base_model="auto")


BLOCK = "mid_block.attentions.0.transformer_blocks.0"


def test_zip_loras_learns_coefficients_on_the_wired_model(server):
    loras = server.base / "output" / "loras"
    for n in (1, 2):
        save(loras / f"toy_{n}.safetensors", toy_lora([f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k"], seed=n))
    folder = {
        "captions": "auto",
        "repeats": 0,
        "recursive": True,
        "flip": False,
        "shuffle_tags": False,
        "keep_tokens": 1,
        "caption_dropout": 0.0,
        "trigger": "",
    }
    prompt = {"1": {"class_type": "LoraLoomLoadToyModel", "inputs": {}}}
    for n, name in ((2, "object"), (3, "style")):
        prompt[str(n)] = {"class_type": "LoraLoomLoadFolder", "inputs": {"folder": f"toy: {name}", **folder}}
        prompt[str(n + 2)] = {
            "class_type": "LoraLoomInspect",
            "inputs": {"file": f"toy_{n - 1}.safetensors", "base_model": "auto"},
        }
    prompt["6"] = {
        "class_type": "LoraLoomZipLoras",
        "inputs": {
            "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "lora_1": ["4", 3], "lora_2": ["5", 3], "pictures_1": ["2", 0], "pictures_2": ["3", 0],
            "steps": 8, "learning_rate": 0.05, "similarity": 0.0001, "resolution": 0, "seed": 0, "batch_size": 2, "checkpointing": False,
        },
    }  # fmt: skip
    prompt["7"] = {
        "class_type": "LoraLoomSaveLora",
        "inputs": {
            "lora": ["6", 1], "name": "zipped", "destination": "output/loras", "dtype": "fp32", "form": "universal", "on_exists": "overwrite",
            "activation_text": "", "preferred_weight": 1.0, "write_card": False, "write_captions": False,
        },
    }  # fmt: skip
    entry = server.execute(prompt)
    assert entry["status"]["status_str"] == "success", server.error_of(entry)
    assert "2 layers" in entry["outputs"]["6"]["text"][0]
    made, one, two = (open_lora(loras / f"{n}.safetensors").modules for n in ("zipped", "toy_1", "toy_2"))
    for name, module in made.items():
        assert module.rank == one[name].rank + two[name].rank
        plain_sum = delta(one[name]) + delta(two[name])
        assert (
            1e-3 < (delta(module) - plain_sum).norm() / plain_sum.norm() < 1
        )  # coefficients have moved from 1, but not far in eight steps


def test_save_lora_takes_a_native_lora_and_writes_card_and_preview(server):
    state = write(read(a_lora()), "kohya")
    save(server.base / "output" / "loras" / "wired.safetensors", state)
    prompt = {
        "1": {"class_type": "LoraLoomConvertLora", "inputs": {"file": "wired.safetensors", "form": "comfyui", "name": "wired_native", **CONVERT}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 600, "height": 400, "batch_size": 1, "color": 0xFF0000}},
        "3": {
            "class_type": "LoraLoomSaveLora",
            "inputs": {
                "lora": ["1", 0], "preview": ["2", 0], "embedding": ["4", 0],
                "name": "carded", "destination": "output/loras", "dtype": "fp16", "form": "universal",
                "on_exists": "overwrite", "activation_text": "zog", "preferred_weight": 0.8, "write_card": True, "write_captions": False,
            },
        },
    }  # fmt: skip
    place = {"destination": "models/embeddings", "on_exists": "new number"}
    prompt["4"] = {
        "class_type": "LoraLoomConvertEmbedding",
        "inputs": {"file": "pair.safetensors", "form": "webui", "name": "bundled_emb", **place},
    }
    card = server.base / "output" / "loras" / "carded.json"
    card.write_text(json.dumps({"notes": "mine", "activation text": "", "preferred weight": 0, "own key": 1}))
    entry = server.execute(prompt)
    assert entry["status"]["status_str"] == "success", server.error_of(entry)
    assert {k for k in load(card.with_suffix(".safetensors"))[0] if k.startswith("bundle")} == {
        f"bundle_emb.carded_emb.{e}" for e in ("clip_l", "clip_g")
    }
    told = json.loads(card.read_text())
    assert (told["notes"], told["own key"], told["activation text"], told["sd version"], told["preferred weight"]) == (
        "mine",
        1,
        "zog",
        "SD1",
        0.8,
    )
    picture = Image.open(card.with_name("carded.preview.png"))
    assert picture.size == (512, 341)
    assert picture.info == {}
    assert picture.getpixel((5, 5)) == (255, 0, 0)
