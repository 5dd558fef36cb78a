import json
import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch
from lora_loom.lora_core.disk import files
from lora_loom.lora_core.messages.errors import LoomError, NonFiniteError
from lora_loom.lora_core.runs import checkpoints

FACTS = {"config": {"name": "x"}, "losses": [0.1, 1 / 3]}


def trained(steps=2):
    """(adapter tensors, optimizer) after a few AdamW updates."""
    rng = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(3, 5, generator=rng))
    optimizer = torch.optim.AdamW([p], lr=0.1)
    for _ in range(steps):
        p.grad = torch.randn(3, 5, generator=rng)
        optimizer.step()
    return {"layer.lora_up": p.detach().clone()}, optimizer


def save_some(root, steps):
    adapter, optimizer = trained()
    return [checkpoints.save(root, step, adapter, optimizer, FACTS) for step in steps]


def same_state(first, second):
    return first["param_groups"] == second["param_groups"] and all(
        torch.equal(torch.as_tensor(first["state"][i][k]), torch.as_tensor(second["state"][i][k]))
        for i in first["state"]
        for k in first["state"][i]
    )


def test_a_checkpoint_gives_back_every_bit_that_was_saved(tmp_path):
    adapter, optimizer = trained()
    folder = checkpoints.save(tmp_path, 12, adapter, optimizer, FACTS)
    read = checkpoints.read(folder)
    assert folder.name == "step-00000012"
    assert read.step == 12
    assert read.facts == FACTS
    assert torch.equal(read.adapter["layer.lora_up"], adapter["layer.lora_up"])
    assert same_state(read.optimizer, optimizer.state_dict())


def test_tuples_infinite_numbers_and_nested_tables_of_an_optimizer_come_back_as_they_were(tmp_path):
    adapter, optimizer = trained()
    optimizer.param_groups[0] |= {
        "pair": (1, (2.5, None)),
        "best": float("inf"),
        "worst": float("-inf"),
        "list": [1, 2],
    }
    optimizer.state[optimizer.param_groups[0]["params"][0]]["table"] = {"inner": torch.ones(2), "deeper": {"n": 3}}
    read = checkpoints.read(checkpoints.save(tmp_path, 1, adapter, optimizer, FACTS)).optimizer
    assert read["param_groups"] == optimizer.state_dict()["param_groups"]
    table = read["state"][0]["table"]
    assert torch.equal(table["inner"], torch.ones(2))
    assert table["deeper"] == {"n": 3}


def test_an_optimizer_loaded_from_a_checkpoint_makes_the_same_next_step(tmp_path):
    adapter, optimizer = trained()
    read = checkpoints.read(checkpoints.save(tmp_path, 2, adapter, optimizer, FACTS))
    p = torch.nn.Parameter(read.adapter["layer.lora_up"].clone())
    again = torch.optim.AdamW([p], lr=0.1)
    again.load_state_dict(read.optimizer)
    original = optimizer.param_groups[0]["params"][0]
    for param, opt in ((p, again), (original, optimizer)):
        param.grad = torch.full((3, 5), 0.3)
        opt.step()
    assert torch.equal(p, original)


FILES = ["adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flipped", "deleted", "emptied"])
def test_any_damage_to_any_file_is_noticed_and_the_checkpoint_before_is_used(name, damage, tmp_path):
    save_some(tmp_path, [1, 2])
    file = checkpoints.folder_of(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    if damage == "deleted":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes({"cut": content[:-1], "flipped": content, "emptied": b""}[damage])
    checkpoint, broken = checkpoints.latest(tmp_path)
    assert checkpoint.step == 1
    assert broken == ["step-00000002"]


def test_every_single_flipped_bit_of_the_manifest_is_survived(tmp_path):
    file = save_some(tmp_path, [1])[0] / "manifest.json"
    content = file.read_bytes()
    for place in range(len(content)):
        for bit in (0, 5, 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            read = checkpoints.read(file.parent, verify_only=True)
            assert read is None or json.loads(bytes(damaged)).keys() >= {
                "adapter.safetensors"
            }  # white space and case are harmless


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'"text"'])
def test_a_manifest_that_is_json_but_no_table_counts_as_damaged(content, tmp_path):
    folder = save_some(tmp_path, [1])[0]
    (folder / "manifest.json").write_bytes(content)
    assert checkpoints.read(folder) is None


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path):
    assert checkpoints.latest(tmp_path) == (None, [])
    assert checkpoints.latest(tmp_path / "nowhere") == (None, [])
    (tmp_path / "step-00000003").mkdir()
    assert checkpoints.latest(tmp_path) == (None, ["step-00000003"])


def test_the_newest_step_is_the_largest_number_not_the_last_written(tmp_path):
    save_some(tmp_path, [100, 9, 99_999_999, 10])
    assert checkpoints.latest(tmp_path)[0].step == 99_999_999


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_prune_keeps_the_newest_and_never_fewer_than_two(keep, tmp_path):
    save_some(tmp_path, [1, 2, 3, 4, 5])
    checkpoints.prune(tmp_path, keep)
    kept = [p.name for p in checkpoints.all_steps(tmp_path)]
    assert kept == [f"step-0000000{n}" for n in (5, 4, 3)[: max(2, keep)]]
    assert not list(tmp_path.glob(f"{files.TEMP_PREFIX}*"))


def test_saving_a_step_again_keeps_a_whole_checkpoint_and_replaces_a_broken_one(tmp_path):
    folder = save_some(tmp_path, [1])[0]
    before = (folder / "manifest.json").stat().st_mtime_ns
    save_some(tmp_path, [1])
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    (folder / "adapter.safetensors").write_bytes(b"broken")
    save_some(tmp_path, [1])
    assert checkpoints.read(folder).step == 1


def test_a_checkpoint_with_numbers_that_are_not_finite_is_never_written(tmp_path):
    adapter, optimizer = trained()
    adapter["layer.lora_up"][0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="layer.lora_up"):
        checkpoints.save(tmp_path, 1, adapter, optimizer, FACTS)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_format_is_refused_not_passed_over(tmp_path):
    folder = save_some(tmp_path, [1])[0]
    changed = json.loads((folder / "state.json").read_text()) | {"format": 99}
    (folder / "state.json").write_text(json.dumps(changed))
    hashes = json.loads((folder / "manifest.json").read_text()) | {"state.json": files.sha256(folder / "state.json")}
    (folder / "manifest.json").write_text(json.dumps(hashes))
    with pytest.raises(LoomError, match="save format 99 is not 1"):
        checkpoints.latest(folder.parent)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_no_checkpoint_is_unreadable_and_at_most_one_interval_is_lost(tmp_path):
    adapter = {"layer.lora_up": torch.arange(3000.0)}
    _, optimizer = trained()
    rng, interrupted_midway = random.Random(1), 0
    for trial in range(40):
        root, counter = tmp_path / str(trial), tmp_path / f"{trial}.count"
        child = os.fork()
        if child == 0:  # saves without end; the counter says which save had returned
            try:
                handle = os.open(counter, os.O_CREAT | os.O_WRONLY)
                for step in range(1, 10**6):
                    checkpoints.save(root, step, adapter, optimizer, FACTS)
                    checkpoints.prune(root, 2)
                    os.pwrite(handle, step.to_bytes(4, "little"), 0)
            finally:
                os._exit(1)
        while not (counter.exists() and counter.stat().st_size):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)  # still alive
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.04))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        finished = int.from_bytes(counter.read_bytes(), "little")
        interrupted_midway += any(root.glob(f"{files.TEMP_PREFIX}*"))
        files.sweep_temps(root)
        assert not list(root.glob(f"{files.TEMP_PREFIX}*"))
        checkpoint, broken = checkpoints.latest(root)
        assert broken == []
        assert checkpoint.step in (finished, finished + 1)
        assert torch.equal(checkpoint.adapter["layer.lora_up"], adapter["layer.lora_up"])
        assert all(checkpoints.read(folder) for folder in checkpoints.all_steps(root))
        shutil.rmtree(root)
    assert interrupted_midway >= 10  # the kills really struck inside a save


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_crash_before_any_single_file_operation_of_a_save_leaves_only_whole_checkpoints(tmp_path):
    adapter, optimizer = trained()
    crashes = 0
    while True:
        root = tmp_path / str(crashes)
        for step in (1, 2, 3):
            checkpoints.save(root, step, adapter, optimizer, FACTS)
        child = os.fork()
        if child == 0:  # saves step 4 and prunes 1 and 2, and dies at the file operation whose turn it is
            left = [crashes]

            def count(event, arguments, left=left):
                if event == "open" or event.startswith(("os.", "shutil.")):
                    left[0] -= 1
                    if left[0] < 0:
                        os._exit(9)

            try:
                sys.addaudithook(count)
                checkpoints.save(root, 4, adapter, optimizer, FACTS)
                checkpoints.prune(root, 2)
                left[0] = 10**6
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        files.sweep_temps(root)
        checkpoint, broken = checkpoints.latest(root)
        assert broken == []
        assert checkpoint.step in ((4,) if code == 0 else (3, 4))
        assert len(checkpoints.all_steps(root)) >= 2
        assert all(checkpoints.read(folder) for folder in checkpoints.all_steps(root))
        if code == 0:
            break
        crashes += 1
    assert crashes > 15  # four files with temporary names, the folder, the pruned one
