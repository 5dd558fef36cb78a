"""A run folder has one owner at a time, in whatever process, and its ownership ends with its process."""

import contextlib
import json
import os
import signal
import threading

import pytest
from lora_loom.lora_core.disk import locks, writers
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs import hub, listing, owner, trash
from lora_loom.lora_core.runs.owner import owning

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@contextlib.contextmanager
def other_process(folder, purpose, forks=False):
    """Another process that owns the folder; gives its number, or with `forks` (its number, that of a child it made while it owned it)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with owning(folder, purpose, "Other 1.2"):
                grandchild = os.fork() if forks else 1
                if grandchild:
                    os.write(writing, f"{grandchild}\n".encode())
                signal.pause()
        finally:
            os._exit(1)
    told = os.read(reading, 20)
    try:
        yield (child, int(told)) if forks else child
    finally:
        end(child)
        os.close(reading)
        os.close(writing)


def end(child):
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "PATIENCE_S", dict.fromkeys(owner.PATIENCE_S, 0.1))
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": "a"}))
    return folder


@needs_fork
def test_a_second_owner_in_another_process_is_refused_and_told_who_is_first(run):
    with other_process(run, "train") as child:
        with pytest.raises(LoomError) as caught, owning(run, "train"):
            pytest.fail("two owners")
        said = str(caught.value)
        assert f"'a' is in use: Other 1.2 trains it (process {child} on" in said
        assert said.endswith("wait until that is done or stop it there, then try again.")
        assert owner.owner_of(run)["purpose"] == "train"
        assert owner.is_trained(run)
        assert listing.read_run(run).state == "running"


@needs_fork
def test_ownership_ends_when_its_process_is_killed(run):
    with other_process(run, "train") as child:
        end(child)
        with owning(run, "train"):
            assert owner.owner_of(run)["process"] == str(os.getpid())
    assert owner.owner_of(run) is None
    assert [path.name for path in run.iterdir()] == ["config.json"]


@needs_fork
def test_ownership_ends_with_its_process_though_a_forked_child_lives_on(run):
    with other_process(run, "train", forks=True) as (child, grandchild):
        end(child)
        try:
            with owning(run, "train"):
                os.kill(grandchild, 0)  # it lives
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_a_second_owner_in_another_thread_is_refused_and_the_same_thread_is_not(run):
    refused = []

    def second():
        with contextlib.suppress(LoomError), owning(run, "export"):
            return
        refused.append(True)

    with owning(run, "train"):
        with owning(run, "export"):
            pass
        assert owner.is_trained(run)  # the inner block did not let go
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert refused == [True]
    with owning(run, "move"):
        pass


@needs_fork
@pytest.mark.parametrize("purpose", ["train", "export", "gather", "move"])
def test_a_run_in_use_is_neither_thrown_away_nor_gathered(run, purpose):
    (run / "a.safetensors").write_bytes(b"x")
    with other_process(run, purpose):
        for act in (
            lambda: trash.throw_away(run.parent, "a"),
            lambda: hub.gather(run, run / "hub", hub.About("x/y")),
        ):
            with pytest.raises(LoomError, match="is in use: Other 1.2|is running; stop it first"):
                act()
    assert sorted(path.name for path in run.iterdir() if path.name != owner.FILE) == ["a.safetensors", "config.json"]


def test_many_owners_at_once_are_one_after_the_other(run, monkeypatch):
    monkeypatch.setattr(owner, "PATIENCE_S", dict.fromkeys(owner.PATIENCE_S, 60.0))
    inside, most, errors = [], [], []

    def work():
        try:
            for _ in range(10):
                with owning(run, "export"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
        except LoomError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, len(most), max(most)) == ([], 40, 1)
    assert not (run / owner.FILE).exists()


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_is_left_alone(run, tmp_path):
    (tmp_path / "precious").write_text("kept")
    (run / owner.FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(LoomError, match="owner.lock"), owning(run, "train"):
        pytest.fail("owned by a link")
    assert (tmp_path / "precious").read_text() == "kept"


@needs_fork
def test_where_locks_are_unknown_a_living_owner_is_believed_and_a_dead_one_is_not(run, monkeypatch):
    def unknown(file):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks, "take", unknown)
    with owning(run, "train"):
        record = json.loads((run / owner.FILE).read_text())
        assert owner._seems_owned(run)
    dead = record | {"mark": record["mark"].rpartition("-")[0] + "-1"}  # our number, begun at another time
    (run / owner.FILE).write_text(json.dumps(dead))
    with owning(run, "train"):
        pass
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(1)
    try:
        mark = f"{record['mark'].split('-')[0]}-{child}-{writers._started(child) or 0}"
        (run / owner.FILE).write_text(json.dumps(record | {"mark": mark}))
        with pytest.raises(LoomError, match="is in use"), owning(run, "train"):
            pytest.fail("two owners")
    finally:
        end(child)


def test_a_run_that_comes_back_never_takes_the_place_of_one_that_begins(run):
    number = trash.throw_away(run.parent, "a")
    (run.parent / "a").mkdir()  # a run that begins just now: empty
    assert trash.take_back(run.parent, number) == "a_2"
    assert list((run.parent / "a").iterdir()) == []
    assert (run.parent / "a_2" / "config.json").is_file()


@needs_fork
def test_an_export_waits_for_no_training_and_is_the_owner_otherwise(run):
    with owner.exporting(run):
        assert owner.owner_of(run)["purpose"] == "export"
    with other_process(run, "train"), owner.exporting(run):
        assert owner.is_trained(run)
    with other_process(run, "move"), pytest.raises(LoomError, match="Other 1.2 moves it"), owner.exporting(run):
        pytest.fail("two owners")
