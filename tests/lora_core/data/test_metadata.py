import json

import pytest
from lora_loom.lora_core.config import DataConfig
from lora_loom.lora_core.data.captions import Caption
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.metadata import as_captions, read_table
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32)).save(path)


def captions(folder, **data):
    return {
        p.name: [c.text for c in p.captions]
        for p in scan(DataConfig(folder=str(folder), resolution=32, bucket_step_px=8, **data)).pictures
    }


def jsonl(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def parquet(rows):
    import io

    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    data = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), data)
    return data.getvalue()


ROWS = [{"file_name": "a.png", "text": "a Café"}, {"file_name": "sub/b.png", "text": "b"}]
TABLES = {
    "metadata.jsonl": lambda: jsonl(ROWS),
    "metadata.csv": lambda: b"\xef\xbb\xbffile_name,text\r\na.png,a Caf\xc3\xa9\r\nsub/b.png,b\r\n",
    "metadata.parquet": lambda: parquet(ROWS),
    "metadata.json": lambda: json.dumps(ROWS).encode(),
    "captions.json": lambda: json.dumps({"a.png": "a Café", "./sub\\b.png": {"caption": "b"}}).encode(),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_gives_the_captions_of_its_folder(name, tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "b.png")
    (tmp_path / name).write_bytes(TABLES[name]())
    assert captions(tmp_path) == {"a.png": ["a Café"], "sub/b.png": ["b"]}
    assert captions(tmp_path, captions="none") == {"a.png": [""], "sub/b.png": [""]}


def test_rows_in_a_file_of_any_name_are_read_where_the_folder_has_one_such_file(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "b.png")
    (tmp_path / "my pictures.JSONL").write_bytes(jsonl(ROWS))
    assert captions(tmp_path) == {"a.png": ["a Café"], "sub/b.png": ["b"]}
    notes = scan(DataConfig(folder=str(tmp_path), resolution=32, bucket_step_px=8)).warnings
    codes = [note.code for note in notes]
    assert "data.captions_from" in codes
    assert "data.other_files" not in codes
    (tmp_path / "other.jsonl").write_bytes(jsonl([{"file_name": "a.png", "text": "which?"}]))
    assert captions(tmp_path) == {"a.png": [""], "sub/b.png": [""]}  # neither is guessed
    (tmp_path / "metadata.jsonl").write_bytes(jsonl([{"file_name": "a.png", "text": "named"}]))
    assert captions(tmp_path)["a.png"] == ["named"]


def test_a_caption_file_beside_the_picture_goes_before_the_table(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(jsonl([{"file_name": "a.png", "text": "table"}]))
    (tmp_path / "a.txt").write_text("beside")
    assert captions(tmp_path) == {"a.png": ["beside"]}
    assert captions(tmp_path, captions="metadata") == {"a.png": ["table"]}


def test_several_captions_and_their_weights():
    assert as_captions(["one", "", "two"], "text") == (Caption("one"), Caption("two"))
    assert as_captions([{"text": "one", "weight": 0.2}, {"caption": "two", "weight": "x"}], "captions") == (
        Caption("one", 0.2),
        Caption("two"),
    )
    assert as_captions(None, "text") == as_captions(3, "text") == as_captions({"no": 1}, "text") == ()


def test_the_column_is_chosen_or_the_first_known_one(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(jsonl([{"file_name": "a.png", "prompt": "p", "blip": "b", "text": "t"}]))
    assert captions(tmp_path) == {"a.png": ["t"]}
    assert captions(tmp_path, caption_column="blip") == {"a.png": ["b"]}
    with pytest.raises(
        LoomError,
        match=r"data.caption_column: metadata.jsonl has no column 'x'; its columns are 'prompt', 'blip', 'text'",
    ):
        captions(tmp_path, caption_column="x")


def test_rows_without_picture_and_pictures_without_row_are_named(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "c.png")
    (tmp_path / "metadata.jsonl").write_bytes(
        jsonl([{"file_name": "a.png", "text": "t"}, {"file_name": "gone.png", "text": "t"}])
    )
    said = "\n".join(map(str, scan(DataConfig(folder=str(tmp_path), resolution=32, bucket_step_px=8)).warnings))
    assert "1 without caption, e.g. c.png" in said
    assert "1 row of metadata.jsonl names no picture that is there, e.g. gone.png" in said


@pytest.mark.parametrize(
    ("name", "data"),
    [("metadata.jsonl", b'{"file_name": "a.png"'), ("metadata.jsonl", b'{"text": "x"}'), ("metadata.json", b"[" * 100_000), ("metadata.json", b"3"),
     ("metadata.csv", b"a,b\n1,2"), ("metadata.parquet", b"PAR1")],
)  # fmt: skip
def test_a_table_that_is_none_is_one_sentence(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LoomError, match=f"^{name}: "):
        read_table(tmp_path / name)


def test_the_layout_of_kohyas_guide_trains_the_subject_and_keeps_the_class_apart(tmp_path):
    for place in ("img/10_zog dog", "reg/1_dog", "log", "model"):
        (tmp_path / place).mkdir(parents=True)
    picture(tmp_path / "img/10_zog dog/a.png")
    (tmp_path / "img/10_zog dog/a.txt").write_text("zog dog, sitting")
    picture(tmp_path / "img/10_zog dog/b.png")
    (tmp_path / "img/10_zog dog/b.npz").write_bytes(b"kohya's latents")
    picture(tmp_path / "reg/1_dog/c.png")
    found = scan(DataConfig(folder=str(tmp_path), resolution=32, bucket_step_px=8))
    assert [(p.caption, p.repeats) for p in found.pictures] == [("zog dog, sitting", 10), ("zog dog", 10)]
    assert [(p.caption, p.repeats) for p in found.class_pictures] == [("dog", 1)]
    assert "1 other file ignored, e.g. img/10_zog dog/b.npz" in map(str, found.warnings)


def test_other_splits_of_an_imagefolder_are_not_trained_on(tmp_path):
    for split in ("train", "test"):
        picture(tmp_path / split / "a.png")
        (tmp_path / split / "metadata.jsonl").write_bytes(jsonl([{"file_name": "a.png", "text": split}]))
    assert captions(tmp_path) == {"train/a.png": ["train"]}
    assert captions(tmp_path, split="all") == {"train/a.png": ["train"], "test/a.png": ["test"]}


def test_the_split_that_is_asked_for_is_the_one_that_is_read(tmp_path):
    for split in ("train", "test"):
        picture(tmp_path / split / "a.png")
    assert captions(tmp_path, split="test") == {"test/a.png": [""]}


def test_line_breaks_inside_of_captions_break_no_table(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "one\u2028two\u0085three"}', encoding="utf-8"
    )
    assert captions(tmp_path) == {"a.png": ["one two three"]}
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_bytes(b'file_name,text\r\na.png,"one\r\ntwo"\r\n')
    assert captions(tmp_path) == {"a.png": ["one two"]}


def test_a_file_that_only_has_the_name_of_a_table_stops_nothing(tmp_path):
    picture(tmp_path / "A.PNG")
    (tmp_path / "metadata.json").write_text('{"version": 3, "tool": [1, 2]}')
    found = scan(DataConfig(folder=str(tmp_path), resolution=32, bucket_step_px=8))
    assert len(found.pictures) == 1
    with pytest.raises(LoomError, match="metadata.json"):
        scan(DataConfig(folder=str(tmp_path), resolution=32, bucket_step_px=8, caption_column="text"))


def test_names_in_a_table_match_whatever_their_case(tmp_path):
    picture(tmp_path / "A.PNG")
    (tmp_path / "metadata.jsonl").write_bytes(jsonl([{"file_name": "a.png", "text": "t"}]))
    assert captions(tmp_path) == {"A.PNG": ["t"]}


def test_a_background_that_is_no_colour_is_one_sentence(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(LoomError, match="data.background: 'whit' is not a colour"):
        captions(tmp_path, background="whit")
