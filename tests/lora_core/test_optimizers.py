import torch
from lora_loom.lora_core.config import OptimizerConfig
from lora_loom.lora_core.optimizers import OPTIMIZERS, make_optimizer


def test_adamw_follows_torch_adamw_with_the_configured_numbers():
    config = OptimizerConfig(lr=3e-3, beta1=0.8, beta2=0.95, weight_decay=0.1, eps=1e-6)
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(5, 4, generator=rng)
    ours, plain = (torch.nn.Parameter(start.clone()) for _ in range(2))
    reference = torch.optim.AdamW([plain], lr=3e-3, betas=(0.8, 0.95), weight_decay=0.1, eps=1e-6, foreach=False, fused=False)
    optimizers = [make_optimizer([{"params": [ours], "lr": 3e-3, "weight_decay": 0.1, "name": "model"}], config), reference]
    for _ in range(10):
        gradient = torch.randn(5, 4, generator=rng)
        for p, optimizer in zip((ours, plain), optimizers):
            p.grad = gradient.clone()
            optimizer.step()
    # The fused kernel orders the same operations differently: float32 rounding over ten steps of size 3e-3.
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours, start)


def test_every_optimizer_of_the_config_exists():
    import dataclasses

    choices = next(f for f in dataclasses.fields(OptimizerConfig) if f.name == "name").metadata["choices"]
    assert set(choices) == set(OPTIMIZERS)
