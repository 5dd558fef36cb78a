"""The toy's folder with another scheduler."""

import json
import shutil
from pathlib import Path

from shapes import MODEL


def toy_with_schedule(place: Path, name: str = "base", **changes) -> Path:
    """A copy below `place` called `name`; None takes an entry of the scheduler's config away."""
    folder = shutil.copytree(MODEL, place / name)
    file = folder / "scheduler" / "scheduler_config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder
