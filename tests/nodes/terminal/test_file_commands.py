"""The commands on files as a user types them: what is written, what is said, and the exit code."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_cases import dense, error, kohya, loha, lora, random
from lora_loom.__main__ import main
from lora_loom.convert import Lora
from lora_loom.convert.files import disk
from lora_loom.convert.files.disk import load, save
from lora_loom.convert.files.jobs import Options, open_embedding, open_lora, write_lora
from lora_loom.nodes.terminal import DONE, FAILED
from PIL import Image
from since import since

# Factors and roots of scales are rounded to float32 a few times, 6e-8 each; to fp16 once, 5e-4 each.
ROUNDING, HALF = 1e-6, 1e-3
Q, K = (f"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn{n}" for n in ("1.to_q", "2.to_k"))
TEXT = "clip_l.text_model.encoder.layers.3.mlp.fc1"


def modules(seed: int = 0, rank: int = 4, alpha: float | None = 2.0) -> dict:
    return {
        Q: lora(16, 16, rank, alpha, seed=seed),
        K: lora(16, 768, rank, alpha, seed=seed + 1),
        TEXT: lora(48, 12, rank, alpha, seed=seed + 2),
    }


def keys(seed: int = 0, **more) -> dict[str, torch.Tensor]:
    out = {}
    for name, module in modules(seed, **more).items():
        out |= kohya(("lora_te_" if name == TEXT else "lora_unet_") + name.partition(".")[2].replace(".", "_"), module)
    return out


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with two LoRAs, an embedding and a broken file in `in`."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "in" / "one.safetensors", keys(0), {"modelspec.trigger_phrase": "zog"})
    save(tmp_path / "in" / "two.safetensors", keys(9, rank=2))
    save(tmp_path / "emb" / "pair.safetensors", {"clip_l": random(1, 2, 768), "clip_g": random(2, 2, 1280)})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.safetensors").write_bytes(b"rubbish")
    return tmp_path


def said(capsys) -> tuple[str, list[str]]:
    """What went to stdout, and the sentences on stderr. No traceback ever."""
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out, [line for line in err.splitlines() if line.startswith("lora-loom: ")]


def files() -> list[str]:
    return sorted(str(p) for p in Path().rglob("*") if p.is_file() and p.parts[0] not in ("in", "emb", "bad"))


def same(path: str, wanted: dict, tolerance: float = ROUNDING) -> None:
    made = open_lora(Path(path), "sd1").modules
    assert set(made) == set(wanted)
    for name, module in wanted.items():
        value = module if isinstance(module, torch.Tensor) else dense(module)
        assert error(dense(made[name]), value) < tolerance, name


# --- convert ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["universal", "kohya", "comfyui", "diffusers", "peft"])
def test_one_file_is_converted_to_every_form_beside_itself(target, here, capsys):
    assert main(["convert", "in/one.safetensors", "--to", target, "--dtype", "fp32"]) == DONE
    name = f"in/one-{target}" + ("" if target == "peft" else ".safetensors")
    out, err = said(capsys)
    assert out.splitlines()[0] == f"one.safetensors -> {name}"
    assert err == []
    same(name, modules())
    prefixes = {
        "universal": "lora_",
        "kohya": "lora_",
        "comfyui": ("diffusion_model.", "text_encoders."),
        "diffusers": ("unet.", "text_encoder."),
    }
    if target != "peft":
        assert all(k.startswith(prefixes[target]) for k in load(Path(name))[0])


def test_a_peft_directory_is_converted_back(here):
    assert main(["convert", "in/one.safetensors", "--to", "peft", "--dtype", "fp32", "--out", "adapter"]) == DONE
    assert main(["convert", "adapter", "--to", "kohya", "--dtype", "fp32", "--out", "back.safetensors"]) == DONE
    same("back.safetensors", modules())


def test_files_are_fp16_unless_another_type_is_asked_for(here):
    assert main(["convert", "in/one.safetensors", "--out", "a"]) == DONE
    assert main(["convert", "in/one.safetensors", "--out", "b.safetensors", "--dtype", "bf16"]) == DONE
    for name, dtype in (("a", torch.float16), ("b", torch.bfloat16)):
        assert {v.dtype for k, v in load(Path(f"{name}.safetensors"))[0].items() if "lora_up" in k} == {dtype}
    same("a.safetensors", modules(), HALF)


@pytest.mark.parametrize(
    "pattern",
    [["in/*.safetensors"], ["in/one.safetensors", "in/t*.safetensors"], ["in/*.safetensors", "in/one.safetensors"]],
)
def test_a_pattern_is_converted_into_a_folder_each_file_once(pattern, here, capsys):
    assert main(["convert", *pattern, "--out", "all/new", "--dtype", "fp32"]) == DONE
    assert files() == ["all/new/one.safetensors", "all/new/two.safetensors"]
    assert said(capsys)[0].splitlines() == [
        "[1/2] one.safetensors -> all/new/one.safetensors",
        "[2/2] two.safetensors -> all/new/two.safetensors",
    ]
    same("all/new/two.safetensors", modules(9, rank=2))


def test_one_file_goes_into_a_folder_that_is_there(here):
    Path("all").mkdir()
    assert main(["convert", "in/one.safetensors", "--out", "all"]) == DONE
    assert files() == ["all/one.safetensors"]


@pytest.mark.parametrize(
    ("target", "wanted"), [("universal", "clip_l"), ("comfyui", "clip_l"), ("diffusers", "clip_l"), ("peft", "clip_l")]
)
def test_embeddings_are_converted_too(target, wanted, here, capsys):
    assert (
        main(["convert", "emb/pair.safetensors", "--to", target, "--out", "out.safetensors", "--dtype", "fp32"]) == DONE
    )
    made = open_embedding(Path("out.safetensors"))
    assert torch.equal(made.vectors["clip_l"], random(1, 2, 768))
    assert torch.equal(made.vectors["clip_g"], random(2, 2, 1280))
    assert wanted in load(Path("out.safetensors"))[0]


@since("torch", "2.10", "files of torch are read")
def test_an_embedding_of_one_encoder_carries_its_file_name_as_token_for_diffusers(here):
    torch.save({"string_to_param": {"*": random(1, 2, 768)}, "name": "zog"}, "emb/zog.pt")
    assert main(["convert", "emb/zog.pt", "--to", "diffusers", "--out", "out.safetensors", "--dtype", "fp32"]) == DONE
    assert list(load(Path("out.safetensors"))[0]) == ["out"]
    assert main(["convert", "emb/zog.pt", "--to", "kohya", "--out", "web.safetensors", "--dtype", "fp32"]) == DONE
    assert list(load(Path("web.safetensors"))[0]) == ["emb_params"]


def test_bundled_embeddings_are_written_beside_or_kept(here, capsys):
    save(here / "in" / "pack.safetensors", {**keys(), "bundle_emb.zog.string_to_param.*": random(1, 2, 768)})
    assert main(["convert", "in/pack.safetensors", "--out", "a/pack.safetensors"]) == DONE
    assert files() == ["a/pack.safetensors", "a/pack_emb.safetensors"]
    assert "a/pack_emb.safetensors" in said(capsys)[0]
    assert main(["convert", "in/pack.safetensors", "--out", "b/pack.safetensors", "--bundle"]) == DONE
    assert [f for f in files() if f.startswith("b/")] == ["b/pack.safetensors"]
    assert any(k.startswith("bundle_emb.zog") for k in load(Path("b/pack.safetensors"))[0])


def test_scale_and_blocks_reach_the_file(here):
    blocks = ["--block", "IN04=2", "--block", "attn2=0", "--block", "BASE=-1", "--block", "attn(?=1)=0.1"]
    assert main(["convert", "in/one.safetensors", "--out", "x", "--dtype", "fp32", "--scale", "0.5", *blocks]) == DONE
    made = open_lora(Path("x.safetensors")).modules
    for name, factor in ((Q, 0.1), (K, 0.0), (TEXT, -0.5)):
        wanted = factor * dense(modules()[name])
        assert (dense(made[name]) - wanted).norm() <= ROUNDING * dense(modules()[name]).norm()


def test_alphas_that_differ_are_made_equal_unless_they_are_to_stay(here):
    mixed = {**keys(), "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.alpha": torch.tensor(1.0)}
    save(here / "in" / "mixed.safetensors", mixed)
    for name, more, alphas in (("a", [], {2.0}), ("b", ["--keep-alphas"], {1.0, 2.0})):
        assert (
            main(["convert", "in/mixed.safetensors", "--to", "kohya", "--out", name, "--dtype", "fp32", *more]) == DONE
        )
        assert {
            float(v)
            for k, v in load(Path(f"{name}.safetensors"))[0].items()
            if k.startswith("lora_unet") and k.endswith("alpha")
        } == alphas
        same(f"{name}.safetensors", {**modules(), Q: lora(16, 16, 4, 1.0)})


def test_other_kinds_are_refused_or_approximated(here, capsys):
    save(
        here / "in" / "loha.safetensors",
        kohya("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", loha(16, 16, 2, 1.0)),
    )
    order = ["convert", "in/loha.safetensors", "--to", "diffusers", "--out", "x"]
    assert main(order) == FAILED
    assert "convert it to a LoRA first (--approximate)" in said(capsys)[1][0]
    assert files() == []
    assert main([*order, "--approximate", "4", "--family", "sd1"]) == DONE
    assert "became LoRA of rank 4" in said(capsys)[0]
    same("x.safetensors", {Q: loha(16, 16, 2, 1.0)}, HALF)  # two factors of rank 2 multiply to rank 4


def test_captions_are_dropped_unless_asked_for(here):
    save(here / "in" / "told.safetensors", keys(), {"ss_tag_frequency": '{"x": {"secret": 3}}'})
    assert main(["convert", "in/told.safetensors", "--out", "a"]) == DONE
    assert main(["convert", "in/told.safetensors", "--out", "b", "--details"]) == DONE
    assert "secret" not in json.dumps(load(Path("a.safetensors"))[1])
    assert "secret" in json.dumps(load(Path("b.safetensors"))[1])


def test_one_broken_file_does_not_stop_the_others_and_is_named(here, capsys):
    (here / "in" / "a broken.safetensors").write_bytes(b"rubbish")
    assert main(["convert", "in/*.safetensors", "--out", "all"]) == FAILED
    assert files() == ["all/one.safetensors", "all/two.safetensors"]
    out, err = said(capsys)
    assert len(err) == 1
    assert err[0].startswith("lora-loom: [1/3] a broken.safetensors: is not a safetensors file")
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize("kind", ["too large", "no form"])
def test_a_file_that_cannot_be_written_in_the_form_is_named_too(kind, here, capsys):
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    bad = kohya(name, lora(16, 16)) if kind == "too large" else kohya(name, loha(16, 16))
    save(here / "in" / "culprit.safetensors", {k: v * 1e6 for k, v in bad.items()} if kind == "too large" else bad)
    assert main(["convert", "in/*.safetensors", "--out", "all", "--to", "diffusers", "--family", "sd1"]) == FAILED
    assert files() == ["all/one.safetensors", "all/two.safetensors"]
    _, err = said(capsys)
    assert len(err) == 1
    assert "culprit" in err[0]


def test_names_with_dots_keep_all_of_themselves(here):
    for version in ("0.1", "0.2"):
        assert main(["convert", "in/one.safetensors", "--to", "peft", "--out", f"run-{version}"]) == DONE
    assert main(["convert", "run-0.1", "run-0.2", "--out", "all"]) == DONE
    assert sorted(p.name for p in Path("all").iterdir()) == ["run-0.1.safetensors", "run-0.2.safetensors"]


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "in/one.safetensors"],
        ["merge", "in/one.safetensors"],
        ["resize", "in/one.safetensors", "--rank", "2"],
    ],
)
def test_what_is_written_ends_in_safetensors_also_after_a_dot_in_the_name(command, here):
    assert main([*command, "--out", "style-v1.5"]) == DONE
    assert files() == ["style-v1.5.safetensors"]


def test_an_embedding_keeps_its_whole_name_which_prompts_use(here):
    save(here / "emb" / "zog.v2.safetensors", {"emb_params": random(1, 2, 768)})
    for target in ("universal", "peft"):
        Path(target).mkdir()
        assert main(["convert", "emb/zog.v2.safetensors", "--to", target, "--out", target]) == DONE
        assert [p.name for p in Path(target).iterdir()] == ["zog.v2.safetensors"]


# --- nothing is lost ----------------------------------------------------------------------------------------------------------------------

WRITES = {
    "convert": ["convert", "in/one.safetensors"], "merge": ["merge", "in/one.safetensors"], "resize": ["resize", "in/one.safetensors", "--rank", "2"],
    "extract": ["extract", "in/base.safetensors", "in/tuned.safetensors", "--rank", "2"], "bake": ["bake", "in/base.safetensors", "in/unet.safetensors"],
    "embedding": ["convert", "emb/pair.safetensors"],
}  # fmt: skip


@pytest.fixture
def checkpoints(here):
    """A base checkpoint, the LoRA of its one layer, and the base with that change."""
    key = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    other = {
        "model.diffusion_model.out.2.bias": random(3, 4),
        "first_stage_model.decoder.conv_in.weight": random(4, 3, 3),
    }
    base, module = random(1, 16, 768), modules()[K]
    save(here / "in" / "base.safetensors", {key: base, **other}, {"own": "kept"})
    save(here / "in" / "tuned.safetensors", {key: (base.double() + dense(module)).float(), **other})
    write_lora(Lora("sd1", {K: module}), here / "in" / "unet.safetensors", Options("kohya", "fp32"))
    return key, base, module, other


@pytest.mark.parametrize("command", WRITES)
def test_nothing_is_overwritten_unless_told(command, checkpoints, here, capsys):
    Path("out.safetensors").write_bytes(b"mine")
    order = [*WRITES[command], "--out", "out.safetensors"]
    assert main(order) == FAILED
    _, err = said(capsys)
    assert len(err) == 1
    assert "out.safetensors: exists already" in err[0]
    assert Path("out.safetensors").read_bytes() == b"mine"
    assert files() == ["out.safetensors"]
    assert main([*order, "--overwrite"]) == DONE
    assert load(Path("out.safetensors"))


def test_a_second_conversion_beside_the_source_is_refused(here, capsys):
    assert main(["convert", "in/one.safetensors"]) == DONE
    before = Path("in/one-universal.safetensors").read_bytes()
    assert main(["convert", "in/one.safetensors", "--scale", "2"]) == FAILED
    assert Path("in/one-universal.safetensors").read_bytes() == before


@pytest.mark.parametrize("command", ["convert", "resize"])
def test_two_files_of_one_name_do_not_replace_each_other(command, here, capsys):
    save(here / "in" / "sub" / "one.safetensors", keys(50))
    more = ["--rank", "8"] if command == "resize" else []
    assert main(
        [
            command,
            "in/one.safetensors",
            "in/sub/one.safetensors",
            "--out",
            "all",
            "--overwrite",
            "--dtype",
            "fp32",
            *more,
        ]
    ) in (DONE, FAILED)
    same("all/one.safetensors", modules())


# --- inspect ------------------------------------------------------------------------------------------------------------------------------


def test_inspect_says_what_a_file_is(here, capsys):
    assert main(["inspect", "in/one.safetensors"]) == DONE
    lines = said(capsys)[0].splitlines()
    assert lines[:4] == [
        "one.safetensors",
        "base: Stable Diffusion 1.x",
        "spelling: kohya, 3 modules (3 lora)",
        "rank: 4; alpha: 2",
    ]
    assert "trigger words: zog" in lines
    assert any(line.startswith("IN04") and "2 modules" in line for line in lines)
    assert any(line.startswith("ComfyUI: ") for line in lines)


def test_inspect_gives_facts_for_programs_one_line_a_file(here, capsys):
    assert main(["inspect", "in/*.safetensors", "emb/pair.safetensors", "--json"]) == DONE
    one, two, pair = (json.loads(line) for line in said(capsys)[0].splitlines())
    assert (one["file"], one["family"], one["modules"], one["ranks"], one["triggers"]) == (
        "one.safetensors",
        "sd1",
        3,
        {"4": 3},
        ["zog"],
    )
    norms = {b["name"]: b["norm"] for b in one["blocks"]}
    assert norms["BASE"] == pytest.approx(float(dense(modules()[TEXT]).norm()), rel=1e-6)
    assert two["ranks"] == {"2": 3}
    assert pair["file"] == "pair.safetensors"
    assert any("clip_g: 2 vectors" in line for line in pair["facts"])


def test_inspect_draws_the_blocks(here):
    assert main(["inspect", "in/one.safetensors", "--picture", "blocks.png"]) == DONE
    picture = Image.open("blocks.png")
    assert picture.format == "PNG"
    colours = dict((c, n) for n, c in picture.convert("RGB").getcolors(1 << 20))
    assert colours[(30, 90, 200)] > 1000  # bars


@pytest.mark.parametrize("place", ["nowhere/blocks.png", "blocks.nothing"])
def test_a_picture_that_cannot_be_written_is_one_sentence(place, here, capsys):
    assert main(["inspect", "in/one.safetensors", "--picture", place]) == FAILED
    _, err = said(capsys)
    assert len(err) == 1
    assert "blocks" in err[0]


def test_inspect_goes_on_after_a_broken_file(here, capsys):
    assert main(["inspect", "bad/broken.safetensors", "in/one.safetensors"]) == FAILED
    out, err = said(capsys)
    assert out.startswith("one.safetensors\n")
    assert len(err) == 1
    assert err[0].startswith("lora-loom: broken.safetensors: is not a safetensors file")


def test_inspect_takes_the_family_from_the_user(here, capsys):
    assert main(["inspect", "in/one.safetensors", "--family", "sd2"]) == DONE
    assert "base: Stable Diffusion 2.x" in said(capsys)[0]
    assert main(["inspect", "in/one.safetensors", "--family", "flux1"]) == FAILED
    assert "one.safetensors: " in said(capsys)[1][0]
    with pytest.raises(SystemExit) as caught:
        main(["inspect", "in/one.safetensors", "--family", "sd7"])
    assert caught.value.code == 2


def test_two_files_are_compared_layer_by_layer(here, capsys):
    assert main(["inspect", "--diff", "in/one.safetensors", "in/two.safetensors"]) == DONE
    lines = said(capsys)[0].splitlines()
    one, two = modules(), modules(9, rank=2)
    apart = {
        n: float((dense(one[n]) - dense(two[n])).norm() / max(dense(one[n]).norm(), dense(two[n]).norm())) for n in one
    }
    worst = max(apart, key=apart.get)
    assert lines[0] == f"3 modules, 0 equal, largest relative difference {apart[worst]:.3g}"
    assert lines[1].split() == [f"{apart[worst]:.3g}", worst]
    assert len(lines) == 4


def test_a_file_and_its_conversion_are_equal_but_for_rounding(here, capsys):
    assert main(["inspect", "--diff", "in/one.safetensors", "in/one.safetensors", "in/one.safetensors"]) == FAILED
    assert "1 was given" in said(capsys)[1][0]  # the same file once
    assert main(["convert", "in/one.safetensors", "--to", "comfyui", "--out", "x", "--dtype", "fp32"]) == DONE
    capsys.readouterr()
    assert main(["inspect", "--diff", "in/one.safetensors", "x.safetensors"]) == DONE
    assert float(said(capsys)[0].splitlines()[0].split()[-1]) < ROUNDING


def test_a_file_that_is_converted_is_opened_once(here, monkeypatch):
    opened, load_any = [], disk.load_any
    monkeypatch.setattr(disk, "load_any", lambda path: opened.append(path.name) or load_any(path))
    assert main(["convert", "in/one.safetensors", "emb/pair.safetensors", "--out", "out"]) == DONE
    assert opened == ["one.safetensors", "pair.safetensors"]


# --- merge, resize, extract, bake ---------------------------------------------------------------------------------------------------------


def test_merge_adds_files_up_with_their_weights(here, capsys):
    assert (
        main(
            [
                "merge",
                "in/one.safetensors=0.5",
                "in/two.safetensors=-1",
                "in/one.safetensors",
                "--out",
                "sum",
                "--dtype",
                "fp32",
            ]
        )
        == DONE
    )
    assert said(capsys)[0].splitlines() == ["sum.safetensors"]
    one, two = modules(), modules(9, rank=2)
    same("sum.safetensors", {n: 1.5 * dense(one[n]) - dense(two[n]) for n in one}, 2 * ROUNDING)
    assert load(Path("sum.safetensors"))[1]["modelspec.merged_from"] == "one (0.5), two (-1), one (1)"


def test_merge_to_a_rank_tells_its_error(here, capsys):
    assert main(["merge", "in/one.safetensors", "in/two.safetensors", "--rank", "3", "--out", "sum"]) == DONE
    assert "Relative error of the change of weights" in said(capsys)[0]
    assert {m.rank for m in open_lora(Path("sum.safetensors")).modules.values()} == {3}


@pytest.mark.parametrize("name", ["style=0.5.safetensors", "lr=1e-4", "a=b.safetensors"])
def test_a_file_whose_name_contains_an_equals_sign_is_taken_as_it_is(name, here):
    (here / "in" / "one.safetensors").rename(here / "in" / name)
    assert main(["merge", f"in/{name}", "--out", "whole", "--dtype", "fp32"]) == DONE
    same("whole.safetensors", modules())
    assert main(["merge", f"in/{name}=0.5", "--out", "half", "--dtype", "fp32"]) == DONE
    same("half.safetensors", {n: 0.5 * dense(m) for n, m in modules().items()})


def test_resize_makes_files_smaller_beside_themselves_or_in_a_folder(here, capsys):
    assert main(["resize", "in/one.safetensors", "--rank", "2"]) == DONE
    assert "Relative error" in said(capsys)[0]
    assert {m.rank for m in open_lora(Path("in/one-rank2.safetensors")).modules.values()} == {2}
    assert main(["resize", "in/one.safetensors", "in/two.safetensors", "--rank", "1", "--out", "all"]) == DONE
    assert files() == ["all/one.safetensors", "all/two.safetensors"]
    assert main(["resize", "in/one.safetensors", "--rank", "4", "--energy", "0.5", "--out", "x"]) == DONE
    assert max(m.rank for m in open_lora(Path("x.safetensors")).modules.values()) < 4


def test_extract_finds_the_lora_between_two_checkpoints(checkpoints, here, capsys):
    _, _, module, _ = checkpoints
    assert (
        main(
            [
                "extract",
                "in/base.safetensors",
                "in/tuned.safetensors",
                "--rank",
                "4",
                "--out",
                "made",
                "--dtype",
                "fp32",
                "--no-text-encoders",
            ]
        )
        == DONE
    )
    same("made.safetensors", {K: module}, 1e-4)  # the difference of two float32 numbers of order 1 to 10
    assert main(["extract", "in/base.safetensors", "in/tuned.safetensors", "--rank", "1", "--out", "small"]) == DONE
    assert "Relative error" in said(capsys)[0]


def test_bake_adds_a_lora_to_a_checkpoint(checkpoints, here, capsys):
    key, base, module, other = checkpoints
    before = Path("in/base.safetensors").read_bytes()
    assert (
        main(["bake", "in/base.safetensors", "in/unet.safetensors=0.5", "in/unet.safetensors=-0.25", "--out", "baked"])
        == DONE
    )
    assert "1 of 3 tensors changed" in said(capsys)[0]
    state, metadata = load(Path("baked.safetensors"))
    torch.testing.assert_close(
        state[key].double(), base.double() + 0.25 * dense(module), rtol=1e-6, atol=1e-6
    )  # float32 sums
    assert all(torch.equal(state[k], v) for k, v in other.items())
    assert (metadata["own"], metadata["modelspec.merged_from"]) == ("kept", "base, unet (0.5), unet (-0.25)")
    assert Path("in/base.safetensors").read_bytes() == before


# --- what is refused ----------------------------------------------------------------------------------------------------------------------

WRONG = {
    "no file": (["convert", "in/nothing.safetensors"], "in/nothing.safetensors: there is no such file"),
    "no pattern": (["convert", "in/*.nothing"], r"in/*.nothing: there is no such file"),
    "one of several": (["inspect", "in/one.safetensors", "nowhere.safetensors"], "nowhere.safetensors: there is no such file"),
    "no file to merge": (["merge", "in/one.safetensors", "nowhere.safetensors=0.5", "--out", "x"], "nowhere.safetensors: there is no such file"),
    "no weight": (["merge", "in/one.safetensors=half", "--out", "x"], "'half' is not a weight"),
    "endless weight": (["merge", "in/one.safetensors=inf", "--out", "x"], "."),
    "weight that is none": (["merge", "in/one.safetensors=nan", "--out", "x"], "."),
    "scale that is none": (["convert", "in/one.safetensors", "--scale", "nan", "--out", "x"], "."),
    "broken": (["merge", "bad/broken.safetensors", "--out", "x"], "broken.safetensors: is not a safetensors file"),
    "embedding": (["merge", "emb/pair.safetensors", "--out", "x"], "pair.safetensors: is an embedding"),
    "no factor": (["convert", "in/one.safetensors", "--block", "IN04"], "BLOCK=FACTOR"),
    "no block": (["convert", "in/one.safetensors", "--block", "IN01=0"], "'IN01' matches no layer"),
    "no rank": (["resize", "in/one.safetensors", "--rank", "0"], "rank: 0 is not a rank"),
    "no share": (["resize", "in/one.safetensors", "--rank", "2", "--energy", "95"], "--energy: 95 is not a share"),
    "no checkpoint": (["bake", "nowhere.safetensors", "in/one.safetensors", "--out", "x"], "nowhere.safetensors: "),
    "lora as checkpoint": (["bake", "in/two.safetensors", "in/one.safetensors", "--out", "x"], "any model family|no layer"),
    "no base": (["extract", "nowhere.safetensors", "in/one.safetensors", "--rank", "2", "--out", "x"], "nowhere.safetensors: "),
    "three to compare": (["inspect", "--diff", "in/one.safetensors"], "compares two files; 1 was given"),
    "another family": (["convert", "in/one.safetensors", "--family", "flux1"], "one.safetensors: .* is not a layer of Flux.1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_1_and_writes_nothing(name, here, capsys):
    arguments, sentence = WRONG[name]
    before = sorted(Path().rglob("*"))
    assert main(arguments) == FAILED
    _, err = said(capsys)
    assert len(err) == 1
    assert sentence in err[0] or re.search(sentence, err[0])
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["convert"], ["convert", "x", "--to", "webui"], ["convert", "x", "--dtype", "fp8"], ["convert", "x", "--scale", "much"], ["merge", "x"],
        ["resize", "x"], ["extract", "x", "--rank", "2", "--out", "y"], ["bake", "x", "--out", "y"], ["merge", "x", "--to", "peft", "--out", "y"],
        ["unheard-of"],
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(arguments, here, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: lora-loom" in capsys.readouterr().err


def test_the_exit_code_reaches_the_shell(root, here):
    for arguments, code in (
        (["inspect", "in/one.safetensors"], 0),
        (["inspect", "nowhere.safetensors"], 1),
        (["inspect"], 2),
    ):
        ran = subprocess.run(
            [sys.executable, str(root / "__main__.py"), *arguments], capture_output=True, text=True, check=False
        )
        assert ran.returncode == code, ran.stderr
        assert "Traceback" not in ran.stderr


def test_the_terminal_calls_every_setting_by_its_option():
    """What pure functions name by the setting is what is typed here."""
    import importlib

    from lora_loom.nodes.terminal import COMMANDS, FLAGS, module_name

    options = set()
    for name in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"lora_loom.nodes.terminal.{module_name(name)}").add_arguments(parser)
        options |= {option for action in parser._actions for option in action.option_strings}
    assert set(FLAGS.values()) <= options
