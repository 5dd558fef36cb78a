import pytest
from lora_loom.lora_core.config import ConfigError
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.optim.groups import make_groups
from lora_loom.lora_core.optim.optimizers import filled
from lora_loom.lora_core.training.build import make_adapters

PIVOTAL = {"method": "pivotal", "text_encoder": {"train": True}}


def groups(toy_config, toy_backend, **changes):
    config = filled(toy_config(**changes))
    _, adapters = make_adapters(config, toy_backend)
    return {g["name"]: g for g in make_groups(config, adapters)}, adapters


def test_parts_have_their_own_rate_decay_and_end(toy_config, toy_backend):
    found, adapters = groups(
        toy_config, toy_backend, **PIVOTAL | {"steps": 100, "text_encoder": {"train": True, "lr": 5e-5, "weight_decay": 0.1, "stop": 0.333}},
        optimizer={"lr": 1e-4, "weight_decay": 0.02}, embedding={"lr": 3e-4, "stop": 0.5},
    )  # fmt: skip
    assert {n: (g["lr"], g["weight_decay"], g["stop"]) for n, g in found.items()} == {
        "embedding": (3e-4, 0.0, 50), "model": (1e-4, 0.02, None), "text_encoder": (5e-5, 0.1, 33),
    }  # fmt: skip
    assert sum(p.numel() for g in found.values() for p in g["params"]) == adapters.count()


def test_parts_without_their_own_numbers_take_the_optimizers(toy_config, toy_backend):
    found, _ = groups(toy_config, toy_backend, **PIVOTAL, optimizer={"lr": 2e-4, "weight_decay": 0.02})
    assert {n: (g["lr"], g["weight_decay"], g["stop"]) for n, g in found.items()} == {
        "embedding": (2e-4, 0.0, None), "model": (2e-4, 0.02, None), "text_encoder": (2e-4, 0.02, None),
    }  # fmt: skip


@pytest.mark.parametrize(("algorithm", "ups"), [
    ("lora", ("lora_up",)), ("dora", ("lora_up",)), ("loha", ("hada_w1_a", "hada_w2_a")), ("lokr", ("lokr_w1", "lokr_w2_a")),
])  # fmt: skip
def test_lora_plus_multiplies_the_rate_of_the_up_matrices(algorithm, ups, toy_config, toy_backend):
    found, adapters = groups(
        toy_config,
        toy_backend,
        adapter={"algorithm": algorithm, "rank": 2},
        optimizer={"lr": 1e-4, "lora_plus_ratio": 16.0},
    )
    assert found["model up"]["lr"] == pytest.approx(16e-4)
    fast = {id(p) for p in found["model up"]["params"]}
    assert {name.rpartition(".")[2] for name, p in adapters.named_parameters() if id(p) in fast} == set(ups)


def test_rates_and_ranks_by_layer_follow_the_first_rule_that_fits(toy_config, toy_backend):
    rules = {"layer_lr": "mid_block = 0.5\n_block = 2", "layer_rank": "mid_block.*to_q = 8\nmid_block = 0"}
    found, adapters = groups(toy_config, toy_backend, adapter={**rules, "alpha": 2.0}, optimizer={"lr": 1e-4})
    assert {n: g["lr"] for n, g in found.items()} == {
        "model x0.5": pytest.approx(5e-5),
        "model x2": pytest.approx(2e-4),
    }
    mid = {name: a for name, a in adapters if "mid_block" in name}
    assert mid
    assert all("to_q" in name and a.rank == 8 and a.scale == 0.5 for name, a in mid.items())
    assert {a.rank for name, a in adapters if "mid_block" not in name} == {4}


def test_convolutions_may_have_a_rank_of_their_own(toy_config, toy_backend):
    _, adapters = groups(
        toy_config, toy_backend, adapter={"targets": "conv", "rank": 8, "alpha": 4.0, "conv_rank": 2, "conv_alpha": 1.0}
    )
    sizes = {(a.lora_down.ndim > 2 and max(a.lora_down.shape[2:]) > 1): (a.rank, a.scale) for _, a in adapters}
    assert sizes == {False: (8, 0.5), True: (2, 0.5)}


def test_alpha_0_is_the_rank_of_each_adapter_whatever_gave_it(toy_config, toy_backend):
    _, adapters = groups(
        toy_config,
        toy_backend,
        adapter={"targets": "conv", "rank": 8, "conv_rank": 2, "layer_rank": "mid_block.*to_q = 3"},
        text_encoder={"train": True, "rank": 5},
    )
    assert {(a.rank, a.scale, a.alpha) for _, a in adapters} == {(r, 1.0, float(r)) for r in (2, 3, 5, 8)}


def test_text_encoders_may_have_a_rank_of_their_own_and_mlp_layers(toy_config, toy_backend):
    _, adapters = groups(
        toy_config, toy_backend, text_encoder={"train": True, "rank": 2, "targets": "attention and mlp"}
    )
    text = {name: a for name, a in adapters if name.startswith("lora_te_")}
    assert {a.rank for a in text.values()} == {2}
    assert {name.rpartition("_layers_")[2][2:] for name in text} == {
        f"self_attn_{n}_proj" for n in ("q", "k", "v", "out")
    } | {"mlp_fc1", "mlp_fc2"}


@pytest.mark.parametrize(("field", "text", "why"), [
    ("layer_lr", "mid_block", "is not a rule"), ("layer_lr", "( = 1", "is not a rule"), ("layer_lr", "mid = -1", "the number must be 0 or more"),
    ("layer_lr", "nowhere = 1", "'nowhere' matches none of the"), ("layer_rank", "nowhere = 1", "'nowhere' matches none of the"),
    ("layer_rank", "block = 1.5", "1.5 for .* is not a rank"), ("layer_rank", ". = 0", "leaves every layer out"),
])  # fmt: skip
def test_a_rule_that_cannot_be_meant_is_quoted(field, text, why, toy_config, toy_backend):
    with pytest.raises(LoomError, match=f"adapter.{field}.*{why}"):
        groups(toy_config, toy_backend, adapter={field: text})


def test_what_does_not_fit_together_is_refused(toy_config, toy_backend):
    with pytest.raises(ConfigError, match="text_encoder.train: an embedding is trained on frozen text encoders"):
        toy_config(method="embedding", text_encoder={"train": True})
    with pytest.raises(ConfigError, match="embedding.stop: 0.5 would end an embedding's training"):
        toy_config(method="embedding", embedding={"stop": 0.5})
    with pytest.raises(
        LoomError,
        match="text_encoder.train: nothing of 'clip_g' can be trained; this model's text encoders are: clip_l",
    ):
        make_adapters(toy_config(text_encoder={"train": True, "encoders": "clip_g"}), toy_backend)


def test_a_rate_rule_sees_the_name_of_the_layer_alone(toy_config, toy_backend):
    found, _ = groups(toy_config, toy_backend, adapter={"layer_lr": "to_k$ = 0.1"}, optimizer={"lr": 1e-4})
    assert {n: g["lr"] for n, g in found.items()} == {"model": pytest.approx(1e-4), "model x0.1": pytest.approx(1e-5)}


def test_the_logged_rate_is_the_models(toy_config, toy_backend):
    from lora_loom.lora_core.optim.optimizers import effective_lr, make_optimizer

    config = filled(
        toy_config(**PIVOTAL, optimizer={"lr": 1e-4}, adapter={"layer_lr": "mid_block = 0.5"}, embedding={"lr": 1e-2})
    )
    _, adapters = make_adapters(config, toy_backend)
    assert effective_lr(make_optimizer(make_groups(config, adapters), config.optimizer)) == pytest.approx(1e-4)
