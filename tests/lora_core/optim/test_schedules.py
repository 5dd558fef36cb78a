import pytest
import torch
from diffusers.optimization import get_scheduler
from lora_loom.lora_core.config import ScheduleConfig
from lora_loom.lora_core.optim.schedules import SCHEDULES, lr_factor

STEPS = 60


def reference(name, warmup, cycles, power):
    """lr factors of diffusers: `constant` has a warm-up only under its own name."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    kind = "constant_with_warmup" if name == "constant" else name
    scheduler = get_scheduler(
        kind, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS, num_cycles=cycles, power=power
    )
    factors = []
    for _ in range(STEPS):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("warmup", [0, 1, 13])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_schedule_matches_diffusers(name, warmup):
    config = ScheduleConfig(name=name, warmup_steps=warmup, cycles=3, power=2.0)
    ours = [lr_factor(config, step, STEPS) for step in range(STEPS)]
    # Same formula in float64. The reference's polynomial stops at lr_end = 1e-7 instead of zero.
    assert ours == pytest.approx(reference(name, warmup, 3, 2.0), abs=2e-7 if name == "polynomial" else 1e-12)


def test_every_schedule_is_compared_with_diffusers():
    assert set(SCHEDULES) == {"constant", "linear", "cosine", "cosine_with_restarts", "polynomial"}


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_factor_stays_between_zero_and_one_even_when_warmup_is_longer_than_the_run(name):
    for warmup in (0, 5, 10, 50):
        factors = [lr_factor(ScheduleConfig(name=name, warmup_steps=warmup, cycles=2), step, 10) for step in range(12)]
        assert all(0.0 <= f <= 1.0 for f in factors)
