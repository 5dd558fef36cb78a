import torch
from lora_loom.lora_core.losses import LOSSES, mse


def test_mse_is_torch_mse_of_each_sample_on_its_own():
    rng = torch.Generator().manual_seed(0)
    pred, target = torch.randn(3, 4, 5, 6, generator=rng), torch.randn(3, 4, 5, 6, generator=rng)
    expected = torch.stack([torch.nn.functional.mse_loss(p, t) for p, t in zip(pred, target)])
    torch.testing.assert_close(mse(pred, target), expected, rtol=1e-6, atol=0)  # same sum, perhaps in another order


def test_every_loss_is_float32_per_sample_for_half_precision_predictions():
    for loss in LOSSES.values():
        out = loss(torch.ones(2, 3, 4, 4, dtype=torch.bfloat16), torch.zeros(2, 3, 4, 4))
        assert out.shape == (2,)
        assert out.dtype == torch.float32
