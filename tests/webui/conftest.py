"""Tests inside real WebUIs: A1111, Forge, reForge and Forge classic at $WEBUI_DIR, $FORGE_DIR, $REFORGE_DIR, $FORGE_CLASSIC_DIR, else below ~/webui.

Only when asked for: pytest tests/webui.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from live_webui import KINDS, running  # noqa: E402


def pytest_ignore_collect(collection_path, config):
    """Everything here, unless an argument names this folder or something in it: starting four hosts is nothing for the default tests."""
    if not collection_path.is_relative_to(HERE):
        return None
    paths = [Path(str(a).partition("::")[0]) for a in config.invocation_params.args if not str(a).startswith("-")]
    asked = any((config.invocation_params.dir / path).resolve().is_relative_to(HERE) for path in paths)
    return None if asked else True


@pytest.fixture(scope="session", params=list(KINDS))
def kind(request):
    """Each WebUI that is here, one after the other."""
    found = KINDS[request.param]
    if reason := found.missing():
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def server(kind, tmp_path_factory):
    """The host with a narrow Stable Diffusion 1, without its page."""
    yield from running(kind, tmp_path_factory.mktemp(kind.folder))


@pytest.fixture(scope="session")
def pictures(server):
    """A folder of six captioned pictures that the host can read."""
    return server.inside("pictures")


def pytest_collection_modifyitems(items):
    """A share of these tests is one of each file, as of slow tests: each starts or uses a host."""
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
