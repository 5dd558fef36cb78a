"""No text in a setting and no file in a folder can hold or exhaust the program: two seconds of the processor, 256 MB and three times what came in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("hostile.py")
needs_posix = pytest.mark.skipif(os.name == "nt", reason="processor time is watched by POSIX signals")


def told(*arguments):
    """What the program says; a process of its own, whose memory is its own."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(result["count"], "values,", result["taken"], "taken")
    return result


@needs_posix
@pytest.mark.parametrize("share", [pytest.param(0.004, id="some"), pytest.param(1.0, id="all", marks=pytest.mark.slow)])
def test_no_value_of_a_setting_costs_more_than_is_promised_or_ends_in_a_traceback(share):
    result = told("settings", share, 1)
    assert result["wrong"] == []
    assert result["count"] > 2000
    assert result["taken"]


@needs_posix
@pytest.mark.parametrize("share", [pytest.param(0.1, id="some"), pytest.param(1.0, id="all", marks=pytest.mark.slow)])
def test_no_caption_or_table_of_a_folder_costs_more_than_is_promised_or_ends_in_a_traceback(share):
    result = told("folders", share, 1)
    assert result["wrong"] == []
    assert result["count"] > 100 * share


@needs_posix
def test_the_watch_sees_time_memory_and_tracebacks():
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\nimport hostile\nhostile.STOP_S = 3\nwatch = hostile.Watch()\n"
        "def spin():\n    while True: pass\n"
        "watch.does('spin', spin)\nwatch.does('memory', lambda: bytearray(b'x') * (400 << 20))\nwatch.does('error', lambda: 1 / 0)\n"
        "watch.does('fine', lambda: None)\nprint(chr(10).join(watch.wrong))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(PROGRAM.parent)], capture_output=True, text=True, check=True)
    words = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert words == {"spin", "memory", "error"}
