import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from lora_loom.lora_core.data import store as module
from lora_loom.lora_core.data.store import Disk, Memory, key_of
from lora_loom.lora_core.disk.files import TEMP_PREFIX

BIG = 10**12


def entry(n: int) -> dict[str, torch.Tensor]:
    return {"latent": torch.full((1, 4, 32, 32), float(n)), "crop": torch.tensor([n, n + 1])}


def equal(found, wanted) -> bool:
    return (
        found is not None and found.keys() == wanted.keys() and all(torch.equal(found[k], v) for k, v in wanted.items())
    )


@pytest.mark.parametrize("make", [lambda path: Disk(path, BIG), lambda path: Memory()], ids=["disk", "memory"])
def test_what_is_put_is_found_again_unchanged(make, tmp_path):
    store = make(tmp_path)
    assert store.get(key_of(1)) is None
    assert equal(store.put(key_of(1), entry(1)), entry(1))
    assert equal(store.get(key_of(1)), entry(1))
    assert store.get(key_of(2)) is None


def test_another_process_finds_what_the_first_one_made(tmp_path):
    Disk(tmp_path, BIG).put(key_of("a"), entry(7))
    assert equal(Disk(tmp_path, BIG).get(key_of("a")), entry(7))


def test_a_key_depends_on_every_part():
    parts = [
        ["a", b"bytes", (1, 2), 0.5, True],
        ["a", b"bytes", (1, 2), 0.5, False],
        ["a", b"bytez", (1, 2), 0.5, True],
        ["a", b"bytes", (2, 1), 0.5, True],
    ]
    assert len({key_of(*p) for p in parts}) == len(parts)
    assert key_of("ab", "c") != key_of("a", "bc")


@pytest.mark.parametrize(
    "damage",
    [lambda d: d[:-1], lambda d: d[:50], lambda d: b"", lambda d: d[:-1] + bytes([d[-1] ^ 1]), lambda d: bytes(len(d))],
)
def test_a_damaged_entry_is_never_used_and_goes_away(damage, tmp_path):
    first = Disk(tmp_path, BIG)
    first.put(key_of(1), entry(1))
    path = first._path(key_of(1))
    path.write_bytes(damage(path.read_bytes()))
    second = Disk(tmp_path, BIG)
    assert second.get(key_of(1)) is None
    assert not path.exists()
    assert equal(second.put(key_of(1), entry(1)), entry(1))


def write_for_ever(folder, start):
    store, n = Disk(folder, BIG), start
    while True:
        store.put(key_of(n % 50), entry(n % 50))
        n += 1


def test_twenty_kills_of_two_writers_leave_nothing_partial(tmp_path):
    context, rng = multiprocessing.get_context("fork"), random.Random(0)
    for trial in range(20):
        writers = [context.Process(target=write_for_ever, args=(tmp_path, trial * k)) for k in (1, 7)]
        for w in writers:
            w.start()
        time.sleep(rng.uniform(0.02, 0.08))
        for w in writers:
            os.kill(w.pid, signal.SIGKILL)
            w.join()
    reader = Disk(tmp_path, BIG)
    found = [n for n in range(50) if reader.get(key_of(n)) is not None]
    assert found
    assert all(equal(reader.get(key_of(n)), entry(n)) for n in found)


def test_the_folder_stays_within_its_limit_and_what_is_in_use_stays(tmp_path, monkeypatch):
    old = time.time() - 10 * 3600
    store = Disk(tmp_path, BIG)
    for n in range(10):
        store.put(key_of(n), entry(n))
        os.utime(store._path(key_of(n)), (old + n, old + n))
    size = store._path(key_of(0)).stat().st_size
    litter = [store._path(key_of(0)).with_name(f"{TEMP_PREFIX}1-{n}") for n in range(2)]
    for file in litter:
        file.write_bytes(b"x")
    os.utime(litter[0], (old, old))
    Disk(tmp_path, BIG).get(key_of(0))  # used by somebody right now
    Disk(tmp_path, 4 * size).tidy()
    left = {n for n in range(10) if store._path(key_of(n)).exists()}
    assert left == {0, 7, 8, 9}
    assert [f.exists() for f in litter] == [False, True]
    monkeypatch.setattr(module, "TOUCHED_EVERY_S", -1)
    os.utime(store._path(key_of(8)), (old, old))
    store.get(key_of(9))  # a long run says now and then what it uses: all it ever opened
    assert time.time() - store._path(key_of(8)).stat().st_mtime < 60


def test_an_entry_removed_while_in_use_stays_usable(tmp_path):
    store = Disk(tmp_path, BIG)
    store.put(key_of(1), entry(1))
    store._path(key_of(1)).unlink()
    assert equal(store.get(key_of(1)), entry(1))


def test_a_disk_that_refuses_costs_the_place_not_the_run(tmp_path):
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    store = Disk(tmp_path / "cache", BIG)
    assert equal(store.put(key_of(1), entry(1)), entry(1))
    assert equal(store.get(key_of(1)), entry(1))
    assert "cannot keep what was encoded" in str(store.problem)


def test_a_system_that_maps_no_more_files_costs_the_mapping_not_the_run(tmp_path, monkeypatch):
    def refuses(path):
        raise RuntimeError("unable to mmap 4096 bytes: Cannot allocate memory (12)")

    monkeypatch.setattr(module, "load_file", refuses)
    store = Disk(tmp_path, BIG)
    assert equal(store.put(key_of(1), entry(1)), entry(1))
    assert equal(store.get(key_of(1)), entry(1))


def test_tidying_touches_nothing_that_is_no_entry(tmp_path):
    old = time.time() - 10 * 3600
    other = tmp_path / "checkpoints" / "step-00000001" / "adapter.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"x" * 1000)
    os.utime(other, (old, old))
    Disk(tmp_path, 1).tidy()
    assert other.exists()
