import io
import os
import random
import shutil
import subprocess
import sys

import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data import folder as folder_module
from lora_loom.lora_core.data.dataset import require_captions
from lora_loom.lora_core.data.folder import open_sets, scan
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.optim.optimizers import filled
from lora_loom.lora_core.runs.checkpoints import latest
from lora_loom.lora_core.training.continuing import refuse_changes
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
    assert [(p.name, p.caption, p.repeats) for p in found] == [
        ("a.jpg", "first", 1),
        ("b.png", "second", 1),
        ("sub/c.webp", "third", 1),
    ]
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


def test_zero_repeats_are_skipped_with_the_reason_and_a_date_is_no_number_of_repeats(tmp_path):
    put(tmp_path, "0_off/a.png")
    put(tmp_path, "20250101_trip/b.png")
    put(tmp_path, "c.png", "c")
    data = scanned(tmp_path)
    assert [(p.name, p.repeats) for p in data.pictures] == [("20250101_trip/b.png", 1), ("c.png", 1)]
    assert {name: str(reason) for name, reason in data.skipped} == {
        "0_off/a.png": "its folder asks for 0 repeats; 1 to 1000 are allowed"
    }


@pytest.mark.parametrize("missing", ["", "nowhere"])
def test_a_missing_folder_is_one_sentence(missing, tmp_path):
    folder = str(tmp_path / missing) if missing else ""
    with pytest.raises(LoomError, match=r"data\.folder: there is no folder .*; choose one that holds your pictures\."):
        scan(DataConfig(folder=folder))


def test_an_empty_folder_is_one_sentence_that_lists_the_types(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        LoomError, match=rf"data\.folder: '{tmp_path.name}' holds no usable picture; put in pictures of type .*jpg.*png"
    ):
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
    assert data.summary().startswith("1 picture, 1 per epoch with repeats, 3 skipped")


def test_captions_without_a_picture_are_named(tmp_path):
    put(tmp_path, "a.png", "x")
    (tmp_path / "b.txt").write_text("left over")
    (tmp_path / "c.caption").write_text("left over")
    assert [*map(str, scanned(tmp_path).warnings)] == ["2 caption files without a picture, e.g. b.txt, c.caption"]


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
    assert [*map(str, bare.warnings)] == [
        "2 without caption, e.g. a.png, b.png: trained with an empty caption (unless you set data.trigger)"
    ]
    assert [p.caption for p in triggered.pictures] == ["zog", "zog", "zog, red"]
    assert [*map(str, triggered.warnings)] == [
        "2 without caption, e.g. a.png, b.png: trained with the trigger 'zog'",
        "1 of 3 captions lacks the trigger 'zog', e.g. c.png: it is put in front",
    ]


def test_the_caption_source_decides_which_file_is_read(tmp_path):
    put(tmp_path, "Red_dog-12.png", "from txt")
    (tmp_path / "Red_dog-12.caption").write_text("from caption")
    sources = {
        source: scanned(tmp_path, captions=source).pictures[0].caption
        for source in ("auto", ".txt", ".caption", "file name", "none")
    }
    assert sources == {
        "auto": "from txt",
        ".txt": "from txt",
        ".caption": "from caption",
        "file name": "Red dog",
        "none": "",
    }


def test_an_empty_txt_falls_back_to_the_caption_file(tmp_path):
    put(tmp_path, "a.png", "")
    (tmp_path / "a.caption").write_text("second choice")
    assert scanned(tmp_path).pictures[0].caption == "second choice"


def test_small_pictures_are_named_but_kept(tmp_path):
    put(tmp_path, "a.png", "x", (40, 40))
    data = scanned(tmp_path)
    assert len(data.pictures) == 1
    assert [*map(str, data.warnings)] == [
        "1 smaller than 64 px squared, e.g. a.png: kept at the original size, not upscaled"
    ]


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


def test_nothing_outside_of_the_folder_is_read(tmp_path):
    """Every file that is opened while a folder full of ways out is scanned and encoded, by the interpreter's own audit."""
    code = """
import os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(os.path.realpath(args[0])) if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)) else None)
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.latents import LatentCache
folder = sys.argv[1]
config = DataConfig(folder=folder, resolution=32, bucket_step_px=8, masks="file")
scan(config)
del opened[:]
found = scan(config)
LatentCache(found, Encoder(lambda pixels: pixels), lambda n, of: None)
print(len(found.pictures), sorted(p for p in opened if "secret" in p))
print(*(f"{name}: {why}" for name, why in found.skipped), sep="\\n")
"""
    secret, root = tmp_path / "secret", tmp_path / "root"
    secret.mkdir()
    root.mkdir()
    put(secret, "s.png", "secret caption")
    put(root, "a.png", "x")
    (root / "out").symlink_to(secret)
    (root / "linked.png").symlink_to(secret / "s.png")
    (root / "a.txt").unlink()
    (root / "a.txt").symlink_to(secret / "s.txt")
    (root / "metadata.jsonl").write_text('{"file_name": "../secret/s.png", "text": "x"}')
    (root / "a.mask.png").symlink_to(secret / "s.png")
    os.mkfifo(root / "pipe.png")
    (root / "loop").symlink_to(root)
    run = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, timeout=600, check=True
    )
    lines = run.stdout.splitlines()
    assert lines[0] == "1 []"
    assert set(lines[1:]) == {
        f"{name}: is a link that leads out of the folder" for name in ("a.mask.png", "a.txt", "linked.png", "out")
    } | {"pipe.png: is no regular file"}


def test_a_scan_opens_each_file_once_and_its_work_grows_with_the_number_of_pictures(tmp_path, counted):
    data, work = io.BytesIO(), {}
    Image.new("RGB", (64, 64)).save(data, "PNG")
    scanned(tmp_path / "..")  # what is imported at the first scan is not counted
    for count in (200, 400):
        folder = tmp_path / str(count)
        folder.mkdir()
        for n in range(count):
            (folder / f"{n:05}.png").write_bytes(data.getvalue())
            if n % 2:
                (folder / f"{n:05}.txt").write_text(f"caption {n}")
        found, opened, work[count] = counted(lambda place=folder: scanned(place))
        assert len(found.pictures) == count
        assert {name: times for name, times in opened.items() if name.endswith((".png", ".txt"))} == dict.fromkeys(
            os.listdir(folder), 1
        )
    assert work[400] < 2.1 * work[200]


def test_batches_do_not_depend_on_how_the_system_lists_names_or_on_its_language(tmp_path):
    """The log of 40 passes in fresh interpreters: other locale, other hash seed, files made in another order."""
    code = """
import sys
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.data.batches import Batches
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.latents import LatentCache
data = {"folder": sys.argv[1], "resolution": 32, "bucket_step_px": 8, "flip": True, "shuffle_tags": True, "tag_dropout": 0.2}
config = parse({"batch_size": 2, "data": data})
batches = Batches(LatentCache(open_sets(config), Encoder(lambda p: p.permute(0, 3, 1, 2)), lambda n, of: None), config, "cpu")
for step in range(40):
    b = batches.at(step, 0)
    print(ascii(b.names), ascii(b.captions), b.fits, float(b.latents.double().sum()))
"""
    names = ["a.png", "B.png", "ä.png", "z.png", "Ä2.png", "ı.png", "猫.png", "10.png", "9.png"]
    logs = []
    for n, (order, environment) in enumerate(
        [(names, {"LC_ALL": "C"}), (names[::-1], {"LC_ALL": "C.UTF-8"}), (sorted(names), {"LC_ALL": "tr_TR.UTF-8"})]
    ):
        folder = tmp_path / f"{n}" / "set"
        folder.mkdir(parents=True)
        for name in order:
            Image.new("RGB", (32, 32), (sum(map(ord, name)) % 255, 0, 0)).save(folder / name)
            (folder / name).with_suffix(".txt").write_text(f"zog, {name}, b, c", encoding="utf-8")
        run = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=600, check=True,
            env={**os.environ, **environment, "PYTHONHASHSEED": str(n)},
        )  # fmt: skip
        logs.append(run.stdout)
    assert len(logs[0].splitlines()) == 40
    assert logs[0] == logs[1] == logs[2]


def bare(pictures, folder):
    """The pictures without their captions."""
    folder.mkdir()
    for file in sorted(pictures.glob("*.png")):
        shutil.copy(file, folder / file.name)
    return folder


def test_pictures_without_any_caption_or_trigger_are_refused_before_one_is_encoded(
    pictures, toy_config, run_toy, toy_backend, tmp_path, monkeypatch
):
    folder = str(bare(pictures, tmp_path / "bare"))
    with monkeypatch.context() as patch:
        patch.setattr(toy_backend, "encode_picture", lambda pixels: pytest.fail("a picture was encoded"))
        for source in ("auto", "none"):
            sentence = (
                "^data.trigger: none of the 4 pictures in 'bare' has a caption .* turn data.allow_empty_captions on[.]$"
            )
            with pytest.raises(LoomError, match=sentence):
                run_toy(toy_config(data={"folder": folder, "captions": source}), tmp_path / "run")
    assert run_toy(toy_config(steps=1, data={"folder": folder, "trigger": "zog"}), tmp_path / "trigger").step == 1
    assert (
        run_toy(toy_config(steps=1, data={"folder": folder, "allow_empty_captions": True}), tmp_path / "allowed").step
        == 1
    )


def test_a_set_without_captions_beside_one_with_them_is_refused_by_its_folder_and_one_caption_suffices(
    pictures, toy_config, tmp_path
):
    folder = bare(pictures, tmp_path / "bare")
    config = toy_config(sets=[{"folder": str(folder), "resolution": 32, "bucket_step_px": 16}])
    with pytest.raises(LoomError, match="none of the 4 pictures in 'bare' has a caption"):
        require_captions(open_sets(config))
    (folder / "0.txt").write_text("a zog")
    require_captions(open_sets(config))


def test_a_word_that_is_learned_is_caption_enough(pictures, toy_config, run_toy, tmp_path):
    folder = str(bare(pictures, tmp_path / "bare"))
    assert run_toy(toy_config(steps=1, method="embedding", data={"folder": folder}), tmp_path / "run").step == 1


def test_what_is_refused_does_not_keep_a_run_of_an_earlier_version_from_going_on(
    pictures, toy_config, run_toy, tmp_path
):
    folder = str(bare(pictures, tmp_path / "bare"))
    run_toy(toy_config(steps=1, data={"folder": folder, "allow_empty_captions": True}), tmp_path / "run")
    facts = latest(tmp_path / "run" / "checkpoints")[0].facts
    facts["config"]["data"].pop("allow_empty_captions")
    facts["config"]["prior"].pop("required")
    config = toy_config(steps=2, data={"folder": folder, "allow_empty_captions": True}, prior={"required": True})
    refuse_changes(filled(config), facts, facts)


def test_a_set_without_any_caption_is_told_what_it_needs_before_it_is_refused(tmp_path):
    (tmp_path / "bare").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "bare" / "a.png")

    def codes(**data) -> list[str]:
        return [warning.code for warning in scan(DataConfig(folder=str(tmp_path / "bare"), **data)).warnings]

    assert "data.no_caption_at_all" in codes()
    assert "data.no_caption_at_all" not in codes(trigger="zog")
    assert "data.no_caption_at_all" not in codes(allow_empty_captions=True)
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "bare" / "b.png")
    (tmp_path / "bare" / "b.txt").write_text("a blue thing")
    assert "data.no_caption" in codes()
