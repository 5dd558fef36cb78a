"""The host's property stays the host's, however a run ends; and what was trained is kept."""

from __future__ import annotations

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import runs
import torch
from lora_loom.lora_core.events import Control
from lora_loom.lora_core.messages.errors import LoomError

Cancel = comfy.model_management.InterruptProcessingException


def cancel_now() -> None:
    comfy.model_management.interrupt_current_processing(True)


def cancel_in_backward(backend) -> None:
    """From the third forward on, the host is told to cancel when the gradient arrives: the recompute then raises inside backward."""
    plain, calls = backend.predict, []

    def predict(*args):
        pred = plain(*args)
        calls.append(None)
        if len(calls) == 3:
            pred.register_hook(lambda grad: cancel_now())
        return pred

    backend.predict = predict


def fail(*args, **kwargs):
    raise ValueError("broken on purpose")


def success(toy, folder):
    assert runs.run(toy, folder).outcome == "finished"


def success_checkpointed(toy, folder):
    assert runs.run(toy, folder, checkpointing=True, samples={"every": 3, "steps": 2}).outcome == "finished"


def stop_and_keep(toy, folder):
    control = Control()
    result = runs.run(toy, folder, runs.At(3, control.stop_and_keep), control)
    assert (result.outcome, result.step) == ("stopped", 3)


def cancel_in_forward(toy, folder):
    with pytest.raises(Cancel):
        runs.run(toy, folder, runs.At(3, cancel_now))


def cancel_in_checkpointed_backward(toy, folder):
    with pytest.raises(Cancel):
        runs.run(toy, folder, change=cancel_in_backward, checkpointing=True)


def exception_in_a_listener(toy, folder):
    with pytest.raises(ValueError, match="on purpose"):
        runs.run(toy, folder, runs.At(3, fail))


def exception_while_sampling(toy, folder):
    def change(backend):
        backend.pictures.decode = fail

    result = runs.run(toy, folder, change=change, samples={"every": 3, "steps": 2})
    assert result.outcome == "finished"  # without its samples


def out_of_memory(toy, folder):
    def exhausted():
        raise torch.OutOfMemoryError("not enough memory, on purpose")

    with pytest.raises(torch.OutOfMemoryError):
        runs.run(toy, folder, runs.At(3, exhausted))


ENDINGS = [
    success,
    success_checkpointed,
    stop_and_keep,
    cancel_in_forward,
    cancel_in_checkpointed_backward,
    exception_in_a_listener,
    exception_while_sampling,
    out_of_memory,
]


EVERYTHING = {
    "method": "pivotal", "text_encoder": {"train": True, "stop": 0.9}, "embedding": {"tokens": "zog*2", "stop": 0.4, "keep_norm": True}, "ema_decay": 0.9,
    "prior": {"prompt": "a red circle on a white ground", "count": 2, "steps": 2}, "adapter": {"rank": 4, "algorithm": "dora", "max_norm": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda f: f.__name__)
def test_nothing_of_the_host_changes_with_text_tokens_class_pictures_and_dora_either(
    toy, tmp_path, ending, monkeypatch
):
    plain = runs.run
    options = {
        k: v for k, v in EVERYTHING.items() if k != "prior" or ending is not exception_while_sampling
    }  # that would end it before the first step
    monkeypatch.setattr(runs, "run", lambda *args, **changes: plain(*args, **{**options, **changes}))
    picture = runs.picture(toy)
    torch.manual_seed(11)
    before = runs.fingerprint(toy)
    with torch.inference_mode():
        ending(toy, tmp_path / "run")
    assert runs.differences(before, runs.fingerprint(toy)) == []
    assert torch.equal(runs.picture(toy), picture)
    state = comfy.utils.load_torch_file(str(tmp_path / "run" / "run.safetensors"))
    keys = comfy.lora.model_lora_keys_clip(toy[1].cond_stage_model, comfy.lora.model_lora_keys_unet(toy[0].model, {}))
    assert len(comfy.lora.load_lora(state, keys)) == 56 + 8  # two layers of the text encoder with four projections each
    assert (tmp_path / "run" / "run_emb.safetensors").is_file()


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda f: f.__name__)
def test_nothing_of_the_host_changes_and_the_result_is_kept(toy, tmp_path, ending):
    picture = runs.picture(toy)
    torch.manual_seed(11)
    before = runs.fingerprint(toy)
    with torch.inference_mode():
        ending(toy, tmp_path / "run")
    assert runs.differences(before, runs.fingerprint(toy)) == []
    assert torch.equal(runs.picture(toy), picture)
    assert comfy.model_management.processing_interrupted() is False
    state = comfy.utils.load_torch_file(str(tmp_path / "run" / "run.safetensors"))
    keys = comfy.lora.model_lora_keys_unet(toy[0].model, {})
    assert (
        len(comfy.lora.load_lora(state, keys)) == 56 == len(state) // 3
    )  # 7 transformer blocks with 8 attention layers each


def embedding_alone(toy, folder):
    assert runs.run(toy, folder, method="embedding", embedding={"tokens": "zog*2"}).outcome == "finished"


def embedding_cancelled(toy, folder):
    with pytest.raises(Cancel):
        runs.run(toy, folder, runs.At(3, cancel_now), method="embedding", embedding={"tokens": "zog*2"})


def validated_and_fitted(toy, folder):
    watch = {"every": 2, "pictures": 2, "levels": 2, "restore_best": True}
    runs.run(
        toy,
        folder,
        validation=watch,
        auto_fit=True,
        text_encoder={"train": True},
        optimizer={"name": "adafactor", "lr": 1e-3},
    )


def learning_rate_test(toy, folder):
    from lora_loom.lora_core.data.folder import scan
    from lora_loom.lora_core.training.job import Job
    from lora_loom.lora_core.training.lr_range import Trial, lr_range
    from lora_loom.nodes.host.engine.backend import HostBackend

    config = runs.toy_config(text_encoder={"train": True})
    with torch.inference_mode(False):
        lr_range(Job(config, HostBackend(*toy), scan(config.data), folder), Trial(1e-4, 1e-1, 8))


def dry_run_cancelled(toy, folder):
    from lora_loom.lora_core.data.folder import scan
    from lora_loom.lora_core.training.assemble import dry_run
    from lora_loom.lora_core.training.job import Job
    from lora_loom.nodes.host.engine.backend import HostBackend

    config = runs.toy_config(method="pivotal", embedding={"tokens": "zog"})

    def trials():
        backend = HostBackend(*toy)
        cancel_in_backward(backend)
        for _ in range(3):
            dry_run(Job(config, backend, scan(config.data), folder))
            comfy.model_management.throw_exception_if_processing_interrupted()

    with torch.inference_mode(False), pytest.raises(Cancel):
        trials()


@pytest.mark.parametrize(
    "act",
    [embedding_alone, embedding_cancelled, validated_and_fitted, learning_rate_test, dry_run_cancelled],
    ids=lambda f: f.__name__,
)
def test_nothing_of_the_host_changes_by_an_embedding_a_validation_or_a_trial(toy, tmp_path, act):
    picture = runs.picture(toy)
    torch.manual_seed(11)
    before = runs.fingerprint(toy)
    with torch.inference_mode():
        act(toy, tmp_path / "run")
    assert runs.differences(before, runs.fingerprint(toy)) == []
    assert torch.equal(runs.picture(toy), picture)


def test_exception_before_the_first_step_leaves_the_host_as_it_was(toy, tmp_path):
    torch.manual_seed(11)
    before = runs.fingerprint(toy)
    with torch.inference_mode(), pytest.raises(LoomError, match="objective.zero_terminal_snr"):
        runs.run(toy, tmp_path / "run", objective={"zero_terminal_snr": True})
    assert runs.differences(before, runs.fingerprint(toy)) == []


def test_users_model_samples_unchanged_while_its_clone_trains(toy, tmp_path):
    """The clone holds the adapters; the MODEL on the user's wire must not feel them, even in the middle of a run."""
    plain, seen = runs.picture(toy), []
    runs.run(toy, tmp_path / "run", runs.At(4, lambda: seen.append(runs.picture(toy))), optimizer={"lr": 0.01})
    assert torch.equal(seen[0], plain)


def test_trained_weights_are_the_hosts_own_storage(toy, tmp_path):
    pointers = {n: p.data_ptr() for n, p in toy[0].model.named_parameters()}
    during = {}
    runs.run(
        toy,
        tmp_path / "run",
        runs.At(2, lambda: during.update({n: p.data_ptr() for n, p in toy[0].model.named_parameters()})),
    )
    assert during == pointers


@pytest.mark.parametrize("changes", [
    {}, {"adapter": {"algorithm": "dora", "rank": 4}}, {"adapter": {"algorithm": "loha", "rank": 4, "targets": "conv"}},
    {"adapter": {"algorithm": "lokr", "rank": 4, "targets": "conv"}}, {"adapter": {"rank": 4, "alpha": 2.0, "rank_stabilized": True}},
    {"text_encoder": {"train": True}}, {"ema_decay": 0.5, "text_encoder": {"train": True, "stop": 0.5}},
], ids=["lora", "dora", "loha", "lokr", "rank-stabilized", "text encoder", "average"])  # fmt: skip
def test_file_through_the_hosts_loader_gives_the_pictures_of_the_live_adapters(toy, tmp_path, changes):
    from lora_loom.lora_core.backends.base import SampleJob
    from lora_loom.lora_core.config import SampleConfig
    from lora_loom.nodes.host.engine.backend import HostBackend

    live = []

    def draw(backend: HostBackend):
        sample = backend.sample
        backend.sample = lambda job: live.append(sample(job)[0]) or [live[-1]]

    samples = {"every": 100, "prompt": "a zog on a white ground", "cfg": 4.0}
    runs.run(toy, tmp_path / "run", change=draw, **{"optimizer": {"lr": 0.01}, "samples": samples, **changes})
    state = comfy.utils.load_torch_file(str(tmp_path / "run" / "run.safetensors"))
    with torch.inference_mode():
        model, clip = comfy.sd.load_lora_for_models(toy[0], toy[1], state, 1.0, 1.0)
        with torch.inference_mode(False):
            from_file = HostBackend(model, clip, toy[2]).sample(
                SampleJob("a zog on a white ground", 64, 64, SampleConfig(cfg=4.0))
            )[0]
    import numpy as np

    difference = np.abs(np.asarray(live[-1], int) - np.asarray(from_file, int)).max()
    print(f"live against file: {difference} of 255")
    assert np.abs(np.asarray(live[0], int) - np.asarray(live[-1], int)).max() > 20  # training did change the picture
    assert (
        difference <= 2
    )  # W + BA rounded once, against a branch added after the layer: fp32 rounding through 20 sampler steps


def test_a_host_lora_on_the_model_is_kept_and_trained_through(toy, tmp_path):
    first = runs.run(toy, tmp_path / "first", optimizer={"lr": 0.01}, steps=20)
    with torch.inference_mode():
        patched, _ = comfy.sd.load_lora_for_models(toy[0], None, first.tensors, 1.0, 0.0)
    base, stacked = (runs.run((m, *toy[1:]), tmp_path / n, steps=3, seed=0) for n, m in (("a", toy[0]), ("b", patched)))
    assert base.losses != stacked.losses  # the patch is felt
    assert not torch.equal(runs.picture((patched, *toy[1:])), runs.picture(toy))
    assert torch.equal(runs.picture(toy), runs.picture(toy))
