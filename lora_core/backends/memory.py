"""How memory is given out in a headless run on a CPU, where a step takes and returns gigabytes in small parts."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of glibc's mallopt
_LARGEST_THRESHOLD = 32 * 2**20


def keep_pages() -> bool:
    """Freed memory stays with the process, in large pages; says whether it could be arranged (glibc on Linux, before torch is imported).

    A step of SD1.5 then meets 60 times fewer page faults, which were 0 to 17 % of its time (`benchmarks/tricks.py`). Only for a process of our own.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or "torch" in sys.modules:
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks the kernel for large pages
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_THRESHOLD, _LARGEST_THRESHOLD), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    return all([mallopt(name, value) for name, value in settings])  # each is set, whatever the one before said
