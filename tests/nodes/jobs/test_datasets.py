"""The folders of a dataset: read once, sized when a run knows its size, and read again where a file has changed."""

import os

import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.jobs.datasets import PictureSets
from PIL import Image

LONG_AGO = 1_000_000_000


@pytest.fixture
def folder(tmp_path):
    """Three pictures with captions, one of them too small for most sizes; as old as pictures usually are."""
    for name, side in (("a", 96), ("b", 64), ("small", 20)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {name}")
    settle(tmp_path)
    return tmp_path


def settle(folder):
    for file in folder.iterdir():
        os.utime(file, (LONG_AGO, LONG_AGO))


def sets(folder, **changes) -> PictureSets:
    return PictureSets.of(DataConfig(folder=str(folder), trigger="zog", **changes))


def sized(dataset: PictureSets) -> PictureSets:
    return dataset.changed(resolution=64, bucket_step_px=32)


def pictures_opened(files) -> int:
    return sum(times for name, times in files.items() if name.endswith((".png", ".txt")))


@pytest.mark.parametrize("changes", [{}, {"limit": 1}, {"upscale": True}, {"captions": "none"}])
def test_a_dataset_that_was_loaded_is_sized_without_being_read_again(folder, counted, changes):
    (loaded, shown), files, _ = counted(lambda: sets(folder, **changes).read())
    assert pictures_opened(files) == (3 if changes.get("captions") == "none" else 6)
    assert len(shown.pictures) == changes.get("limit", 3)
    dataset, files, _ = counted(lambda: sized(loaded).opened())
    assert pictures_opened(files) == 0
    assert dataset == sized(sets(folder, **changes)).opened()
    assert [p.name for p in dataset.pictures if p.name == "small.png"] == ["small.png"] * bool(changes.get("upscale"))


@pytest.mark.parametrize("change", ["caption", "same size", "new picture", "left out", "gone"])
def test_a_folder_that_changed_after_it_was_loaded_is_read_again(folder, change):
    loaded, _ = sets(folder).read()
    if change == "caption":
        (folder / "a.txt").write_text("another caption")
    elif change == "same size":  # and the times of the file it replaces
        (folder / "new").write_text("a z")
        settle(folder)
        os.replace(folder / "new", folder / "a.txt")
    elif change == "new picture":
        Image.new("RGB", (64, 64)).save(folder / "c.png")
    elif change == "left out":
        (folder / ".lora_loom.json").write_text('{"excluded": ["b.png"]}')
    else:
        (folder / "a.png").unlink()
    assert sized(loaded).opened() == sized(sets(folder)).opened()
    names = {p.name: p.caption for p in sized(loaded).opened().pictures}
    assert (
        names
        == {
            "caption": {"a.png": "zog, another caption", "b.png": "zog, a b"},
            "same size": {"a.png": "zog, a z", "b.png": "zog, a b"},
            "new picture": {"a.png": "zog, a a", "b.png": "zog, a b", "c.png": "zog"},
            "left out": {"a.png": "zog, a a"},
            "gone": {"b.png": "zog, a b"},
        }[change]
    )


def test_files_that_were_just_written_are_read_again(folder, counted):
    """They could be written once more within one tick of their clock."""
    (folder / "a.txt").write_text("a a")
    loaded, _ = sets(folder).read()
    _, files, _ = counted(lambda: sized(loaded).opened())
    assert pictures_opened(files) == 6


def test_another_setting_than_the_size_reads_again(folder, counted):
    loaded, _ = sets(folder).read()
    dataset, files, _ = counted(lambda: sized(loaded.changed(prefix="photo of ")).opened())
    assert pictures_opened(files) == 6
    assert "photo of a a" in dataset.pictures[0].caption


def test_a_folder_that_went_away_is_told(folder, tmp_path):
    loaded, _ = sets(folder).read()
    folder.rename(tmp_path.with_name("elsewhere"))
    with pytest.raises(LoomError) as refused:
        sized(loaded).opened()
    assert refused.value.message.code == "data.folder.missing"
