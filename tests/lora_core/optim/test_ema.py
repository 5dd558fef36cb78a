import pytest
import torch
from lora_loom.lora_core.adapters import AdapterSet, KindAdapter, Shape
from lora_loom.lora_core.algebra.kinds import KINDS
from lora_loom.lora_core.optim.ema import Ema
from torch import nn


def adapters(dtype=torch.float64):
    layer = nn.Linear(6, 8)
    adapter = KindAdapter(KINDS["lora"], "layer", layer, Shape((8, 6), 2, 2.0), 0, "cpu").to(dtype)
    return AdapterSet({"layer": adapter}), adapter


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_the_closed_form_of_its_weights(decay):
    """After n updates: sum over k of w_k (1 - d_k) prod_{j > k} d_j, plus the start times the product of all d."""
    trained, adapter = adapters()
    ema = Ema(trained, decay)
    values = [adapter.lora_up.detach().clone()]
    decays = []
    for step in range(1, 31):
        with torch.no_grad():
            adapter.lora_up.copy_(torch.randn(8, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64))
        values.append(adapter.lora_up.detach().clone())
        ema.update(step)
        decays.append(min(decay, (1 + step) / (10 + step)))
    expected = values[0] * torch.tensor(decays).double().prod()
    for k, (value, d) in enumerate(zip(values[1:], decays, strict=True)):
        expected = expected + value * (1 - d) * torch.tensor(decays[k + 1 :]).double().prod()
    with ema.in_place():
        torch.testing.assert_close(
            adapter.lora_up.detach(), expected, rtol=0, atol=1e-6
        )  # the product above is taken in float32
    assert torch.equal(adapter.lora_up, values[-1])


def test_it_is_the_average_of_diffusers_ema_model():
    from diffusers.training_utils import EMAModel

    trained, adapter = adapters(torch.float32)
    ema, theirs = Ema(trained, 0.99), EMAModel(trained.parameters(), decay=0.99, update_after_step=-1)
    for step in range(1, 21):
        with torch.no_grad():
            adapter.lora_up.copy_(torch.randn(8, 2, generator=torch.Generator().manual_seed(step)))
        ema.update(step)
        theirs.step(trained.parameters())
    with ema.in_place():
        found = adapter.lora_up.detach().clone()
    names = [name for name, _ in trained.named_parameters()]
    torch.testing.assert_close(found, theirs.shadow_params[names.index("layer.lora_up")], rtol=1e-5, atol=1e-6)


def test_settled_parameters_are_their_average_and_stay_so():
    trained, adapter = adapters()
    ema = Ema(trained, 0.5)
    with torch.no_grad():
        adapter.lora_up.fill_(1.0)
    ema.update(100)
    ema.settle([adapter.lora_up])
    assert torch.equal(adapter.lora_up, torch.full_like(adapter.lora_up, 0.5))
    adapter.lora_up.requires_grad_(False)
    ema.update(101)
    with ema.in_place():
        assert torch.equal(adapter.lora_up, torch.full_like(adapter.lora_up, 0.5))


def test_the_average_survives_a_save():
    trained, adapter = adapters(torch.float32)
    ema = Ema(trained, 0.9)
    with torch.no_grad():
        adapter.lora_up.fill_(3.0)
    ema.update(50)
    fresh = Ema(trained, 0.9)
    fresh.load_state_dict(ema.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ema.state_dict().values(), fresh.state_dict().values(), strict=True))
