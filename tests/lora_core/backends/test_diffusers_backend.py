import shutil

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from lora_loom.lora_core.adapters.tokens import TokenSet
from lora_loom.lora_core.backends.base import SampleJob, weights_fingerprint
from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend, Multistep
from lora_loom.lora_core.backends.opening import open_backend
from lora_loom.lora_core.config import ObjectiveConfig, SampleConfig
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.objectives import discrete_sigmas
from safetensors.torch import load_file, save_file
from shapes import MODEL
from toy_bases import toy_with_schedule


def job(prompt="a red circle on a white ground", **settings):
    return SampleJob(prompt, 64, 64, SampleConfig(**{"steps": 6, "cfg": 4.0, "seed": 3, **settings}))


def test_a_folder_that_lacks_parts_is_refused_with_their_names(tmp_path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(
        LoomError,
        match="has no folder vae, text_encoder, tokenizer, scheduler; give a Stable Diffusion model in diffusers layout, or toy",
    ):
        DiffusersBackend(tmp_path)


def test_a_prediction_type_that_cannot_be_trained_is_refused_by_name(tmp_path):
    folder = toy_with_schedule(tmp_path, prediction_type="flow_prediction")
    with pytest.raises(
        LoomError,
        match="^base: prediction type 'flow_prediction' cannot be trained; allowed are epsilon, v_prediction, sample[.]$",
    ):
        open_backend(str(folder), device="cpu")


def test_everything_is_frozen_and_in_evaluation_mode(toy_backend):
    for module in (toy_backend.unet, toy_backend.vae, toy_backend.text.encoders["clip_l"].model):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_layers_are_every_linear_and_convolution_under_its_kohya_name(toy_backend):
    layers = toy_backend.layers()
    assert all(toy_backend.unet.get_submodule(path) is layer for path, layer in layers.items())
    names = [toy_backend.file_name(path) for path in layers]
    assert len(set(names)) == len(names)  # dots become underscores without two paths meeting
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    assert path in layers
    assert toy_backend.file_name(path) == "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def test_the_network_sees_the_timestep_and_scale_that_diffusers_would_give_it(toy_backend):
    rng = torch.Generator().manual_seed(0)
    x0, noise, timesteps = (
        torch.randn(3, 8, 8, 8, generator=rng),
        torch.randn(3, 8, 8, 8, generator=rng),
        torch.tensor([3, 400, 999]),
    )
    objective = toy_backend.objective(ObjectiveConfig())
    sigma = objective.levels.sigmas[timesteps]
    captions = ["a red circle on a white ground", "", "a blue cross on a black ground"]
    ids = (
        toy_backend.text.encoders["clip_l"]
        .tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        .input_ids
    )
    with torch.no_grad():
        text = toy_backend.text.encoders["clip_l"].model(ids).last_hidden_state
        expected = toy_backend.unet(toy_backend.scheduler.add_noise(x0, noise, timesteps), timesteps, text).sample
        batch = Batch(x0, captions, [None] * 3, ["a", "b", "c"], torch.ones(3))
        ours = toy_backend.predict(objective.corrupt(x0, noise, sigma), sigma, batch)
    # The input is rounded to float32 once more; outputs are of order 1 after some fifty layers.
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_zero_terminal_snr_reaches_the_network_and_the_next_objective_takes_it_back(toy_backend):
    plain = toy_backend.objective(ObjectiveConfig()).levels.sigmas
    rescaled = toy_backend.objective(ObjectiveConfig(prediction="v", zero_terminal_snr=True)).levels.sigmas
    assert rescaled[-1] > 1000 > plain[-1]
    assert torch.equal(toy_backend._table, rescaled)
    assert torch.equal(toy_backend.objective(ObjectiveConfig()).levels.sigmas, plain)
    assert torch.equal(plain, discrete_sigmas(toy_backend.scheduler.alphas_cumprod))


def test_a_picture_comes_back_from_the_latents_it_was_encoded_to(toy_backend):
    from shapes import world

    for scene in world.all_scenes()[::17]:
        pixels = torch.tensor(list(world.draw(scene).tobytes())).view(1, 64, 64, 3).float() / 255
        latent = toy_backend.encode_picture(pixels)
        assert latent.shape == (1, 8, 8, 8)
        with torch.no_grad():
            back = (
                toy_backend.vae.decode(latent / toy_backend.vae.config.scaling_factor).sample.permute(0, 2, 3, 1) / 2
                + 0.5
            )
        assert (
            back - pixels
        ).abs().mean() < 0.03  # a learned autoencoder: 3 % of the range on average, measured well below


def test_latents_have_about_unit_variance(toy_backend):
    from shapes import world

    pixels = [
        torch.tensor(list(world.draw(s).tobytes())).view(1, 64, 64, 3).float() / 255 for s in world.all_scenes()[::5]
    ]
    deviation = torch.cat([toy_backend.encode_picture(p) for p in pixels]).std().item()
    assert deviation == pytest.approx(
        1.0, abs=0.25
    )  # the scaling factor was measured on other pictures of the same world


def test_a_sample_follows_from_its_seed_and_prompt(toy_backend):
    first, again, seed, prompt = (
        toy_backend.sample(j)[0].tobytes() for j in (job(), job(), job(seed=4), job("a blue cross on a black ground"))
    )
    assert first == again
    assert first != seed
    assert first != prompt


def test_sampling_is_the_euler_sampler_of_diffusers_on_the_same_sigmas(toy_backend):
    settings = job()
    ours = torch.tensor(list(toy_backend.sample(settings)[0].tobytes())).view(64, 64, 3)
    scheduler = EulerDiscreteScheduler.from_config(toy_backend.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(6)
    x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(3)) * (1 + scheduler.sigmas[0] ** 2) ** 0.5
    cond = toy_backend.text.encode([settings.prompt, ""], TokenSet()).hidden.detach()
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = toy_backend.unet(scheduler.scale_model_input(x.repeat(2, 1, 1, 1), t), t, cond).sample
            x = scheduler.step(out[1:] + 4.0 * (out[:1] - out[1:]), t, x).prev_sample
        pixels = toy_backend.vae.decode(x / toy_backend.vae.config.scaling_factor).sample[0].permute(1, 2, 0)
    theirs = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round()
    # `trailing` of diffusers rounds timesteps where the host's `simple` cuts them off, so single steps may be one timestep of 1000 apart.
    assert (ours - theirs).abs().mean() < 2.0


def test_guidance_0_draws_the_negative_prompt_alone_and_guidance_1_the_prompt_alone(toy_backend):
    def drawn(prompt, negative, cfg):
        settings = SampleConfig(steps=3, cfg=cfg, seed=3, negative=negative)
        return toy_backend.sample(SampleJob(prompt, 64, 64, settings))[0].tobytes()

    one, other = "a red circle on a white ground", "a blue cross on a black ground"
    assert drawn(one, other, 0.0) == drawn(other, other, 0.0)
    assert drawn(one, other, 1.0) != drawn(other, other, 1.0)
    assert drawn(one, one, 1.0) == drawn(one, one, 0.0)


def test_a_changed_weight_changes_the_fingerprint_and_putting_it_back_restores_it(toy_backend):
    before, weight = toy_backend.fingerprint(), toy_backend.unet.conv_in.weight
    value = weight[0, 0, 0, 0].item()
    weight[0, 0, 0, 0] = value + 1
    changed = toy_backend.fingerprint()
    weight[0, 0, 0, 0] = value
    assert changed != before == toy_backend.fingerprint()
    assert weights_fingerprint(toy_backend.unet, {"conv_in.weight": weight + 1}) != before


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_is_that_of_the_base_while_latents_and_predictions_stay_float32(precision, dtype):
    backend = DiffusersBackend(MODEL, precision, device="cpu")
    assert {p.dtype for p in backend.unet.parameters()} == {dtype}
    latent = backend.encode_picture(torch.rand(1, 64, 64, 3))
    out = backend.predict(latent, torch.tensor([1.0]), Batch(latent, ["x"], [None], ["x"], torch.ones(1)))
    assert latent.dtype == out.dtype == torch.float32


def test_training_in_bf16_keeps_float32_adapters_and_learns(toy_config, run_toy, tmp_path):
    result = run_toy(toy_config(precision="bf16"), tmp_path, backend=DiffusersBackend(MODEL, "bf16", device="cpu"))
    assert {v.dtype for v in result.tensors.values()} == {torch.float32}
    assert all(v.any() for k, v in result.tensors.items() if k.endswith("lora_up.weight"))


def test_nothing_is_downloaded_when_a_part_is_broken(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(LoomError, match="^base: model/unet holds no weights; put"):
        DiffusersBackend(tmp_path / "model")


def test_dpm_solver_takes_the_steps_of_the_scheduler_of_that_name():
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", solver_order=2, final_sigmas_type="zero"
    )
    timesteps = [999, 800, 600, 400, 200, 40]
    scheduler.set_timesteps(timesteps=timesteps)
    rng = torch.Generator().manual_seed(0)
    answers = torch.randn(len(timesteps), 1, 4, 4, 4, generator=rng).double()
    sigmas = discrete_sigmas(scheduler.alphas_cumprod.double())[timesteps].tolist()
    x = torch.randn(1, 4, 4, 4, generator=rng).double() * sigmas[0]
    theirs, ours, solver = x / (1 + sigmas[0] ** 2) ** 0.5, x, Multistep()
    for answer, timestep, sigma, lower in zip(answers, scheduler.timesteps, sigmas, [*sigmas[1:], 0.0], strict=True):
        theirs = scheduler.step(answer, timestep, theirs).prev_sample
        ours = solver(ours, ours - sigma * answer, sigma, lower)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # its sigmas are float32


def test_the_sampler_of_samples_is_the_one_that_draws(toy_backend):
    euler, solver = (toy_backend.sample(job(sampler=name))[0].tobytes() for name in ("euler", "dpmpp_2m"))
    assert euler != solver


@pytest.fixture
def folder(tmp_path):
    """A copy of the toy whose text encoder may be changed, and the weights of that."""
    copy = tmp_path / "model"
    shutil.copytree(MODEL, copy)
    return copy, copy / "text_encoder" / "model.safetensors"


@pytest.mark.parametrize("start", ["", "text_model."], ids=["as newer transformers write them", "as older ones do"])
def test_a_text_encoder_is_read_whichever_transformers_named_its_weights(folder, start, toy_backend):
    place, file = folder
    save_file(
        {start + name.removeprefix("text_model."): w for name, w in load_file(file).items()}, file, {"format": "pt"}
    )
    read = DiffusersBackend(place, device="cpu")
    assert torch.equal(read.encode(["zog"]).hidden, toy_backend.encode(["zog"]).hidden)


def test_a_text_encoder_that_lacks_weights_is_refused_with_their_number(folder):
    place, file = folder
    weights = load_file(file)
    for name in [name for name in weights if "layers.1.mlp" in name]:
        del weights[name]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(LoomError, match="text_encoder lacks 4 of its model's weights .*layers.1.mlp"):
        DiffusersBackend(place, device="cpu")
