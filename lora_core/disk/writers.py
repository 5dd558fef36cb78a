"""Who writes: a mark that goes into the name of a temporary file, and whether the process behind such a mark is gone."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
from pathlib import Path

_MARK = re.compile(r"([0-9a-f]{6})([0-9a-f]{6})([0-9a-f]{6})-(\d{1,10})-(\d{1,20})")
_STILL_ACTIVE, _QUERY = 259, 0x1000  # of Windows: STILL_ACTIVE, PROCESS_QUERY_LIMITED_INFORMATION


def mark() -> str:
    """This process: its machine, start of the machine, space of process numbers, number and start."""
    pid = os.getpid()
    return f"{''.join(_place())}-{pid}-{_started(pid) or 0}"


def is_gone(text: str) -> bool | None:
    """Whether the process whose mark begins `text` has ended; None where that cannot be known from here."""
    match = _MARK.match(text)
    if match is None:
        return None
    machine, boot, space = _place()
    if match[1] != machine:
        return None
    if match[2] != boot:
        return True  # the machine was started anew since
    if match[3] != space:
        return None
    pid, started = int(match[4]), int(match[5])
    return not is_alive(pid) or (started != 0 and _started(pid) not in (None, started))


@functools.cache
def _place() -> tuple[str, str, str]:
    """(machine, its start, space of process numbers), six digits each."""
    boot = space = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = os.readlink("/proc/self/ns/pid")
    machine, boot, space = (hashlib.sha256(part.encode()).hexdigest()[:6] for part in (platform.node(), boot, space))
    return machine, boot, space


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine; one that only waits for its parent to notice its end does not."""
    if os.name == "nt":
        return _is_alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return _fields(pid)[:1] != ["Z"]


def _is_alive_on_windows(pid: int) -> bool:
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle = kernel.OpenProcess(_QUERY, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == _STILL_ACTIVE


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the machine's start; None where the system does not tell."""
    fields = _fields(pid)
    return int(fields[19]) if len(fields) > 19 else None


def _fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: field 3 of the manual page is the first here."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
