"""Memory of headless runs: pages stay with the process, in large ones."""

import os
import subprocess
import sys

import pytest
from lora_loom.lora_core.backends.memory import keep_pages

FAULTS = """
import resource, sys
if {keep}:
    sys.path.insert(0, {root!r})
    from lora_core.backends.memory import keep_pages
    assert keep_pages()
import random, torch
def faults():
    sizes, before = random.Random(0), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        held = [torch.ones(sizes.randint(200_000, 7_000_000)) for _ in range(15)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_not_given_back_and_fetched_again(root):
    counts = []
    for keep in (False, True):
        environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
        done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep, root=str(root))], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-1000:]
        counts.append(int(done.stdout))
    assert counts[1] < counts[0] / 10, counts


def test_it_is_left_alone_once_torch_is_there():
    import torch  # noqa: F401

    assert not keep_pages()
