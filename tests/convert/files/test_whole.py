"""What a conversion writes appears whole or not at all: no two writers share a temporary name, and what a name stands for is durable before the name is."""

import errno
import os
import stat

import pytest
import torch
from lora_loom.convert import FormatError, Lora, Module
from lora_loom.convert.files import whole
from lora_loom.convert.files.checkpoints import bake
from lora_loom.convert.files.disk import load, save
from lora_loom.convert.files.jobs import Options, open_lora, write_lora

NAME = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "clip_l.text_model.encoder.layers.0.self_attn.q_proj"


def small(*names: str) -> Lora:
    parts = {"down": torch.ones(2, 16), "up": torch.ones(16, 2)}
    return Lora("sd1", {name: Module("lora", dict(parts), 2.0) for name in names})


def test_two_writers_of_one_file_at_once_do_not_meet_and_the_last_one_stays(tmp_path):
    path = tmp_path / "x.safetensors"
    with whole.replacing(path) as first:
        first.write(b"first, ")
        with whole.replacing(path) as second:
            second.write(b"second, whole")
        assert path.read_bytes() == b"second, whole"
        first.write(b"whole")
    assert path.read_bytes() == b"first, whole"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_temporary_name_is_never_given_twice_and_fits_every_file_system(tmp_path):
    path = tmp_path / f"{'ü' * 120}.safetensors"  # 252 bytes of the 255 that a name may have
    names = {whole.temp_beside(path).name for _ in range(1000)}
    assert len(names) == 1000
    assert all(len(name.encode()) < 100 for name in names)


class Recorder:
    """What the disk is asked for, in order: ("sync", inode) of files and folders, ("rename", inode of what gets its name)."""

    def __init__(self, monkeypatch):
        self.calls = []
        real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

        def fsync(handle):
            self.calls.append(("sync", os.fstat(handle).st_ino))
            real["fsync"](handle)

        def named(call):
            def rename(source, target):
                self.calls.append(("rename", os.stat(source).st_ino))
                real[call](source, target)

            return rename

        monkeypatch.setattr(os, "fsync", fsync)
        for call in ("replace", "rename"):
            monkeypatch.setattr(os, call, named(call))

    def place(self, kind, path):
        """Where in the order that first happened to `path`."""
        return self.calls.index((kind, path.stat().st_ino))


def test_a_file_is_durable_before_its_name_and_new_folders_above_it_are_too(tmp_path, monkeypatch):
    seen = Recorder(monkeypatch)
    path = tmp_path / "new" / "deep" / "x.safetensors"
    save(path, {"a": torch.ones(3)})
    assert seen.place("sync", path) < seen.place("rename", path)
    assert seen.calls[-1] == ("sync", path.parent.stat().st_ino)
    assert {("sync", tmp_path.stat().st_ino), ("sync", (tmp_path / "new").stat().st_ino)} <= {*seen.calls}


def whole_folder(kind, place):
    """A folder that a conversion writes at `place`, or what is baked into beside it."""
    if kind == "peft":
        write_lora(small(NAME, TEXT), place, Options("peft"))
        return
    source = place.with_name("source")
    if kind == "baked":
        bake(source, place, [(small(NAME), 1.0)])
        return
    save(
        source / "unet" / "diffusion_pytorch_model.safetensors",
        {f"{NAME.removeprefix('unet.')}.weight": torch.zeros(16, 16)},
    )
    (source / "unet" / "config.json").write_text("{}")


@pytest.mark.parametrize("kind", ["peft", "baked"])
def test_a_folder_gets_its_name_when_every_file_in_it_is_durable(kind, tmp_path, monkeypatch):
    if kind == "baked":
        whole_folder("source", tmp_path / "out")
    seen = Recorder(monkeypatch)
    whole_folder(kind, tmp_path / "out")
    named = seen.place("rename", tmp_path / "out")
    inside = list((tmp_path / "out").rglob("*"))
    assert len(inside) >= 3
    for path in (*inside, tmp_path / "out"):
        assert seen.place("sync", path) < named, path.name
    assert seen.calls[named + 1 :] == [("sync", tmp_path.stat().st_ino)]


@pytest.mark.parametrize("kind", ["peft", "baked"])
def test_a_folder_that_could_not_be_written_whole_is_not_there(kind, tmp_path, monkeypatch):
    if kind == "baked":
        whole_folder("source", tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FormatError, match="No space left"):
        whole_folder(kind, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_peft_folder_is_read_back_as_it_was_written(tmp_path):
    write_lora(small(NAME, TEXT), tmp_path / "out", Options("peft", "fp32"))
    assert open_lora(tmp_path / "out", "sd1").modules.keys() == {NAME, TEXT}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folders_is_no_failure(number, tmp_path, monkeypatch):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    save(tmp_path / "x.safetensors", {"a": torch.ones(3)})
    assert load(tmp_path / "x.safetensors")[0].keys() == {"a"}
