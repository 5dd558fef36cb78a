"""No LoRA, embedding or checkpoint file can hold or exhaust the program: two seconds beyond reading it, 256 MB and three times the file.

All of them: python tests/hostile_files.py 1.0 1, which takes hours.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("hostile_files.py")
needs_posix = pytest.mark.skipif(os.name == "nt", reason="processor time is watched by POSIX signals")


@needs_posix
@pytest.mark.parametrize(
    "share", [pytest.param(0.008, id="some"), pytest.param(0.05, id="more", marks=pytest.mark.slow)]
)
def test_no_file_costs_more_than_is_promised_or_ends_in_a_traceback(share):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM), str(share), "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(result["count"], "operations,", result["taken"], "done")
    assert result["wrong"] == []
    assert result["count"] > 2000 * share
    assert result["taken"]
