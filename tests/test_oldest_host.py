"""A ComfyUI that is too old is told so in one sentence, before anything of it is imported."""

from __future__ import annotations

import sys
import types

import pytest
from lora_loom.nodes import require_host


@pytest.mark.parametrize(
    ("version", "fits"), [("0.3.64", False), ("0.4.0", True), ("0.33.0", True), ("1.0.0rc1", True)]
)
def test_too_old_a_host_is_refused_by_version(monkeypatch, version, fits):
    monkeypatch.setitem(sys.modules, "comfyui_version", types.SimpleNamespace(__version__=version))
    if fits:
        require_host()
    else:
        with pytest.raises(RuntimeError, match="needs ComfyUI 0.4.0 or newer, this is 0.3.64; update ComfyUI"):
            require_host()


def test_a_host_that_does_not_tell_its_version_is_tried(monkeypatch):
    monkeypatch.setitem(sys.modules, "comfyui_version", None)
    require_host()
