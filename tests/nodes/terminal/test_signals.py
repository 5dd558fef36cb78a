"""A signal, also that of a closed terminal, ends a run after its step and keeps the work; one that is ignored stays ignored."""

import os
import signal

import pytest
from lora_loom.lora_core.events import Control
from lora_loom.nodes.terminal.running import SIGNALS, stopping_on_signal


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_the_first_signal_stops_after_the_step_and_the_handlers_come_back(name):
    if not hasattr(signal, name):
        pytest.skip(f"no {name} on this system")
    number, control = getattr(signal, name), Control()
    assert number in SIGNALS
    before = signal.signal(number, lambda *_: pytest.fail("the second one goes where signals went before"))
    try:
        own = signal.getsignal(number)
        with stopping_on_signal(control) as received:
            os.kill(os.getpid(), number)
            assert control.stopping
            assert received == [number]
            assert signal.getsignal(number) is own
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP on this system")
def test_a_run_behind_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        control = Control()
        with stopping_on_signal(control) as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert (control.stopping, received) == (False, [])
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_run_whose_terminal_is_closed_keeps_its_work(pictures, tmp_path):
    import json
    import subprocess
    import sys
    import time

    job = tmp_path / "job.toml"
    job.write_text(
        f'name = "hangs_up"\nsteps = 4000\nbatch_size = 1\n[data]\nfolder = {str(pictures)!r}\nresolution = 32\nbucket_step_px = 16\n'
        '[adapter]\nrank = 1\ntargets = "attention"\n[save]\nevery = 1000\n[samples]\nevery = 0\n'
    )
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "lora_loom", "train", str(job), "--out", str(tmp_path / "runs")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(theirs)
    folder = tmp_path / "runs" / "hangs_up"
    for _ in range(1200):
        if (folder / "log.jsonl").exists() and (folder / "log.jsonl").stat().st_size:
            break
        time.sleep(0.1)
    os.close(ours)  # the terminal is gone: SIGHUP, and every write to it fails
    assert child.wait(120) == 128 + signal.SIGHUP
    state = json.loads((folder / "run.json").read_text())
    assert state["outcome"] == "stopped"
    assert (folder / "hangs_up.safetensors").is_file()
