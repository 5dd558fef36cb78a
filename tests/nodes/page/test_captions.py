"""Captions as a job of the page: no name, no base and no model of the host's are asked for."""

import sys
import time
from pathlib import Path

import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.messages.errors import LoomError, Problem
from lora_loom.nodes.jobs.publishing import Shelf
from lora_loom.nodes.page.desk import Desk, Order
from lora_loom.nodes.page.works import WORKS
from lora_loom.nodes.ui.alone import AloneHost

sys.path.append(str(Path(__file__).parents[2] / "lora_core" / "captioning"))
TAGGER = "captioners/wd/model.onnx"


@pytest.fixture
def desk(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import tiny_captioners

    tiny_captioners.colour_tagger(tmp_path / "page" / "models" / "captioners" / "wd")
    (tmp_path / "set").mkdir()
    for n, colour in enumerate(tiny_captioners.COLOURS):
        tiny_captioners.picture(colour).save(tmp_path / "set" / f"{n}.png")
    (tmp_path / "set" / "1.txt").write_text("mine")
    return Desk(AloneHost(tmp_path / "page", Shelf(tmp_path / "l", tmp_path / "e"), ["toy"], "en"), WORKS)


def opened(desk, folder):
    return desk.editors.open((DataConfig(folder=str(folder), resolution=16, bucket_step_px=8),))


def ended(desk):
    deadline = time.monotonic() + 600
    while desk.busy and time.monotonic() < deadline:
        time.sleep(0.02)
    return desk.panels.find("page", "").snapshot()


def test_a_tagger_of_the_host_s_folders_captions_the_open_dataset(desk, tmp_path):
    session = opened(desk, tmp_path / "set")
    more = {"session": session, "captioner": TAGGER, "subject": "character", "leave_out": "^_^"}
    desk.add(Order(work="caption", more=more))
    panel = ended(desk)
    assert panel["status"] == "finished", panel["error"]
    assert panel["result"]["lines"][0]["values"] == {"written": 3, "total": 3}
    captions = {p["name"]: p["caption"] for p in desk.editors.contents(session)["pictures"]}
    assert captions["0.png"] == "red background"
    assert captions["1.png"] == "mine"
    assert desk.editors.take_back(session) == 3
    assert {path.name for path in (tmp_path / "set").glob("*.txt")} == {"1.txt"}


@pytest.mark.parametrize(
    ("more", "code"),
    [({"captioner": "/etc/passwd"}, "captioning.unknown"), ({"captioner": TAGGER, "session": "no"}, "editor.not_open"),
     ({"captioner": TAGGER, "which": "x"}, "setting.choice"), ({"captioner": TAGGER, "session": None}, "editor.not_open")],
)  # fmt: skip
def test_what_cannot_be_done_is_told_before_its_turn(desk, more, code):
    with pytest.raises((LoomError, Problem)) as error:
        desk.add(Order(work="caption", more=more))
    assert error.value.message.code == code
    assert not desk.busy
