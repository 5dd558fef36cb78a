"""A run that was stopped goes on as if it had not been, bit for bit."""

import importlib.util
import shutil
from pathlib import Path

import pytest

STEPS = 20
JOBS = {
    "adamw": {},
    "prodigy": {"optimizer": {"name": "prodigy", "lr": 1.0}},
    "text encoder": {"text_encoder": {"train": True, "stop": 0.5}, "ema_decay": 0.9, "schedule": {"name": "cosine"}},
}


@pytest.fixture
def packages(tmp_path):
    """The package of an optimizer, which no host has, in a folder of its own."""
    found = importlib.util.find_spec("prodigyopt")
    if found is None:
        pytest.skip("prodigyopt is not installed")
    shutil.copytree(Path(found.origin).parent, tmp_path / "prodigyopt")
    return [str(tmp_path)]


@pytest.mark.parametrize("name", JOBS)
def test_a_run_stopped_after_every_step_ends_as_one_that_was_not(server, packages, name):
    found = server.inside("stopped_after_every_step", file="resuming.py", steps=STEPS, packages=packages, **JOBS[name])
    assert found["stops"] == STEPS - 1
    assert found["joined"] == found["losses"]
    assert found["parts"] == found["whole"]
