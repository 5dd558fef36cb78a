"""Makes the made-up host beside these tests importable, and its model."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def model():
    """As hosts load it: every weight an inference tensor."""
    from made_up_host import Model

    with torch.inference_mode():
        torch.manual_seed(0)
        made = Model()
        for p in made.parameters():
            p.requires_grad_(False)
    assert all(p.is_inference() for p in made.parameters())
    return made
