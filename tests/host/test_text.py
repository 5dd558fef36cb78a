"""Text encoder LoRA and tokens in the host: gradients, names, and what the finished files do in the host's own CLIP."""

from __future__ import annotations

import architectures
import comfy.lora
import comfy.sd
import encoders
import pytest
import runs
import torch
from lora_loom.convert import products
from lora_loom.convert.embedding import read_embedding
from lora_loom.lora_core.adapters.tokens import Token, TokenSet, TokenVectors
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import fit
from lora_loom.lora_core.rng import generator, step_rng
from lora_loom.lora_core.training.build import make_adapters
from lora_loom.lora_core.training.step import diffusion_loss
from lora_loom.nodes.host.access.check import require_matched
from lora_loom.nodes.host.engine import captions
from lora_loom.nodes.host.engine.backend import HostBackend
from lora_loom.nodes.host.engine.tokens import for_training, tables, with_embeddings, written
from stand_ins import NoVae

FAMILIES = {
    "sd1": ("SD15", {"context_dim": 768}),
    "sd2": ("SD15", {"context_dim": 1024}),
    "sdxl": ("SDXL", {"context_dim": 2048}),
    "sd3": (
        "SD3",
        {
            "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 128},
            },
        },
    ),
    "flux1": ("Flux", {"vec_in_dim": 768, "context_in_dim": 64}),
    "wan": ("Wan", {"text_dim": 64}),
    "auraflow": ("AuraFlow", {"cond_seq_dim": 64}),
    "z-image": ("ZImage", {"cap_feat_dim": 64}),
    "lumina2": ("Lumina2", {"cap_feat_dim": 64}),
}
WORDS = {
    "sd1": {"clip_l"},
    "sd2": {"clip_h"},
    "sdxl": {"clip_l", "clip_g"},
    "sd3": {"clip_l", "clip_g"},
    "flux1": {"clip_l"},
    "wan": set(),
    "auraflow": set(),
    "z-image": set(),
    "lumina2": set(),
}
TOKENS = [family for family, words in WORDS.items() if words]
HEEDING = [
    family for family in FAMILIES if family != "auraflow"
]  # whose tiny network hardly heeds its text: no slope of the loss can be told
JOB = {
    "method": "pivotal", "adapter": {"rank": 2, "alpha": 4.0, "targets": "attention"}, "text_encoder": {"train": True, "targets": "attention and mlp"},
    "embedding": {"tokens": "TOK*2 = cat\nOTHER"},
}  # fmt: skip
CAPTIONS = ["a TOK on the moon", "two words and OTHER, more"]


def job_of(family):
    """T5's kin have no table of words that a token could be added to."""
    return JOB if WORDS[family] else {**JOB, "method": "lora", "embedding": {}}


def backend_of(family):
    name, changes = FAMILIES[family]
    model, clip = architectures.build(name, **changes), encoders.build(family)
    return HostBackend(model, clip, NoVae(model)), model, clip, name


def fill(adapters):
    for name, p in adapters.named_parameters():
        with torch.no_grad():
            if not name.startswith("token."):
                p.copy_(torch.randn(p.shape, generator=generator(3, name)) * 0.1)


def batch_of(name):
    latents = torch.randn(2, *architectures.row_of(name)[2], generator=torch.Generator().manual_seed(7))
    return Batch(latents, CAPTIONS, [fit(96, 64, 64, 8), fit(70, 130, 64, 8)], ["one.png", "two.png"], torch.ones(2))


def part_of(name):
    """Which encoder, or the model, a trained value belongs to."""
    if name.startswith("token."):
        return name
    return next(
        (
            e
            for e in (
                "clip_l",
                "clip_g",
                "clip_h",
                "umt5xxl",
                "pile_t5xl",
                "qwen3_4b",
                "gemma2_2b",
                "t5xxl",
                "lora_te1",
                "lora_te2",
                "lora_te",
            )
            if e in name
        ),
        "model",
    )


@pytest.mark.parametrize("family", HEEDING)
def test_gradients_of_text_encoders_and_tokens_are_the_slope_of_the_loss(family):
    backend, model, clip, name = backend_of(family)
    config = parse(job_of(family))
    with torch.inference_mode(), torch.inference_mode(False):
        layers, adapters = make_adapters(config, backend)
        fill(adapters)
        batch, objective = batch_of(name), backend.objective(config.objective)

        def loss():
            return diffusion_loss(backend.predict, batch, objective, step_rng(1, 0, 0, 0)).double().mean()

        with backend.training(layers, adapters):
            loss().backward()
            named = adapters.named_parameters()
            parts = {}
            for key, p in named:
                if (
                    p.grad is None
                ):  # these read the last layer but one; the last is there, as in kohya's files, and stays at zero effect
                    known = (
                        ("sd2", "lora_te"),
                        ("sdxl", "lora_te1"),
                        ("z-image", "qwen3_4b"),
                        ("lumina2", "gemma2_2b"),
                    )
                    assert (family, part_of(key)) in known, key
                    assert "layers_2" in key or ".layers.2." in key
                    continue
                parts.setdefault(part_of(key), []).append(p)
            assert len(parts) >= 1 + (
                len(WORDS[family]) * 3 or 1
            )  # the model, each encoder's layers, each encoder's two tokens
            slopes = {}
            for part, params in parts.items():
                norm = torch.stack([p.grad.norm() for p in params]).norm()
                step = (
                    1e-4 / norm
                )  # moves the loss by 1e-4: far above float32 rounding of its mean (1e-7), small against its curvature
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        for p in params:
                            p.add_(p.grad / norm, alpha=sign * step.item())
                        values.append(loss().item())
                        for p in params:
                            p.sub_(p.grad / norm, alpha=sign * step.item())
                slopes[part] = (values[0] - values[1]) / (2 * step.item()) / norm.item()
    assert slopes == {part: pytest.approx(1.0, abs=0.02) for part in slopes}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_a_text_encoder_is_read_back_by_the_host(family):
    backend, model, clip, _ = backend_of(family)
    config = parse(job_of(family))
    with torch.inference_mode(), torch.inference_mode(False):
        _, adapters = make_adapters(config, backend)
        fill(adapters)
        state = adapters.state_dict() | {f"{n}.alpha": torch.tensor(a.alpha) for n, a in adapters}
    text = [n for n, a in adapters if a.part == "text_encoder"]
    assert text
    files = products(state, "run", backend.family, {})
    matched = require_matched(files["run"][0], model, clip)
    assert matched >= len(adapters)
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    with torch.inference_mode():
        patched = comfy.lora.load_lora(files["run"][0], keys, log_missing=False)
    assert len(patched) == len(text)
    for stem in ("run_tok_emb", "run_other_emb") if WORDS[family] else ():
        assert set(read_embedding(files[stem][0]).vectors) == WORDS[family]


@pytest.mark.parametrize("family", TOKENS)
def test_a_caption_without_tokens_is_tokenized_as_ever_and_tokens_take_their_vectors(family):
    clip = encoders.build(family)
    with torch.inference_mode(), torch.inference_mode(False):
        members = [TokenVectors(Token(w, n, "cat"), tables(clip), 0, "cpu") for w, n in (("TOK", 3), ("<s0>", 1))]
    tokens = TokenSet(members)
    mine = for_training(clip, tokens)
    text = "a (red:1.2) cat, on \\(the\\) moon"
    assert mine.tokenize(written(text, tokens)) == clip.tokenize(text)
    plain, found = clip.tokenize("a , and"), mine.tokenize(written("a TOK, and <s0>", tokens))
    for key, rows in found.items():
        encoder = {"l": "clip_l", "g": "clip_g", "h": "clip_h", "t5xxl": "t5xxl"}[key]
        vectors = [t for t, *_ in rows[0] if torch.is_tensor(t)]
        if encoder not in WORDS[family]:
            assert not vectors
            assert [t for t, *_ in rows[0]] == [t for t, *_ in clip.tokenize("a cat , and cat")[key][0]]
            continue
        expected = [*members[0].of(encoder), *members[1].of(encoder)]
        assert len(vectors) == 4
        assert all(torch.equal(a, b) for a, b in zip(vectors, expected))
        assert [t for t, *_ in rows[0] if not torch.is_tensor(t)][:4] == [t for t, *_ in plain[key][0]][:4]


def test_a_long_prompt_keeps_its_vectors_together_in_the_next_chunk():
    clip = encoders.build("sd1")
    with torch.inference_mode(), torch.inference_mode(False):
        tokens = TokenSet([TokenVectors(Token("TOK", 6), tables(clip), 0, "cpu")])
    rows = for_training(clip, tokens).tokenize(written("cat " * 72 + "TOK end", tokens))["l"]
    assert [sum(torch.is_tensor(t) for t, *_ in row) for row in rows] == [0, 6]
    assert all(len(row) == 77 for row in rows)


def test_the_users_clip_knows_nothing_of_our_tokens():
    clip = encoders.build("sd1")
    own, tokenizer = dict(vars(clip.tokenizer.clip_l)), clip.tokenizer
    with_embeddings(clip, {"word": lambda encoder: torch.zeros(1, 768)})
    assert clip.tokenizer is tokenizer
    assert vars(clip.tokenizer.clip_l) == own


def test_an_embedding_in_memory_encodes_like_its_file(tmp_path):
    from safetensors.torch import save_file

    clip = encoders.build("sdxl")
    vectors = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
    save_file(vectors, tmp_path / "word.safetensors")
    for tokenizer in (clip.tokenizer.clip_l, clip.tokenizer.clip_g):
        tokenizer.embedding_directory = [str(tmp_path)]
    live = with_embeddings(encoders.build("sdxl"), {"word": vectors.get})
    with torch.inference_mode():
        first, second = (
            c.encode_from_tokens_scheduled(c.tokenize("a (embedding:word:1.3), here")) for c in (clip, live)
        )
    assert torch.equal(first[0][0], second[0][0])
    assert torch.equal(first[0][1]["pooled_output"], second[0][1]["pooled_output"])


@pytest.mark.parametrize("changes", [
    {"text_encoder": {"train": True}},
    {"method": "embedding", "embedding": {"tokens": "zog*2"}},
    {"method": "pivotal", "text_encoder": {"train": True, "stop": 0.7}, "embedding": {"tokens": "zog*2 = a circle", "stop": 0.5}},
    {"prior": {"prompt": "a red circle on a white ground", "count": 2, "steps": 2}},
], ids=["text encoder", "embedding", "pivotal", "prior"])  # fmt: skip
def test_a_run_in_the_host_is_the_headless_run_of_the_same_job(changes, toy, tmp_path):
    """The same weights through two implementations of one network; float32 rounding, a little larger after each of six AdamW steps."""
    from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
    from lora_loom.lora_core.data.folder import scan
    from lora_loom.lora_core.training.job import Job
    from lora_loom.lora_core.training.trainer import train
    from shapes import MODEL

    changes = {**changes, "optimizer": {"lr": 1e-4}}
    host = runs.run(toy, tmp_path / "host" / "run", **changes)
    config = runs.toy_config(**changes)
    job = Job(config, DiffusersBackend(MODEL, device="cpu"), scan(config.data), tmp_path / "headless")
    headless = train(job, tmp_path / "headless" / "run", runs.export)
    assert host.losses == pytest.approx(headless.losses, rel=2e-4)
    for stem in headless.products:
        ours, theirs = host.products[stem][0], headless.products[stem][0]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            # An entry whose gradient is near zero may step the other way: AdamW moves it by lr either way. All others agree closely.
            apart = (ours[key].float() - value.float()).abs()
            assert apart.max() <= 2 * 6 * 1e-4 + 1e-6, key
            assert apart.mean() <= 2e-5, key


LONG = {
    "word": "red " * 73 + "zyxwv blue",
    "commas": "a red circle, " * 30,
    "three": "red " * 70 + "zyxwvutsrq" + " blue" * 160,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_captions_are_read_in_the_same_pieces_in_the_host_and_headless(text, toy):
    from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
    from lora_loom.nodes.host.engine.backend import HostBackend
    from shapes import MODEL

    with torch.inference_mode():
        host = HostBackend(*toy)
        theirs = host.texts.text(text)[0][0]
        ours = DiffusersBackend(MODEL, device="cpu")
        hidden = ours.encode([text]).hidden
    assert theirs.shape == hidden.shape
    assert (theirs - hidden).abs().max() < 1e-4  # fp32 through two implementations of one encoder
    assert host.text_length(text) == ours.text_length(text)


def test_texts_that_vary_are_kept_for_a_while_and_what_the_model_got_for_them_goes_with_them(toy, monkeypatch):
    with torch.inference_mode():
        one = HostBackend(*toy).texts.text("a red circle")[0][0].nbytes
        monkeypatch.setattr(captions, "MAX_TEXTS_BYTES", 3 * one)
        backend, latents = HostBackend(*toy), torch.zeros(1, 8, 8, 8)
        kept = []
        for n in range(20):
            batch = Batch(latents, [f"{n} circles"], [fit(64, 64, 64, 8)], ["one.png"], torch.ones(1))
            backend.conditioning.of(batch, latents)
            kept.append((len(list(backend.texts._encoded)), len(list(backend.texts.conds))))
    assert max(kept) == (4, 4)
    assert min(kept[4:]) == (1, 1)
