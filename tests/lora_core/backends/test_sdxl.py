"""A tiny random SDXL in diffusers layout: two text encoders, pooled text and sizes, against diffusers' own pipeline; text and tokens against HF modules."""

from __future__ import annotations

import dataclasses

import pytest
import tiny_unet
import torch
from lora_loom.convert import products, read
from lora_loom.convert.families import UNKNOWN
from lora_loom.lora_core.adapters.tokens import Token, TokenSet, TokenVectors
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
from lora_loom.lora_core.config import ObjectiveConfig, SampleConfig
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import fit

TEXTS = ["a red circle on a white ground", "", "two blue squares, and more"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_unet.sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def backend(folder):
    return DiffusersBackend(folder, device="cpu")


@pytest.fixture(scope="module")
def pipe(backend):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    one, two = backend.text.encoders.values()
    scheduler = EulerDiscreteScheduler.from_config(backend.scheduler.config)
    return StableDiffusionXLPipeline(
        backend.vae, one.model, two.model, one.tokenizer, two.tokenizer, backend.unet, scheduler
    )


def test_text_is_encoded_as_the_pipeline_does(backend, pipe):
    ours = backend.text.encode(TEXTS, TokenSet())
    for n, text in enumerate(TEXTS):
        hidden, _, pooled, _ = pipe.encode_prompt(text, device="cpu", do_classifier_free_guidance=False)
        torch.testing.assert_close(
            ours.hidden[n : n + 1], hidden, rtol=0, atol=1e-5
        )  # a batch of three against one: float32 rounding
        torch.testing.assert_close(ours.pooled[n : n + 1], pooled, rtol=0, atol=1e-5)


def test_the_network_gets_the_sizes_of_each_picture(backend, pipe):
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = backend.objective(ObjectiveConfig()).levels.sigmas[torch.tensor([20, 700])]
    fits = [
        dataclasses.replace(fit(96, 64, 16, 2), crop=(3, 1)),
        dataclasses.replace(fit(70, 130, 16, 2), crop=(0, 5)),
    ]
    batch = Batch(x0, TEXTS[:2], fits, ["a", "b"], torch.ones(2))
    with torch.no_grad():
        ours = backend.predict(x0, sigma, batch)
        for n in range(2):
            hidden, _, pooled, _ = pipe.encode_prompt(TEXTS[n], device="cpu", do_classifier_free_guidance=False)
            ids = pipe._get_add_time_ids(
                fits[n].original[::-1], fits[n].crop[::-1], fits[n].bucket[::-1], torch.float32, 40
            )
            scaled = x0[n : n + 1] / (1 + sigma[n] ** 2).sqrt().float()
            expected = pipe.unet(
                scaled, torch.tensor([[20, 700][n]]), hidden, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}
            ).sample
            torch.testing.assert_close(ours[n : n + 1], expected, rtol=0, atol=2e-5)


def test_a_picture_can_be_drawn_and_the_family_is_known(backend):
    assert backend.family == "sdxl"
    (image,) = backend.sample(SampleJob("a red circle", 16, 16, SampleConfig(steps=2)))
    assert image.size == (16, 16)


def test_tokens_encode_as_words_added_to_the_tokenizers_and_have_their_gradients(backend):
    """The long way: the word is added to tokenizer and table of an ordinary HF model, and its row carries the gradient."""
    import copy

    names = {"clip_l": 32, "clip_g": 48}
    members = [
        TokenVectors(Token("TOK", 2), backend.token_tables(), 0, "cpu"),
        TokenVectors(Token("OTHER", 1), backend.token_tables(), 0, "cpu"),
    ]
    tokens, text = TokenSet(members), "a TOK on OTHER"
    ours = backend.text.encode([text], tokens)
    (ours.hidden.square().sum() + ours.pooled.square().sum()).backward()
    hidden, pooled, rows = [], None, {}
    for name, width in names.items():
        encoder = backend.text.encoders[name]
        model, tokenizer = copy.deepcopy(encoder.model), copy.deepcopy(encoder.tokenizer)
        model.config.eos_token_id = 618  # with the old value 2, HF would take our new ids for the end of the text
        words = ["<t0>", "<t1>", "<o0>"]
        tokenizer.add_tokens(words)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = model.get_input_embeddings().weight
        new = torch.cat([m.of(name).detach() for m in members])
        with torch.no_grad():
            table[tokenizer.convert_tokens_to_ids(words)] = new
        table.requires_grad_()
        ids = tokenizer("a <t0><t1> on <o0>", padding="max_length", max_length=77, return_tensors="pt").input_ids
        out = model(ids, output_hidden_states=True)
        hidden.append(out.hidden_states[-2])
        pooled = out.text_embeds if name == "clip_g" else pooled
        rows[name] = (table, tokenizer.convert_tokens_to_ids(words), width)
    theirs = torch.cat(hidden, -1)
    torch.testing.assert_close(ours.hidden, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=1e-5)
    (theirs.square().sum() + pooled.square().sum()).backward()
    for name, (table, ids, width) in rows.items():
        found = torch.cat([m.vectors[name].grad for m in members])
        assert found.shape == (3, width)
        torch.testing.assert_close(found, table.grad[ids], rtol=1e-4, atol=1e-5 * table.grad[ids].abs().max().item())


def test_adapters_on_the_text_encoders_have_the_gradients_of_peft(backend):
    import copy

    from lora_loom.lora_core.adapters import AdapterSet, KindAdapter, Shape, attach
    from lora_loom.lora_core.algebra.kinds import KINDS
    from peft import LoraConfig, get_peft_model

    layers = {
        backend.file_name(p): m for p, m in backend.text_layers().items() if p.endswith(("q_proj", "v_proj", "fc1"))
    }
    members = {
        n: KindAdapter(KINDS["lora"], n, m, Shape(tuple(m.weight.shape), 4, 8.0), 0, "cpu") for n, m in layers.items()
    }
    for n, a in members.items():
        with torch.no_grad():
            a.lora_up.copy_(torch.randn(a.lora_up.shape, generator=torch.Generator().manual_seed(len(n))) * 0.1)
    with attach(layers, AdapterSet(members)):
        out = backend.text.encode(TEXTS, TokenSet())
    (out.hidden.square().sum() + out.pooled.square().sum()).backward()
    hidden, pooled, theirs = [], None, {}
    for name, encoder in backend.text.encoders.items():
        model = get_peft_model(
            copy.deepcopy(encoder.model), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "fc1"])
        )
        for path, module in model.base_model.model.named_modules():
            if hasattr(module, "lora_A"):
                own = members[backend.file_name(f"{name}.{path}")]
                with torch.no_grad():
                    module.lora_A["default"].weight.copy_(own.lora_down)
                    module.lora_B["default"].weight.copy_(own.lora_up)
                theirs[backend.file_name(f"{name}.{path}")] = module
        rows = encoder.tokenizer(
            TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        result = model(rows, output_hidden_states=True)
        hidden.append(result.hidden_states[-2])
        pooled = result.text_embeds if name == "clip_g" else pooled
    torch.testing.assert_close(out.hidden, torch.cat(hidden, -1), rtol=0, atol=1e-5)
    (torch.cat(hidden, -1).square().sum() + pooled.square().sum()).backward()
    assert theirs.keys() == members.keys()
    for name, module in theirs.items():
        for mine, other in (
            (members[name].lora_down, module.lora_A["default"].weight),
            (members[name].lora_up, module.lora_B["default"].weight),
        ):
            if other.grad is None or not other.grad.any():  # the last layer of the first encoder is not read by SDXL
                assert mine.grad is None or not mine.grad.any()
                continue
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5 * other.grad.abs().max().item())


@pytest.mark.parametrize(
    "changes",
    [
        {"text_encoder": {"train": True}},
        {"method": "pivotal", "embedding": {"tokens": "zog*2"}},
        {"method": "embedding"},
    ],
)
def test_sdxl_trains_headless_and_its_files_have_both_encoders(changes, backend, toy_config, pictures, tmp_path):
    from lora_loom.lora_core.data.folder import scan
    from lora_loom.lora_core.training.job import Job
    from lora_loom.lora_core.training.trainer import train

    config = toy_config(**changes, data={"bucket_step_px": 16})

    def export(state, facts):
        return products(state, "run", "sdxl", facts)

    result = train(Job(config, backend, scan(config.data), tmp_path), tmp_path / "run", export)
    if config.trains_lora:
        written = read(result.products["run"][0], family=UNKNOWN)
        unread = 4 if config.text_encoder.train else 0  # SDXL does not read the last layer of its first encoder
        assert len(written.modules) == result.facts["layers"] - unread
        text = {name for name in written.modules if name.startswith("lora_te")}
        kinds = {(name.split("_")[1], name.rpartition("_layers_")[2][2:]) for name in text}
        wanted = {(e, f"self_attn_{n}_proj") for e in ("te1", "te2") for n in ("q", "k", "v", "out")}
        assert kinds == (wanted if config.text_encoder.train else set())
    if config.trains_tokens:
        vectors = next(reversed(result.products.values()))[0]
        assert {k: v.shape[1] for k, v in vectors.items()} == {"clip_l": 32, "clip_g": 48}
    assert all(torch.isfinite(v).all() for tensors, _ in result.products.values() for v in tensors.values())
