import json

import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data import edits
from lora_loom.lora_core.data.edits import Conflict, apply_edits, identity, listed, undo
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.walk import OWN_LIST
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image

CONFIG = DataConfig(resolution=32, bucket_step_px=8, trigger="zog", prefix="p ")


@pytest.fixture
def folder(tmp_path):
    for n in range(3):
        Image.new("RGB", (32, 32), (n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "0.txt").write_bytes("zog, Café".encode("utf-16"))
    (tmp_path / "1.caption").write_text("line one\nline two\n")
    return tmp_path


def key(folder, n):
    return identity(folder, f"{n}.png")


def state(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != OWN_LIST}


def test_what_is_shown_is_what_the_files_say(folder):
    items = {item.name: item for item in listed(folder, CONFIG)}
    assert {name: item.caption for name, item in items.items()} == {
        "0.png": "zog, Café",
        "1.png": "line one\nline two",
        "2.png": "",
    }
    assert not any(item.excluded for item in items.values())


def test_an_edit_writes_the_caption_files_and_nothing_else(folder):
    before = state(folder)
    assert (
        apply_edits(folder, CONFIG, {key(folder, 0): ("zog, Café", "zog, tea"), key(folder, 2): ("", "new")}, {}) == 2
    )
    after = state(folder)
    assert after == {**before, "0.txt": b"zog, tea", "2.txt": b"new"}
    assert [p.caption for p in scan(DataConfig(folder=str(folder), resolution=32, bucket_step_px=8)).pictures] == [
        "zog, tea",
        "line one line two",
        "new",
    ]


def test_undo_gives_back_the_very_bytes_edit_by_edit(folder):
    before = state(folder)
    apply_edits(folder, CONFIG, {key(folder, 0): ("zog, Café", "one"), key(folder, 2): ("", "new")}, {})
    middle = state(folder)
    apply_edits(folder, CONFIG, {key(folder, 0): ("one", "two")}, {key(folder, 1): True})
    assert [item.excluded for item in listed(folder, CONFIG)] == [False, True, False]
    assert undo(folder, CONFIG) == 2
    assert state(folder) == middle
    assert not any(item.excluded for item in listed(folder, CONFIG))
    assert undo(folder, CONFIG) == 2
    assert state(folder) == before
    assert undo(folder, CONFIG) == 0


def test_a_picture_left_out_is_not_trained_on_is_counted_and_comes_back(folder):
    data = DataConfig(folder=str(folder), resolution=32, bucket_step_px=8)
    apply_edits(folder, CONFIG, {}, {key(folder, 1): True})
    found = scan(data)
    assert [p.name for p in found.pictures] == ["0.png", "2.png"]
    assert "1 left out in the editor" in found.summary()
    apply_edits(folder, CONFIG, {}, {key(folder, 1): False})
    assert len(scan(data).pictures) == 3


def test_what_changed_meanwhile_is_never_overwritten(folder):
    before = state(folder)
    with pytest.raises(Conflict, match="0.png: its caption was changed elsewhere meanwhile"):
        apply_edits(folder, CONFIG, {key(folder, 2): ("", "new"), key(folder, 0): ("something else", "x")}, {})
    assert state(folder) == before  # not even the first one
    apply_edits(folder, CONFIG, {key(folder, 2): ("", "new")}, {})
    (folder / "2.txt").write_text("by hand")
    with pytest.raises(Conflict, match="2.png: its caption was changed since; undo would lose that"):
        undo(folder, CONFIG)
    assert (folder / "2.txt").read_text() == "by hand"


def test_ids_that_are_none_and_captions_too_long_are_refused(folder):
    with pytest.raises(Conflict, match="1 of the pictures is no longer there"):
        apply_edits(folder, CONFIG, {"../../etc/passwd": ("", "x")}, {})
    with pytest.raises(LoomError, match="its caption has 20001 characters"):
        apply_edits(folder, CONFIG, {key(folder, 2): ("", "x" * 20_001)}, {})


def test_pictures_that_share_a_name_get_captions_of_their_own(folder):
    Image.new("RGB", (32, 32)).save(folder / "0.jpg")
    assert {i.name: i.caption for i in listed(folder, CONFIG)}["0.jpg"] == "zog, Café"
    apply_edits(folder, CONFIG, {identity(folder, "0.jpg"): ("zog, Café", "the other")}, {})
    assert (folder / "0.jpg.txt").read_text() == "the other"
    found = scan(DataConfig(folder=str(folder), resolution=32, bucket_step_px=8))
    assert {p.name: p.caption for p in found.pictures}["0.png"] == "zog, Café"
    assert {p.name: p.caption for p in found.pictures}["0.jpg"] == "the other"


def test_a_caption_from_a_table_is_edited_into_a_file_of_its_own(folder):
    table = json.dumps({"file_name": "2.png", "text": "from the table"}).encode()
    (folder / "metadata.jsonl").write_bytes(table)
    apply_edits(folder, CONFIG, {key(folder, 2): ("from the table", "edited")}, {})
    assert (folder / "metadata.jsonl").read_bytes() == table
    assert scan(DataConfig(folder=str(folder), resolution=32, bucket_step_px=8)).pictures[2].caption == "edited"


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"[]", b'{"excluded": 3}', b'{"excluded": [1], "history": [{"captions": 1}]}', b"[" * 100_000],
)
def test_a_list_somebody_broke_stops_nothing(content, folder):
    (folder / OWN_LIST).write_bytes(content)
    assert len(listed(folder, CONFIG)) == 3
    assert undo(folder, CONFIG) == 0
    assert apply_edits(folder, CONFIG, {}, {key(folder, 0): True}) == 1


def test_old_edits_are_forgotten_in_the_end(folder, monkeypatch):
    monkeypatch.setattr(edits, "MAX_HISTORY", 2)
    for n in range(4):
        apply_edits(folder, CONFIG, {key(folder, 2): (str(n - 1) if n else "", str(n))}, {})
    assert [undo(folder, CONFIG) for _ in range(3)] == [1, 1, 0]
    assert (folder / "2.txt").read_text() == "1"


def test_captions_are_written_in_the_encoding_they_are_read_in(folder):
    config = DataConfig(resolution=32, bucket_step_px=8, caption_encoding="cp932")
    (folder / "0.txt").write_bytes("猫".encode("cp932"))
    apply_edits(folder, config, {key(folder, 0): ("猫", "白い猫")}, {})
    assert (folder / "0.txt").read_bytes() == "白い猫".encode("cp932")
    with pytest.raises(LoomError, match="0.png: '🐕' cannot be written in cp932"):
        apply_edits(folder, config, {key(folder, 0): ("白い猫", "a 🐕")}, {})
    assert undo(folder, config) == 1
    assert (folder / "0.txt").read_bytes() == "猫".encode("cp932")


def test_what_is_edited_is_what_training_reads(folder):
    (folder / "0.caption").write_text("the other")
    config = DataConfig(resolution=32, bucket_step_px=8, captions=".caption")
    apply_edits(folder, config, {key(folder, 0): ("the other", "new"), key(folder, 2): ("", "newer")}, {})
    found = scan(DataConfig(folder=str(folder), resolution=32, bucket_step_px=8, captions=".caption"))
    assert [p.caption for p in found.pictures] == ["new", "line one line two", "newer"]
    assert (folder / "0.txt").read_bytes() == "zog, Café".encode("utf-16")


@pytest.mark.parametrize("source", ["metadata", "file name", "none"])
def test_captions_that_come_from_no_text_file_are_shown_and_locked(source, folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "row"}')
    config = DataConfig(resolution=32, bucket_step_px=8, captions=source)
    before = state(folder)
    item = listed(folder, config)[0]
    with pytest.raises(LoomError, match=f"captions come from: {source}; set data.captions to auto"):
        apply_edits(folder, config, {item.id: (item.caption, "x")}, {})
    assert state(folder) == before


def test_several_captions_from_a_table_are_not_made_one(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "2.png", "text": ["one", {"text": "two", "weight": 0.5}]}')
    item = listed(folder, CONFIG)[2]
    assert item.caption == "one\n0.5::two"
    with pytest.raises(LoomError, match="several captions; set data.caption_lines to alternatives"):
        apply_edits(folder, CONFIG, {item.id: (item.caption, "x")}, {})
    config = DataConfig(resolution=32, bucket_step_px=8, caption_lines="alternatives")
    apply_edits(folder, config, {item.id: (item.caption, "one\n0.25::two")}, {})
    found = scan(DataConfig(folder=str(folder), resolution=32, bucket_step_px=8, caption_lines="alternatives"))
    assert [(c.text, c.weight) for c in found.pictures[2].captions] == [("one", 1.0), ("two", 0.25)]


def test_pictures_out_of_sight_stay_left_out(folder):
    (folder / "sub").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "sub" / "x.png")
    apply_edits(folder, CONFIG, {}, {identity(folder, "sub/x.png"): True})
    flat = DataConfig(resolution=32, bucket_step_px=8, recursive=False)
    apply_edits(folder, flat, {}, {key(folder, 1): True})
    assert [i.name for i in listed(folder, CONFIG) if i.excluded] == ["1.png", "sub/x.png"]
    undo(folder, flat)
    assert [i.name for i in listed(folder, CONFIG) if i.excluded] == ["sub/x.png"]


def test_a_caption_file_that_is_a_link_is_left_alone(folder):
    (folder / "real.text").write_text("linked")
    (folder / "2.txt").symlink_to(folder / "real.text")
    with pytest.raises(LoomError, match="2.png: its caption file is a link"):
        apply_edits(folder, CONFIG, {key(folder, 2): ("linked", "x")}, {})
    assert (folder / "2.txt").is_symlink()
    assert (folder / "real.text").read_text() == "linked"


def test_a_history_that_names_files_elsewhere_touches_none(folder, tmp_path):
    apply_edits(folder, CONFIG, {key(folder, 2): ("", "new")}, {})
    outside = tmp_path.parent / "outside.txt"
    outside.write_text("mine")
    own = json.loads((folder / OWN_LIST).read_text())
    own["history"][-1]["captions"]["2.png"]["file"] = "../outside.txt"
    (folder / OWN_LIST).write_text(json.dumps(own))
    undo(folder, CONFIG)
    assert outside.read_text() == "mine"


def test_masks_are_no_twins_and_the_work_of_a_list_grows_with_the_number_of_pictures(tmp_path, counted):
    data = (tmp_path / "x.png", tmp_path / "x.mask.png")
    for path in data:
        Image.new("RGB", (32, 32)).save(path)
    (tmp_path / "x.txt").write_text("the caption")
    apply_edits(tmp_path, CONFIG, {identity(tmp_path, "x.png"): ("the caption", "new")}, {})
    assert (tmp_path / "x.txt").read_text() == "new"
    work = {}
    for count in (200, 400):
        for n in range(1, count):
            (tmp_path / f"{n}.png").write_bytes(data[0].read_bytes())
        items, _, work[count] = counted(lambda: listed(tmp_path, CONFIG))
        assert len(items) == count
    assert work[400] < 2.1 * work[200]
