"""The Dataset Editor with two hundred pictures in a real browser, in both renderers: filters, tags, the large picture, captions by a tagger, undo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from editor_pictures import COUNT, collected
from live_server import running
from test_browser import why_not

DRIVER = Path(__file__).parent / "browser" / "editor.mjs"
sys.path.append(str(Path(__file__).parents[1] / "lora_core" / "captioning"))
RENDERERS = ("classic", "nodes2")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import tiny_captioners

    base = tmp_path_factory.mktemp("comfy") / "base"
    tiny_captioners.colour_tagger(base / "models" / "captioners" / "wd-tagger")
    with running(base) as server:
        yield server


@pytest.mark.parametrize("renderer", RENDERERS)
def test_two_hundred_pictures_are_looked_through_captioned_and_put_back(server, renderer):
    folder = collected(server.base / "input" / f"cats {renderer}")
    shots = Path(os.environ.get("SHOTS", server.base / "shots"))
    shots.mkdir(exist_ok=True)
    command = ["node", str(DRIVER), f"http://127.0.0.1:{server.port}", str(shots), renderer, folder.name]
    before = {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.stdout, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    print(renderer, seen)
    assert "failed" not in seen, seen["failed"]
    assert seen["problems"] == []

    assert {"no caption 67", "no trigger 66", "duplicate 2", "small 1", "grey 1"} <= set(seen["chips"])
    assert seen["cards"] == 60
    assert seen["duplicates"] == ["040.jpg", "041.jpg"]
    assert [severity for severity, _ in seen["notes"]] == ["look", "look"]
    assert "003.jpg" in seen["dark"]
    assert any(severity == "stop" and text.startswith("black") for severity, text in seen["grave"])
    assert seen["trained"] == "trained: zog"
    assert "watermark" not in seen["preview"][0]
    assert seen["preview"][1] == f"trained: zog, {seen['preview'][0]}"
    assert (seen["tagged"], seen["removed"], seen["after"], seen["back"]) == (66, 66, 0, 66)
    assert [text.split(" ")[0] for text in seen["large"]] == ["1", "3", "3", "2"]
    assert all(f"/ {COUNT} ·" in text for text in seen["large"])
    assert seen["closed"]
    assert [text.endswith(", typed") for text in seen["typed"]] == [True]
    assert (seen["start"], seen["empty"]) == ("Write captions", 67)
    assert "67 of 67 captions written" in seen["done"]
    assert (seen["emptyAfter"], seen["emptyUndone"]) == (0, 67)
    assert {path.name: path.read_bytes() for path in folder.glob("*.txt")} == before
