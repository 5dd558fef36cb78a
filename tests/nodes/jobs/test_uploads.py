"""Pictures that a page sends: whole or not at all, never twice, never outside their folder."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.jobs import archives
from lora_loom.nodes.jobs.archives import Archive
from lora_loom.nodes.jobs.requests import Refused
from lora_loom.nodes.jobs.uploads import KEPT_S, STAGING, Part, Uploads, planned
from PIL import Image


def png(seed: int = 0, side: int = 64) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def zipped(entries: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = ((stat.S_IFLNK if name in links else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, data)
    return out.getvalue()


@pytest.fixture
def uploads(tmp_path):
    root = tmp_path / "input"
    root.mkdir()
    return Uploads(lambda: root)


def root_of(uploads: Uploads) -> Path:
    return uploads._root()


def drop(uploads: Uploads, name: str, files: dict[str, bytes], stop_after: int | None = None) -> tuple[dict, int]:
    """What a page does with a drop: (the answer, bytes sent). `stop_after`: the page is gone when so many bytes were sent."""
    names = list(files)
    plan, wanted = planned(name, [[n, len(files[n])] for n in names])
    begun = uploads.begin(plan)
    here = dict.fromkeys(range(len(wanted)), 0)
    claims = [[n, count, hashlib.sha256(files[names[wanted[n]]][:count]).hexdigest()] for n, count in begun["have"]]
    if claims:
        here |= dict(uploads.claim(begun["id"], claims))
    sent = 0
    for n, place in enumerate(wanted):
        data = files[names[place]]
        for offset in range(here[n], len(data), 1000):
            chunk = data[offset : offset + 1000]
            uploads.append(begun["id"], [Part(n, offset, len(chunk))], memoryview(chunk))
            sent += len(chunk)
            if stop_after is not None and sent >= stop_after:
                return begun, sent
    return uploads.finish(begun["id"]), sent


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def codes(answer: dict) -> list[str]:
    return [note["code"] for note in answer["notes"]]


def test_captions_masks_and_metadata_travel_along_and_the_rest_is_told(uploads):
    kept = {
        "a.png": png(1), "a.txt": b"a cat", "12_dog/b.png": png(2), "12_dog/b.caption": b"a dog", "masks/a.png": png(3),
        "metadata.jsonl": b'{"file_name": "a.png", "text": "x"}\n', ".lora_loom.json": b'{"excluded": []}', "empty.txt": b"",
    }  # fmt: skip
    answer, _ = drop(uploads, "My cats!", {**kept, "page.html": b"<html>", ".DS_Store": b"x", "__MACOSX/._a.png": b"x"})
    assert tree(root_of(uploads) / "My cats") == kept
    assert (answer["folder"], answer["pictures"], answer["captions"]) == ("My cats", 2, 2)
    assert codes(answer) == ["upload.others"]
    assert answer["notes"][0]["values"]["names"] == ["page.html"]
    assert not (root_of(uploads) / STAGING).exists()


def test_a_picture_that_cannot_be_read_is_told_with_its_reason(uploads):
    answer, _ = drop(uploads, "set", {"a.png": png(1), "b.jpg": b"<html>no picture</html>"})
    assert answer["pictures"] == 1
    assert codes(answer) == ["data.skipped"]
    assert answer["notes"][0]["values"]["name"] == "b.jpg"


def test_what_holds_no_picture_is_refused_by_its_name_and_leaves_nothing(uploads):
    with pytest.raises(LoomError, match="'set'"):
        drop(uploads, "set", {"b.jpg": b"<html>no picture</html>"})
    with pytest.raises(Refused, match=r"a\.html"):
        drop(uploads, "set", {"a.html": b"x"})
    assert list(root_of(uploads).iterdir()) == []


def test_dropping_again_sends_only_what_is_missing(uploads):
    files = {f"{n}.png": png(n) for n in range(6)}
    total = sum(map(len, files.values()))
    _, first = drop(uploads, "set", files, stop_after=total // 2)
    assert [p.name for p in root_of(uploads).iterdir()] == [STAGING]
    answer, second = drop(Uploads(lambda: root_of(uploads)), "set", files)  # also after the server's end
    assert first + second == total
    assert tree(root_of(uploads) / answer["folder"]) == files


def test_bytes_that_changed_meanwhile_are_sent_anew(uploads):
    data = png(1)
    drop(uploads, "set", {"a.png": data}, stop_after=3000)
    other = png(2)[: len(data)].ljust(len(data), b"x")
    answer, sent = drop(uploads, "set", {"a.png": other})
    assert sent == len(other)
    assert tree(root_of(uploads) / answer["folder"]) == {"a.png": other}


def test_bytes_that_lie_in_another_folder_are_never_sent(uploads):
    drop(uploads, "one", {"a.png": png(1), "b.png": png(2)})
    answer, sent = drop(uploads, "two", {"renamed.png": png(1), "c.png": png(3)})
    assert sent == len(png(3))
    assert tree(root_of(uploads) / answer["folder"]) == {"renamed.png": png(1), "c.png": png(3)}


def test_the_same_folder_again_is_that_folder(uploads):
    files = {"a.png": png(1), "a.txt": b"a cat"}
    drop(uploads, "set", files)
    answer, sent = drop(uploads, "set", files)
    assert (answer["folder"], sent, codes(answer)) == ("set", 0, ["upload.same"])
    assert [p.name for p in root_of(uploads).iterdir()] == ["set"]


def test_another_folder_of_a_name_that_is_taken_gets_a_name_of_its_own(uploads):
    drop(uploads, "set", {"a.png": png(1)})
    answer, _ = drop(uploads, "SET", {"a.png": png(2)})
    assert (answer["folder"], codes(answer)) == ("SET (2)", ["upload.name_taken"])
    assert tree(root_of(uploads) / "set") == {"a.png": png(1)}


def test_names_that_differ_in_case_or_unicode_form_alone_stay_apart(uploads):
    answer, _ = drop(uploads, "set", {"A.png": png(1), "a.png": png(2), "e\u0301.png": png(3), "\u00e9.png": png(4)})
    assert codes(answer) == ["upload.renamed"]
    assert set(tree(root_of(uploads) / "set")) == {"A.png", "a (2).png", "\u00e9.png", "\u00e9 (2).png"}


@pytest.mark.parametrize("name", ["", "..", "../../etc", "/etc", "C:\\x", "con", ".hidden", "\x00", "a" * 500, "*?"])
def test_the_new_folder_lies_directly_below_the_root_whatever_it_is_called(uploads, name):
    answer, _ = drop(uploads, name, {"a.png": png(1)})
    assert (root_of(uploads) / answer["folder"]).parent == root_of(uploads)
    assert tree(root_of(uploads) / answer["folder"]) == {"a.png": png(1)}


BAD_PATHS = [
    "../a.png",
    "x/../../a.png",
    "/a.png",
    "C:/a.png",
    "x\\..\\a.png",
    "./a.png",
    "x//a.png",
    "a\0.png",
    "x/" * 30 + "a.png",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_leads_out_is_refused_from_page_and_archive(uploads, path):
    with pytest.raises(Refused):
        planned("set", [[path, 3]])
    if "\0" in path:
        return  # the writer of ZIP files cuts such a name itself
    with pytest.raises(LoomError) as error:
        drop(uploads, "set", {"s.zip": zipped({"ok.png": png(1), path: png(2)})})
    assert error.value.message.code == "zip.outside"
    assert list(root_of(uploads).iterdir()) == []


def test_cancel_leaves_nothing(uploads):
    files = {f"{n}.png": png(n) for n in range(4)}
    begun, _ = drop(uploads, "set", files, stop_after=2000)
    uploads.cancel(begun["id"])
    assert list(root_of(uploads).iterdir()) == []
    with pytest.raises(Refused):
        uploads.append(begun["id"], [Part(0, 0, 1)], memoryview(b"x"))
    assert list(root_of(uploads).iterdir()) == []
    uploads.cancel(begun["id"])


def test_what_a_page_left_behind_is_swept_after_a_week(uploads):
    begun, _ = drop(uploads, "set", {"a.png": png(1)}, stop_after=100)
    place = root_of(uploads) / STAGING / begun["id"]
    old = place.stat().st_mtime - 2 * KEPT_S
    for path in (place / "files", place):
        os.utime(path, (old, old))
    drop(uploads, "other", {"b.png": png(2)})
    assert not place.exists()


def test_bytes_out_of_place_are_refused(uploads):
    plan, _ = planned("set", [["a.png", 10]])
    key = uploads.begin(plan)["id"]
    for part, data in [((0, 1, 2), b"xx"), ((0, 0, 11), b"x" * 11), ((1, 0, 1), b"x"), ((0, 0, 2), b"x")]:
        with pytest.raises(Refused):
            uploads.append(key, [Part(*part)], memoryview(data))
    with pytest.raises(Refused) as error:
        uploads.finish(key)
    assert error.value.message.code == "upload.incomplete"
    for bad in ("../../etc", "0" * 31, None, 5):
        with pytest.raises(Refused):
            uploads.append(bad, [], memoryview(b""))


@pytest.mark.parametrize(
    "files", [None, [], [["a.png"]], [["a.png", -1]], [["a.png", 2.5]], [[3, 1]], [["a.png", True]], [["a.png", 2**41]]]
)
def test_a_list_that_is_none_is_refused(files):
    with pytest.raises(Refused):
        planned("set", files)


def test_an_archive_is_unpacked_with_its_folders_and_the_one_around_them_left_out(uploads):
    inside = {"12_dog/b.png": png(2), "12_dog/b.txt": b"a dog", "a.png": png(1)}
    data = zipped(
        {**{f"my set/{name}": data for name, data in inside.items()}, "my set/x.exe": b"MZ", "__MACOSX/._a": b""}
    )
    answer, _ = drop(uploads, "my set", {"my set.zip": data})
    assert tree(root_of(uploads) / "my set") == inside
    assert codes(answer) == ["upload.others"]
    assert tree(
        root_of(uploads) / drop(uploads, "kohya", {"k.zip": zipped({"12_dog/b.png": png(2)})})[0]["folder"]
    ) == {"12_dog/b.png": png(2)}


def test_names_without_the_mark_of_utf8_are_read_as_they_were_written(uploads):
    data = zipped({"AAA.png": png(1)}).replace(b"AAA.png", "猫.png".encode())
    drop(uploads, "set", {"s.zip": data})
    assert set(tree(root_of(uploads) / "set")) == {"猫.png"}


def test_a_damaged_entry_is_told_and_the_others_are_taken(uploads):
    good, bad = png(1), png(2)
    data = bytearray(zipped({"a.png": good, "b.png": bad}))
    start = data.index(b"b.png") + 40
    data[start : start + 60] = bytes(60)
    answer, _ = drop(uploads, "set", {"s.zip": bytes(data)})
    assert tree(root_of(uploads) / "set") == {"a.png": good}
    assert codes(answer) == ["upload.damaged"]


HOSTILE = {
    "zip.link": lambda: zipped({"ok.png": png(1), "link.png": b"/etc/passwd"}, links=("link.png",)),
    "zip.damaged": lambda: b"PK\x03\x04 and no more",
    "zip.bomb": lambda: zipped({f"{n}.png": bytes(8_000_000) for n in range(4)}),
    "zip.password": lambda: zipped({"a.png": b"x"}).replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
}  # fmt: skip


@pytest.mark.parametrize("code", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(uploads, monkeypatch, code):
    monkeypatch.setattr(archives, "HARMLESS_BYTES", 16_000_000)
    with pytest.raises(LoomError) as error:
        drop(uploads, "set", {"s.zip": HOSTILE[code]()})
    assert error.value.message.code == code
    assert list(root_of(uploads).iterdir()) == []


def test_a_million_entries_are_refused_without_reading_their_list(tmp_path):
    """The list of entries is as long as a million of them make it; its bytes lie on the disk as a hole."""
    name, count = "a.png", 1_000_000
    size = count * (46 + len(name))
    file = tmp_path / "million.zip"
    with file.open("wb") as out:
        out.truncate(size)
        out.seek(size)
        out.write(b"PK\x05\x06" + bytes(4) + b"\xff\xff\xff\xff" + size.to_bytes(4, "little") + bytes(6))
    tracemalloc.start()
    with pytest.raises(LoomError) as error:
        Archive(file, "million.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.value.message.code == "zip.entries"
    assert peak < archives.MAX_DIRECTORY


def test_more_entries_than_a_folder_may_have_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_ENTRIES", 5)
    file = tmp_path / "many.zip"
    file.write_bytes(zipped({f"{n}.png": b"" for n in range(6)}))
    with pytest.raises(LoomError) as error:
        Archive(file, "many.zip")
    assert error.value.message.code == "zip.entries"
