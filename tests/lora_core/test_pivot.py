"""Text encoders and tokens in a run: frozen means no bit moves, resumed means the same bits, and what acts is what is saved."""

import json

import pytest
import torch
from lora_loom.lora_core.events import Control, Listener
from lora_loom.lora_core.messages.errors import LoomError
from safetensors.torch import load_file
from slow_rows import mostly_slow

OPTIMIZERS = [{"name": "adamw", "lr": 1e-3}, {"name": "prodigy", "lr": 1.0}, {"name": "schedule_free", "lr": 1e-3}]
PIVOTAL = {
    "method": "pivotal",
    "steps": 8,
    "save": {"every": 1, "keep": 20},
    "embedding": {"tokens": "zog*2", "stop": 0.5},
}


def checkpoints(folder):
    return [load_file(f / "adapter.safetensors") for f in sorted((folder / "checkpoints").iterdir())]


def values(state, start):
    return {k: v for k, v in state.items() if k.startswith(start)}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class StopAt(Listener):
    def __init__(self, step):
        self.control, self.step = Control(), step

    def on_step(self, report):
        if report.step == self.step:
            self.control.stop_and_keep()


@pytest.mark.parametrize(
    ("optimizer", "ema"), [(o, e) for o in OPTIMIZERS for e in (0.0, 0.9) if not (e and o["name"] == "schedule_free")]
)
def test_from_the_pivot_on_no_bit_of_the_vectors_moves_and_the_lora_goes_on(
    optimizer, ema, toy_config, run_toy, tmp_path
):
    result = run_toy(toy_config(**PIVOTAL, optimizer=optimizer, ema_decay=ema), tmp_path)
    states = checkpoints(tmp_path)  # after steps 1 to 8; the last step saves its own
    assert len(states) == 8
    moving, frozen = states[:4], states[4:]
    assert not equal(values(moving[0], "token."), values(moving[1], "token."))
    assert all(equal(values(frozen[0], "token."), values(s, "token.")) for s in frozen)
    if not ema and optimizer["name"] != "schedule_free":  # those end the vectors' training with their average
        assert equal(values(moving[-1], "token."), values(frozen[0], "token."))
    assert not equal(values(frozen[-2], "lora_unet"), values(frozen[-1], "lora_unet"))
    assert torch.equal(result.products["toy_test_emb"][0]["emb_params"], frozen[-1]["token.zog.clip_l"])


def test_text_encoders_stop_at_their_share_and_the_model_goes_on(toy_config, run_toy, tmp_path):
    run_toy(toy_config(steps=6, save={"every": 1, "keep": 20}, text_encoder={"train": True, "stop": 0.5}), tmp_path)
    states = checkpoints(tmp_path)
    assert not equal(values(states[1], "lora_te"), values(states[2], "lora_te"))
    assert all(equal(values(states[2], "lora_te"), values(s, "lora_te")) for s in states[3:])
    assert not equal(values(states[-2], "lora_unet"), values(states[-1], "lora_unet"))


@pytest.mark.parametrize(
    "optimizer", mostly_slow(OPTIMIZERS[:2], lambda row: row["name"] == "adamw"), ids=lambda o: o["name"]
)
def test_a_run_stopped_before_at_or_after_the_pivot_goes_on_bit_for_bit(optimizer, toy_config, run_toy, tmp_path):
    config = toy_config(**PIVOTAL, optimizer=optimizer, ema_decay=0.9, text_encoder={"train": True, "stop": 0.8})
    whole = run_toy(config, tmp_path / "whole")
    for stop_at in (2, 4, 5, 7):
        folder, listener = tmp_path / str(stop_at), StopAt(stop_at)
        run_toy(config, folder, listener, control=listener.control)
        parts = run_toy(config, folder, resume=True)
        assert parts.losses == whole.losses, stop_at
        for stem in whole.products:
            assert equal(parts.products[stem][0], whole.products[stem][0]), stop_at


def test_a_longer_continuation_moves_the_pivot_for_what_is_not_frozen_yet_only(toy_config, run_toy, tmp_path):
    run_toy(toy_config(**PIVOTAL), tmp_path)
    before = checkpoints(tmp_path)[-1]
    run_toy(toy_config(**PIVOTAL | {"steps": 30}), tmp_path, resume=True)
    assert equal(values(before, "token."), values(checkpoints(tmp_path)[-1], "token."))


def test_an_embedding_alone_writes_one_file_whose_name_is_its_word(toy_config, run_toy, tmp_path):
    result = run_toy(toy_config(method="embedding", embedding={"tokens": "zog*3"}), tmp_path)
    assert [p.name for p in result.files] == ["toy_test.safetensors"]
    assert result.tensors["emb_params"].shape == (3, 64)
    assert result.facts["trained_values"] == 3 * 64


def test_several_tokens_get_a_file_each_beside_the_lora(toy_config, run_toy, tmp_path):
    result = run_toy(toy_config(method="pivotal", embedding={"tokens": "zog\nOther One".replace(" ", "")}), tmp_path)
    assert [p.name for p in result.files] == [
        "toy_test.safetensors",
        "toy_test_zog_emb.safetensors",
        "toy_test_otherone_emb.safetensors",
    ]
    assert result.metadata["modelspec.trigger_phrase"] == "toy_test_zog_emb, toy_test_otherone_emb"


def test_a_token_no_caption_names_is_put_in_front_of_all(toy_config, run_toy, tmp_path):
    facts = run_toy(toy_config(method="embedding", embedding={"tokens": "TOK"}), tmp_path / "a").facts
    assert all(c.startswith("TOK, zog") for c in facts["captions"])
    facts = run_toy(toy_config(method="embedding", embedding={"tokens": "zog"}), tmp_path / "b").facts
    assert all(c.startswith("zog, ") for c in facts["captions"])


def test_the_first_step_with_text_encoders_has_the_loss_of_one_without(toy_config, run_toy, tmp_path):
    """Zero-effect adapters on the text encoders change nothing; with them on, the second step differs."""
    plain = run_toy(toy_config(steps=3), tmp_path / "plain").losses
    both = run_toy(toy_config(steps=3, text_encoder={"train": True}), tmp_path / "both").losses
    assert both[0] == pytest.approx(plain[0], rel=1e-6)  # captions are encoded as one batch instead of one by one
    assert both[2] != pytest.approx(plain[2], rel=1e-6)


def test_the_backend_is_as_before_after_a_run_that_changed_its_text(toy_backend, toy_config, run_toy, tmp_path):
    encoder = toy_backend.text.encoders["clip_l"].model
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    own = {n: sorted(vars(m)) for n, m in encoder.named_modules()}
    run_toy(toy_config(**PIVOTAL, text_encoder={"train": True}), tmp_path)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert own == {n: sorted(vars(m)) for n, m in encoder.named_modules()}
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not toy_backend._trained.changes_text


def test_a_continued_run_refuses_another_text_encoder(toy_backend, toy_config, run_toy, tmp_path, monkeypatch):
    config = toy_config(text_encoder={"train": True})
    run_toy(config, tmp_path)
    monkeypatch.setattr(type(toy_backend), "text_fingerprint", lambda self: "another")
    with pytest.raises(LoomError, match="the text encoder is another one"):
        run_toy(config, tmp_path, resume=True)


def test_a_pass_without_the_token_teaches_an_embedding_nothing_and_does_not_end_the_run(toy_config, run_toy, tmp_path):
    config = toy_config(
        method="embedding", steps=6, batch_size=1, data={"caption_dropout": 0.5}, save={"every": 1, "keep": 20}
    )
    assert len(run_toy(config, tmp_path).losses) == 6
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    states = checkpoints(tmp_path)
    moved = [not equal(a, b) for a, b in zip(states, states[1:])]
    assert moved == [s["grad_norm"] > 0 for s in steps[1:]]
    assert True in moved
    assert False in moved
