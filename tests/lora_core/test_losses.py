import pytest
import torch
from lora_loom.lora_core.losses import LOSSES, huber, l1, mean, mse, smooth_l1

ONES = torch.ones(3)


def pair():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 5, 6, generator=rng), torch.randn(3, 4, 5, 6, generator=rng)


def test_mse_and_l1_are_torch_s_of_each_sample_on_its_own():
    pred, target = pair()
    for ours, theirs in ((mse, torch.nn.functional.mse_loss), (l1, torch.nn.functional.l1_loss)):
        expected = torch.stack([theirs(p, t) for p, t in zip(pred, target)])
        torch.testing.assert_close(
            mean(ours(pred, target, ONES)), expected, rtol=1e-6, atol=0
        )  # same sum, perhaps in another order


@pytest.mark.parametrize(("loss", "factor"), [(huber, True), (smooth_l1, False)])
def test_huber_losses_are_the_formula_of_the_diffusers_scripts(loss, factor):
    pred, target = pair()
    delta = torch.tensor([0.1, 0.5, 2.0])
    d = delta.double().view(-1, 1, 1, 1)
    expected = 2 * (((pred - target).double().square() + d**2).sqrt() - d) * (d if factor else 1)
    torch.testing.assert_close(
        mean(loss(pred, target, delta)).double(), expected.flatten(1).mean(1), rtol=1e-5, atol=0
    )  # float32 against float64


def test_huber_is_square_for_small_errors_and_linear_for_large_ones():
    small, large, delta = torch.full((1, 1), 1e-4), torch.full((1, 1), 1e3), torch.tensor([0.1])
    zero = torch.zeros(1, 1)
    assert huber(small, zero, delta).item() == pytest.approx(1e-8, rel=1e-3)
    assert huber(large, zero, delta).item() == pytest.approx(2 * 0.1 * 1e3, rel=1e-3)
    assert smooth_l1(large, zero, delta).item() == pytest.approx(2e3, rel=1e-3)


def test_every_loss_is_float32_per_sample_for_half_precision_predictions():
    for loss in LOSSES.values():
        out = mean(
            loss(
                torch.ones(2, 3, 4, 4, dtype=torch.bfloat16),
                torch.zeros(2, 3, 4, 4),
                torch.full((2,), 0.1, dtype=torch.float64),
            )
        )
        assert out.shape == (2,)
        assert out.dtype == torch.float32


def test_a_masked_mean_counts_white_places_only_and_as_much_whatever_their_number():
    error, mask = torch.ones(2, 4, 6, 6), torch.zeros(2, 1, 6, 6)
    error[:, :, :2] = 5.0
    mask[0, :, :2] = 1.0
    mask[1, :, 0, 0] = 1.0
    torch.testing.assert_close(mean(error, mask), torch.tensor([5.0, 5.0]))
    torch.testing.assert_close(mean(error, torch.full_like(mask, 0.3)), mean(error))
    half = torch.full((2, 1, 6, 6), 0.1)
    half[:, :, :2] = 1.0
    torch.testing.assert_close(
        mean(error, half), torch.full((2,), (2 * 5.0 + 4 * 0.1) / 2.4)
    )  # rows: two of five, four of one at a tenth
