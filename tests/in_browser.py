"""Scripts that drive chromium on one of our pages: what they need, and what they saw."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any


def why_not() -> str:
    """What is missing for a real browser; empty where nothing is. Looked for in $CHROMIUM and $PLAYWRIGHT_CORE."""
    if not shutil.which("node"):
        return "node is not installed"
    if not Path(os.environ.get("CHROMIUM", "/usr/bin/chromium")).exists():
        return "chromium is not installed; set CHROMIUM"
    code = "require(process.env.PLAYWRIGHT_CORE || 'playwright-core')"
    done = subprocess.run(["node", "-e", code], cwd=Path(__file__).parent, capture_output=True, check=False)
    return "" if done.returncode == 0 else "playwright-core is not installed; set PLAYWRIGHT_CORE to its folder"


def shots_in(folder: Path) -> Path:
    """Where screenshots go: $SHOTS, else `folder`."""
    return Path(os.environ.get("SHOTS", folder))


def seen_by(
    driver: Path, address: str, shots: Path, *arguments: str | Path, seconds: int = 420, **environment: str
) -> dict[str, Any]:
    """What the script saw at that address, nothing of it a problem. Screenshots go to the folder `shots`."""
    shots.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["node", str(driver), address, str(shots), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.stdout, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert "failed" not in seen, seen
    assert seen["problems"] == []
    print(driver.stem, *arguments, seen)
    return seen
