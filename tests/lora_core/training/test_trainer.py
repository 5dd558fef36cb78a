import dataclasses
import json
import random
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from lora_loom.lora_core.disk import files
from lora_loom.lora_core.events import Control, Listener, Listeners
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.rng import preserved_rng
from lora_loom.lora_core.runs import checkpoints
from lora_loom.lora_core.toy.model import OF_0_1_0
from lora_loom.lora_core.training import continuing
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from slow_rows import mostly_slow

STEPS = 20
EVERYTHING_RANDOM = dict(
    steps=STEPS, grad_accum=2, schedule={"name": "cosine", "warmup_steps": 3}, adapter={"dropout": 0.2},
    data={
        "shuffle_tags": True, "flip": True, "caption_dropout": 0.3, "tag_dropout": 0.2, "wildcards": True, "suffix": ", {one|two}", "also_resolutions": "16",
        "aspect_buckets": False, "crop": "random", "crops": 3, "latents": "sampled",
    },
)  # fmt: skip


class Cancelled(BaseException):
    """What a host raises when the user presses Cancel: not an Exception."""


@dataclasses.dataclass
class CancelAt(Listener):
    step: int

    def on_step(self, report):
        if report.step == self.step:
            raise Cancelled


class StopAt(Listener):
    def __init__(self, step):
        self.step, self.control = step, Control()

    def on_step(self, report):
        if report.step == self.step:
            self.control.stop_and_keep()


@dataclasses.dataclass
class Record(Listener):
    """Every event in order."""

    events: list = dataclasses.field(default_factory=list)

    def on_warning(self, message):
        self.events.append(("message", str(message)))

    def on_note(self, message):
        self.events.append(("message", str(message)))

    def on_start(self, first_step, steps, facts):
        self.events.append(("start", first_step))

    def on_step(self, report):
        self.events.append(("step", report.step))

    def on_save(self, step, path):
        self.events.append(("save", step))

    def on_sample(self, step, images, path):
        self.events.append(("sample", step))

    def on_end(self, outcome, step):
        self.events.append((outcome, step))

    def texts(self):
        return [text for kind, text in self.events if kind == "message"]


def interrupt(run_toy, config, folder, step):
    with pytest.raises(Cancelled):
        run_toy(config, folder, CancelAt(step))


@pytest.fixture(scope="module")
def unbroken(toy_config, toy_backend, tmp_path_factory):
    """(folder, losses, sha256 of the adapter and of the optimizer state) of the run that every continued run must equal."""
    from lora_loom.lora_core.data.folder import scan
    from lora_loom.lora_core.training.job import Job
    from lora_loom.lora_core.training.trainer import train

    config, folder = toy_config(**EVERYTHING_RANDOM), tmp_path_factory.mktemp("unbroken")
    job = Job(config, toy_backend, scan(config.data), folder.parent)
    result = train(job, folder, lambda tensors, facts: {"run": (tensors, {})})
    return folder, result.losses, weights(folder)


def weights(folder):
    last = checkpoints.folder_of(folder / "checkpoints", STEPS)
    return files.sha256(last / "adapter.safetensors"), files.sha256(last / "optimizer.safetensors")


def test_a_run_stopped_and_continued_after_every_step_equals_the_unbroken_run_bit_for_bit(
    unbroken, toy_config, run_toy, tmp_path
):
    """Each continuation begins at another step, and what one of them loses shows in the end."""
    config = toy_config(**EVERYTHING_RANDOM)
    for step in range(1, STEPS):
        torch.manual_seed(step)  # whatever the global generators hold, the continued run must not care
        random.seed(step)
        with pytest.raises(Cancelled):
            run_toy(config, tmp_path, CancelAt(step), resume=step > 1)
    result = run_toy(config, tmp_path, resume=True)
    assert result.losses == unbroken[1]
    assert weights(tmp_path) == unbroken[2]


@pytest.mark.parametrize("step", mostly_slow([1, 4, 9, 14], (9).__eq__))
def test_a_run_continued_once_equals_the_unbroken_run_bit_for_bit(step, unbroken, toy_config, run_toy, tmp_path):
    config = toy_config(**EVERYTHING_RANDOM)
    interrupt(run_toy, config, tmp_path, step)
    torch.manual_seed(step)
    random.seed(step)
    result = run_toy(config, tmp_path, resume=True)
    assert result.losses == unbroken[1]
    assert weights(tmp_path) == unbroken[2]
    lines = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == list(range(1, STEPS + 1))


def test_the_random_parts_of_the_continued_run_are_really_on(unbroken, toy_config, run_toy, tmp_path):
    plain = EVERYTHING_RANDOM | {"adapter": {"dropout": 0.0}}
    for n, change in enumerate(
        (plain, EVERYTHING_RANDOM | {"data": {}}, EVERYTHING_RANDOM | {"seed": 8}, EVERYTHING_RANDOM | {"schedule": {}})
    ):
        stop = StopAt(6)
        assert run_toy(toy_config(**change), tmp_path / str(n), stop, control=stop.control).losses != unbroken[1][:6]


def test_two_runs_of_one_config_write_equal_tensors(toy_config, run_toy, tmp_path):
    first, second = (run_toy(toy_config(**EVERYTHING_RANDOM | {"steps": 3}), tmp_path / name) for name in ("a", "b"))
    assert first.losses == second.losses
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[k], second.tensors[k]) for k in first.tensors)


def test_gradient_checkpointing_changes_memory_not_numbers(toy_config, run_toy, toy_backend, tmp_path):
    config = toy_config(**EVERYTHING_RANDOM | {"steps": 4})
    plain, saved = (run_toy(dataclasses.replace(config, checkpointing=on), tmp_path / str(on)) for on in (False, True))
    assert plain.losses == saved.losses
    assert all(torch.equal(plain.tensors[k], saved.tensors[k]) for k in plain.tensors)
    assert not toy_backend.unet.training
    assert not toy_backend.unet.is_gradient_checkpointing


def test_cancel_keeps_a_loadable_result_and_a_checkpoint_of_the_last_step(toy_config, run_toy, tmp_path):
    interrupt(run_toy, toy_config(), tmp_path, 3)
    kept = load_file(tmp_path / "toy_test.safetensors")
    assert any(v.any() for k, v in kept.items() if k.endswith("lora_up.weight"))
    assert all(torch.isfinite(v).all() for v in kept.values())
    checkpoint, broken = checkpoints.latest(tmp_path / "checkpoints")
    assert (checkpoint.step, broken) == (3, [])
    with safe_open(tmp_path / "toy_test.safetensors", "pt") as file:
        assert file.metadata()["ss_steps"] == "3"


def test_cancel_gives_the_model_back_unchanged(toy_config, run_toy, toy_backend, tmp_path):
    before = {k: v.clone() for k, v in toy_backend.unet.state_dict().items()}
    keys = {name: set(m.__dict__) for name, m in toy_backend.unet.named_modules()}
    interrupt(run_toy, toy_config(checkpointing=True), tmp_path, 2)
    after = toy_backend.unet.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any("forward" in m.__dict__ for m in toy_backend.unet.modules())
    assert {name: set(m.__dict__) for name, m in toy_backend.unet.named_modules()} == keys
    assert not any(p.requires_grad for p in toy_backend.unet.parameters())


def test_cancel_before_the_first_step_leaves_no_result(toy_config, run_toy, tmp_path):
    class AtStart(Listener):
        def on_start(self, first_step, steps, facts):
            raise Cancelled

    with pytest.raises(Cancelled):
        run_toy(toy_config(), tmp_path / "run", AtStart())
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_failure_inside_an_update_keeps_the_last_checkpoint_and_nothing_newer(
    toy_config, run_toy, tmp_path, monkeypatch
):
    original, calls = torch.optim.AdamW.step, []

    def fail_third(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("half way")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", fail_third)
    with pytest.raises(LoomError, match="^step 3 failed on 3.png .RuntimeError: half way."):
        run_toy(toy_config(save={"every": 1}), tmp_path)
    assert checkpoints.latest(tmp_path / "checkpoints")[0].step == 2
    assert not (tmp_path / "toy_test.safetensors").exists()


def test_stop_and_keep_ends_after_the_current_step_with_a_result(toy_config, run_toy, tmp_path):
    control, record = Control(), Record()

    class StopAt(Listener):
        def on_step(self, report):
            if report.step == 2:
                control.stop_and_keep()

    result = run_toy(toy_config(), tmp_path, Listeners([StopAt(), record]), control=control)
    assert (result.outcome, result.step, len(result.losses)) == ("stopped", 2, 2)
    assert record.events[-2:] == [("save", 2), ("stopped", 2)]
    kept = load_file(result.file)
    assert kept.keys() == result.tensors.keys()
    assert all(torch.equal(kept[k], result.tensors[k]) for k in kept)


def test_a_stopped_run_goes_on_to_the_same_end(toy_config, run_toy, unbroken, tmp_path):
    config, control = toy_config(**EVERYTHING_RANDOM), Control()

    class StopAfterThree(Listener):
        def on_step(self, report):
            if report.step == 3:
                control.stop_and_keep()

    assert run_toy(config, tmp_path, StopAfterThree(), control=control).step == 3
    assert run_toy(config, tmp_path, resume=True).losses == unbroken[1]
    assert weights(tmp_path) == unbroken[2]


@dataclasses.dataclass
class AskAt(Listener):
    """Presses a button after a step."""

    step: int
    ask: Callable[[], None]

    def on_step(self, report):
        if report.step == self.step:
            self.ask()


def test_a_paused_run_is_saved_without_last_samples_and_goes_on_to_the_same_end(
    toy_config, run_toy, unbroken, tmp_path
):
    config, control, record = toy_config(**EVERYTHING_RANDOM), Control(), Record()
    result = run_toy(config, tmp_path, Listeners([AskAt(4, control.pause), record]), control=control)
    assert (result.outcome, result.step) == ("paused", 4)
    assert record.events[-2:] == [("save", 4), ("paused", 4)]
    assert run_toy(config, tmp_path, resume=True).losses == unbroken[1]
    assert weights(tmp_path) == unbroken[2]


def test_pausing_draws_no_samples_where_stopping_does(toy_config, run_toy, tmp_path):
    for name, expected in (("pause", []), ("stop_and_keep", [2, 2])):  # without the adapter, and with it
        control, record = Control(), Record()
        config = toy_config(steps=5, samples={"every": 4, "steps": 1})
        run_toy(config, tmp_path / name, Listeners([AskAt(2, getattr(control, name)), record]), control=control)
        assert [step for kind, step in record.events if kind == "sample"] == expected


def test_a_save_on_request_leaves_a_checkpoint_and_the_files_and_changes_nothing_of_the_run(
    toy_config, run_toy, unbroken, tmp_path
):
    control, record, results = Control(), Record(), []

    class Results(Listener):
        def on_result(self, step, files):
            results.append((step, [(f.name, len(load_file(f))) for f in files]))

    asked = [AskAt(3, control.save_now), AskAt(3, control.sample_now)]
    result = run_toy(toy_config(**EVERYTHING_RANDOM), tmp_path, Listeners([*asked, record, Results()]), control=control)
    assert results == [(3, [(result.file.name, len(result.tensors))])]
    assert ("save", 3) in record.events
    assert ("sample", 3) in record.events
    assert result.losses == unbroken[1]
    assert weights(tmp_path) == unbroken[2]


def test_a_run_stopped_before_its_first_step_writes_no_result(toy_config, run_toy, tmp_path):
    control = Control()
    control.stop_and_keep()
    with pytest.raises(LoomError, match="stopped before its first step"):
        run_toy(toy_config(steps=3), tmp_path, control=control)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_finished_run_can_be_continued_with_more_steps_and_nothing_is_lost(toy_config, run_toy, tmp_path):
    first, longer = run_toy(toy_config(steps=3), tmp_path / "a"), run_toy(toy_config(steps=5), tmp_path / "b")
    on = run_toy(toy_config(steps=5), tmp_path / "a", resume=True)
    assert (
        first.losses == longer.losses[:3]
    )  # the learning rate is constant, so the first steps do not depend on the length
    assert on.losses == longer.losses
    assert all(torch.equal(on.tensors[k], longer.tensors[k]) for k in longer.tensors)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 8}, "seed: 7 before, 8 now"),
        ({"batch_size": 1}, "batch_size: 2 before, 1 now"),
        ({"adapter": {"alpha": 2.0}}, "adapter.alpha: "),
        ({"optimizer": {"lr": 0.01}}, "optimizer.lr: "),
        ({"data": {"flip": True}}, "data.flip: False before, True now"),
        ({"data": {"trigger": "vish"}}, "pictures or captions changed"),
    ],
)
def test_a_changed_setting_is_refused_when_continuing(change, sentence, toy_config, run_toy, tmp_path):
    interrupt(run_toy, toy_config(), tmp_path, 2)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(LoomError) as caught:
        run_toy(toy_config(**change), tmp_path, resume=True)
    assert "cannot be continued" in str(caught.value)
    assert sentence in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_changed_pictures_and_another_base_are_refused_when_continuing(
    toy_config, run_toy, toy_backend, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(continuing, "OF_0_1_0", {})  # this base stands for any: that one is told apart (below)
    interrupt(run_toy, toy_config(), tmp_path / "run", 2)
    shutil.copytree(pictures, tmp_path / "other")
    (tmp_path / "other" / "0.txt").write_text("something else")
    with pytest.raises(LoomError, match="pictures or captions changed"):
        run_toy(toy_config(data={"folder": str(tmp_path / "other")}), tmp_path / "run", resume=True)
    weight = toy_backend.unet.conv_in.weight
    before = weight[0, 0, 0, 0].item()
    try:
        weight[0, 0, 0, 0] = before + 1
        with pytest.raises(LoomError, match="the base model is another one"):
            run_toy(toy_config(), tmp_path / "run", resume=True)
    finally:
        weight[0, 0, 0, 0] = before


def test_a_run_on_the_toy_that_is_gone_says_where_it_lies(toy_config, run_toy, toy_backend, tmp_path, monkeypatch):
    then = toy_backend.fingerprint()
    assert OF_0_1_0[then] == "resume.toy_of_0_1_0"
    interrupt(run_toy, toy_config(), tmp_path / "run", 2)
    run_toy(toy_config(), tmp_path / "run", resume=True)  # it goes on with that very model
    with monkeypatch.context() as patch:
        patch.setattr(type(toy_backend), "fingerprint", lambda self: "another")
        with pytest.raises(LoomError, match=r"toy of 0\.1\.0 .* base is the folder tests/shapes/toy"):
            run_toy(toy_config(), tmp_path / "run", resume=True)
        patch.setattr(continuing, "OF_0_1_0", {then: list(OF_0_1_0.values())[1]})
        with pytest.raises(LoomError, match=r"toy of 0\.1\.0 .* no node loads it"):
            run_toy(toy_config(), tmp_path / "run", resume=True)


def test_another_vae_or_text_encoder_is_refused_when_continuing(
    toy_config, run_toy, toy_backend, tmp_path, monkeypatch
):
    run_toy(toy_config(steps=2), tmp_path / "run")
    for name, sentence in (
        ("picture_fingerprint", "the VAE is another one"),
        ("text_fingerprint", "the text encoder is another one"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(type(toy_backend), name, lambda self: "another")
            with pytest.raises(LoomError, match=sentence):
                run_toy(toy_config(steps=3), tmp_path / "run", resume=True)


def test_a_moved_but_equal_folder_continues(toy_config, run_toy, pictures, tmp_path):
    interrupt(run_toy, toy_config(), tmp_path / "run", 2)
    shutil.copytree(pictures, tmp_path / "moved")
    result = run_toy(toy_config(data={"folder": str(tmp_path / "moved")}), tmp_path / "run", resume=True)
    assert (result.outcome, result.step) == ("finished", 4)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_continued_to_the_same_end(
    toy_config, run_toy, unbroken, tmp_path
):
    config = toy_config(**EVERYTHING_RANDOM | {"save": {"every": 4}})
    interrupt(run_toy, config, tmp_path, 10)
    newest = checkpoints.folder_of(tmp_path / "checkpoints", 10) / "adapter.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    record = Record()
    result = run_toy(config, tmp_path, record, resume=True)
    assert "step-00000010 is damaged or incomplete and was skipped" in record.texts()
    assert ("start", 8) in record.events
    assert result.losses == unbroken[1]
    assert weights(tmp_path) == unbroken[2]


def test_continuing_a_folder_without_a_whole_checkpoint_is_refused(toy_config, run_toy, tmp_path):
    with pytest.raises(LoomError, match="holds no complete save to continue from"):
        run_toy(toy_config(), tmp_path / "run", resume=True)


def test_a_run_folder_with_checkpoints_is_never_trained_over(toy_config, run_toy, tmp_path):
    run_toy(toy_config(), tmp_path / "run")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(LoomError, match="'run' already holds saves; continue it or choose another name"):
        run_toy(toy_config(), tmp_path / "run")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_events_come_in_order_and_checkpoints_are_pruned_to_the_asked_number(toy_config, run_toy, tmp_path):
    record = Record()
    run_toy(toy_config(steps=7, save={"every": 2, "keep": 2}), tmp_path, record)
    assert [e for e in record.events if e[0] != "message"] == [
        ("start", 0), ("step", 1), ("step", 2), ("save", 2), ("step", 3), ("step", 4), ("save", 4),
        ("step", 5), ("step", 6), ("save", 6), ("step", 7), ("save", 7), ("finished", 7),
    ]  # fmt: skip
    assert [p.name for p in checkpoints.all_steps(tmp_path / "checkpoints")] == ["step-00000007", "step-00000006"]


def test_samples_are_drawn_before_and_after_and_do_not_change_the_training(toy_config, run_toy, tmp_path):
    quiet = run_toy(toy_config(), tmp_path / "quiet")
    record = Record()
    prompts = "a red circle on a white ground\na blue square on a gray ground"
    drawn = run_toy(
        toy_config(samples={"every": 2, "steps": 2, "prompt": prompts, "width_px": 64, "height_px": 64}),
        tmp_path / "drawn",
        record,
    )
    assert quiet.losses == drawn.losses
    assert all(torch.equal(quiet.tensors[k], drawn.tensors[k]) for k in quiet.tensors)
    assert [e for e in record.events if e[0] == "sample"] == [("sample", 2), ("sample", 2), ("sample", 4)]
    assert sorted(p.name for p in (tmp_path / "drawn" / "samples").iterdir()) == [
        "before.png",
        "step-2.png",
        "step-4.png",
    ]
    assert (tmp_path / "drawn" / "before-after.png").is_file()
    settings = {"every": 2, "steps": 2, "prompt": prompts, "width_px": 64, "height_px": 64}
    run_toy(toy_config(samples=settings, seed=8, steps=2, optimizer={"lr": 0.05}), tmp_path / "other")
    same = {
        name: (tmp_path / "drawn" / "samples" / name).read_bytes()
        == (tmp_path / "other" / "samples" / name).read_bytes()
        for name in ("before.png", "step-2.png")
    }
    assert same == {"before.png": True, "step-2.png": False}  # before is the base model, whatever was trained


def test_a_disk_that_fills_up_during_a_save_stops_the_run_and_leaves_no_temporary_files(
    toy_config, run_toy, tmp_path, monkeypatch
):
    original, calls = files.write_safetensors, []

    def full(path, *args):
        calls.append(path.name)
        if len(calls) > 2:
            raise LoomError("disk.unwritten", path=path, reason="No space left on device", needed="1", free="0")
        return original(path, *args)

    monkeypatch.setattr(files, "write_safetensors", full)
    record = Record()
    with pytest.raises(LoomError, match="No space left on device"):
        run_toy(toy_config(save={"every": 1}), tmp_path, record)
    assert checkpoints.latest(tmp_path / "checkpoints")[0].step == 1
    assert not list(tmp_path.rglob(f"{files.TEMP_PREFIX}*"))
    assert any("could not be saved" in text for text in record.texts())


def test_a_disk_too_small_for_the_checkpoints_is_refused_before_anything_is_written(
    toy_config, run_toy, tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 0))
    with pytest.raises(LoomError, match=r"the run needs [\d.]+ MB, 0 MB are free"):
        run_toy(toy_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_global_random_states_are_left_as_they_were(toy_config, run_toy, tmp_path):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    run_toy(toy_config(**EVERYTHING_RANDOM | {"steps": 2}), tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[2]))


def test_global_random_states_are_put_back_even_when_somebody_draws_and_fails_inside():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def use():
        with preserved_rng(3):
            torch.rand(1), random.random(), np.random.random()
            raise Cancelled

    with pytest.raises(Cancelled):
        use()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_the_result_holds_every_layer_and_the_facts_of_the_run(toy_config, run_toy, tmp_path):
    result = run_toy(toy_config(), tmp_path)
    assert result.file == tmp_path / "toy_test.safetensors"
    assert len(result.tensors) == 3 * result.facts["layers"]
    assert result.facts["trained_values"] == sum(
        v.numel() for k, v in result.tensors.items() if not k.endswith(".alpha")
    )
    assert result.facts["captions"][0].startswith("zog, ")
    assert (tmp_path / "loss.png").is_file()
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7


def test_skipped_pictures_are_named_while_training_on_the_rest(toy_config, run_toy, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "data")
    (tmp_path / "data" / "1.png").unlink()
    Image.effect_noise((64, 64), 80).save(tmp_path / "data" / "1.jpg")
    whole = (tmp_path / "data" / "1.jpg").read_bytes()
    (tmp_path / "data" / "1.jpg").write_bytes(whole[:-500])  # the header can be read, the pixels cannot
    record = Record()
    result = run_toy(toy_config(data={"folder": str(tmp_path / "data")}), tmp_path / "run", record)
    assert result.facts["pictures"] == 3
    assert any(text.startswith("skipped 1.jpg: is damaged") for text in record.texts())


def test_a_run_that_goes_on_with_other_settings_is_refused_with_each_setting_by_its_name(toy_config, run_toy, tmp_path):
    run_toy(toy_config(steps=2, adapter={"rank": 2}), tmp_path)
    with pytest.raises(LoomError) as refused:
        run_toy(toy_config(steps=3, adapter={"rank": 4}, data={"caption_dropout": 0.5}), tmp_path, resume=True)
    sentence = str(refused.value)
    assert "adapter.rank: 2 before, 4 now" in sentence
    assert "data.caption_dropout: 0.0 before, 0.5 now" in sentence
    assert "{" not in sentence
