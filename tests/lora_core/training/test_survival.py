"""What is not the checkpoint cannot cost the run, and what was saved is there after a power cut, a full disk, a second writer."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from full_disk import NoRoomFor
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.disk import files, writers
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import LoomError, NonFiniteError
from lora_loom.lora_core.processes import ALONE
from lora_loom.lora_core.runs import checkpoints, listing, owner, step_log
from lora_loom.lora_core.runs.folders import last_run, new_run
from lora_loom.lora_core.runs.guarded import Extras
from lora_loom.lora_core.training import conditions
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.session import Session, run_folder
from power_cut import Recorder

SMALL = {
    "steps": 5,
    "adapter": {"rank": 1, "targets": "attention"},
    "save": {"every": 2, "keep": 2},
    "samples": {"every": 3, "steps": 1, "width_px": 32, "height_px": 32},
    "validation": {"share": 0.25, "every": 2},
    "cache": {"disk": False},
}  # every kind of file a run writes


class Told(Listener):
    """Keeps what it is told."""

    def __init__(self):
        self.warnings, self.saved = [], []

    def on_warning(self, message):
        if not message.code.startswith("advice."):
            self.warnings.append(message)

    def on_save(self, step, path):
        self.saved.append(step)


@pytest.fixture
def train(toy_config, toy_backend):
    """`train(root, listener, resume=..., **changes)` runs a small job below `root` as the terminal does."""

    def run(root, listener=None, resume=False, deliver=None, folder=None, **changes):
        config = toy_config(**{**SMALL, **changes})
        job = Job(config, toy_backend, open_sets(config), root, listener or Listener())
        folder = folder or run_folder(root, config.name, resume, ALONE)
        return Session(job, folder, product, resume, deliver=deliver).train()

    return run


def product(state, facts):
    return {facts["config"]["name"]: (state, {})}


def weights(folder, step=5):
    place = checkpoints.folder_of(folder / "checkpoints", step)
    return files.sha256(place / "adapter.safetensors"), files.sha256(place / "optimizer.safetensors")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, toy_config, toy_backend):
    """(the recorder of a whole run, the sums of its last weights)"""
    root = tmp_path_factory.mktemp("recorded")
    config = toy_config(**SMALL)

    class Promise(Listener):
        def on_save(self, step, path):
            record.said = step

    with Recorder(root) as record:
        job = Job(config, toy_backend, open_sets(config), root, Promise())
        folder = run_folder(root, config.name, False, ALONE)
        Session(job, folder, product).train()
    return record, weights(folder)


def resumable(state, promised):
    """Checks that what was promised is there, and that everything that looks at runs can."""
    listing.listing(state)
    folder = last_run(state, "toy_test")
    if promised is None:
        new_run(state, "toy_test")
        return
    checkpoint, _ = checkpoints.latest(folder / "checkpoints")
    assert checkpoint.step >= promised


@pytest.mark.parametrize(
    ("every", "each"), [pytest.param(6, 1, id="some"), pytest.param(1, 8, id="all", marks=pytest.mark.slow)]
)
def test_whatever_a_power_cut_leaves_of_a_run_holds_what_was_saved(every, each, recorded, tmp_path):
    count = 0
    for state, promised in recorded[0].states(tmp_path, random.Random(2), each, every):
        resumable(state, promised)
        count += 1
    assert count > 30
    print(f"{len(recorded[0].moments)} moments, {count} states")


@pytest.mark.parametrize("share", [pytest.param(0.012, id="some"), pytest.param(1.0, id="all", marks=pytest.mark.slow)])
def test_from_whatever_a_power_cut_leaves_the_run_goes_on_to_the_same_end(
    share, recorded, train, tmp_path, monkeypatch
):
    record, end = recorded
    machine, _, space = writers._place()
    monkeypatch.setattr(writers, "_place", lambda: (machine, "ffffff", space))  # the machine was started anew
    rng, count = random.Random(3), 0
    for state, promised in record.states(tmp_path, random.Random(2), 1):
        if promised is None or rng.random() > share:
            continue
        count += 1
        result = train(state, resume=True)
        assert weights(result.folder) == end
        rows = [json.loads(line)["step"] for line in (result.folder / "log.jsonl").read_text().splitlines()]
        assert rows == [1, 2, 3, 4, 5]
        assert not list(state.rglob(f"{files.TEMP_PREFIX}*"))
    assert count
    print(f"{count} states gone on from")


# ---- a full disk -----------------------------------------------------------------------------------------------------

NEEDED = {"config.json", "toy_test.safetensors", "owner.lock", "step-00000002", "step-00000004", "step-00000005"}
MADE = {
    "run.log", "run.json", "log.jsonl", "loss.png", "learning-rate.png", "validation.png", "before-after.png", "samples", "samples/before.png",
    "samples/step-3.png", "samples/step-5.png", "checkpoints/best-00000000.safetensors", "pictures.json", "thumbnails.jpg",
}  # fmt: skip


def written(folder):
    """Everything a run leaves: its files by name, its checkpoints as one."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name.removeprefix("checkpoints/") if "/step-" in name else name for name in names if name.count("/") < 2}


def test_the_lists_of_what_a_run_writes_are_complete(train, tmp_path):
    folder = train(tmp_path).folder
    names = {name for name in written(folder) if not name.startswith("checkpoints/best-")}
    assert names - {"checkpoints"} == (NEEDED | MADE) - {
        "owner.lock",
        "step-00000002",
        "checkpoints/best-00000000.safetensors",
    }


def some_by_default(names, default):
    """Parameters of which the default tests take a few."""
    return [pytest.param(name, marks=() if name in default else pytest.mark.slow) for name in sorted(names)]


@pytest.mark.parametrize("name", some_by_default(MADE, ("run.log", "samples/step-3.png")))
def test_a_full_disk_for_what_is_not_the_checkpoint_is_told_and_the_run_goes_on(name, train, recorded, tmp_path):
    told = Told()
    with NoRoomFor(name):
        result = train(tmp_path, told)
    assert weights(result.folder) == recorded[1]
    assert result.outcome == "finished"
    assert not (result.folder / name).exists() or name == "samples"
    said = [str(message) for message in told.warnings if message.code == "extra.failed"]
    assert any(name.split("/")[-1] in line and "No space left on device" in line for line in said)
    assert len(said) == len(set(said))
    assert not list(tmp_path.rglob(f"{files.TEMP_PREFIX}*"))


@pytest.mark.parametrize("name", some_by_default(NEEDED, ("toy_test.safetensors",)))
def test_a_full_disk_for_what_the_run_needs_ends_it_in_a_sentence_and_it_can_go_on(name, train, recorded, tmp_path):
    told = Told()
    with NoRoomFor(name), pytest.raises(LoomError, match="No space left on device"):
        train(tmp_path, told)
    assert not list(tmp_path.rglob(f"{files.TEMP_PREFIX}*"))
    again = train(tmp_path, resume=bool(told.saved))
    assert weights(again.folder) == recorded[1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["run.log", "log.jsonl"])
def test_a_disk_that_fills_up_under_an_open_log_is_told_once(name, train, recorded, tmp_path):
    folder = tmp_path / "toy_test"
    folder.mkdir()
    (folder / name).symlink_to("/dev/full")
    told = Told()

    result = train(tmp_path, told, folder=folder)
    assert weights(result.folder) == recorded[1]
    assert [m.values["name"] for m in told.warnings if m.code == "extra.failed"] == [name]


# ---- what lies beside the checkpoint is damaged ----------------------------------------------------------------------

DAMAGES = {
    "bytes that are no UTF-8": lambda data: data[:-30] + b"\xff\xfe\x80" + data[-27:],
    "a block of zeros": lambda data: data[:60] + bytes(60) + data[120:],
    "half a line": lambda data: data[:-40],
    "lines twice": lambda data: data + data,
    "other lines": lambda data: b'[]\n3\n{"step": 1e9}\n{"step": true, "loss": 2}\n' + b"[" * 5000 + b"\n",
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_log_gets_its_losses_back_and_keeps_what_can_be_read(damage, tmp_path):
    losses, told = [0.5, 0.25, 1 / 3, 0.1], []
    rows = [{"step": n, "loss": loss, "lr": 0.001 * n} for n, loss in enumerate([*losses, 9.0], 1)]
    log = tmp_path / "log.jsonl"
    log.write_bytes(DAMAGES[damage]("".join(json.dumps(row) + "\n" for row in rows).encode()))
    rates = step_log.mend(tmp_path, losses, Extras(told.append))
    after = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [(row["step"], row["loss"]) for row in after] == list(enumerate(losses, 1))
    assert rates == [row.get("lr") for row in after]
    assert all(rate is None or rate == 0.001 * n for n, rate in enumerate(rates, 1))
    assert told == []


def test_a_log_that_is_no_text_blocks_no_run(train, recorded, tmp_path):
    folder = train(tmp_path, steps=4).folder
    log = folder / "log.jsonl"
    log.write_bytes(DAMAGES["bytes that are no UTF-8"](log.read_bytes()))
    told = Told()
    assert weights(train(tmp_path, told, resume=True).folder) == recorded[1]
    assert told.warnings == []


OTHERS = ("run.json", "config.json", "log.jsonl", "run.log", "loss.png", "samples")


@pytest.mark.parametrize("name", some_by_default(OTHERS, ("samples",)))
def test_a_run_goes_on_without_any_of_its_other_files(name, train, recorded, tmp_path):
    folder = train(tmp_path, steps=4).folder
    path = folder / name
    if name == "samples":
        for picture in path.iterdir():
            picture.unlink()
        path.rmdir()
        path.write_bytes(b"a file in the way")
    elif name == "run.log":
        path.unlink()
        path.mkdir()  # a folder in the way
    else:
        path.write_bytes(b"\xff\x00{")
    assert weights(train(tmp_path, Told(), resume=True).folder) == recorded[1]


def test_a_folder_that_only_looks_like_a_checkpoint_blocks_no_run(train, recorded, tmp_path):
    folder = train(tmp_path, steps=4).folder
    for name in ("step-last", "step-", "step-00000099 (copy)"):
        (folder / "checkpoints" / name).mkdir()
    assert weights(train(tmp_path, resume=True).folder) == recorded[1]


# ---- under which conditions it goes on -------------------------------------------------------------------------------


def test_other_conditions_are_told_before_the_first_step_and_the_same_are_not(train, tmp_path, monkeypatch):
    train(tmp_path, steps=2)
    told = Told()
    train(tmp_path, told, resume=True, steps=3)
    assert told.warnings == []
    then = conditions.conditions_of

    def elsewhere(backend):
        return {**then(backend), "threads": "7", "torch": "1.0", "device": "Other GPU"}

    monkeypatch.setattr("lora_loom.lora_core.training.trainer.conditions_of", elsewhere)
    order = []

    class Ordered(Told):
        def on_warning(self, message):
            order.append(str(message))

        def on_start(self, first_step, steps, facts):
            order.append("start")

    train(tmp_path, Ordered(), resume=True, steps=4)
    line = order[0]
    assert order.index("start") == 1
    for part in (
        f"threads was {torch.get_num_threads()}, is 7",
        f"torch was {torch.__version__}, is 1.0",
        "is Other GPU",
    ):
        assert part in line
    assert "not be identical to the last bit" in line


@pytest.mark.parametrize("then", [None, {}, "text", 3, ["torch"]])
def test_a_checkpoint_without_conditions_says_nothing(then):
    assert conditions.difference(then, {"torch": "2"}) is None


# ---- what others take of it ------------------------------------------------------------------------------------------


class FailAt(Listener):
    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_step(self, report):
        if report.step == self.step:
            raise self.error


@pytest.mark.parametrize(
    ("error", "delivered"),
    [
        (NonFiniteError("weights.not_finite", key="x"), []),
        pytest.param(RuntimeError("a fault"), [], marks=pytest.mark.slow),
        (KeyboardInterrupt(), [True]),
        (None, [False]),
    ],
)
def test_what_a_failed_run_leaves_stays_in_its_folder(error, delivered, train, tmp_path):
    calls = []

    def deliver(paths, cancelled):
        assert [path.name for path in paths] == ["toy_test.safetensors"]
        assert owner.is_trained(tmp_path / "toy_test")
        calls.append(cancelled)

    if error is None:
        train(tmp_path, deliver=deliver, steps=2)
    else:
        with pytest.raises(type(error)):
            train(tmp_path, FailAt(2, error), deliver=deliver)
    assert calls == delivered
    assert (tmp_path / "toy_test" / "toy_test.safetensors").is_file()


def test_the_latest_run_is_the_latest_that_holds_work(train, tmp_path):
    worked = train(tmp_path, steps=2).folder
    for name in ("toy_test_2", "toy_test_3"):
        (tmp_path / name / "checkpoints" / "step-00000009").mkdir(parents=True)
    (tmp_path / "toy_test_4").mkdir()
    assert last_run(tmp_path, "toy_test") == worked
    assert train(tmp_path, resume=True, steps=3).folder == worked
    (worked / "checkpoints").rename(tmp_path / "aside")
    assert last_run(tmp_path, "toy_test").name == "toy_test_3"  # whose damage can then be told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_second_run_in_a_folder_is_refused_and_takes_nothing_away(train, tmp_path):
    folder = train(tmp_path, steps=2).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with owner.owning(folder, "train", "Other"):
                os.write(writing, b"1")
                signal.pause()
        finally:
            os._exit(1)
    os.read(reading, 1)
    try:
        for resume in (True, False):
            with pytest.raises(LoomError, match="is in use: Other trains it"):
                train(tmp_path, resume=resume, folder=folder)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != owner.FILE
    } == before
    assert train(tmp_path, resume=True, steps=3).step == 3


def test_a_tracker_that_fails_is_told_and_the_run_goes_on(train, recorded, tmp_path, monkeypatch):
    class Broken(Listener):
        def __init__(self, *arguments):
            pass

        def on_step(self, report):
            raise RuntimeError("no route to host, Authorization: Bearer abcdef123456")

    monkeypatch.setattr("lora_loom.lora_core.training.session.Tracker", Broken)
    told = Told()
    assert weights(train(tmp_path, told, trackers="tensorboard").folder) == recorded[1]
    said = [str(message) for message in told.warnings]
    assert len(said) == 1
    assert "tensorboard could not be written (no route to host" in said[0]
    assert "abcdef" not in said[0]


# ---- kills, with a second writer that tries --------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [pytest.param(3, id="few"), pytest.param(300, id="many", marks=pytest.mark.slow)])
def test_killed_at_any_moment_with_a_second_writer_trying_nothing_saved_is_lost(kills, pictures, tmp_path):
    program = Path(__file__).with_name("kill_runs.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(pictures), str(kills), "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    wrong = ("two at once", "lost", "broken", "other end", "other log", "temps", "code 1")
    assert {name: counts.get(name, 0) for name in wrong} == dict.fromkeys(wrong, 0)
    assert counts["kills"] >= kills
    assert counts["finished"]
