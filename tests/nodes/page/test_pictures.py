"""What is dropped onto the tab lies in a folder of its own, and nothing of a ZIP file lies outside of it."""

import io
import zipfile

import pytest
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.page import pictures

PNG = b"\x89PNG as far as a name tells"


@pytest.fixture
def place(tmp_path):
    return tmp_path


def zipped(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return data.getvalue()


def inside(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_pictures_and_captions_are_kept_and_everything_else_is_left_out(place):
    folder = pictures.stored(
        [("a.png", PNG), ("a.txt", b"a cat"), ("virus.exe", b"x"), ("metadata.jsonl", b"{}")], place
    )
    assert inside(folder) == ["a.png", "a.txt", "metadata.jsonl"]


def test_two_files_of_one_name_are_both_kept(place):
    assert inside(pictures.stored([("x/a.png", PNG), ("y/a.png", PNG)], place)) == ["a-2.png", "a.png"]


def test_the_folders_of_a_zip_file_count_and_hidden_ones_do_not(place):
    data = zipped(**{"12_cat__a.png": PNG, "12_cat__a.txt": b"", "MACOSX__x.txt": b"", ".hidden__b.png": PNG})
    assert inside(pictures.stored([("set.zip", data)], place)) == ["12_cat/a.png", "12_cat/a.txt", "MACOSX/x.txt"]


@pytest.mark.parametrize("name", ["../../out.png", "/tmp/out.png", "..\\..\\out.png", "a/../../../out.png"])
def test_a_zip_file_writes_nothing_outside_of_its_folder(place, name):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, PNG)
    folder = pictures.stored([("evil.zip", data.getvalue())], place)
    assert [file.name for file in place.rglob("*.png")] == ["out.png"]
    assert len(inside(folder)) == 1


def test_a_zip_file_that_unpacks_to_too_much_is_refused(place, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    with pytest.raises(LoomError) as error:
        pictures.stored([("bomb.zip", zipped(**{"a.png": b"0" * 11}))], place)
    assert error.value.message.code == "upload.zip_large"
    assert not list(place.rglob("*.png"))


@pytest.mark.parametrize(
    ("files", "code"), [([("a.exe", b"")], "upload.no_pictures"), ([("a.zip", b"no")], "upload.zip_unreadable")]
)
def test_what_holds_no_picture_is_said_and_leaves_no_folder(place, files, code):
    with pytest.raises(LoomError) as error:
        pictures.stored(files, place)
    assert error.value.message.code == code
    assert not list((place / "pictures").glob("*"))


def test_a_small_zip_file_that_unpacks_to_far_more_than_pictures_do_is_refused(place, monkeypatch):
    monkeypatch.setattr(pictures, "ROOM_BYTES", 1000)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"0" * 1_000_000)
    with pytest.raises(LoomError) as error:
        pictures.stored([("bomb.zip", data.getvalue())], place)
    assert error.value.message.code == "upload.zip_large"


@pytest.mark.parametrize(
    "name", ["a\0b.png", "a\nb.png", "a\u202egnp.png", "x" * 5000 + ".png", 'a:b"?.png', "a\ud800.png"]
)
def test_names_that_some_system_refuses_become_names_that_all_take(place, name):
    for files in ([(name, PNG)], [("x.zip", zipped(**{name.replace("\0", "\x01").replace("\ud800", "?"): PNG}))]):
        (written,) = inside(pictures.stored(files, place))
        assert written.endswith(".png")
        assert len(written) < 210
        assert written.isprintable()


def test_many_files_of_one_name_cost_one_look_each(place, monkeypatch):
    looked = []
    real = pictures.Path.exists
    monkeypatch.setattr(pictures.Path, "exists", lambda path, **more: looked.append(path) or real(path, **more))
    assert len(inside(pictures.stored([("a.png", PNG)] * 300, place))) == 300
    assert len([path for path in looked if path.name.startswith("a")]) <= 600
