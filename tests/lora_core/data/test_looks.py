"""What a picture looks like in numbers, how grave notes are, and that all who count pictures count the same."""

import dataclasses

import numpy as np
import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data import looks
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.lint import beside_loaded, look
from lora_loom.lora_core.data.sheet import COLOURS, sheet
from lora_loom.lora_core.messages.message import Message, table
from PIL import Image

SIZE = 128


def scene(seed, tint=(1.0, 1.0, 1.0)):
    """A soft coloured picture with detail."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(70, 190, (6, 6, 3), np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, np.float32) + rng.normal(0, 20, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(pixels * np.array(tint), 0, 255).astype(np.uint8))


def looked_at(folder, **data):
    config = DataConfig(folder=str(folder), **{"resolution": SIZE, "bucket_step_px": 64, **data})
    return look(scan(config), None, lambda n, of: None)


def codes(report, name):
    return [note.code for note in report.notes.get(name, []) if note.code != "lint.no_caption"]


def scaled(image, factor):
    return image.point(lambda value: int(value * factor))


def test_black_dark_plain_and_grey_pictures_are_found_and_a_lit_night_is_not(tmp_path):
    for n in range(9):
        scene(n).save(tmp_path / f"good {n}.png")
    scaled(scene(20), 0.02).save(tmp_path / "black.png")
    scaled(scene(21), 0.2).save(tmp_path / "dark.png")
    Image.new("RGB", (SIZE, SIZE), (200, 60, 40)).save(tmp_path / "plain.png")
    scene(22).convert("L").save(tmp_path / "grey.png")
    night = scaled(scene(23), 0.02)
    night.paste((250, 240, 200), (30, 30, 60, 60))
    night.save(tmp_path / "night.png")
    report = looked_at(tmp_path)
    assert codes(report, "black.png") == ["lint.black"]
    assert codes(report, "dark.png")[0] == "lint.dark"
    assert "lint.flat" in codes(report, "plain.png")
    assert "lint.grey" in codes(report, "grey.png")
    assert not {"lint.black", "lint.dark", "lint.flat"} & set(codes(report, "night.png"))
    assert all(not codes(report, f"good {n}.png") for n in range(9))
    assert report.gravity("black.png") == "stop"
    assert report.gravity("good 0.png") in ("look", "note")


def test_a_set_that_is_grey_has_no_grey_ones():
    tone = looks.tone(scene(1).convert("L"))
    coloured = looks.tone(scene(1))
    assert looks.grey_ones({"a": tone, "b": tone, "c": coloured}) == []
    assert looks.grey_ones({"a": tone, "b": coloured, "c": coloured}) == ["a"]


def test_the_one_that_does_not_belong_is_found_and_a_varied_set_has_none(tmp_path):
    for n in range(20):
        scene(n, (1.2, 1.0, 0.7)).save(tmp_path / f"{n:02}.png")
    assert not any("lint.odd" in codes(looked_at(tmp_path), f"{n:02}.png") for n in range(20))
    scene(50, (0.2, 0.4, 1.7)).save(tmp_path / "odd.png")
    report = looked_at(tmp_path)
    assert codes(report, "odd.png") == ["lint.odd"]
    assert [name for name in report.notes if "lint.odd" in codes(report, name)] == ["odd.png"]
    varied = {
        str(n): np.asarray(scene(n, np.random.default_rng(n).uniform(0.3, 1.5, 3)).resize((16, 16)), np.float32)
        for n in range(30)
    }
    assert len(looks.odd_ones(varied)) <= 1
    assert looks.odd_ones(dict(list(varied.items())[:5])) == []


class Detector:
    """Finds what it is told to."""

    def __init__(self, *widths):
        self.boxes = [(0, 0, width, width) for width in widths]

    def detectMultiScale(self, image, **options):  # noqa: N802 - as OpenCV spells it
        assert image.ndim == 2
        return np.array(self.boxes)


def test_small_and_several_faces_are_told_in_a_set_of_people_alone():
    found = {
        f"{n}": looks.faces(Image.new("RGB", (400, 400)), Detector(*widths))
        for n, widths in enumerate([(200,), (30,), (90, 80), (90, 20), ()])
    }
    assert found["2"] == [0.225, 0.2]
    notes = looks.about_faces(found, of_person=False)
    assert {name: note.code for name, note in notes.items()} == {"1": "lint.face_small", "2": "lint.faces_several"}
    few = {"0": [0.5], "1": [], "2": [], "3": [0.3, 0.3]}
    assert looks.about_faces(few, of_person=False) == {}
    assert set(looks.about_faces(few, of_person=True)) == {"3"}


def test_without_opencv_a_set_of_people_is_told_that_faces_were_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "_OF_THREAD", type("Local", (), {})())
    monkeypatch.setattr(looks, "_opened_detector", lambda: None)
    for n in range(3):
        scene(n).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text("a woman in a park")
    assert "lint.faces_not_looked_for" in [note.code for note in looked_at(tmp_path).general]
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text("a teapot")
    assert "lint.faces_not_looked_for" not in [note.code for note in looked_at(tmp_path).general]


def test_opencv_s_own_detector_is_used_from_many_threads(tmp_path):
    pytest.importorskip("cv2")
    looks._OF_THREAD.__dict__.clear()
    if looks.face_detector() is None:
        pytest.skip("this OpenCV has no detector of its own")
    for n in range(16):
        scene(n).save(tmp_path / f"{n}.png")
    assert all(sight.faces == [] for sight in looked_at(tmp_path).seen.values())


def test_a_face_is_found_in_a_photograph_also_far_away_and_none_where_none_is():
    """Of scikit-image's pictures: the astronaut is NASA's and in the public domain, cat and coffee are CC0."""
    pytest.importorskip("cv2")
    data = pytest.importorskip("skimage.data")
    looks._OF_THREAD.__dict__.clear()
    detector = looks.face_detector()
    if detector is None:
        pytest.skip("this OpenCV has no detector of its own")
    astronaut, cat, coffee = (Image.fromarray(make()) for make in (data.astronaut, data.chelsea, data.coffee))
    assert [round(side, 1) for side in looks.faces(astronaut, detector)] == [0.2]
    assert looks.faces(cat, detector) == looks.faces(coffee, detector) == []
    far = coffee.resize((1024, 1024))
    far.paste(astronaut.crop((150, 0, 300, 200)).resize((90, 120)), (400, 400))
    [small] = looks.faces(far, detector)
    assert small < looks.SMALL_FACE


def test_every_note_has_a_gravity_and_only_what_stops_is_red(tmp_path):
    for code in table("en"):
        if code.startswith("lint."):
            assert looks.severity(Message(code)) in COLOURS
    assert {*looks.GRAVE, *looks.SLIGHT, *looks.NOTE_FILTERS} <= table("en").keys()
    scene(1).resize((80, 80)).save(tmp_path / "small.png")
    scene(2).save(tmp_path / "good.png")

    def reds(picture):
        pixels = np.asarray(picture.convert("RGB"), int)
        return int(((np.abs(pixels - np.array(COLOURS["stop"])).sum(-1)) < 30).sum())

    report = looked_at(tmp_path)
    assert report.gravity("small.png") == "look"  # it has no caption either
    assert reds(sheet(report)) == 0
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "black.png")
    assert reds(sheet(looked_at(tmp_path))) > 20


def test_heic_comes_first_and_in_one_line_where_its_package_lacks(tmp_path, monkeypatch):
    scene(1).save(tmp_path / "a.png")
    for n in range(5):
        (tmp_path / f"IMG_{n}.heic").write_bytes(b"\0" * 50)
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    lines = [str(line) for line in scan(DataConfig(folder=str(tmp_path), resolution=64, bucket_step_px=8)).messages()]
    assert lines[1].startswith("HEIC: 5 pictures are skipped")
    assert sum("IMG_" in line for line in lines) == 0


def test_loader_sheet_and_editor_count_the_same(tmp_path):
    from lora_loom.lora_core.data.edits import listed

    for n in range(4):
        scene(n).save(tmp_path / f"{n}.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:700])
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    config = DataConfig(folder=str(tmp_path), resolution=64, bucket_step_px=8)
    loaded, report = scan(config), look(scan(config), None, lambda n, of: None)
    assert len(listed(tmp_path, config)) == len(loaded.pictures) == 5
    assert (report.counts().values["pictures"], report.counts().values["skipped"]) == (4, 2)
    assert report.notes["broken.jpg"][0].code == "lint.left_out"
    assert report.gravity("broken.jpg") == "stop"
    assert str(report.messages()[0]) == str(report.counts())
    scene(9).resize((30, 40)).save(tmp_path / "tiny.png")  # loaded, and too small for buckets of 64 px
    loaded = scan(config)
    sized = dataclasses.replace(config, resolution=SIZE, bucket_step_px=64)
    compared = beside_loaded(look(scan(sized), None, lambda n, of: None), loaded)
    assert compared.general[0].values == {"count": 2, "loaded": 6, "names": ("broken.jpg", "tiny.png")}
    assert looks.severity(compared.general[0]) == "stop"
    assert len(listed(tmp_path, config)) == len(loaded.pictures) == compared.counts().values["pictures"] + 2
    assert not compared.good
