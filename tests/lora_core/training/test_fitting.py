import pytest
import torch
from lora_loom.lora_core.compat import OutOfMemoryError
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.training.fitting import Measured, candidates


class Heard(Listener):
    def __init__(self):
        self.messages = []

    def on_note(self, message):
        self.messages.append(str(message))


def exhausted_above(backend, monkeypatch, pictures, checkpointed=False):
    """Makes the backend run out of memory for more than `pictures` in a pass, and always without checkpointing where `checkpointed`."""
    predict = type(backend).predict

    def limited(self, x_t, sigma, batch):
        if len(x_t) > pictures or (checkpointed and not self.unet.is_gradient_checkpointing):
            raise OutOfMemoryError("not enough, on purpose")
        return predict(self, x_t, sigma, batch)

    monkeypatch.setattr(type(backend), "predict", limited)


@pytest.mark.parametrize(("batch", "accum", "expected"), [
    (4, 1, [(4, 1)] * 3 + [(2, 2), (1, 4)]), (6, 2, [(6, 2)] * 3 + [(3, 4), (1, 12)]), (1, 3, [(1, 3)] * 3),
])  # fmt: skip
def test_what_is_tried_keeps_the_pictures_of_an_update(batch, accum, expected, toy_config):
    tried = candidates(toy_config(batch_size=batch, grad_accum=accum))
    assert [(c.batch_size, c.grad_accum) for c in tried] == expected
    assert [c.recomputed for c in tried] == ["", "cheap"] + ["all"] * (len(expected) - 2)
    assert {c.batch_size * c.grad_accum for c in tried} == {batch * accum}


def test_a_run_that_fits_is_the_run_without_the_dry_run(toy_config, run_toy, tmp_path):
    heard = Heard()
    plain = run_toy(toy_config(adapter={"algorithm": "dora"}), tmp_path / "plain")
    fitted = run_toy(toy_config(adapter={"algorithm": "dora"}, auto_fit=True), tmp_path / "fitted", heard)
    assert fitted.losses == plain.losses
    assert all(torch.equal(fitted.tensors[k], plain.tensors[k]) for k in plain.tensors)
    (said,) = [m for m in heard.messages if m.startswith("Dry run")]
    assert "batch 2 x 1" in said
    assert "s a step" in said


@pytest.mark.parametrize(("largest", "checkpointed", "expected"), [(2, True, (2, 1, True)), (1, False, (1, 2, True))])
def test_where_memory_does_not_suffice_the_run_is_made_to_fit(
    largest, checkpointed, expected, toy_config, run_toy, toy_backend, tmp_path, monkeypatch
):
    exhausted_above(toy_backend, monkeypatch, largest, checkpointed)
    config = run_toy(toy_config(auto_fit=True), tmp_path).facts["config"]
    assert (config["batch_size"], config["grad_accum"], config["checkpointing"]) == expected


def test_what_cannot_fit_is_said_before_the_first_step_and_leaves_the_model_alone(
    toy_config, run_toy, toy_backend, tmp_path, monkeypatch
):
    exhausted_above(toy_backend, monkeypatch, 0)
    with pytest.raises(
        LoomError, match="even one picture at 32 px with checkpointing does not fit into memory; lower data.resolution"
    ):
        run_toy(toy_config(auto_fit=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not any("forward" in vars(m) for m in toy_backend.unet.modules())
    assert not toy_backend.unet.is_gradient_checkpointing
    assert not toy_backend.unet.training


def test_the_largest_bucket_is_the_one_that_is_tried(toy_config, run_toy, toy_backend, tmp_path, monkeypatch):
    seen = []
    predict = type(toy_backend).predict
    monkeypatch.setattr(
        type(toy_backend), "predict", lambda self, x, s, b: seen.append(x.shape) or predict(self, x, s, b)
    )
    run_toy(toy_config(auto_fit=True), tmp_path)
    assert seen[0][-2:].numel() == max(s[-2:].numel() for s in seen)


@pytest.mark.parametrize(
    ("seconds", "steps", "words"),
    [(0.5, 100, "about 50 s for 100"), (2.0, 600, "about 20 min for 600"), (30.0, 600, "about 5.0 h for")],
)
def test_times_are_given_in_words(seconds, steps, words):
    said = str(Measured(2, 1, True, seconds, 3 * 2**30).message(steps))
    assert words in said
    assert "3 GiB at the peak" in said
    assert "checkpointing" in said
    assert words in str(
        Measured(2, 4, True, seconds / 4, 0).message(steps)
    )  # a step has as many passes as it accumulates
    assert "not measured" in str(Measured(1, 1, False, 1.0, 0).message(1))


def test_a_run_that_was_made_to_fit_goes_on_as_it_was_whatever_memory_is_free_now(
    toy_config, run_toy, toy_backend, tmp_path, monkeypatch
):
    with monkeypatch.context() as short:
        exhausted_above(toy_backend, short, 1)
        run_toy(toy_config(auto_fit=True, steps=2), tmp_path)
    config = run_toy(toy_config(auto_fit=True, steps=4), tmp_path, resume=True).facts["config"]
    assert (config["batch_size"], config["grad_accum"], config["checkpointing"]) == (1, 2, True)


def test_class_pictures_count_when_the_largest_pass_is_looked_for(
    toy_config, run_toy, toy_backend, tmp_path, monkeypatch
):
    seen = []
    predict = type(toy_backend).predict
    monkeypatch.setattr(
        type(toy_backend),
        "predict",
        lambda self, x, s, b: seen.append(x.shape[-1] * x.shape[-2]) or predict(self, x, s, b),
    )
    run_toy(
        toy_config(auto_fit=True, data={"resolution": 64}, prior={"prompt": "a red circle", "count": 1, "steps": 1}),
        tmp_path / "run",
    )
    assert seen[0] == max(seen) == 64  # pictures of 32 px are not scaled up, class pictures are made at 64


def test_a_network_that_cannot_checkpoint_halves_its_batch_instead(toy_config):
    tried = candidates(toy_config(batch_size=4), recomputes=())
    assert [(c.batch_size, c.checkpointing) for c in tried] == [(4, False), (2, False), (1, False)]
