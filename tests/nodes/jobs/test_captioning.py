"""Captions written by a model into a dataset that is open in an editor, with a captioner that says what it is told to."""

import threading

import pytest
from PIL import Image


class Scripted:
    """Says the name of the colour; `then`: called before each answer with how many were given."""

    def __init__(self, tags=False, then=lambda count: None):
        self.writes_tags, self.then, self.asked = tags, then, []

    def caption(self, image, instruction):
        self.then(len(self.asked))
        self.asked.append((image.size, instruction))
        return f"The image shows shade {image.getpixel((0, 0))[0]}, a logo."


@pytest.fixture
def jobs(nodes):
    return nodes("jobs.captioning"), nodes("jobs.editing"), nodes("jobs.requests")


@pytest.fixture
def folder(tmp_path):
    for n in range(12):
        Image.new("RGB", (64, 64), (n, 0, 0)).save(tmp_path / f"{n:02}.png")
    (tmp_path / "03.txt").write_text("mine")
    return tmp_path


@pytest.fixture
def opened(jobs, folder):
    from lora_loom.lora_core.config import DataConfig

    editors = jobs[1].Editors(lambda folder: True)
    return editors, editors.open((DataConfig(folder=str(folder), resolution=16, bucket_step_px=8, trigger="zog"),))


def texts(folder):
    return {path.name: path.read_text() for path in sorted(folder.glob("*.txt"))}


def caption(jobs, opened, captioner, order=None, show=lambda *a: None):
    module, (editors, key) = jobs[0], opened
    return module.captioned(editors, key, order or module.CaptionOrder("x"), lambda: captioner, show)


def test_empty_ones_get_captions_what_is_there_stays_and_one_undo_takes_all_back(jobs, opened, folder):
    module, shown, captioner = jobs[0], [], Scripted()
    order = module.CaptionOrder("x", module.Wording("style", leave_out="a logo", prepend="photo of"))
    result = caption(jobs, opened, captioner, order, lambda *seen: shown.append(seen))
    assert (result.status, result.written, result.total) == ("finished", 11, 11)
    assert texts(folder) == {f"{n:02}.txt": "mine" if n == 3 else f"photo of Shade {n}." for n in range(12)}
    assert shown == [
        *((n, 11, name) for n, name in enumerate(f"{k:02}.png" for k in range(12) if k != 3)),
        (11, 11, ""),
    ]
    assert {question for _, question in captioner.asked} == {order.wording.asked()}
    editors, key = opened
    assert editors.take_back(key) == 11
    assert texts(folder) == {"03.txt": "mine"}
    assert editors.take_back(key) == 0


def test_who_reads_that_it_has_ended_finds_everything_written(jobs, opened, folder, monkeypatch):
    editors, key = opened
    seen, write = [], editors.edit

    def edit(*args):
        seen.append(editors.named(key).captioning.status)
        return write(*args)

    def cancel(done, total, name):
        if done == 1:
            raise Cancelled

    monkeypatch.setattr(editors, "edit", edit)
    with pytest.raises(Cancelled):
        caption(jobs, opened, Scripted(), show=cancel)
    caption(jobs, opened, Scripted())
    assert seen == ["running", "running"]
    assert editors.named(key).captioning.status == "finished"


def test_all_are_replaced_only_when_all_are_asked_for(jobs, opened, folder):
    caption(jobs, opened, Scripted(), jobs[0].CaptionOrder("x", which="all"))
    assert texts(folder)["03.txt"] == "Shade 3, a logo."
    opened[0].take_back(opened[1])
    assert texts(folder) == {"03.txt": "mine"}


@pytest.mark.parametrize("flush_s", [0.0, 1e9])
def test_writing_in_many_parts_or_in_one_is_one_edit(jobs, opened, folder, monkeypatch, flush_s):
    monkeypatch.setattr(jobs[0], "FLUSH_S", flush_s)
    monkeypatch.setattr(jobs[0], "FLUSH_SHARE", 0)
    written = []
    caption(jobs, opened, Scripted(then=lambda count: written.append(len(texts(folder)))))
    assert written == ([*range(1, 12)] if flush_s == 0 else [1] * 11)
    assert len(texts(folder)) == 12
    assert opened[0].take_back(opened[1]) == 11
    assert texts(folder) == {"03.txt": "mine"}


def test_a_person_s_edit_in_between_is_an_edit_of_its_own(jobs, opened, folder, monkeypatch):
    monkeypatch.setattr(jobs[0], "FLUSH_S", 0.0)
    monkeypatch.setattr(jobs[0], "FLUSH_SHARE", 0)
    editors, key = opened

    def edit(count):
        if count == 4:
            ids = {p["name"]: p["id"] for p in editors.contents(key)["pictures"]}
            editors.edit(key, ({ids["03.png"]: ("mine", "ours"), ids["11.png"]: ("", "hand")}, {}))

    result = caption(jobs, opened, Scripted(then=edit))
    assert texts(folder)["11.txt"] == "hand"
    assert [note.code for note in result.notes] == ["captioning.changed_meanwhile"]
    assert result.written == 10
    assert editors.take_back(key) == 6
    assert texts(folder)["03.txt"] == "ours"
    assert editors.take_back(key) == 2
    assert texts(folder)["03.txt"] == "mine"
    assert "11.txt" not in texts(folder)
    assert editors.take_back(key) == 4
    assert texts(folder) == {"03.txt": "mine"}


class Cancelled(BaseException):
    pass


def test_however_it_ends_what_was_said_is_kept(jobs, opened, folder):
    editors, key = opened

    def stop(count):
        if count == 2:
            editors.named(key).captioning.stop.set()

    assert caption(jobs, opened, Scripted(then=stop)).status == "stopped"
    assert len(texts(folder)) == 1 + 3

    def cancel(done, total, name):
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        caption(jobs, opened, Scripted(), show=cancel)
    assert len(texts(folder)) == 1 + 3 + 2
    assert editors.named(key).captioning.status == "stopped"

    def fail(count):
        if count == 1:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        caption(jobs, opened, Scripted(then=fail))
    assert editors.named(key).captioning.status == "failed"
    assert editors.named(key).captioning.as_json()["error"]["code"] == "error.unexpected"
    assert len(texts(folder)) == 1 + 3 + 2 + 1
    assert caption(jobs, opened, Scripted()).written == 5
    assert len(texts(folder)) == 12


def test_pictures_left_out_broken_ones_and_locked_captions_are_passed_over_and_told(jobs, opened, folder):
    editors, key = opened
    ids = {p["name"]: p["id"] for p in editors.contents(key)["pictures"]}
    editors.edit(key, ({}, {ids["00.png"]: True}))
    (folder / "elsewhere").write_text("")
    (folder / "01.txt").symlink_to(folder / "elsewhere")
    data = (folder / "02.png").read_bytes()
    (folder / "02.png").write_bytes(data[:60])  # its header can be read
    result = caption(jobs, opened, Scripted())
    assert "00.txt" not in texts(folder)
    assert "02.txt" not in texts(folder)
    assert (folder / "elsewhere").read_text() == ""
    assert sorted(note.code for note in result.notes) == ["editor.locked", "picture.of"]
    assert result.written == 8


def test_an_empty_answer_writes_nothing_and_a_set_of_others_is_not_touched(jobs, opened, folder, tmp_path):
    module, editing, requests = jobs
    order = module.CaptionOrder("x", module.Wording(leave_out="shade, *, a logo"))
    result = caption(jobs, opened, Scripted(), order)
    assert result.written == 0
    assert {note.code for note in result.notes} == {"captioning.nothing_said"}
    assert texts(folder) == {"03.txt": "mine"}
    editors = editing.Editors(lambda folder: False)
    key = editors.open(opened[0].named(opened[1]).sets)
    with pytest.raises(requests.Refused) as error:
        caption(jobs, (editors, key), Scripted())
    assert error.value.message.code == "editor.outside"
    assert editors.named(key).captioning.status == "failed"


def test_two_at_once_are_one_too_many_and_nothing_to_do_opens_no_model(jobs, opened, folder):
    module, _, requests = jobs
    inside, go = threading.Event(), threading.Event()

    def wait(count):
        inside.set()
        go.wait(60)

    first = threading.Thread(target=caption, args=(jobs, opened, Scripted(then=wait)))
    first.start()
    assert inside.wait(60)
    with pytest.raises(requests.Refused) as error:
        caption(jobs, opened, Scripted())
    assert error.value.message.code == "captioning.goes_on"
    go.set()
    first.join()
    assert len(texts(folder)) == 12

    def never():
        raise AssertionError

    assert module.captioned(*opened, module.CaptionOrder("x"), never, lambda *a: None).status == "finished"


@pytest.mark.parametrize(
    ("values", "field"),
    [({"which": "some"}, "which"), ({"bar": 0}, "bar"), ({"bar": True}, "bar"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"),
     ({"prepend": 3}, "prepend"), ({"captioner": None}, "captioner"), ({"subject": "cat"}, "subject")],
)  # fmt: skip
def test_an_order_of_a_page_is_checked(jobs, values, field):
    from lora_loom.lora_core.messages.errors import LoomError

    with pytest.raises(LoomError) as error:
        jobs[0].order_in(values)
    assert error.value.message.field == field
    assert jobs[0].order_in({"captioner": "a", "leave_out": "b"}).wording.leave_out == "b"


def test_the_editor_shows_what_is_trained_of_saved_and_unsaved_captions(nodes, tmp_path):
    from lora_loom.lora_core.config import DataConfig

    editing, requests = nodes("jobs.editing"), nodes("jobs.requests")
    for n in range(3):
        Image.new("RGB", (64, 64), (90 * n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "1.txt").write_text("a zog\na cat")
    (tmp_path / "2.txt").write_text("a [trigger] dog")
    editors = editing.Editors(lambda folder: True)
    data = DataConfig(folder=str(tmp_path), resolution=16, bucket_step_px=8, trigger="zog", prefix="photo of ", replace="cat => tiger",
                      caption_lines="alternatives")  # fmt: skip
    key = editors.open((data,))
    shown = {p["name"]: p for p in editors.contents(key)["pictures"]}
    assert shown["0.png"]["trained"] == ["zog"]
    assert shown["1.png"]["trained"] == ["photo of a zog", "zog, photo of a tiger"]
    assert shown["2.png"]["trained"] == ["photo of a zog dog"]
    drafts = {shown["0.png"]["id"]: "cats", shown["1.png"]["id"]: ""}
    assert editors.trained(key, drafts) == {
        shown["0.png"]["id"]: ["zog, photo of tigers"],
        shown["1.png"]["id"]: ["zog"],
    }
    for wrong in ({"x": 1}, {"x": "y" * 20_001}, {str(n): "" for n in range(201)}):
        with pytest.raises(requests.Refused):
            editors.trained(key, wrong)


def test_the_look_at_an_open_dataset_gives_notes_with_their_gravity_by_picture(nodes, tmp_path):
    import time

    import numpy as np
    from lora_loom.lora_core.config import DataConfig

    editing = nodes("jobs.editing")
    rng = np.random.default_rng(0)
    for n in range(4):
        Image.fromarray(rng.integers(0, 255, (600, 600, 3), np.uint8)).save(tmp_path / f"{n}.png")
    Image.new("RGB", (600, 600)).save(tmp_path / "black.png")
    Image.fromarray(rng.integers(0, 255, (200, 300, 3), np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    editors = editing.Editors(lambda folder: True)
    key = editors.open((DataConfig(folder=str(tmp_path), resolution=16, bucket_step_px=8),))
    ids = {p["name"]: p["id"] for p in editors.contents(key)["pictures"]}
    editors.edit(key, ({}, {ids["black.png"]: True}))
    seen = editors.looked_at(key, again=False)
    for _ in range(600):
        if seen["ready"]:
            break
        time.sleep(0.1)
        seen = editors.looked_at(key, again=False)
    assert (seen["done"], seen["total"], seen["error"]) == (7, 7, None)
    notes = {
        name: [(note["severity"], note["kind"]) for note in seen["notes"].get(key_, [])] for name, key_ in ids.items()
    }
    assert notes["0.png"] == []
    assert notes["black.png"] == [("stop", "dark")]
    assert notes["broken.jpg"] == [("stop", "broken")]
    assert notes["small.png"] == [("note", "small")]
    assert [note["code"] for note in seen["general"]]
    assert editors.looked_at(key, again=True)["ready"] in (False, True)
