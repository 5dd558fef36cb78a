"""Pictures dropped on ComfyUI's page, in a real browser and in both renderers, as far as a trained file. Needs what test_browser.py needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from in_browser import seen_by, shots_in, why_not
from live_server import running
from PIL import Image

DRIVER = Path(__file__).parent / "browser" / "drop.mjs"
RENDERERS = ("classic", "nodes2")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


def photos(folder: Path, seed: int) -> Path:
    """28 files as they come from a phone: good ones, a broken one, an empty one, a page, a video, a black one, turned and CMYK ones."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)

    def picture(width: int = 128, height: int = 96) -> Image.Image:
        small = rng.integers(0, 255, (6, 8, 3), np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)

    for n in range(19):
        picture().save(folder / f"IMG_{n:04}.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture().save(folder / "IMG_0100.jpg", exif=turned)
    picture(400, 70).save(folder / "panorama.jpg")
    picture().convert("CMYK").save(folder / "cmyk.jpg")
    picture().convert("L").save(folder / "grey.png")
    Image.new("RGB", (128, 96)).save(folder / "black.png")
    (folder / "broken.jpg").write_bytes((folder / "IMG_0000.jpg").read_bytes()[:60])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.html").write_text("<html></html>")
    (folder / "video.mp4").write_bytes(b"\0" * 500)
    assert len(list(folder.iterdir())) == 28
    return folder


def driven(server, renderer: str, scenario: str, folder: Path) -> dict:
    """What the browser saw. Screenshots go to $SHOTS, else beside the server's files."""
    address, shots = f"http://127.0.0.1:{server.port}", shots_in(server.base / "shots")
    return seen_by(DRIVER, address, shots, renderer, scenario, folder)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_files_of_a_phone_on_an_empty_canvas_become_a_graph_that_trains(server, tmp_path, renderer):
    seen = driven(server, renderer, "empty", photos(tmp_path / "phone", 1 + RENDERERS.index(renderer)))
    folder = seen["loader"]["folder"]
    assert folder.startswith("pictures ")
    assert len(list((server.base / "input" / folder).iterdir())) == 27
    assert "24 pictures" in seen["card"]
    assert "broken.jpg" in seen["card"]
    assert "page.html" in seen["card"]
    assert "24 pictures" in seen["report"]
    assert all(seen["train"]["inputs"][name] for name in ("model", "clip", "vae", "dataset"))
    assert "none of the" in seen["refused"]
    assert seen["files"] == [f"{folder}.safetensors"]
    assert seen["clicks"] <= 4
    assert seen["typed"] <= 2


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_folder_on_the_node_is_chosen_there(server, tmp_path, renderer):
    folder = photos(tmp_path / f"on node {renderer}", 3 + RENDERERS.index(renderer))
    (folder / "IMG_0001.txt").write_text("a cat")
    seen = driven(server, renderer, "node", folder)
    assert (seen["nodes"], seen["loader"]["folder"]) == (1, folder.name)
    assert (server.base / "input" / folder.name / "IMG_0001.txt").read_text() == "a cat"
    assert seen["saved"][0] == folder.name
    widgets = server.get("/object_info/LoraLoomLoadFolder")["LoraLoomLoadFolder"]["input"]
    assert len(seen["saved"]) == len({**widgets["required"], **widgets.get("optional", {})})  # none of the button
    assert seen["button"] == "Add pictures…"
    assert "'/etc' is not below ComfyUI's input folder" in seen["typed_path"]


def test_the_same_folder_twice_is_sent_once(server, tmp_path):
    seen = driven(server, "classic", "again", photos(tmp_path / "twice", 5))
    assert (seen["first"] > 0, seen["second"]) == (True, 0)
    assert "twice already" in seen["card"]


def test_cancel_leaves_nothing_on_the_server(server, tmp_path):
    before = sorted(server.base.glob("input/*"))
    seen = driven(server, "classic", "cancel", photos(tmp_path / "cancelled", 6))
    assert "Nothing was kept" in seen["card"]
    assert seen["nodes"] == 0
    assert sorted(server.base.glob("input/*")) == before
    assert not (server.base / "input" / ".lora_loom_uploads").exists()


def test_a_single_picture_on_the_canvas_stays_comfyuis(server, tmp_path):
    assert driven(server, "classic", "left", photos(tmp_path / "one", 7))["cards"] == 0


def test_pasted_pictures_become_a_folder_and_a_graph_and_text_fields_keep_what_is_pasted_into_them(server, tmp_path):
    seen = driven(server, "classic", "paste", photos(tmp_path / "pasted", 8))
    assert (seen["in_text"], seen["cards_before"], seen["taken"]) == (False, 0, True)
    folder = seen["loader"]["folder"]
    assert len(list((server.base / "input" / folder).iterdir())) == 6
    assert "6 pictures" in seen["card"]
    assert seen["loader"]["selected"]
    assert seen["train"]["inputs"]["dataset"]
