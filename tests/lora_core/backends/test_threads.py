"""Processor threads of our own process: how they wait, how many there are, and whose word counts."""

import os
import subprocess
import sys

import pytest
import torch
from lora_loom.lora_core.backends import threads
from lora_loom.nodes.jobs.headless import open_base

POLICY = """
import os, sys
seen = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            seen.append(os.environ.get("OMP_WAIT_POLICY"))
sys.meta_path.insert(0, Finder())
from lora_loom.__main__ import main
main(["check", "no such job.toml"])
print(seen[:1])
"""


@pytest.mark.parametrize(("asked", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(asked, policy):
    env = {k: v for k, v in os.environ.items() if not k.startswith("OMP_WAIT")}
    env |= {"OMP_WAIT_POLICY": asked} if asked else {}
    done = subprocess.run([sys.executable, "-c", POLICY], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == f"['{policy}']", done.stderr[-1000:]


@pytest.fixture
def two_threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_small_model_takes_one_thread(toy_config):
    open_base(toy_config(), "cpu")
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("two_threads")
def test_a_large_model_a_device_and_the_users_word_change_nothing(monkeypatch):
    small, large = torch.nn.Linear(2, 2), torch.nn.Linear(threads.SMALL // 1000, 1000, device="meta")
    threads.suit_threads(large, torch.device("cpu"))
    threads.suit_threads(small, torch.device("cuda"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # as use_threads sets it
    threads.suit_threads(small, torch.device("cpu"))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_what_the_terminal_asks_for_is_kept_when_the_model_is_opened(toy_config, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads.use_threads(2)
    open_base(toy_config(), "cpu")
    assert torch.get_num_threads() == 2
