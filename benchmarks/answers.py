"""How soon a server answers a person: the figures that the tests inside ComfyUI take and do not judge by.

PYTHON_OF_COMFYUI benchmarks/answers.py        about five minutes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import engines

TESTS = (
    "test_datasets.py::test_a_thousand_pictures_are_listed",
    "test_http.py::test_a_second_click_takes_its_first_step_before_the_first_run_would_be_through",
    "test_panel.py::test_the_state_comes_back_from_disk_after_the_server_died",
    "test_runs.py::test_300_runs_are_listed_and_listing_them_again_costs_less",
    "test_sd15.py::test_sd15_template_trains_a_real_size_checkpoint",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "figures.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", *(f"tests/host/{test}" for test in TESTS)]
        subprocess.run(command, cwd=engines.ROOT, env={**os.environ, "LOOM_FIGURES": str(file)}, check=True)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    engines.written("answers", "a local server, one request or run each", rows=rows)


if __name__ == "__main__":
    main()
