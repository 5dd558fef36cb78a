import os
import random

import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data import folder as folder_module
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.errors import LoomError
from PIL import Image


def put(root, name, caption=None, size=(64, 64)):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def scanned(root, **settings):
    return scan(DataConfig(folder=str(root), resolution=64, bucket_step_px=32, **settings))


def test_pictures_and_their_captions_are_found_in_sorted_order_with_their_sizes(tmp_path):
    put(tmp_path, "b.png", "second", (96, 64))
    put(tmp_path, "a.jpg", "first")
    put(tmp_path, "sub/c.webp", "third")
    found = scanned(tmp_path).pictures
    assert [(p.name, p.caption, p.repeats) for p in found] == [("a.jpg", "first", 1), ("b.png", "second", 1), ("sub/c.webp", "third", 1)]
    assert (found[1].width_px, found[1].height_px) == (96, 64)
    assert [p.name for p in scanned(tmp_path, recursive=False).pictures] == ["a.jpg", "b.png"]


def test_kohya_folders_give_repeats_and_stand_in_for_missing_captions(tmp_path):
    put(tmp_path, "12_my zog/a.png")
    put(tmp_path, "12_my zog/b.png", "a caption")
    put(tmp_path, "3_/c.png")
    put(tmp_path, "7_x/deeper/d.png")
    put(tmp_path, "plain_4/e.png", "e")
    found = {p.name: (p.repeats, p.caption) for p in scanned(tmp_path).pictures}
    assert found == {
        "12_my zog/a.png": (12, "my zog"), "12_my zog/b.png": (12, "a caption"), "3_/c.png": (3, ""), "7_x/deeper/d.png": (7, "x"), "plain_4/e.png": (1, "e"),
    }  # fmt: skip


def test_the_repeats_setting_goes_before_the_folder_name(tmp_path):
    put(tmp_path, "12_zog/a.png")
    assert scanned(tmp_path, repeats=3).pictures[0].repeats == 3


def test_a_folder_named_for_zero_or_absurd_repeats_is_skipped_with_the_reason(tmp_path):
    put(tmp_path, "0_off/a.png")
    put(tmp_path, "20250101_trip/b.png")
    put(tmp_path, "c.png", "c")
    data = scanned(tmp_path)
    assert [p.name for p in data.pictures] == ["c.png"]
    assert dict(data.skipped) == {
        "0_off/a.png": "its folder asks for 0 repeats; 1 to 1000 are allowed",
        "20250101_trip/b.png": "its folder asks for 20250101 repeats; 1 to 1000 are allowed",
    }


@pytest.mark.parametrize("missing", ["", "nowhere"])
def test_a_missing_folder_is_one_sentence(missing, tmp_path):
    folder = str(tmp_path / missing) if missing else ""
    with pytest.raises(LoomError, match=r"data\.folder: there is no folder .*; choose one that holds your pictures\."):
        scan(DataConfig(folder=folder))


def test_an_empty_folder_is_one_sentence_that_lists_the_types(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(LoomError, match=rf"data\.folder: '{tmp_path.name}' holds no usable picture; put in pictures of type .*jpg.*png"):
        scanned(tmp_path)


def test_a_folder_with_nothing_but_broken_pictures_says_why(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    put(tmp_path, "b.png", size=(20, 64))
    with pytest.raises(LoomError) as caught:
        scanned(tmp_path)
    assert "a.png cannot be read as a picture" in str(caught.value)
    assert "b.png is 20 x 64 px, smaller than the smallest bucket (32 px)" in str(caught.value)


def test_broken_and_tiny_pictures_are_skipped_by_name_and_the_rest_used(tmp_path):
    put(tmp_path, "good.png", "x")
    put(tmp_path, "tiny.png", size=(64, 31))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "web.jpg").write_bytes(b"<html>")
    data = scanned(tmp_path)
    assert [p.name for p in data.pictures] == ["good.png"]
    assert [name for name, _ in data.skipped] == ["empty.png", "tiny.png", "web.jpg"]
    assert "skipped empty.png: cannot be read as a picture" in data.summary()
    assert data.summary().startswith("1 pictures, 1 per epoch with repeats, 3 skipped")


def test_captions_without_a_picture_are_named(tmp_path):
    put(tmp_path, "a.png", "x")
    (tmp_path / "b.txt").write_text("left over")
    (tmp_path / "c.caption").write_text("left over")
    assert scanned(tmp_path).warnings == ("2 caption files without a picture, e.g. b.txt, c.caption",)


def test_captions_named_after_the_whole_file_name_are_found_and_are_no_orphans(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "a.png.txt").write_text("whole name")
    data = scanned(tmp_path)
    assert (data.pictures[0].caption, data.warnings) == ("whole name", ())


def test_pictures_without_caption_are_named_and_take_the_trigger(tmp_path):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png", " \n")
    put(tmp_path, "c.png", "red")
    bare, triggered = scanned(tmp_path), scanned(tmp_path, trigger="zog")
    assert [p.caption for p in bare.pictures] == ["", "", "red"]
    assert bare.warnings == ("2 without caption, e.g. a.png, b.png: trained with an empty caption (set a trigger word to give them one)",)
    assert [p.caption for p in triggered.pictures] == ["zog", "zog", "zog, red"]
    assert triggered.warnings == ("2 without caption, e.g. a.png, b.png: trained with the trigger 'zog'",)


def test_the_caption_source_decides_which_file_is_read(tmp_path):
    put(tmp_path, "Red_dog-12.png", "from txt")
    (tmp_path / "Red_dog-12.caption").write_text("from caption")
    sources = {source: scanned(tmp_path, captions=source).pictures[0].caption for source in ("auto", ".txt", ".caption", "file name", "none")}
    assert sources == {"auto": "from txt", ".txt": "from txt", ".caption": "from caption", "file name": "Red dog", "none": ""}


def test_an_empty_txt_falls_back_to_the_caption_file(tmp_path):
    put(tmp_path, "a.png", "")
    (tmp_path / "a.caption").write_text("second choice")
    assert scanned(tmp_path).pictures[0].caption == "second choice"


def test_small_pictures_are_named_but_kept(tmp_path):
    put(tmp_path, "a.png", "x", (40, 40))
    data = scanned(tmp_path)
    assert len(data.pictures) == 1
    assert data.warnings == ("1 smaller than 64 px squared, e.g. a.png: kept at their size, not scaled up",)


def test_a_loop_of_links_ends_and_finds_every_picture_once(tmp_path):
    put(tmp_path, "sub/a.png", "x")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "sub" / "self").symlink_to(tmp_path / "sub")
    assert [p.name for p in scanned(tmp_path).pictures] == ["sub/a.png"]


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "private"
    put(root, "a.png", "x")
    put(outside, "secret.png", "y")
    (root / "folder").symlink_to(outside)
    (root / "file.png").symlink_to(outside / "secret.png")
    (root / "nothing.png").symlink_to(tmp_path / "nowhere")
    assert [p.name for p in scanned(root).pictures] == ["a.png"]


def test_hidden_files_and_folders_are_left_alone(tmp_path):
    put(tmp_path, "a.png", "x")
    put(tmp_path, ".cache/b.png")
    put(tmp_path, "._a.png")
    assert [p.name for p in scanned(tmp_path).pictures] == ["a.png"]


def test_the_order_does_not_depend_on_how_the_system_lists_a_folder(tmp_path, monkeypatch):
    for name in ("b.png", "a.png", "sub/z.png", "sub/y.png", "other/x.png", "10.png", "9.png"):
        put(tmp_path, name, name)
    expected = [p.name for p in scanned(tmp_path).pictures]
    original = os.scandir

    class Shuffled:
        def __init__(self, path, rng):
            with original(path) as entries:
                self.entries = list(entries)
            rng.shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            pass

    for seed in range(5):
        rng = random.Random(seed)
        monkeypatch.setattr(folder_module.os, "scandir", lambda path, rng=rng: Shuffled(path, rng))
        assert [p.name for p in scanned(tmp_path).pictures] == expected
    assert len(expected) == 7
