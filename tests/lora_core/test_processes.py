"""Several processes on one job: what `accelerate launch` starts equals one process with their batches together, and ends whole when one dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lora_loom.lora_core.processes import ALONE, Processes, launched
from lora_loom.lora_core.runs import checkpoints
from safetensors.torch import load_file
from shapes import BASE

HANG_S = 300.0  # only against hanging


@pytest.fixture
def job(pictures, tmp_path):
    def write(name, batch, **more):
        path = tmp_path / f"{name}.toml"
        path.write_text(
            f'name = "{name}"\nbase = {more.pop("base", BASE)!r}\nsteps = {more.pop("steps", 20)}\n'
            f"batch_size = {batch}\ngrad_accum = 2\nseed = 3\n[data]\nfolder = {str(pictures)!r}\n"
            "resolution = 32\nbucket_step_px = 16\nflip = true\nshuffle_tags = true\ncaption_dropout = 0.2\n[adapter]\nrank = 4\n[optimizer]\nlr = 1e-3\n"
            f"[save]\nevery = 5\n[samples]\nevery = 0\n[validation]\nevery = 10\nshare = 0.25\n{more.pop('extra', '')}"
        )
        return path

    return write


def command(processes, *arguments):
    """Without a GPU accelerate starts processes through MPI alone; torch's own launcher sets the same environment up."""
    launch = (
        ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
        if processes > 1
        else []
    )
    return [sys.executable, *launch, "-m", "lora_loom", *map(str, arguments)]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run(processes, *arguments, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}
    done = subprocess.run(command(processes, *arguments), capture_output=True, text=True, timeout=1200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_alone_nothing_is_sent_anywhere(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() is ALONE
    tensor = torch.ones(3)
    ALONE.average([tensor])
    assert (ALONE.any(True), ALONE.of_main("x"), ALONE.share(4), tensor.tolist()) == (True, "x", slice(0, 4), [1, 1, 1])
    with ALONE.main_first():
        pass


def test_shares_of_a_batch_are_the_batch(toy_config, toy_backend):
    from lora_loom.lora_core.backends.encoder import encoder_of
    from lora_loom.lora_core.data.batches import Batches
    from lora_loom.lora_core.data.folder import scan
    from lora_loom.lora_core.data.latents import LatentCache

    data = {"flip": True, "shuffle_tags": True, "latents": "sampled", "crop": "random", "aspect_buckets": False}
    whole, half = toy_config(batch_size=4, data=data), toy_config(batch_size=2, data=data)
    cache = LatentCache(scan(whole.data), encoder_of(toy_backend), lambda n, of: None)
    together, parts = (
        Batches(cache, whole, "cpu"),
        [Batches(cache, half, "cpu", Processes(rank, 2)) for rank in range(2)],
    )
    for step in range(6):
        one, two = together.at(step, 0), [p.at(step, 0) for p in parts]
        assert torch.equal(one.latents, torch.cat([b.latents for b in two]))
        assert list(one.captions) == [c for b in two for c in b.captions]
        assert list(one.fits) == [f for b in two for f in b.fits]


@pytest.mark.slow
def test_two_processes_equal_one_with_both_batches(job, tmp_path):
    out = tmp_path / "runs"
    run(1, "train", job("one", 2), "--out", out)
    text = run(2, "train", job("two", 1), "--out", out)
    assert (
        text.count("per epoch with repeats") == text.count("finished after step 20") == 1
    )  # only the first process speaks
    one, two = (load_file(out / name / f"{name}.safetensors") for name in ("one", "two"))
    worst = max((one[k] - two[k]).abs().max().item() / one[k].abs().max().clamp_min(1e-9).item() for k in one)
    assert worst < 1e-3, (
        worst
    )  # 2e-4 seen: float32 sums in another order, and AdamW divides the first gradients by second moments near zero
    losses = [
        [json.loads(line)["loss"] for line in (out / n / "log.jsonl").read_text().splitlines()] for n in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert sorted(p.name for p in (out / "one").iterdir()) == sorted(
        p.name.replace("two", "one") for p in (out / "two").iterdir()
    )


@pytest.mark.slow
def test_a_run_of_two_goes_on_as_two_and_not_as_one(job, tmp_path):
    out = tmp_path / "runs"
    run(2, "train", job("x", 1, steps=6), "--out", out)
    job("x", 1, steps=10)
    run(2, "train", tmp_path / "x.toml", "--resume", "--out", out)
    steps = [json.loads(line)["step"] for line in (out / "x" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 11))
    done = subprocess.run(
        command(1, "train", tmp_path / "x.toml", "--resume", "--set", "steps=12", "--out", out),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1
    assert "it was trained by 2 processes, and 1 is running here" in done.stderr


@pytest.mark.slow
def test_a_killed_process_ends_the_job_with_its_last_checkpoint_whole(job, tmp_path):
    out = tmp_path / "runs"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = subprocess.Popen(command(2, "train", job("killed", 1, steps=100_000), "--out", out), env=environment, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        saves = out / "killed" / "checkpoints"
        for _ in range(1200):
            if len(checkpoints.all_steps(saves)) >= 2:
                break
            time.sleep(0.1)
        workers = children(launcher.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        began = time.monotonic()
        assert launcher.wait(HANG_S) != 0
        while any(alive(pid) for pid in workers) and time.monotonic() - began < HANG_S:
            time.sleep(0.1)
        assert not any(alive(pid) for pid in workers)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    checkpoint, broken = checkpoints.latest(saves)
    assert checkpoint is not None
    assert not broken
    assert checkpoint.step >= 5


def children(pid):
    """Worker processes below the launcher, in the order they were started."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = open(f"/proc/{entry}/stat").read().rsplit(")", 1)[1].split()
                line = open(f"/proc/{entry}/cmdline").read()
            except OSError:
                continue
            if int(fields[1]) == pid and "lora_loom" in line:
                found.append(int(entry))
    return sorted(found)


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("family", ["toy", "flux1"])
def test_a_split_model_trains_what_whole_ones_train(family, job, tmp_path):
    """Samples, validation, checkpointing and DoRA's look at the weights included; the same numbers, for each block is whole while it computes."""
    sys.path.append(str(Path(__file__).parent / "backends"))
    import tiny_flow

    base = BASE if family == "toy" else str(tiny_flow.saved(family, tmp_path / "base"))
    out, more = tmp_path / "runs", {"steps": 6, "extra": "[prior]\nweight = 0.0\n", "base": base}
    whole, split = job("whole", 1, **more), job("split", 1, **more)
    for path in (whole, split):
        text = (
            path.read_text()
            .replace("rank = 4", 'rank = 4\nalgorithm = "dora"')
            .replace("[samples]\nevery = 0", "[samples]\nevery = 3\nsteps = 2")
        )
        path.write_text("checkpointing = true\n" + text)
    run(2, "train", whole, "--out", out)
    text = run(2, "train", split, "--out", out, ACCELERATE_USE_FSDP="true")
    assert "the frozen model is split over 2 processes" in text
    one, two = (load_file(out / name / f"{name}.safetensors") for name in ("whole", "split"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[k], two[k], rtol=0, atol=1e-6) for k in one)
    assert sorted(p.name for p in (out / "split" / "samples").iterdir()) == ["before.png", "step-3.png", "step-6.png"]


def test_a_deepspeed_configuration_is_read_for_what_it_asks(tmp_path):
    from lora_loom.lora_core.messages.errors import LoomError
    from lora_loom.lora_core.processes import _zero_stage

    asked = {"ACCELERATE_USE_DEEPSPEED": "true"}
    assert (_zero_stage({}), _zero_stage(asked), _zero_stage({**asked, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"})) == (
        0,
        2,
        3,
    )
    file = tmp_path / "deepspeed.json"
    file.write_text('{"zero_optimization": {"stage": 3}}')
    assert _zero_stage({**asked, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}) == 3
    file.write_text("{}")
    with pytest.raises(LoomError, match="names no zero_optimization.stage; write 0 to 3 there"):
        _zero_stage({**asked, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)})
