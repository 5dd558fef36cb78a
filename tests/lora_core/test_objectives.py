import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as reference_rescale
from lora_loom.lora_core import objectives
from lora_loom.lora_core.config import ObjectiveConfig
from lora_loom.lora_core.objectives import DiscreteLevels, Objective, SharedObjective
from lora_loom.lora_core.processes import ALONE, Processes
from lora_loom.lora_core.rng import step_rng

# The reference works in float32, ours in float64 until the end, so they differ by float32 rounding of values of order 1.
ROUNDING = dict(rtol=1e-5, atol=2e-6)


@pytest.fixture
def scheduler():
    return DDPMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture
def table(scheduler):
    return objectives.discrete_sigmas(scheduler.alphas_cumprod)


@pytest.fixture
def samples():
    rng = torch.Generator().manual_seed(3)
    timesteps = torch.tensor([0, 1, 17, 250, 500, 998, 999])
    return torch.randn(7, 4, 6, 5, generator=rng), torch.randn(7, 4, 6, 5, generator=rng), timesteps


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_corruption_is_add_noise_of_diffusers_in_variance_exploding_units(kind, scheduler, table, samples):
    x0, noise, timesteps = samples
    sigma = table[timesteps]
    ours = objectives.Objective(kind, objectives.DiscreteLevels(table)).corrupt(x0, noise, sigma)
    preserving = ours / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(preserving.float(), scheduler.add_noise(x0, noise, timesteps), **ROUNDING)
    assert ours.dtype == torch.float32


def test_v_target_is_get_velocity_of_diffusers(scheduler, table, samples):
    x0, noise, timesteps = samples
    target = objectives.Objective("v", objectives.DiscreteLevels(table)).target(x0, noise, table[timesteps])
    torch.testing.assert_close(target, scheduler.get_velocity(x0, noise, timesteps), **ROUNDING)


def test_eps_target_is_the_noise_itself(table, samples):
    x0, noise, timesteps = samples
    assert torch.equal(
        objectives.Objective("epsilon", objectives.DiscreteLevels(table)).target(x0, noise, table[timesteps]), noise
    )


def test_flow_corruption_is_scale_noise_of_diffusers_and_target_is_its_derivative(samples):
    x0, noise, _ = samples
    reference = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    timesteps = reference.timesteps[[0, 1, 17, 250, 500, 998, 999]]
    sigma = timesteps.double() / 1000
    flow = objectives.Objective("flow", objectives.FlowLevels(3.0))
    x_t = flow.corrupt(x0, noise, sigma)
    torch.testing.assert_close(x_t, reference.scale_noise(x0, timesteps, noise), **ROUNDING)
    # Exact in algebra: x_t - sigma * target = x0; one float32 rounding of each term.
    torch.testing.assert_close(x_t - sigma.float().view(-1, 1, 1, 1) * flow.target(x0, noise, sigma), x0, **ROUNDING)


def test_time_shift_matches_the_sigmas_of_diffusers():
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    for shift in (1.0, 1.73, 3.0):
        reference = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift).sigmas[:1000].flip(0)
        torch.testing.assert_close(objectives.FlowLevels(shift)(u).float(), reference, **ROUNDING)


def test_time_shift_keeps_both_ends_and_one_is_the_identity():
    u = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    assert torch.equal(objectives.FlowLevels(1.0)(u), u)
    shifted = objectives.FlowLevels(3.0)(u)
    assert shifted.tolist() == [0.0, 0.5, 1.0]  # 3 * 0.25 / (1 + 2 * 0.25) = 0.5, exact in binary


def test_sigma_table_rises_and_has_the_known_ends_of_stable_diffusion(table):
    assert (table.diff() > 0).all()
    # 0.0292 and 14.6146 are the ends every SD 1.5 sampler prints, given to four digits.
    assert table[0].item() == pytest.approx(0.0292, abs=5e-5)
    assert table[-1].item() == pytest.approx(14.6146, abs=5e-4)


def test_discrete_levels_pick_entry_floor_of_u_times_t(table):
    levels = objectives.DiscreteLevels(table)
    u = torch.tensor([0.0, 0.0009, 0.0011, 0.5004, 0.9999, 1.0], dtype=torch.float64)
    assert torch.equal(levels(u), table[[0, 0, 1, 500, 999, 999]])


def test_zero_terminal_snr_table_matches_diffusers(scheduler):
    abar = objectives.rescale_zero_terminal_snr(scheduler.alphas_cumprod)
    reference = torch.cumprod(1.0 - reference_rescale(scheduler.betas), 0)
    # The reference rebuilds betas and multiplies a thousand float32 numbers, so an error of some 1e-5 gathers.
    torch.testing.assert_close(abar[:-1].float(), reference[:-1], rtol=1e-3, atol=1e-5)
    assert reference[-1] == 0
    assert 0 < abar[-1] < 1e-7  # a hair above zero, so sigma is finite
    assert torch.isfinite(objectives.discrete_sigmas(abar)).all()
    assert (objectives.discrete_sigmas(abar).diff() > 0).all()


def test_zero_terminal_snr_keeps_the_first_step(scheduler):
    before = scheduler.alphas_cumprod.double()
    # Equal in algebra; float64 rounding of a handful of operations.
    assert objectives.rescale_zero_terminal_snr(before)[0].item() == pytest.approx(before[0].item(), rel=1e-12)


@pytest.mark.parametrize("how", ["uniform", "logit_normal"])
@pytest.mark.parametrize(("low", "high"), [(0, 1000), (200, 300), (0, 1), (999, 1000), (29, 58)])
def test_drawn_timesteps_stay_in_the_asked_range(how, low, high, table):
    config = ObjectiveConfig(timesteps=how, min_timestep=low, max_timestep=high)
    drawn = objectives.Objective("epsilon", objectives.DiscreteLevels(table), config).draw_sigma(
        5000, torch.Generator().manual_seed(1)
    )
    timesteps = torch.searchsorted(table, drawn)
    assert torch.equal(table[timesteps], drawn)
    assert low <= timesteps.min() <= timesteps.max() < high
    if how == "uniform" and high - low <= 100:
        assert (
            len(timesteps.unique()) == high - low
        )  # 5000 draws miss one of 100 values with probability 100 * 0.99^5000 < 1e-19


def test_uniform_draws_are_uniform(table):
    drawn = objectives.Objective("epsilon", objectives.DiscreteLevels(table)).draw_sigma(
        20_000, torch.Generator().manual_seed(2)
    )
    u = (torch.searchsorted(table, drawn).double() + 0.5) / 1000
    # Kolmogorov-Smirnov distance: 1.95 / sqrt(n) is exceeded once in a thousand seeds.
    assert _distance(u, u.sort().values) < 1.95 / math.sqrt(len(u)) + 0.0005


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.6)])
def test_logit_normal_draws_follow_their_distribution(mean, std):
    config = ObjectiveConfig(timesteps="logit_normal", logit_mean=mean, logit_std=std)
    u = (
        objectives.Objective("flow", objectives.FlowLevels(1.0), config)
        .draw_sigma(20_000, torch.Generator().manual_seed(4))
        .sort()
        .values
    )
    expected = torch.distributions.Normal(mean, std).cdf(torch.logit(u))
    assert _distance(u, expected) < 1.95 / math.sqrt(len(u))  # Kolmogorov-Smirnov, exceeded once in a thousand seeds


def _distance(sample, cdf_at_sorted):
    """Largest gap between the empirical distribution and a cdf evaluated at the sorted sample."""
    steps = torch.arange(1, len(sample) + 1, dtype=torch.float64) / len(sample)
    return torch.maximum((steps - cdf_at_sorted).abs(), (steps - 1 / len(sample) - cdf_at_sorted).abs()).max().item()


def test_auto_draws_uniform_for_eps_and_logit_normal_for_flow(table):
    for kind, levels, how in (
        ("epsilon", objectives.DiscreteLevels(table), "uniform"),
        ("flow", objectives.FlowLevels(), "logit_normal"),
    ):
        drawn = [
            objectives.Objective(kind, levels, ObjectiveConfig(timesteps=choice)).draw_sigma(
                50, torch.Generator().manual_seed(5)
            )
            for choice in ("auto", how)
        ]
        assert torch.equal(*drawn)


def test_loss_weight_is_one_at_every_noise_level(table):
    assert torch.equal(
        objectives.Objective("v", objectives.DiscreteLevels(table)).weight(table), torch.ones_like(table)
    )


def test_the_shares_of_several_processes_are_what_one_draws_for_the_whole_batch():
    config = ObjectiveConfig(noise_offset=0.1, multires_iterations=3, input_perturbation=0.2)
    whole = Objective("epsilon", DiscreteLevels(torch.linspace(0.1, 10, 1000, dtype=torch.float64)), config)
    shared = [SharedObjective.of(whole, Processes(rank, 2)) for rank in range(2)]
    x0 = torch.zeros(4, 3, 8, 8)

    def drawn(objective, x0):
        rng = step_rng(1, 0, 2, 3)
        sigma, noise = objective.draw_sigma(len(x0), rng), objective.draw_noise(x0, rng)
        return sigma, noise, objective.perturbed(noise, rng)

    together, parts = drawn(whole, x0), [drawn(objective, x0[:2]) for objective in shared]
    for n, one in enumerate(together):
        assert torch.equal(one, torch.cat([part[n] for part in parts]))
    assert SharedObjective.of(whole, ALONE) is whole
