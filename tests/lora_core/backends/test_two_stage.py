"""Kandinsky 2.2 and Würstchen v2 with tiny random weights in diffusers layout: the network is asked what diffusers' own training scripts ask it."""

from __future__ import annotations

import dataclasses

import pytest
import tiny_stages
import torch
from lora_loom.convert import products, read
from lora_loom.convert.families import UNKNOWN
from lora_loom.convert.lora import delta
from lora_loom.lora_core.backends.base import EncodesBeside, SampleJob, Splits
from lora_loom.lora_core.backends.effnet import EfficientNet
from lora_loom.lora_core.backends.kandinsky import KandinskyDecoder, KandinskyPrior
from lora_loom.lora_core.backends.layout import pipeline_name
from lora_loom.lora_core.backends.opening import open_backend
from lora_loom.lora_core.backends.wuerstchen import CosineLevels, WuerstchenDecoder, WuerstchenPrior
from lora_loom.lora_core.config import ObjectiveConfig, SampleConfig
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import fit
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.trainer import train
from shapes import MODEL
from slow_rows import mostly_slow

TEXTS = ["a red circle on a white ground", "two blue squares"]


@pytest.fixture(scope="module")
def kandinsky(tmp_path_factory):
    return tiny_stages.kandinsky(tmp_path_factory.mktemp("kandinsky"))


@pytest.fixture(scope="module")
def wuerstchen(tmp_path_factory):
    return tiny_stages.wuerstchen(tmp_path_factory.mktemp("wuerstchen"))


@pytest.fixture
def backends(kandinsky, wuerstchen, monkeypatch):
    torch.manual_seed(1)
    encoder = tiny_stages.TinyEncoder()
    monkeypatch.setattr(EfficientNet, "read", staticmethod(lambda folder, field="base": encoder))

    def make(kind):
        first, second = kandinsky if kind.startswith("kandinsky") else wuerstchen
        folder, other = (first, second) if kind.endswith("prior") else (second, first)
        return open_backend(str(folder), str(other), device="cpu")

    return make


KINDS = {
    "kandinsky prior": KandinskyPrior,
    "kandinsky decoder": KandinskyDecoder,
    "wuerstchen prior": WuerstchenPrior,
    "wuerstchen decoder": WuerstchenDecoder,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_two_stages_cannot_be_split_over_processes(kind, backends, toy_backend):
    assert not isinstance(backends(kind), Splits)
    assert isinstance(toy_backend, Splits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_known_by_its_index(kind, backends):
    assert type(backends(kind)) is KINDS[kind]


def pixels(seed=0):
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(seed))


def batch_for(backend):
    latents = torch.cat([backend.encode_picture(pixels(n)) for n in range(2)])
    beside = (
        torch.cat([backend.encode_beside(pixels(n)) for n in range(2)]) if isinstance(backend, EncodesBeside) else None
    )
    return Batch(latents, TEXTS, [fit(64, 64, 64, 32)] * 2, ["a", "b"], torch.ones(2), None, beside)


# What a network is handed is compared, not what it answers: Würstchen's divides by numbers near zero, which makes a rounding of its input as large as
# the processor likes. A wrong mask, level or order of texts is an error of 0.1 and more.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


@dataclasses.dataclass
class Asked:
    """One call of a network: what it was handed by place and by name, what it answered, and what the backend made of that."""

    given: tuple
    named: dict
    answer: object
    prediction: torch.Tensor


def asked(backend, batch, sigma, noise):
    calls = []
    hook = backend.network.register_forward_hook(
        lambda _, given, named, answer: calls.append((given, named, answer)), with_kwargs=True
    )
    try:
        prediction = backend.predict(
            backend.objective(ObjectiveConfig()).corrupt(batch.latents, noise, sigma), sigma, batch
        )
    finally:
        hook.remove()
    assert len(calls) == 1
    return Asked(*calls[0], prediction)


@torch.no_grad()
def test_the_kandinsky_prior_is_asked_as_in_diffusers_script(backends):
    backend = backends("kandinsky prior")
    batch, objective = batch_for(backend), backend.objective(ObjectiveConfig())
    timesteps = torch.tensor([17, 800])
    sigma, noise = (
        objective.levels.sigmas[timesteps],
        torch.randn(2, 32, 1, 1, generator=torch.Generator().manual_seed(2)),
    )
    call = asked(backend, batch, sigma, noise)

    parts = backend.parts
    shown = [(pixels(n)[0] * 255).round().byte().numpy() for n in range(2)]
    image = parts["image_encoder"](parts["image_processor"](shown, return_tensors="pt").pixel_values)
    clean = (image.image_embeds - parts["prior"].clip_mean) / parts["prior"].clip_std
    torch.testing.assert_close(batch.latents.flatten(1), clean, **ROUNDING)
    tokens = parts["tokenizer"](TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    text = parts["text_encoder"](tokens.input_ids)
    noisy = parts["scheduler"].add_noise(clean, noise.flatten(1), timesteps)
    torch.testing.assert_close(call.given[0], noisy, **ROUNDING)
    torch.testing.assert_close(call.given[1].float(), timesteps.float(), **ROUNDING)
    assert torch.equal(call.named.pop("attention_mask"), tokens.attention_mask.bool())
    torch.testing.assert_close(
        call.named, {"proj_embedding": text.text_embeds, "encoder_hidden_states": text.last_hidden_state}, **ROUNDING
    )
    assert torch.equal(call.prediction.flatten(1), call.answer.predicted_image_embedding)
    assert torch.equal(
        objective.target(batch.latents, noise, sigma), batch.latents
    )  # the clean embedding is what it should answer


@torch.no_grad()
def test_the_kandinsky_decoder_is_asked_as_in_diffusers_script(backends):
    backend = backends("kandinsky decoder")
    batch, objective = batch_for(backend), backend.objective(ObjectiveConfig())
    timesteps = torch.tensor([17, 800])
    sigma, noise = (
        objective.levels.sigmas[timesteps],
        torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(2)),
    )
    call = asked(backend, batch, sigma, noise)
    torch.testing.assert_close(call.given[0], backend.scheduler.add_noise(batch.latents, noise, timesteps), **ROUNDING)
    torch.testing.assert_close(call.given[1].float(), timesteps.float(), **ROUNDING)
    assert call.given[2:] == (None,)
    assert call.named.keys() == {"added_cond_kwargs"}
    assert torch.equal(call.named["added_cond_kwargs"]["image_embeds"], batch.beside)
    assert torch.equal(call.prediction, call.answer.sample[:, :4])
    assert torch.equal(objective.target(batch.latents, noise, sigma), noise)


@torch.no_grad()
@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_wuerstchen_is_asked_as_in_diffusers_script(stage, backends):
    backend = backends(f"wuerstchen {stage}")
    batch, objective = batch_for(backend), backend.objective(ObjectiveConfig())
    time = torch.tensor([0.1, 0.7])
    sigma, noise = objective.levels(time), torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(2))
    call = asked(backend, batch, sigma, noise)
    tokens = backend.parts["tokenizer"](
        TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    text = backend.parts["text_encoder"](tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    noisy = backend.parts["scheduler"].add_noise(batch.latents, noise, time)
    given = [*call.given, call.named["clip"]] if stage == "decoder" else call.given
    torch.testing.assert_close(list(given), [noisy, time, text], **ROUNDING)
    if stage == "decoder":
        assert torch.equal(call.named["effnet"], batch.beside)
    assert call.named.keys() == ({"clip", "effnet"} if stage == "decoder" else set())
    assert torch.equal(call.prediction, call.answer)
    assert torch.equal(objective.target(batch.latents, noise, sigma), noise)


def test_the_cosine_levels_are_those_of_the_scheduler_and_have_their_inverse():
    from diffusers import DDPMWuerstchenScheduler

    levels, t = CosineLevels(), torch.linspace(0.02, 0.98, 50, dtype=torch.float64)
    theirs = DDPMWuerstchenScheduler()._alpha_cumprod(t.float(), torch.device("cpu")).double()
    torch.testing.assert_close(levels.abar(t), theirs, rtol=1e-5, atol=1e-6)  # theirs is float32
    torch.testing.assert_close(levels.time(levels(t)), t, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", mostly_slow(KINDS, tuple(KINDS)[::2].__contains__))
def test_each_stage_trains_draws_and_its_lora_acts_in_diffusers_module(kind, backends, toy_config, tmp_path):
    backend = backends(kind)
    samples = {"every": 2, "steps": 2, "cfg": 2.0, "width_px": 128, "height_px": 128}
    config = toy_config(steps=3, samples=samples, data={"resolution": 64, "bucket_step_px": 32}, optimizer={"lr": 1e-2})
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(3):
        Image.new("RGB", (64, 64), (60 * n, 90, 200 - 60 * n)).save(pictures / f"{n}.png")
        (pictures / f"{n}.txt").write_text("a red circle")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, folder=str(pictures)))
    before = {k: v.clone() for k, v in backend.network.state_dict().items()}
    result = train(
        Job(config, backend, scan(config.data), tmp_path),
        tmp_path / "run",
        lambda s, f: products(s, "run", backend.family, f),
    )
    assert all(torch.equal(before[k], v) for k, v in backend.network.state_dict().items())
    assert (tmp_path / "run" / "before-after.png").is_file()
    modules = read(result.tensors, family=UNKNOWN).modules
    layers = dict(backend.network.named_modules())
    assert len(modules) == result.facts["layers"] >= 4
    for name, module in modules.items():
        assert delta(module).shape == layers[name.removeprefix(f"{backend.prefix}.")].weight.shape
    if not hasattr(backend.network, "load_lora_adapter"):
        return
    batch, objective = batch_for(backend), backend.objective(ObjectiveConfig())
    sigma = objective.levels(torch.tensor([0.5, 0.5], dtype=torch.float64))
    with torch.no_grad():
        plain = backend.predict(batch.latents, sigma, batch)
        for name, module in modules.items():
            layers[name.removeprefix(f"{backend.prefix}.")].weight += delta(module)
        ours = backend.predict(batch.latents, sigma, batch)
        backend.network.load_state_dict(before)
        backend.network.load_lora_adapter(result.tensors, prefix=backend.prefix)
        for name, module in modules.items():
            change = backend.network.get_submodule(name.removeprefix(f"{backend.prefix}.")).get_delta_weight(
                "default_0"
            )
            torch.testing.assert_close(
                change, delta(module), rtol=1e-4, atol=1e-4 * delta(module).abs().max().item(), msg=name
            )  # one float32 product
        theirs = backend.predict(batch.latents, sigma, batch)
        backend.network.unload_lora()
    assert (ours - plain).abs().max() > 1e-4
    assert (theirs - ours).norm() < 0.01 * (
        ours - plain
    ).norm()  # and they are all in use; their own roundings come out of Würstchen much enlarged


def test_what_is_missing_is_named(kandinsky, wuerstchen, tmp_path):
    with pytest.raises(LoomError, match="companion: this model needs the folder of a Kandinsky 2.2 prior"):
        KandinskyDecoder(kandinsky[1], device="cpu")
    alone = KandinskyPrior(kandinsky[0], device="cpu")
    with pytest.raises(LoomError, match="companion: drawing samples needs the folder of a Kandinsky 2.2 decoder"):
        alone.sample(SampleJob("x", 64, 64, SampleConfig(steps=1)))
    with pytest.raises(LoomError, match="has no folder prior, image_encoder"):
        KandinskyPrior(tmp_path, device="cpu")
    with pytest.raises(LoomError, match=r"effnet/model.safetensors; save the published effnet_state_dict"):
        WuerstchenPrior(wuerstchen[0], device="cpu")
    assert pipeline_name(tmp_path) == ""
    assert pipeline_name(MODEL) == ""


def test_the_real_picture_encoder_reads_its_file(tmp_path):
    pytest.importorskip("torchvision")
    from safetensors.torch import save_file

    encoder = EfficientNet()
    (tmp_path / "effnet").mkdir()
    save_file(encoder.state_dict(), tmp_path / "effnet" / "model.safetensors")
    again = EfficientNet.read(tmp_path).eval()
    x = torch.randn(1, 3, 128, 96)
    with torch.no_grad():
        out = again(x)
    assert out.shape == (1, 16, 4, 3)
    assert torch.equal(out, encoder.eval()(x).detach())


def test_checkpointing_is_refused_in_words_where_the_network_has_none(backends, toy_config, tmp_path):
    config = toy_config(checkpointing=True)
    with pytest.raises(LoomError, match="checkpointing: this model cannot recompute its blocks; turn it off"):
        train(Job(config, backends("kandinsky prior"), scan(config.data), tmp_path), tmp_path / "run", lambda s, f: {})
