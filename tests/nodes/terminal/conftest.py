"""Makes `lora_cases` of tests/convert importable: `tests/` has no packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "convert"))
