"""Memory of headless runs: pages stay with the process, in large ones."""

import subprocess
import sys

import pytest
from lora_loom.lora_core.backends.memory import keep_pages

HELD = """
import sys
if {keep}:
    sys.path.insert(0, {root!r})
    from lora_core.backends.memory import keep_pages
    assert keep_pages()
def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident_bytes()
blocks = [bytearray(b"x") * (8 << 20) for _ in range(20)]
full = resident_bytes() - before
del blocks
print((resident_bytes() - before) / full)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_stays_with_the_process(root):
    shares = []
    for keep in (False, True):
        script = HELD.format(keep=keep, root=str(root))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-1000:]
        shares.append(float(done.stdout))
    given_back, kept = shares
    assert given_back < 0.5
    assert kept > 0.8


def test_it_is_left_alone_once_torch_is_there():
    import torch  # noqa: F401

    assert not keep_pages()
