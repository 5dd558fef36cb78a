"""Pictures that came from elsewhere survive a power cut, or are mended when they are brought in again."""

import random
import threading

import pytest
from lora_loom.lora_core.data import imported
from lora_loom.lora_core.data.sources import from_images
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image
from power_cut import Recorder

IMAGES = [Image.new("RGB", (32, 32), (n * 60, 20, 30)) for n in range(3)]
CAPTIONS = ["a", "b", "c"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bring(place):
    return from_images(IMAGES, CAPTIONS, IMAGES[:1], place)


def test_after_a_power_cut_at_any_moment_the_folder_is_whole_or_not_there_and_the_next_import_makes_it_so(tmp_path):
    (tmp_path / "runs").mkdir()
    with Recorder(tmp_path / "runs") as record:
        whole = contents(bring(tmp_path / "runs"))
    count = 0
    for state, _ in record.states(tmp_path / "states", random.Random(1), 15):
        count += 1
        for folder in (state / "imported").glob("[!.]*"):
            assert contents(folder) == whole
        assert contents(bring(state)) == whole
    assert count > 20


def test_a_folder_of_the_first_version_that_a_cut_broke_is_mended(tmp_path):
    folder = bring(tmp_path)
    whole = contents(folder)
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert bring(tmp_path) == folder
    assert contents(folder) == whole
    for path in sorted(folder.glob("*.png"))[1:]:  # one survived
        path.write_bytes(bytes(len(whole[path.name])))
    bring(tmp_path)
    assert contents(folder) == whole
    (folder / imported.MARK).unlink()
    (folder / "0001.png").write_bytes(whole["0001.png"][:40])
    (folder / "0002.txt").unlink()
    bring(tmp_path)
    assert contents(folder) == whole


def test_what_a_person_changed_in_an_imported_folder_stays(tmp_path):
    folder = bring(tmp_path)
    (folder / "0000.txt").write_text("another caption")
    (folder / "0001.png").unlink()
    Image.new("RGB", (8, 8)).save(folder / "0002.png")
    changed = contents(folder)
    bring(tmp_path)
    assert contents(folder) == changed


def test_a_caption_emptied_in_the_editor_stays_empty(tmp_path):
    from lora_loom.lora_core.config import DataConfig
    from lora_loom.lora_core.data.edits import apply_edits, listed

    folder = bring(tmp_path)
    config = DataConfig(folder=str(folder), resolution=32, bucket_step_px=8)
    item = listed(folder, config)[0]
    assert apply_edits(folder, config, {item.id: (item.caption, "")}, {}) == 1
    bring(tmp_path)
    assert item.file.read_bytes().strip() == b""


def test_several_imports_of_one_set_at_once_all_get_the_folder(tmp_path):
    folders, errors = [], []

    def work():
        try:
            folders.append(bring(tmp_path))
        except Exception as error:  # noqa: BLE001 - compared below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(folders)) == 1
    assert [path for path in folders[0].parent.iterdir() if path != folders[0]] == []


def test_a_full_disk_during_an_import_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    import errno
    import os
    from pathlib import Path

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LoomError, match="No space left on device"):
        bring(tmp_path)
    assert list((tmp_path / "imported").iterdir()) == []
