"""Flow-matching transformers headless: each is asked what diffusers' own pipeline asks it, and its LoRA is read by that pipeline."""

from __future__ import annotations

import shutil

import pytest
import tiny_flow
import torch
from lora_loom.convert import products, read
from lora_loom.convert.files.disk import load
from lora_loom.convert.results import starting_point
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.backends.flow import patches, pixels
from lora_loom.lora_core.backends.opening import open_backend
from lora_loom.lora_core.config import ObjectiveConfig, SampleConfig, parse
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import fit
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.sampling import of_start
from lora_loom.lora_core.training.trainer import train
from safetensors.torch import load_file, save_file
from shapes import MODEL

TEXTS = ["a red circle on a white ground", "two"]
FAMILIES = sorted(tiny_flow.MAKERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("flow")
    return {kind: tiny_flow.saved(kind, place) for kind in FAMILIES}


@pytest.fixture
def backend(folders, request):
    return open_backend(str(folders[request.param]), device="cpu")


def batch_of(latents, texts):
    how = fit(64, 64, 64, 4)
    return Batch(latents, texts, [how] * len(texts), texts, torch.ones(len(texts)))


@pytest.mark.parametrize("backend", FAMILIES, indirect=True)
def test_the_network_is_asked_what_the_pipeline_asks(backend, monkeypatch):
    """The velocity of the pipeline's second step, from its latents and its noise level alone."""
    pipe, seen = backend.pipe, []
    take = pipe.scheduler.step
    monkeypatch.setattr(
        pipe.scheduler, "step", lambda out, t, x, **how: seen.append((out, t, x)) or take(out, t, x, **how)
    )
    guided = {"guidance_scale": 1.0} if backend.family != "qwen-image" else {"true_cfg_scale": 1.0}
    plain = {"guidance_scale": 0.0} if backend.family == "z-image" else guided
    pipe(
        TEXTS[0],
        height=32,
        width=64,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **plain,
    )
    out, t, x = seen[1]
    if x.ndim == 3:
        out, x = (pixels(v, 16, 32) for v in (out, x))
    if backend.family == "qwen-image":
        out, x = out.unsqueeze(2), x.unsqueeze(2)
    got = backend.predict(x, t.view(1) / 1000, batch_of(x, TEXTS[:1]))
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got, out.float(), rtol=0, atol=2e-6 * float(out.abs().max())
    )  # the same arithmetic but for the timestep's way


@pytest.mark.parametrize("backend", FAMILIES, indirect=True)
def test_each_sample_of_a_batch_is_what_it_is_alone(backend):
    latents = torch.randn(
        2, *backend.encode_picture(torch.rand(1, 32, 64, 3)).shape[1:], generator=torch.Generator().manual_seed(3)
    )
    sigma = torch.tensor([0.3, 0.8])
    both = backend.predict(latents, sigma, batch_of(latents, TEXTS))
    for i in range(2):
        one = backend.predict(latents[i : i + 1], sigma[i : i + 1], batch_of(latents[i : i + 1], TEXTS[i : i + 1]))
        torch.testing.assert_close(
            both[i : i + 1], one, rtol=0, atol=1e-5
        )  # longer texts are filled up under the mask: other summation


@pytest.mark.parametrize("backend", FAMILIES, indirect=True)
def test_latents_go_back_through_the_pipelines_own_decoder(backend, monkeypatch):
    """What the pipeline hands to the VAE at the end, for latents that are ours, is what the VAE gave us."""
    raw = backend._encoded(torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))).mean
    mine, handed = backend._latents(raw), []
    monkeypatch.setattr(
        backend.vae, "decode", lambda z, **_: handed.append(z) or (torch.zeros(1, 3, *[1] * (z.ndim - 4), 64, 64),)
    )
    take = backend._drawing.scheduler.step
    given = patches(mine.squeeze(2) if mine.ndim == 5 else mine) if backend.family in ("flux1", "qwen-image") else mine
    monkeypatch.setattr(
        backend._drawing.scheduler, "step", lambda out, t, x, **how: (take(out, t, x, **how), (given,))[1]
    )
    backend.sample(SampleJob("x", 64, 64, SampleConfig(steps=1, cfg=1.0)))
    torch.testing.assert_close(handed[0], raw, rtol=1e-5, atol=1e-6)
    mean, spread = backend.encode_spread(torch.rand(1, 32, 32, 3))
    assert mean.shape == spread.shape
    assert bool((spread > 0).all())


def test_shifts_are_the_models_own(folders):
    expected = {"sd3": 3.0, "flux1": 3.1581929, "z-image": 3.0, "qwen-image": 2.4596031}  # e^1.15 and e^0.9
    assert {kind: open_backend(str(folders[kind]), device="cpu").shift for kind in expected} == pytest.approx(expected)
    flux = open_backend(str(folders["flux1"]), device="cpu")
    half = torch.tensor([0.5], dtype=torch.float64)
    assert float(flux.objective(ObjectiveConfig()).levels(half)) == pytest.approx(3.1581929 / 4.1581929)
    assert float(flux.objective(ObjectiveConfig(shift=1.0)).levels(half)) == 0.5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_is_trained_and_read_by_the_pipeline(family, folders, pictures, tmp_path, checkpointing):
    backend = open_backend(str(folders[family]), device="cpu")
    config = parse({
        "name": "fl", "steps": 3, "batch_size": 2, "checkpointing": checkpointing, "data": {"folder": str(pictures), "resolution": 32, "bucket_step_px": 8},
        "adapter": {"rank": 4}, "optimizer": {"lr": 0.02}, "samples": {"every": 0}, "save": {"every": 100},
    })  # fmt: skip
    before = {name: p.clone() for name, p in backend.network.named_parameters()}
    result = train(
        Job(config, backend, scan(config.data), tmp_path),
        tmp_path / "fl",
        lambda s, f: products(s, "fl", backend.family, f),
    )
    assert all(torch.equal(before[name], p) for name, p in backend.network.named_parameters())
    assert not any("forward" in vars(m) for m in backend.network.modules())
    assert not backend.network.training
    assert not backend.network.is_gradient_checkpointing
    tensors, _ = load(result.file)
    lora = read(tensors, family=family)
    assert len(lora.modules) > 8
    x, sigma = torch.randn(1, *backend.encode_picture(torch.rand(1, 32, 32, 3)).shape[1:]), torch.tensor([0.6])
    plain = backend.predict(x, sigma, batch_of(x, TEXTS[:1]))
    start = starting_point(lora, [backend.file_name(p) for p in backend.layers()], "lora")
    worn = of_start("fl", backend, start)
    with backend.training(worn.layers, worn.adapters), torch.no_grad():
        ours = backend.predict(x, sigma, batch_of(x, TEXTS[:1]))
    backend.pipe.load_lora_weights(str(result.file))
    theirs = backend.predict(x, sigma, batch_of(x, TEXTS[:1]))
    assert float((ours - plain).abs().max()) > 0.01 * float(plain.abs().max())
    torch.testing.assert_close(
        theirs, ours, rtol=0, atol=2e-6 * float(plain.abs().max()) + 1e-6
    )  # peft sums the branch in another order


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_weights_stay_as_they_are_stored(folders, precision, tmp_path):
    """auto: the type on disk; a bf16 model is neither widened nor are its adapters narrowed."""
    folder = tmp_path / "half"
    shutil.copytree(folders["flux1"], folder)
    file = next((folder / "transformer").glob("*.safetensors"))
    save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file, {"format": "pt"})
    backend = open_backend(str(folder), device="cpu", precision=precision)
    assert backend.dtype == torch.bfloat16 == next(backend.network.parameters()).dtype
    assert next(backend.vae.parameters()).dtype == torch.float32
    x = backend.encode_picture(torch.rand(1, 32, 32, 3))
    assert bool(torch.isfinite(backend.predict(x, torch.tensor([0.5]), batch_of(x, TEXTS[:1]))).all())


def test_what_cannot_be_opened_is_said(tmp_path, folders):
    with pytest.raises(LoomError, match="base: there is no folder or file"):
        open_backend(str(tmp_path / "nothing"))
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline"}')
    with pytest.raises(
        LoomError,
        match="is of the kind PixArtAlphaPipeline, which can only be trained in ComfyUI; train it there, or give one of these kinds: StableDiffusionPipeline",
    ):
        open_backend(str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(folders["z-image"], broken)
    next((broken / "transformer").glob("*.safetensors")).unlink()
    with pytest.raises(LoomError, match="^base: broken/transformer holds no weights; put"):
        open_backend(str(broken), device="cpu")
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(LoomError, match="model.ckpt is not a .safetensors file"):
        open_backend(str(tmp_path / "model.ckpt"))


def test_a_single_file_needs_a_folder_for_its_configs(folders, tmp_path):
    """The transformer's weights from the file, all else from the folder, which has no transformer weights of its own."""
    folder, file = tmp_path / "layout", tmp_path / "flux.safetensors"
    shutil.copytree(folders["flux1"], folder)
    weights = next((folder / "transformer").glob("*.safetensors"))
    save_file(load_file(weights), file)
    weights.unlink()
    backend, whole = (
        open_backend(str(file), base_config=str(folder), device="cpu"),
        open_backend(str(folders["flux1"]), device="cpu"),
    )
    x = torch.randn(1, 4, 16, 16)
    ours, theirs = (b.predict(x, torch.tensor([0.5]), batch_of(x, TEXTS[:1])) for b in (backend, whole))
    assert torch.equal(ours, theirs)
    with pytest.raises(
        LoomError,
        match=r"base_config: flux.safetensors holds no configs and tokenizers, and nothing is downloaded.*`hf download",
    ):
        open_backend(str(file))
    asked = []
    with pytest.raises(LoomError, match="base_config: .* describes no pipeline"):
        open_backend(str(file), cached=lambda repo: asked.append(repo) or str(tmp_path))
    assert len(asked) == 1
    assert "/" in asked[0]
    (folder / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    )
    with pytest.raises(
        LoomError,
        match="flux.safetensors holds no unet of the StableDiffusionPipeline that base_config layout describes",
    ):
        open_backend(str(file), base_config=str(folder))


@pytest.mark.parametrize("family", ["toy", "sd3"])
def test_weights_under_a_variants_name_are_found(family, folders, tmp_path):
    folder = tmp_path / "variant"
    shutil.copytree(MODEL if family == "toy" else folders[family], folder)
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    backend, plain = (
        open_backend(str(place), device="cpu") for place in (folder, MODEL if family == "toy" else folders[family])
    )
    assert all(torch.equal(a, b) for a, b in zip(backend.network.parameters(), plain.network.parameters(), strict=True))
    assert torch.equal(backend.encode(["zog"]).hidden, plain.encode(["zog"]).hidden)
