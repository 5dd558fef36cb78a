"""Makes the tiny models beside these tests importable, and opens one of each headless family."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """`models(kind)` -> (folder, its backend): a tiny model with random weights of each headless family, Würstchen with another picture encoder."""
    import tiny_flow
    import tiny_stages
    import tiny_unet
    from lora_loom.lora_core.backends.effnet import EfficientNet
    from lora_loom.lora_core.backends.opening import open_backend

    place, effnet = tmp_path_factory.mktemp("headless"), tiny_stages.TinyEncoder()

    @functools.cache
    def stages(name):
        return getattr(tiny_stages, name)(place)

    @functools.cache
    def made(kind):
        if kind in tiny_unet.MAKERS:
            folder, other = tiny_unet.saved(kind, place), ""
        elif kind.split()[-1] in ("prior", "decoder"):
            first, second = stages(kind.split()[0])
            folder, other = (first, second) if kind.endswith("prior") else (second, first)
        else:
            folder, other = tiny_flow.saved(kind, place), ""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EfficientNet, "read", staticmethod(lambda folder, field="base": effnet))
            return folder, open_backend(str(folder), str(other), device="cpu")

    return made
