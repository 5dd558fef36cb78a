import math

import pytest
import torch
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.lr_range import Trial, lr_range, steepest


def test_the_steepest_fall_of_a_known_curve_is_found():
    rates = [10 ** (-6 + n / 10) for n in range(51)]
    losses = [1 - 0.5 / (1 + math.exp(-4 * (math.log10(r) + 3))) for r in rates]  # a step down around 1e-3
    assert steepest(list(zip(rates, losses, strict=True))) == pytest.approx(1e-3, rel=0.3)
    assert steepest([*zip(rates, losses, strict=True), (1.0, float("nan"))]) == pytest.approx(1e-3, rel=0.3)


def test_the_rate_lies_in_the_middle_of_the_steepest_fall():
    losses = [
        1.0,
        1.0,
        0.9,
        0.1,
        0.0,
        0.0,
    ]  # averaged with their neighbours they fall fastest from the third to the fourth
    assert steepest([(10.0 ** (n - 6), loss) for n, loss in enumerate(losses)]) == pytest.approx(10**-3.5)


@pytest.mark.parametrize("points", [[], [(1e-6, 1.0)], [(1e-6, 1.0), (1e-5, 1.0), (1e-4, 2.0)]])
def test_a_loss_that_never_falls_gives_no_rate(points):
    with pytest.raises(LoomError, match="the loss falls at no rate that was tried"):
        steepest(points)


def test_the_test_runs_on_the_toy_suggests_a_rate_that_trains_and_leaves_nothing(toy_config, toy_backend, tmp_path):
    config = toy_config(batch_size=4, validation={"share": 0.25, "levels": 4})
    before = {k: v.clone() for k, v in toy_backend.unet.state_dict().items()}
    found = lr_range(Job(config, toy_backend, scan(config.data), tmp_path), Trial(1e-5, 0.3, 24))
    assert 1e-4 < found.suggested < 0.1
    rates = [rate for rate, _ in found.points]
    assert rates == sorted(rates)
    assert min(loss for _, loss in found.points) < found.points[0][1]
    assert all(torch.equal(before[k], v) for k, v in toy_backend.unet.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]  # what was encoded serves the run that follows
    again = lr_range(Job(config, toy_backend, scan(config.data), tmp_path), Trial(1e-5, 0.3, 24))
    assert again == found


def test_an_optimizer_that_finds_its_rate_is_refused(toy_config, toy_backend, tmp_path):
    config = toy_config(optimizer={"name": "prodigy"})
    with pytest.raises(LoomError, match="prodigy finds its learning rate itself"):
        lr_range(Job(config, toy_backend, scan(config.data), tmp_path))
