import collections
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch
from lora_loom.lora_core.disk import files, writers
from lora_loom.lora_core.messages.errors import LoomError, NonFiniteError
from safetensors.torch import load_file


def fail(number):
    def raise_it(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return raise_it


def test_what_is_written_can_be_read_back(tmp_path):
    tensors = {
        "a": torch.arange(6.0).view(2, 3).t(),
        "b": torch.ones(1, dtype=torch.float16),
    }  # one of them not contiguous
    files.write_safetensors(tmp_path / "x.safetensors", tensors, {"key": "value"})
    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in tensors.items())
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused_by_key_and_the_old_file_stays(bad, dtype, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"old")
    with pytest.raises(NonFiniteError, match="layer.up holds numbers that are not finite"):
        files.write_safetensors(file, {"fine": torch.ones(2), "layer.up": torch.tensor([1.0, bad], dtype=dtype)})
    assert file.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failing_write_leaves_the_old_file_and_no_temporary_one(call, number, tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    files.write_json(file, {"old": True})
    monkeypatch.setattr(os, call, fail(number))
    with pytest.raises(LoomError) as caught:
        files.write_json(file, {"new": True})
    monkeypatch.undo()
    assert str(file) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert "MB are needed" in str(caught.value)
    assert b"old" in file.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_cancel_during_a_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")

    def cancel(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", cancel)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_data_reaches_the_disk_before_the_name_and_the_folder_after_it(tmp_path, monkeypatch):
    order = []
    for call in ("fsync", "replace"):
        original = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *a, call=call, original=original: (order.append(call), original(*a))[1])
    files.write_bytes(tmp_path / "x", b"data")
    assert order == ["fsync", "replace", "fsync"]


def test_written_files_have_ordinary_permissions(tmp_path):
    files.write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_refuses_nan_and_keeps_other_alphabets_readable(tmp_path):
    with pytest.raises(ValueError, match="[Oo]ut of range"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    files.write_json(tmp_path / "x.json", {"name": "Бум 猫"})
    assert "Бум 猫" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with files.folder_in_one_piece(tmp_path / "whole") as temp:
        (temp / "a").write_bytes(b"1")
        assert not (tmp_path / "whole").exists()
    assert (tmp_path / "whole" / "a").read_bytes() == b"1"

    def broken():
        with files.folder_in_one_piece(tmp_path / "broken") as temp:
            (temp / "a").write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


def mark_of_a_process_that_ended():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    machine, _, _ = writers.mark().split("-")
    return f"{machine}-{child.pid}-1"


def test_what_writers_left_that_are_gone_is_swept_and_nothing_else(tmp_path):
    gone, (machine, pid, started) = mark_of_a_process_that_ended(), writers.mark().split("-")
    (tmp_path / f"{files.TEMP_PREFIX}{gone}-0.tmp").mkdir()
    (tmp_path / f"{files.TEMP_PREFIX}{gone}-0.tmp" / "inner").write_bytes(b"")
    (tmp_path / f"{files.TEMP_PREFIX}{gone}-1.tmp").write_bytes(b"")
    (tmp_path / f"{files.TEMP_PREFIX}{machine}-{pid}-{int(started) + 1}-0.tmp").write_bytes(
        b""
    )  # our number, used again
    old = tmp_path / f"{files.TEMP_PREFIX}{'0' * 18}-7-7-0.tmp"  # of another machine, two hours ago
    old.write_bytes(b"")
    os.utime(old, (time.time() - 7200,) * 2)
    kept = [
        tmp_path / f"{files.TEMP_PREFIX}{'0' * 18}-7-7-1.tmp",  # of another machine, now
        tmp_path / f"{files.TEMP_PREFIX}12345-made-by-the-first-version",  # now
        files.temp_beside(tmp_path / "x"),  # ours
        tmp_path / "kept",
    ]
    for path in kept:
        path.write_bytes(b"")
    files.sweep_temps(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    files.sweep_temps(tmp_path / "nowhere")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_process_that_only_waits_for_its_parent_to_look_is_gone():
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    child.stdout.read()  # ends when it does
    for _ in range(500):
        if not writers.is_alive(child.pid):
            break
        time.sleep(0.01)
    assert not writers.is_alive(child.pid)
    assert child.wait() == 0
    assert writers.is_alive(os.getpid())


def test_no_two_writers_share_a_temporary_name(tmp_path):
    target, seen, lock = tmp_path / "x", [], threading.Lock()

    def ask():
        for _ in range(50):
            name = files.temp_beside(target)
            with lock:
                seen.append(name)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 200


def test_writers_of_one_file_at_once_leave_one_of_the_contents_whole(tmp_path):
    contents, errors = [bytes([n]) * 200_000 for n in range(4)], []

    def write(data):
        try:
            for _ in range(10):
                files.write_bytes(tmp_path / "x", data)
                files.sweep_temps(tmp_path)
        except LoomError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "x").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_is_reported_with_both_numbers_before_the_run(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 5_000_000, 5_000_000))
    files.require_room(tmp_path, 5_000_000)
    with pytest.raises(LoomError, match="the run needs 120 MB, 5 MB are free; make room or save less often"):
        files.require_room(tmp_path, 120_000_000)


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert files.sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_writing_into_a_folder_that_has_vanished_is_a_readable_error(tmp_path):
    with pytest.raises(LoomError, match="could not be written"):
        files.write_bytes(tmp_path / "gone" / "x", b"data")


def test_tensors_that_share_a_storage_are_written_each_for_itself(tmp_path):
    whole = torch.arange(12.0).reshape(4, 3)
    apart = files._apart({"whole": whole, "first": whole[:2], "again": whole, "turned": whole.T})
    assert len({value.untyped_storage().data_ptr() for value in apart.values()}) == 4
    assert torch.equal(apart["turned"], whole.T)
    assert all(value.is_contiguous() for value in apart.values())
