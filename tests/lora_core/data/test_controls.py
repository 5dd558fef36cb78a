"""Control pictures find their targets in the layouts that people have, are cut as their targets are, and reach the batch in order."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from lora_loom.lora_core.config import DataConfig, TrainConfig, as_dict, from_values
from lora_loom.lora_core.data.batches import Batches
from lora_loom.lora_core.data.buckets import fits
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.folder import open_sets, scan, scans_of
from lora_loom.lora_core.data.latents import LatentCache, View
from lora_loom.lora_core.data.shown import Showing, control_fit
from lora_loom.lora_core.data.store import Disk, Memory
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image


def paint(path, shade=0, size=(64, 64)):
    """Red says which picture it is, green the column, blue the row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[..., 0] = shade
    image[..., 1] = np.linspace(0, 255, size[0]).astype(np.uint8)[None]
    image[..., 2] = np.linspace(0, 255, size[1]).astype(np.uint8)[:, None]
    Image.fromarray(image).save(path, compress_level=1)


def put(root, *names, caption=None):
    for name in names:
        paint(root / name)
        if caption:
            (root / name).with_suffix(".txt").write_text(caption)


def scanned(root, **settings):
    return scan(
        DataConfig(folder=str(root), **{"resolution": 64, "bucket_step_px": 16, "controls": "auto", **settings})
    )


def pairs(dataset):
    """Name -> the last two parts of each control picture's path."""
    return {p.name: ["/".join(c.parts[-2:]) for c in p.controls] for p in dataset.pictures}


def codes(dataset):
    return {message.code: message for message in dataset.messages()}


def by_ai_toolkit(root):
    put(root / "target", "a.jpg", "b.png", caption="make it red")
    put(root / "source", "a.png", "b.png")
    return {"folder": str(root / "target"), "control_path": str(root / "source")}, {
        "a.jpg": ["source/a.png"],
        "b.png": ["source/b.png"],
    }


def by_ai_toolkit_with_several_folders(root):
    put(root / "target", "a.jpg", caption="join")
    put(root / "one", "a.png")
    put(root / "two", "a.png")
    return {"folder": str(root / "target"), "control_path": f"{root / 'two'}\n{root / 'one'}"}, {
        "a.jpg": ["two/a.png", "one/a.png"]
    }


def by_musubi_tuner(root):
    put(root / "images", "a.png", "b.png", caption="edit")
    put(root / "control", "a_0.png", "a_1.png", "a_10.png", "a_2.png", "b.png")
    numbered = ["control/a_0.png", "control/a_1.png", "control/a_2.png", "control/a_10.png"]
    return {"folder": str(root / "images"), "control_path": str(root / "control")}, {
        "a.png": numbered,
        "b.png": ["control/b.png"],
    }


def by_musubi_tuner_in_lines(root):
    put(root, "x/a.png", "y/first.png", "y/second.png", "x/b.png", "y/one.png")
    rows = [
        {
            "image_path": str(root / "x/a.png"),
            "caption": "edit",
            "control_path_1": str(root / "y/second.png"),
            "control_path_0": str(root / "y/first.png"),
        },
        {"image_path": "x/b.png", "caption": "edit", "control_path": "y/one.png"},
    ]
    (root / "dataset.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {}, {"x/a.png": ["y/first.png", "y/second.png"], "x/b.png": ["y/one.png"]}


def by_diffusion_pipe(root):
    put(root, "targets/a.png", "targets/deep/b.png", caption="edit")
    put(root, "control/a.webp.png", "control/a.png", "control/deep/b.png")
    return {}, {"targets/a.png": ["control/a.png"], "targets/deep/b.png": ["deep/b.png"]}


def by_simpletuner(root):
    put(root, "set/train/a.png", caption="edit")
    put(root, "reference/train/a.png")
    return {"folder": str(root / "set"), "control_path": str(root / "reference")}, {"train/a.png": ["train/a.png"]}


def by_image_folder(root):
    put(root, "a.png", "edges.png", "mask.png")
    (root / "metadata.csv").write_text(
        "file_name,text,conditioning_image_file_name,mask_file_name\na.png,zog,edges.png,mask.png\n"
    )
    return {}, {"a.png": [f"{root.name}/edges.png"]}


def by_instruct_pix2pix(root):
    put(root, "before.png", "after.png")
    (root / "metadata.jsonl").write_text(
        '{"edited_image_file_name": "after.png", "input_image_file_name": "before.png", "edit_prompt": "red"}'
    )
    return {}, {"after.png": [f"{root.name}/before.png"]}


def by_lists_in_rows(root):
    put(root, "a.png", "refs/2.png", "refs/1.png")
    (root / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "zog", "control_images": ["refs/2.png", "refs/1.png"]}'
    )
    return {}, {"a.png": ["refs/2.png", "refs/1.png"]}


def by_onetrainer(root):
    put(root, "a.png", caption="zog")
    put(root, "a-condlabel.png")
    return {}, {"a.png": [f"{root.name}/a-condlabel.png"]}


def by_numbers_beside(root):
    put(root, "a.png", caption="zog")
    put(root, "a_1.png", "a_0.png")
    return {}, {"a.png": [f"{root.name}/a_0.png", f"{root.name}/a_1.png"]}


def by_a_folder_for_each(root):
    put(root, "a.png", caption="zog")
    put(root, "control_2/a.png", "control_1/a.png")
    return {}, {"a.png": ["control_1/a.png", "control_2/a.png"]}


def by_a_folder_inside_that_is_called_otherwise(root):
    put(root, "a.png", "b.png", caption="zog")
    put(root, "before/a.png", "before/b.png")
    return {"control_path": "before", "controls": "none"}, {"a.png": ["before/a.png"], "b.png": ["before/b.png"]}


LAYOUTS = [value for name, value in list(globals().items()) if name.startswith("by_")]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts_are_read_without_a_manual_step(layout, tmp_path):
    settings, expected = layout(tmp_path)
    dataset = scanned(settings.pop("folder", tmp_path), **settings)
    assert pairs(dataset) == expected
    assert not codes(dataset).keys() & {"data.no_control", "data.conditions"}
    assert codes(dataset)["data.pairs"].values["count"] == len(expected)


def test_without_the_setting_they_are_left_out_and_told(tmp_path):
    put(tmp_path, "a.png", "control/a.png", caption="zog")
    (tmp_path / "control/a.txt").unlink()
    dataset = scanned(tmp_path, controls="none")
    assert pairs(dataset) == {"a.png": []}
    assert codes(dataset)["data.conditions"].values["names"] == ("control/a.png",)


def test_what_has_no_partner_is_named_and_a_control_picture_without_a_target_is_not_trained(tmp_path):
    put(tmp_path, "a.png", "b.png", caption="zog")
    put(tmp_path, "control/a.png", "control/c.png", "elsewhere/d.png")
    dataset = scanned(tmp_path, control_path="elsewhere")
    assert pairs(dataset) == {"a.png": ["control/a.png"], "b.png": []}
    assert codes(dataset)["data.no_control"].values["names"] == ("b.png",)
    assert codes(dataset)["data.control_astray"].values["names"] == ("control/c.png", "elsewhere/d.png")


def test_a_target_whose_name_ends_with_a_number_keeps_its_own(tmp_path):
    put(tmp_path / "t", "a.png", "a_1.png", caption="zog")
    put(tmp_path / "c", "a.png", "a_1.png")
    dataset = scanned(tmp_path / "t", control_path=str(tmp_path / "c"))
    assert pairs(dataset) == {"a.png": ["c/a.png"], "a_1.png": ["c/a_1.png"]}


def test_a_folder_that_is_none_is_refused(tmp_path):
    put(tmp_path, "a.png", caption="zog")
    with pytest.raises(LoomError, match="^data.control_path: .*nowhere.* is no folder"):
        scanned(tmp_path, control_path=str(tmp_path / "nowhere"))


def test_paths_in_a_job_file_are_taken_from_beside_it_and_another_set_has_its_own(tmp_path):
    values = {
        "data": {"folder": "t", "control_path": "one\n two "},
        "sets": [{"folder": "u"}, {"folder": "v", "control_path": "w"}],
    }
    config = from_values(values, tmp_path)
    assert config.data.control_folders == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert [s.control_path for s in config.sets] == ["", str(tmp_path / "w")]
    assert as_dict(config)["data"]["control_path"] == f"{tmp_path / 'one'}\n{tmp_path / 'two'}"


def test_a_known_scan_does_not_serve_when_a_control_picture_elsewhere_changed(tmp_path):
    put(tmp_path / "t", "a.png", caption="zog")
    put(tmp_path / "c", "a.png")
    for path in tmp_path.rglob("*.*"):
        import os

        os.utime(path, (1_000_000_000, 1_000_000_000))
    config = TrainConfig(base="toy", data=DataConfig(folder=str(tmp_path / "t"), control_path=str(tmp_path / "c")))
    known = scans_of(config)
    assert known[0].serves(config.data)
    paint(tmp_path / "c/a.png", 9)
    assert not known[0].serves(config.data)


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_a_control_picture_of_the_targets_shape_is_cut_where_the_target_is():
    config = DataConfig(resolution=64, bucket_step_px=16)
    target = fits(200, 96, config)[0].at((0.0, 0.25))
    assert control_fit((400, 192), target, config, False) == type(target)(
        (400, 192), target.scaled, target.crop, target.bucket
    )
    larger = control_fit(
        (400, 192), target, DataConfig(resolution=64, bucket_step_px=16, control_resolution=128), False
    )
    assert larger.bucket == tuple(2 * side for side in target.bucket)
    for part, whole in ((larger, target), (larger.mirrored(), target.mirrored())):
        middles = [(f.crop[n] + f.bucket[n] / 2) / f.scaled[n] for f in (part, whole) for n in (0, 1)]
        assert middles[:2] == pytest.approx(middles[2:], abs=0.02)


@pytest.mark.parametrize("size", [(64, 256), (500, 333), (40, 40), (8, 8)])
def test_another_shape_keeps_its_own_at_the_targets_area_unless_the_model_wants_the_targets(size):
    config = DataConfig(resolution=64, bucket_step_px=16)
    target = fits(200, 96, config)[0]
    own = control_fit(size, target, config, False)
    area = own.bucket[0] * own.bucket[1]
    assert own.original == size
    assert 0.4 * 64 * 64 < area <= 64 * 64
    assert abs(np.log((own.bucket[0] / own.bucket[1]) / (size[0] / size[1]))) < 0.35
    assert control_fit(size, target, config, True).bucket == target.bucket
    larger = control_fit(size, target, dataclasses.replace(config, control_resolution=256), False).bucket
    assert 0.4 * 256 * 256 < larger[0] * larger[1] <= 256 * 256


# ---- from folder to batch --------------------------------------------------------------------------------------------


def small(pixels):
    return torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2), 8)


def encoder(limit=3, **showing):
    return Encoder(small, "vae", shown=lambda pixels: small(pixels) + 1, showing=Showing(limit, **showing))


def cached(root, store=None, using=None, **settings):
    return LatentCache(scanned(root, **settings), using or encoder(), lambda n, of: None, store or Memory())


def train(root, batch_size=1):
    data = DataConfig(folder=str(root), resolution=64, bucket_step_px=16)
    return TrainConfig(base="toy", data=data, batch_size=batch_size)


def wide(root):
    for n in range(2):
        paint(root / f"{n}.png", 40 * n, (128, 64))
        (root / f"{n}.txt").write_text("zog")
        paint(root / f"control/{n}_0.png", 100 + 40 * n, (256, 128))
        paint(root / f"control/{n}_1.png", 101 + 40 * n, (64, 64))


def test_a_batch_carries_them_in_order_each_of_its_size(tmp_path):
    wide(tmp_path)
    batch = Batches(cached(tmp_path), train(tmp_path, 2), "cpu").at(0, 0)
    for name, shown in zip(batch.names, batch.shown, strict=True):
        number = int(name[0])
        first, second = shown.latents
        assert first.shape == batch.latents[:1].shape
        assert second.shape[-2] == second.shape[-1]
        assert [round((part[0, 0, 0, 0].item() - 1) * 255) for part in (first, second)] == [
            100 + 40 * number,
            101 + 40 * number,
        ]
        assert not shown.pixels
    assert batch.shown[0].identity != batch.shown[1].identity


def test_target_and_control_are_cut_and_mirrored_together(tmp_path):
    paint(tmp_path / "a.png", 5, (160, 64))
    paint(tmp_path / "control/a.png", 7, (320, 128))
    (tmp_path / "a.txt").write_text("zog")
    cache = cached(tmp_path, flip=True, crop="random", crops=3, resolution=48, aspect_buckets=False)
    views = [View(0, crop, flipped) for crop in range(3) for flipped in (False, True)]
    targets = [cache[view]["latent"][0, 1] for view in views]
    assert len({tuple(t[0].tolist()) for t in targets}) == 6
    for view, target in zip(views, targets, strict=True):
        assert (cache[view]["shown.latent.0"][0, 1] - 1 - target).abs().max() < 0.02


def test_the_text_encoders_view_is_kept_where_it_looks(tmp_path):
    wide(tmp_path)
    shown = Batches(cached(tmp_path, using=encoder(to_text=True)), train(tmp_path), "cpu").at(0, 0).shown[0]
    assert [p.dtype for p in shown.pixels] == [torch.uint8] * 2
    assert torch.equal(small(shown.pixels[0].float() / 255) + 1, shown.latents[0])


def test_store_and_fingerprint_follow_the_control_pictures(tmp_path):
    pictures = tmp_path / "p"
    wide(pictures)
    store = Disk(tmp_path / "cache", 10**12)
    prints = [Batches(cached(pictures, store), train(pictures), "cpu").fingerprint()]
    before = {p: p.read_bytes() for p in (tmp_path / "cache").rglob("*.safetensors")}
    prints.append(Batches(cached(pictures, store), train(pictures), "cpu").fingerprint())
    assert prints[0] == prints[1]
    assert before.keys() == {*(tmp_path / "cache").rglob("*.safetensors")}
    paint(pictures / "control/1_1.png", 3)
    prints.append(Batches(cached(pictures, store), train(pictures), "cpu").fingerprint())
    prints.append(Batches(cached(pictures, store, controls="none"), train(pictures), "cpu").fingerprint())
    prints.append(Batches(cached(pictures, store, control_resolution=32), train(pictures), "cpu").fingerprint())
    assert len(set(prints)) == 4


def test_more_than_the_model_takes_are_told_and_left_out(tmp_path):
    wide(tmp_path)
    cache = cached(tmp_path, using=encoder(limit=1))
    assert cache.crowded == ["0.png", "1.png"]
    assert len(Batches(cache, train(tmp_path), "cpu").at(0, 0).shown[0].latents) == 1


def test_a_model_that_needs_one_leaves_the_others_out_and_says_which(tmp_path):
    wide(tmp_path)
    paint(tmp_path / "lone.png")
    (tmp_path / "lone.txt").write_text("zog")
    cache = cached(tmp_path, using=encoder(needed=True))
    assert [(name, reason.code) for name, reason in cache.skipped] == [("lone.png", "picture.no_control")]
    assert len(cached(tmp_path).entries) == 3


def test_a_broken_control_picture_is_named(tmp_path):
    wide(tmp_path)
    (tmp_path / "control/1_1.png").write_bytes(b"no picture")
    cache = cached(tmp_path)
    assert [name for name, _ in cache.skipped] == ["1.png"]
    assert "its control picture 1_1.png" in str(cache.skipped[0][1])


def test_a_model_that_takes_none_refuses_them(tmp_path):
    wide(tmp_path)
    with pytest.raises(LoomError, match="^data.controls: this model takes no control pictures"):
        cached(tmp_path, using=Encoder(small, "vae"))


def test_pictures_without_are_nothing_new(tmp_path):
    put(tmp_path, "a.png", caption="zog")
    batch = Batches(cached(tmp_path), train(tmp_path), "cpu").at(0, 0)
    assert list(batch.shown) == []
    assert open_sets(train(tmp_path)).pictures[0].controls == ()


def test_the_sheet_and_its_notes_know_pairs(tmp_path):
    from lora_loom.lora_core.data import lint, sheet

    for n in range(12):
        paint(tmp_path / f"{n}.png", 20 * n)
        (tmp_path / f"{n}.txt").write_text("make it red")
        if n:
            paint(tmp_path / f"control/{n}.png", 255)
    report = lint.look(scanned(tmp_path), None, lambda n, of: None)
    without = [name for name, notes in report.notes.items() if any(note.code == "lint.no_control" for note in notes)]
    assert without == ["0.png"]
    assert "lint.same_captions" not in [note.code for note in report.general]
    alone = lint.look(scanned(tmp_path, controls="none"), None, lambda n, of: None)
    assert "lint.same_captions" in [note.code for note in alone.general]
    red = []
    for one in (report, alone):
        drawn = np.asarray(sheet.sheet(one))
        red.append(int(((drawn[..., 0] == 255) & (drawn[..., 1] < 200) & (drawn[..., 2] < 200)).sum()))
    assert red[0] > red[1] + 11 * 200  # eleven control pictures, all red
