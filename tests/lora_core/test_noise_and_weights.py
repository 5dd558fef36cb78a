"""Loss weights by signal-to-noise ratio, and noise that is not plain: against closed forms and diffusers' own SNR."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from lora_loom.lora_core.config import ObjectiveConfig
from lora_loom.lora_core.objectives import DiscreteLevels, FlowLevels, Objective, discrete_sigmas, multires
from lora_loom.lora_core.rng import randn_like, step_rng

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
SIGMAS = discrete_sigmas(SCHEDULER.alphas_cumprod)
STEPS = torch.tensor([0, 10, 250, 500, 999])


def objective(kind="epsilon", **settings):
    return Objective(kind, FlowLevels() if kind == "flow" else DiscreteLevels(SIGMAS), ObjectiveConfig(**settings))


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_min_snr_weights_are_those_of_the_diffusers_scripts(kind, gamma):
    snr = compute_snr(SCHEDULER, STEPS).double()
    expected = torch.stack([snr, gamma * torch.ones_like(snr)], 1).min(1)[0] / (snr + 1 if kind == "v" else snr)
    ours = objective(kind, weighting="min_snr", min_snr_gamma=gamma).weight(SIGMAS[STEPS])
    torch.testing.assert_close(
        ours, expected, rtol=1e-4, atol=0
    )  # diffusers computes the ratio in float32, which cancels near the clean end


def test_debiased_and_p2_weights_match_their_papers():
    snr = SIGMAS[STEPS] ** -2
    torch.testing.assert_close(objective(weighting="debiased").weight(SIGMAS[STEPS]), snr.clamp(max=1000).rsqrt())
    torch.testing.assert_close(
        objective("v", weighting="debiased").weight(SIGMAS[STEPS]), 1 / (snr.clamp(max=1000) + 1)
    )
    torch.testing.assert_close(objective(weighting="p2", p2_gamma=0.5).weight(SIGMAS[STEPS]), (1 + snr) ** -0.5)


@pytest.mark.parametrize("weighting", ["none", "min_snr", "debiased", "p2"])
def test_flow_models_are_never_weighted(weighting):
    assert torch.equal(objective("flow", weighting=weighting).weight(torch.tensor([0.1, 0.9])), torch.ones(2))


def test_huber_thresholds_follow_kohya_s_schedules():
    c, sigma, share = 0.1, SIGMAS[STEPS], STEPS / 1000
    made = objective()
    assert torch.equal(made.huber_delta(sigma, c, "constant"), torch.full_like(sigma, c))
    torch.testing.assert_close(made.huber_delta(sigma, c, "exponential"), torch.exp(math.log(c) * share.double()))
    torch.testing.assert_close(made.huber_delta(sigma, c, "snr"), (1 - c) / (1 + sigma) ** 2 + c)
    flow = objective("flow").huber_delta(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), c, "snr")
    assert flow[0] == 1.0
    assert flow[2].item() == pytest.approx(c, rel=1e-3)


def test_without_options_the_noise_is_the_plain_draw_bit_for_bit():
    x0 = torch.zeros(2, 4, 8, 8)
    plain = randn_like(x0, step_rng(1, 0, 0, 0))
    noise = objective().draw_noise(x0, step_rng(1, 0, 0, 0))
    assert torch.equal(noise, plain)
    assert objective().perturbed(noise, step_rng(1, 0, 0, 0)) is noise


@pytest.mark.parametrize("shape", [(64, 4, 8, 8), (64, 4, 1, 8, 8)])
def test_noise_offset_moves_whole_channels_by_that_much(shape):
    x0 = torch.zeros(shape)
    shift = objective(noise_offset=0.5).draw_noise(x0, step_rng(1, 0, 0, 0)) - randn_like(x0, step_rng(1, 0, 0, 0))
    assert shift.flatten(2).std(2).max() < 1e-6  # the same within a channel, to rounding
    assert shift.flatten(2)[:, :, 0].std().item() == pytest.approx(0.5, rel=0.15)  # 256 draws


@pytest.mark.parametrize("shape", [(8, 4, 32, 32), (2, 4, 3, 32, 32)])
def test_multires_noise_has_unit_deviation_and_more_of_low_frequencies(shape):
    rng = step_rng(2, 0, 0, 0)
    plain = randn_like(torch.zeros(shape), rng)
    noise = multires(plain, 6, 0.8, rng)
    assert noise.shape == plain.shape
    assert noise.std().item() == pytest.approx(1.0, abs=1e-5)
    means = [n.flatten(2).mean(2).std() for n in (noise, plain)]
    assert means[0] > 3 * means[1]


def test_input_perturbation_reaches_the_input_and_not_the_target():
    x0, rng = torch.zeros(4, 4, 16, 16), step_rng(3, 0, 0, 0)
    made = objective(input_perturbation=0.1)
    noise = made.draw_noise(x0, rng)
    shown = made.perturbed(noise, rng)
    assert (shown - noise).std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(made.target(x0, noise, SIGMAS[STEPS[:4]]), noise)


def test_a_weight_that_does_nothing_on_this_model_is_said(toy_config, run_toy, tmp_path, toy_backend, monkeypatch):
    import dataclasses

    from lora_loom.lora_core.events import Listener

    class Heard(Listener):
        def __init__(self):
            self.messages = []

        def on_warning(self, message):
            self.messages.append(str(message))

    said, plain = Heard(), Heard()
    objective = toy_backend.objective
    run_toy(toy_config(objective={"weighting": "min_snr"}), tmp_path / "eps", plain)
    monkeypatch.setattr(toy_backend, "objective", lambda config: dataclasses.replace(objective(config), kind="flow"))
    run_toy(toy_config(objective={"weighting": "min_snr"}), tmp_path / "flow", said)
    assert any(
        "min_snr is for eps and v models and changes nothing here; this model predicts flow" in m for m in said.messages
    )
    assert not any("changes nothing" in m for m in plain.messages)
