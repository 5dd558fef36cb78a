import pytest
import torch
from lora_loom.lora_core.adapters import AdapterSet, KindAdapter, Shape, attach
from lora_loom.lora_core.algebra.kinds import KINDS
from torch import nn


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 5))


@pytest.fixture
def layers(model):
    return {"b": model[0], "a": model[2]}


@pytest.fixture
def adapters(layers):
    members = {
        name: KindAdapter(KINDS["lora"], name, layer, Shape(tuple(layer.weight.shape), 2, 2.0), 0, "cpu")
        for name, layer in layers.items()
    }
    for member in members.values():
        nn.init.ones_(member.lora_up)
    return AdapterSet(members)


def snapshot(model):
    """Everything that hanging an adapter on could touch."""
    inside = [
        {k: v for k, v in m.__dict__.items() if k not in ("_parameters", "_modules", "_buffers")}
        for m in model.modules()
    ]
    return (
        [n for n, _ in model.named_modules()],
        {k: v.clone() for k, v in model.state_dict().items()},
        [dict(d) for d in inside],
    )


def same(first, second):
    weights = first[1].keys() == second[1].keys() and all(torch.equal(first[1][k], second[1][k]) for k in first[1])
    return weights and first[0] == second[0] and first[2] == second[2]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_attach_then_leave_restores_the_model_however_the_block_ends(model, layers, adapters, error):
    before, x = snapshot(model), torch.randn(3, 6)
    plain = model(x)

    def use():
        with attach(layers, adapters):
            assert "forward" in model[0].__dict__
            assert list(model.state_dict()) == list(before[1])  # the tree and its keys stay as they are while attached
            assert not torch.equal(model(x), plain)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            use()
    else:
        use()
    assert same(snapshot(model), before)
    assert "forward" not in model[0].__dict__
    assert torch.equal(model(x), plain)


def test_attach_puts_back_a_forward_that_somebody_else_had_set(model, layers, adapters):
    original = model[0].forward
    model[0].forward = foreign = lambda x: original(x) + 1
    with attach(layers, adapters):
        assert model[0].forward is not foreign
    assert model[0].__dict__["forward"] is foreign


def test_a_failure_half_way_through_attaching_takes_off_what_was_hung_on(model, layers, adapters):
    del layers["b"]  # "a" is attached first
    with pytest.raises(KeyError), attach(layers, adapters):
        pass
    assert "forward" not in model[2].__dict__


def test_switched_off_adapters_give_the_base_output_and_come_back(model, layers, adapters):
    x = torch.randn(3, 6)
    plain = model(x)
    with attach(layers, adapters):
        trained = model(x)
        with adapters.switched_off():
            assert torch.equal(model(x), plain)
        assert torch.equal(model(x), trained)
        with pytest.raises(ValueError, match="inside"), adapters.switched_off():
            raise ValueError("inside")
        assert torch.equal(model(x), trained)


def test_state_dict_is_a_detached_float32_copy_in_sorted_order(adapters):
    state = adapters.state_dict()
    assert list(state) == ["a.lora_down", "a.lora_up", "b.lora_down", "b.lora_up", "a.alpha", "b.alpha"]
    assert [state[f"{name}.alpha"].item() for name in "ab"] == [2.0, 2.0]
    assert not any(v.requires_grad for v in state.values())
    with torch.no_grad():
        adapters["a"].lora_up.add_(1)
    assert not torch.equal(state["a.lora_up"], adapters["a"].lora_up)


def test_a_checkpoint_of_the_first_version_without_alphas_still_loads_and_a_stored_alpha_counts(adapters):
    state = adapters.state_dict()
    adapters.load_state_dict({key: value for key, value in state.items() if not key.endswith(".alpha")})
    assert adapters["a"].scale == 1.0
    adapters.load_state_dict({**state, "a.alpha": torch.tensor(0.2, dtype=torch.float64)})
    assert (adapters["a"].scale, adapters["a"].alpha, adapters["b"].scale) == (0.1, 0.2, 1.0)
    assert adapters.state_dict()["a.alpha"].item() == 0.2


def test_load_state_dict_brings_every_value_back(adapters):
    state = adapters.state_dict()
    with torch.no_grad():
        for p in adapters.parameters():
            p.zero_()
    adapters.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in adapters.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_load_state_dict_refuses_keys_that_do_not_fit(adapters, change):
    state = adapters.state_dict()
    if change == "missing":
        del state["a.lora_up"]
    else:
        state["c.lora_up"] = torch.zeros(1)
    with pytest.raises(KeyError, match=f"1 {change}"):
        adapters.load_state_dict(state)


def test_count_is_the_number_of_trained_values(adapters):
    assert adapters.count() == 2 * (6 + 8) + 2 * (8 + 5)
