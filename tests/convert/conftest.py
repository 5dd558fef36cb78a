"""Makes `lora_cases` importable, as `tests/` has no packages, and spares PEFT what no test reads."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def _no_model_cards():
    """PEFT writes a model card beside every adapter it saves, which takes longer than the adapter."""
    from peft import PeftModel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeftModel, "create_or_update_model_card", lambda self, folder: None)
        yield
