import collections
import errno
import hashlib
import os
import shutil

import pytest
import torch
from lora_loom.lora_core.disk import files
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


def test_sweep_removes_temporary_files_and_folders_and_nothing_else(tmp_path):
    (tmp_path / f"{files.TEMP_PREFIX}1-x").mkdir()
    (tmp_path / f"{files.TEMP_PREFIX}1-x" / "inner").write_bytes(b"")
    (tmp_path / f"{files.TEMP_PREFIX}2-y").write_bytes(b"")
    (tmp_path / "kept").write_bytes(b"")
    files.sweep_temps(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    files.sweep_temps(tmp_path / "nowhere")


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
