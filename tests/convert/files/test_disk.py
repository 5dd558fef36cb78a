"""Files in and out: what is written is what the library reads, what is damaged or hostile is refused by name, and a crash leaves the old file."""

import errno
import io
import json
import os
import pickle
import resource
import stat
import struct
import tarfile
import zipfile

import pytest
import torch
from lora_cases import random
from lora_loom.convert import FormatError, read
from lora_loom.convert.embedding import read_embedding
from lora_loom.convert.files.disk import MAX_TENSORS, header, load, load_any, opened, save, save_streamed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as library_save

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
TENSORS = {
    "matrix": random(1, 3, 4), "half": random(2, 5, 2).half(), "brain": random(3, 2, 2, 3).bfloat16(), "number": torch.tensor(2.5),
    "eighth": random(4, 3).to(torch.float8_e4m3fn), "fifth": random(5, 7).to(torch.float8_e5m2), "double": random(6, 2).double(),
    "count": torch.tensor([1, 2**40]),
    "bytes": torch.arange(5, dtype=torch.uint8), "small": torch.tensor([-3], dtype=torch.int8), "flag": torch.tensor([True, False, True]),
    "int": torch.tensor([[7]], dtype=torch.int32), "short": torch.tensor([7, 8, 9], dtype=torch.int16), "none": torch.zeros(0, 4),
}  # fmt: skip


def same(got: dict, wanted: dict) -> None:
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        assert (got[key].dtype, got[key].shape) == (value.dtype, value.shape), key
        assert torch.equal(got[key].reshape(-1).view(torch.uint8), value.contiguous().reshape(-1).view(torch.uint8)), (
            key
        )


# --- out and in ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt", "title": 'zög 🦊 "quoted" \\ \n'}])
def test_every_type_and_shape_comes_back_bit_for_bit(metadata, tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, TENSORS, metadata)
    got, header_ = load(path)
    same(got, TENSORS)
    assert header_ == (metadata or {})


def test_the_library_reads_the_same_from_what_we_write_and_we_from_what_it_writes(tmp_path):
    save(tmp_path / "ours.safetensors", TENSORS, {"a": "b"})
    same(load_file(tmp_path / "ours.safetensors"), TENSORS)
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"a": "b"}
    save_file(TENSORS, tmp_path / "theirs.safetensors", {"a": "b"})
    got, metadata = load(tmp_path / "theirs.safetensors")
    same(got, TENSORS)
    assert metadata == {"a": "b"}


def test_the_order_of_keys_does_not_change_the_file(tmp_path):
    save(tmp_path / "one.safetensors", TENSORS)
    save(tmp_path / "two.safetensors", dict(reversed(TENSORS.items())))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_wide_types_come_first_so_every_tensor_is_aligned(tmp_path):
    save(tmp_path / "x.safetensors", TENSORS)
    data = (tmp_path / "x.safetensors").read_bytes()
    entries, _ = header(tmp_path / "x.safetensors")
    assert int.from_bytes(data[:8], "little") % 8 == 0
    for key, entry in entries.items():
        assert entry["data_offsets"][0] % TENSORS[key].itemsize == 0, key


def test_views_are_written_as_what_they_show(tmp_path):
    base = random(1, 4, 6)
    views = {"turned": base.t(), "part": base[1:3, ::2], "again": base[1:3, ::2], "wide": torch.ones(1).expand(5, 3)}
    save(tmp_path / "x.safetensors", views)
    same(load(tmp_path / "x.safetensors")[0], views)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_numbers_that_are_not_finite_are_not_written(dtype, tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, {"a": torch.ones(2)})
    before = path.read_bytes()
    with pytest.raises(FormatError, match="bad: holds numbers that are not finite; nothing was written"):
        save(path, {"good": torch.ones(2), "bad": torch.tensor([1.0, float("nan")]).to(dtype)})
    assert path.read_bytes() == before


def test_missing_folders_are_made(tmp_path):
    save(tmp_path / "a" / "b" / "x.safetensors", {"a": torch.ones(1)})
    same(load(tmp_path / "a" / "b" / "x.safetensors")[0], {"a": torch.ones(1)})


LAYOUT = {"first": (torch.float32, (64,)), "second": (torch.float32, (64,))}


class Stop(BaseException):
    """An interrupt that is no Exception, as ComfyUI's is."""


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("existing", [True, False])
def test_a_crash_in_the_middle_leaves_the_old_file_and_nothing_else(kind, existing, tmp_path):
    path = tmp_path / "x.safetensors"
    if existing:
        save(path, {"old": torch.ones(3)})

    def tensor(key):
        if key == "second":
            assert len(list(tmp_path.iterdir())) == 1 + existing  # it is being written beside the target
            raise kind
        return torch.zeros(64)

    with pytest.raises(kind):
        save_streamed(path, LAYOUT, tensor)
    assert [p.name for p in tmp_path.iterdir()] == (["x.safetensors"] if existing else [])
    if existing:
        same(load(path)[0], {"old": torch.ones(3)})


def test_a_tensor_that_changed_its_shape_on_the_way_is_refused_by_name(tmp_path):
    for value in (torch.zeros(63), torch.zeros(64).half()):
        with pytest.raises(FormatError, match="second"):
            save_streamed(
                tmp_path / "x.safetensors",
                LAYOUT,
                lambda key, value=value: value if key == "second" else torch.zeros(64),
            )
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_the_path(tmp_path):
    def tensor(key):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FormatError, match=r"x\.safetensors: could not be written \(No space left on device\)"):
        save_streamed(tmp_path / "x.safetensors", LAYOUT, tensor)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_the_target_is_told(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(FormatError, match="x.safetensors: could not be written"):
        save(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        save(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == mode


def test_one_tensor_at_a_time_is_the_same_as_all_at_once(tmp_path):
    save(tmp_path / "x.safetensors", TENSORS)
    with opened(tmp_path / "x.safetensors") as tensor:
        same({k: tensor(k) for k in TENSORS}, TENSORS)


# --- hostile safetensors files ------------------------------------------------------------------------------------------------------------


def raw(entries, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with the header given, a table or bytes."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = library_save({"a": torch.ones(4, 4), "b": torch.ones(3)})
HOSTILE = {
    "empty": b"",
    "one byte": b"{",
    "seven bytes": b"\0" * 7,
    "a length alone": struct.pack("<Q", 0),
    "zeros": b"\0" * 100,
    "a huge length": raw({"a": entry()}, b"\0" * 8, length=2**63),
    "the largest length": raw({"a": entry()}, b"\0" * 8, length=2**64 - 1),
    "a length one beyond the end": raw({"a": entry()}, b"", length=len(json.dumps({"a": entry()})) + 1),
    "text in a shape": raw({"a": entry(shape=[4294967296, "x"])}, b"\0" * 8),  # 20 GB in a reader that multiplies it
    "text in offsets": raw({"a": entry(offsets=["0", "8"])}, b"\0" * 8),
    "a list in a shape": raw({"a": entry(shape=[[2]])}, b"\0" * 8),
    "a table as a shape": raw({"a": {"dtype": "F32", "shape": {"0": 2}, "data_offsets": [0, 8]}}, b"\0" * 8),
    "text as a shape": raw({"a": {"dtype": "F32", "shape": "22", "data_offsets": [0, 8]}}, b"\0" * 8),
    "a fraction in a shape": raw({"a": entry(shape=[2.0])}, b"\0" * 8),
    "infinity in a shape": raw(b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}', b"\0" * 8),
    "a bool in a shape": raw({"a": entry(shape=[True, 2])}, b"\0" * 8),
    "a bool in offsets": raw({"a": entry(shape=[0], offsets=[False, False])}),
    "null in a shape": raw({"a": entry(shape=[None])}, b"\0" * 8),
    "a negative shape": raw({"a": entry(shape=[-2])}, b"\0" * 8),
    "negative offsets": raw({"a": entry(offsets=[-8, 0])}, b"\0" * 8),
    "offsets in reverse": raw({"a": entry(offsets=[8, 0])}, b"\0" * 8),
    "three offsets": raw({"a": entry(offsets=[0, 8, 16])}, b"\0" * 16),
    "no offsets": raw({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8),
    "no type": raw({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
    "no entry": raw({"a": None}, b"\0" * 8),
    "an entry of text": raw({"a": "F32"}, b"\0" * 8),
    "an unknown type": raw({"a": entry(dtype="F128")}, b"\0" * 8),
    "a type that is a list": raw({"a": entry(dtype=["F32"])}, b"\0" * 8),
    "a type that is a table": raw({"a": entry(dtype={"F": 32})}, b"\0" * 8),
    "a type that is a number": raw({"a": entry(dtype=32)}, b"\0" * 8),
    "a shape of another size": raw({"a": entry(shape=[3])}, b"\0" * 8),
    "offsets beyond the end": raw({"a": entry(shape=[4], offsets=[0, 16])}, b"\0" * 8),
    "enormous offsets": raw({"a": entry(shape=[2**62], offsets=[0, 2**64])}, b"\0" * 8),
    "an enormous shape of nothing": raw({"a": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}),
    "a product beyond 64 bits": raw({"a": entry(shape=[2**32, 2**32, 4], offsets=[0, 0])}),
    "a number of 5000 digits": raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', b"\0" * 8),
    "overlapping tensors": raw({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12),
    "the same bytes twice": raw({"a": entry(), "b": entry()}, b"\0" * 8),
    "a hole": raw({"a": entry(), "b": entry(offsets=[12, 20])}, b"\0" * 20),
    "bytes before the first": raw({"a": entry(offsets=[4, 12])}, b"\0" * 12),
    "bytes after the last": raw({"a": entry()}, b"\0" * 12),
    "nine dimensions": raw({"a": entry(shape=[1] * 9, offsets=[0, 4])}, b"\0" * 4),
    "200,000 dimensions": raw({"a": entry(shape=[1] * 200_000, offsets=[0, 4])}, b"\0" * 4),
    "too many tensors": raw({str(n): entry(shape=[0], offsets=[0, 0]) for n in range(MAX_TENSORS + 1)}),
    "a key twice": raw(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
    "a key of two types": raw(b'{"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
    "a shape twice": raw(b'{"a":{"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
    "not utf-8": raw(b'{"\xff\xfe":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
    "utf-16": raw(json.dumps({"a": entry()}).encode("utf-16"), b"\0" * 8),
    "half a surrogate": raw(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
    "not json": raw(b"hello there", b"\0" * 8),
    "python, not json": raw(b"{'a': 1}", b"\0" * 8),
    "a list": raw(b"[1, 2]", b"\0" * 8),
    "a number": raw(b"7", b"\0" * 8),
    "null": raw(b"null", b"\0" * 8),
    "deep nesting": raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep tables": raw(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "deep metadata": raw(b'{"__metadata__":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}"),
    "metadata of numbers": raw({"__metadata__": {"a": 1}, "a": entry()}, b"\0" * 8),
    "metadata of lists": raw({"__metadata__": {"a": ["b"]}, "a": entry()}, b"\0" * 8),
    "metadata of null": raw({"__metadata__": {"a": None}, "a": entry()}, b"\0" * 8),
    "metadata as a list": raw({"__metadata__": ["a"], "a": entry()}, b"\0" * 8),
    "metadata as text": raw({"__metadata__": "a", "a": entry()}, b"\0" * 8),
    "metadata as a number": raw({"__metadata__": 3, "a": entry()}, b"\0" * 8),
    "no tensors": raw({}),
    "metadata alone": raw({"__metadata__": {"a": "b"}}),
    "html": b"<!DOCTYPE html><html><body>404</body></html>" * 10,
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    **{f"cut to {n} bytes": GOOD[:n] for n in (1, 7, 8, 9, 20, len(GOOD) - 80, len(GOOD) - 12, len(GOOD) - 1)},
}  # fmt: skip


def polyglot() -> bytes:
    """A safetensors file with a zip archive behind it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return GOOD + archive.getvalue()


HOSTILE["a zip archive behind the data"] = polyglot()


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_hostile_file_is_refused_by_its_name_at_once(case, suffix, tmp_path, hang_guard):
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(HOSTILE[case])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with hang_guard(), pytest.raises(FormatError, match="evil"):
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 256 << 10  # kB: 256 MB


# Gaps and overlaps are left to the library, which looks at them before any tensor is read; JSON in UTF-16 and half a surrogate likewise.
LIBRARY = {"overlapping tensors", "the same bytes twice", "a hole", "bytes before the first", "bytes after the last", "utf-16", "half a surrogate",
           "a zip archive behind the data", "no tensors", "metadata alone"}  # fmt: skip


@pytest.mark.parametrize("case", [c for c in HOSTILE if c not in LIBRARY])
def test_the_header_is_checked_without_the_library(case, tmp_path):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(FormatError, match="evil"):
        header(path)


@pytest.mark.parametrize(("case", "code"), [
    ("a huge length", "file.cut_off"), ("a length one beyond the end", "file.cut_off"), ("cut to 20 bytes", "file.cut_off"), ("html", "file.cut_off"),
    ("not json", "file.header_no_json"), ("a key twice", "file.header_twice"), ("deep nesting", "file.header_no_json"),
    ("a list", "file.header_no_table"),
])  # fmt: skip
def test_a_file_that_is_cut_off_is_told_from_one_that_is_none(case, code, tmp_path):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(FormatError) as caught:
        header(path)
    assert caught.value.message.code == code


@pytest.mark.parametrize("case", HOSTILE)
def test_reading_one_tensor_at_a_time_refuses_the_same_files(case, tmp_path):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HOSTILE[case])
    if case in ("no tensors", "metadata alone"):
        with opened(path):
            return
    with pytest.raises(FormatError, match="evil"), opened(path):
        pass


@pytest.mark.parametrize("reader", [load, load_any, header])
def test_what_is_no_file_is_refused_by_its_name(reader, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "folder.safetensors", target_is_directory=True)
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    for name in ("folder", "link", "dangling", "loop", "missing"):
        with pytest.raises(FormatError, match=name):
            reader(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_what_is_no_torch_file_is_refused_by_its_name(suffix, tmp_path):
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"text{suffix}").write_text("hello")
    for name in ("folder", "missing", "text"):
        with pytest.raises(FormatError, match=name):
            load(tmp_path / f"{name}{suffix}")


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused_by_its_name(tmp_path):
    save(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    (tmp_path / "x.safetensors").chmod(0)
    with pytest.raises(FormatError, match="x.safetensors"):
        load(tmp_path / "x.safetensors")


def test_the_largest_number_of_tensors_is_read_with_work_in_step_with_their_number(tmp_path, counted):
    work = []
    for count in (MAX_TENSORS // 2, MAX_TENSORS):
        path = tmp_path / f"{count}.safetensors"
        path.write_bytes(raw({str(n): entry(shape=[0], offsets=[0, 0]) for n in range(count)}))
        (tensors, _), opened, calls = counted(lambda file=path: load(file))
        assert len(tensors) == count
        work.append((calls, sum(opened.values())))
    assert work[1][0] < 2.1 * work[0][0]
    assert work[1][1] == work[0][1]


# --- pickles ------------------------------------------------------------------------------------------------------------------------------


class Calls:
    """Calls a function with arguments when it is unpickled."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def payloads(canary) -> dict:
    """Objects that leave a file behind when they are unpickled without care."""
    import builtins
    import runpy
    import subprocess

    touch = f"open({str(canary)!r}, 'w').close()"
    script = canary.with_suffix(".py")
    script.write_text(touch)
    return {
        "os.system": Calls(os.system, f"touch {canary}"),
        "eval": Calls(eval, touch),
        "exec": Calls(exec, touch),
        "open": Calls(open, str(canary), "w"),
        "subprocess": Calls(subprocess.call, ["touch", str(canary)]),
        "runpy": Calls(runpy.run_path, str(script)),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "compile": Calls(builtins.compile, touch, "x", "exec"),
        "torch.load": Calls(torch.load, io.BytesIO(b"")),
    }


KINDS = ("os.system", "eval", "exec", "open", "subprocess", "runpy", "getattr", "compile", "torch.load")
WRAPPINGS = {
    "alone": lambda bad: bad,
    "as a value": lambda bad: {"a": torch.ones(2), "b": bad},
    "as a key": lambda bad: {bad: torch.ones(2)} if getattr(bad, "__hash__", None) else {"a": bad},
    "nested": lambda bad: {"string_to_param": {"*": torch.ones(1, 768)}, "name": "zog", "more": [{"x": (bad,)}]},
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_code_in_a_pickle_never_runs(kind, wrapping, suffix, tmp_path):
    canary = tmp_path / "canary"
    bad = WRAPPINGS[wrapping](payloads(canary)[kind])
    path = tmp_path / f"evil{suffix}"
    writers = {"plain": lambda: path.write_bytes(pickle.dumps(bad)), "zip": lambda: torch.save(bad, path),
               "legacy": lambda: torch.save(bad, path, _use_new_zipfile_serialization=False)}  # fmt: skip
    for name, make in writers.items():
        try:
            make()
        except (
            TypeError,
            AttributeError,
            pickle.PicklingError,
        ):  # a BytesIO among the arguments: nothing to unpickle then
            assert kind == "torch.load", name
            continue
        with pytest.raises(FormatError, match="evil"):
            load(path)
        assert not canary.exists()


def test_the_canary_appears_when_such_a_pickle_is_opened_without_care(tmp_path):
    canary = tmp_path / "canary"
    for kind in ("os.system", "eval", "exec", "open", "subprocess", "runpy"):
        canary.unlink(missing_ok=True)
        pickle.loads(pickle.dumps(payloads(canary)[kind]))
        assert canary.exists(), kind


def test_code_in_a_zip_within_a_zip_or_a_tar_never_runs(tmp_path):
    canary = tmp_path / "canary"
    bad = pickle.dumps(payloads(canary)["os.system"])
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("archive/data.pkl", bad)
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", inner.getvalue())
        file.writestr("archive/version", "3")
    with pytest.raises(FormatError, match="evil"):
        load(path)
    with tarfile.open(path, "w") as file:  # torch's format before 0.1.10
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(bad)
            file.addfile(info, io.BytesIO(bad))
    with pytest.raises(FormatError, match="evil"):
        load(path)
    with zipfile.ZipFile(path, "w") as file:  # torch.package
        file.writestr("archive/.data/version", "6")
        file.writestr("archive/model/model.pkl", bad)
        file.writestr("archive/code.py", "raise SystemExit")
    with pytest.raises(FormatError, match="evil"):
        load(path)
    assert not canary.exists()


def test_a_torchscript_file_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "evil.pt"))
    with pytest.raises(FormatError, match="evil"):
        load(tmp_path / "evil.pt")


def shared(value):
    return {"lora_unet_conv_in.lora_down.weight": value}


BOMBS = {
    "stride 0": lambda: shared(torch.zeros(1).expand(1 << 20, 16384)),
    "stride 0, in a table": lambda: {"string_to_param": {"*": torch.zeros(1).expand(1 << 20, 16384)}},
    "stride 0, in a parameter dict": lambda: {
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.zeros(1).expand(1 << 20, 16384))})
    },
    "overlapping windows": lambda: shared(torch.zeros(4096).as_strided((2048, 2048), (1, 1))),
    "sparse": lambda: shared(torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (2, 3))),
    "enormous sparse": lambda: shared(
        torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (1 << 20, 1 << 20))
    ),
    "on no device": lambda: shared(torch.zeros(2, 3, device="meta")),
    "enormous on no device": lambda: shared(torch.zeros(1 << 20, 1 << 20, device="meta")),
    "quantised": lambda: shared(torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)),
    "a parameter dict without its state": lambda: {
        "string_to_param": torch.nn.ParameterDict.__new__(torch.nn.ParameterDict),
        "a": torch.ones(1),
    },
    "a model": lambda: torch.nn.Linear(2, 2),
    "a list": lambda: [torch.ones(2)],
    "a tensor": lambda: torch.ones(2),
    "a number": lambda: 7,
    "nothing": dict,
    "no tensors": lambda: {"a": 1},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", BOMBS)
def test_a_pickle_that_is_no_table_of_plain_tensors_is_refused_by_its_name(case, legacy, tmp_path, hang_guard):
    path = tmp_path / "evil.pt"
    torch.save(BOMBS[case](), path, _use_new_zipfile_serialization=not legacy)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with hang_guard(), pytest.raises(FormatError, match="evil"):
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 256 << 10


@pytest.mark.parametrize("case", ["a parameter dict without its state", "sparse", "on no device", "quantised"])
def test_strange_tensors_do_not_come_through_the_door_for_embeddings_either(case, tmp_path):
    path = tmp_path / "evil.pt"
    torch.save(BOMBS[case](), path)
    with pytest.raises(FormatError):
        read_embedding(load_any(path)[0])


def test_a_storage_that_claims_more_than_its_file_is_refused(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save(shared(torch.zeros(1000)), path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(FormatError, match="evil"):
        load(path)


def test_a_compressed_archive_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("archive/data.pkl", "w") as out:
        for _ in range(64):
            out.write(b"\0" * (1 << 20))

    def unpacked(*_, **__):
        raise AssertionError("unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "open", unpacked)  # ZipFile.read goes through it
    monkeypatch.setattr(torch, "load", unpacked)
    with pytest.raises(FormatError, match="evil.pt: unpacks to"):
        load(path)


# --- good torch files ---------------------------------------------------------------------------------------------------------------------

PLAIN = {
    "lora_unet_conv_in.lora_down.weight": random(1, 2, 4, 3, 3),
    "lora_unet_conv_in.lora_up.weight": random(2, 320, 2, 1, 1),
    "lora_unet_conv_in.alpha": torch.tensor(1.0),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".BIN"])
def test_a_table_of_tensors_in_a_torch_file_is_read(suffix, legacy, tmp_path):
    path = tmp_path / f"x{suffix}"
    torch.save(PLAIN, path, _use_new_zipfile_serialization=not legacy)
    got, metadata = load(path)
    same(got, PLAIN)
    assert metadata == {}
    assert read(got, family="sd1").modules["unet.conv_in"].alpha == 1.0


def test_parameters_are_read_as_plain_tensors(tmp_path):
    torch.save({k: torch.nn.Parameter(v) for k, v in PLAIN.items()}, tmp_path / "x.bin")
    got = load(tmp_path / "x.bin")[0]
    assert not any(v.requires_grad for v in got.values())
    same(got, PLAIN)


def test_tensors_that_share_a_storage_are_read(tmp_path):
    base = random(1, 4, 6)
    torch.save({"a": base[:2], "b": base[2:], "c": base.t()}, tmp_path / "x.bin")
    same(load(tmp_path / "x.bin")[0], {"a": base[:2], "b": base[2:], "c": base.t()})


# A legacy file with a ParameterDict carries the source code of that class, which the safe unpickler refuses; the WebUI has never written one.
@pytest.mark.parametrize(("table", "legacy"), [(dict, False), (dict, True), (torch.nn.ParameterDict, False)])
def test_an_a1111_embedding_is_read(table, legacy, tmp_path):
    value = random(3, 2, 768)
    data = {"string_to_token": {"*": 265}, "string_to_param": table({"*": torch.nn.Parameter(value)}), "name": "zog", "step": 300,
            "sd_checkpoint": "0123abcd", "sd_checkpoint_name": "model"}  # fmt: skip
    torch.save(data, tmp_path / "zog.pt", _use_new_zipfile_serialization=not legacy)
    got = read_embedding(load_any(tmp_path / "zog.pt")[0])
    assert torch.equal(got.vectors["clip_l"], value)
    assert (got.token, got.step) == ("zog", 300)


def test_a_safetensors_file_with_the_suffix_of_a_torch_file_is_read_as_what_it_is(tmp_path):
    save(tmp_path / "x.bin", PLAIN)
    same(load(tmp_path / "x.bin")[0], PLAIN)


def test_an_old_torch_reads_no_pickles_at_all(tmp_path, monkeypatch):
    torch.save(PLAIN, tmp_path / "x.pt")
    for version in ("2.9.1+cu128", "2.5.0", "1.13.1"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(FormatError, match=r"x\.pt.*cannot read safely"):
            load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("tables", "holds tables with more than 200000 members"), ("storage", "claims 512 values, more than the file can hold"),
        ("itself", "is no table of tensors"), ("digits", "is not a torch file of plain tensors"),
    ],
)  # fmt: skip
def test_a_pickle_that_says_one_object_many_times_over_is_refused(content, words, tmp_path):
    table, whole, turning = {"x": 1}, torch.ones(512), {}
    for _ in range(40):
        table = {"a": table, "b": table}
    turning["a"] = turning
    found = {
        "tables": table,
        "storage": {str(n): whole for n in range(400)},
        "itself": turning,
        "digits": {10**5000: torch.ones(1)},
    }
    torch.save(found[content], tmp_path / "x.pt")
    with pytest.raises(FormatError, match=words):
        load_any(tmp_path / "x.pt")


def test_a_pickle_that_names_a_tensor_twice_is_read(tmp_path):
    weight = torch.ones(1000)
    torch.save({"a": weight, "tied": weight}, tmp_path / "x.pt")
    assert load(tmp_path / "x.pt")[0].keys() == {"a", "tied"}
