"""What every door relies on: a folder for each run, a log in it, nothing left of a run that trained nothing."""

import pytest
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.messages.message import Message
from lora_loom.lora_core.processes import ALONE, Processes
from lora_loom.lora_core.runs.state import LOG, ending
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.session import Session, run_folder


class CancelAt(Listener):
    def __init__(self, step):
        self.step = step

    def on_step(self, report):
        if report.step == self.step:
            raise KeyboardInterrupt


def export(state, facts):
    return {"made": (state, {})}


@pytest.fixture
def session(toy_config, toy_backend, tmp_path):
    def build(listener=None, resume=False, warnings=(), processes=ALONE, **changes):
        config = toy_config(**changes)
        job = Job(config, toy_backend, open_sets(config), tmp_path, listener or Listener(), processes=processes)
        return Session(job, run_folder(tmp_path, config.name, resume, processes), export, resume, warnings)

    return build


def test_a_run_leaves_its_log_and_goes_on_in_the_same_folder(session):
    first = session(warnings=[Message.of("note.hash")], steps=3)
    assert first.train().files[0].name == "made.safetensors"
    text = (first.folder / LOG).read_text()
    assert (
        text.index("The hash in the header") < text.index("training steps 1 to 3") < text.index("finished after step 3")
    )
    assert ending(first.folder).outcome == "finished"
    again = session(resume=True, steps=5)
    assert again.folder == first.folder
    assert again.train().step == 5
    assert session(steps=3).folder != first.folder


def test_a_run_that_trained_nothing_leaves_no_folder(session):
    refused = session(adapter={"rank": 1000})
    with pytest.raises(LoomError, match=r"adapter\.rank: 1000"):
        refused.train()
    assert not refused.folder.exists()


def test_a_cancelled_run_keeps_what_it_trained(session):
    cancelled = session(CancelAt(2))
    with pytest.raises(KeyboardInterrupt):
        cancelled.train()
    assert (cancelled.folder / "made.safetensors").is_file()
    assert "ended by KeyboardInterrupt" in (cancelled.folder / LOG).read_text()


def test_a_failed_continuation_never_removes_the_folder(session):
    empty = session(steps=3)
    (empty.folder / "checkpoints").mkdir()
    with pytest.raises(LoomError, match="holds no complete save"):
        session(resume=True, steps=3).train()
    assert empty.folder.is_dir()


def test_nothing_to_go_on_with_is_said_in_one_sentence(session):
    with pytest.raises(LoomError, match="resume: there is no run named 'toy_test' to continue; start a new run"):
        session(resume=True)


def test_only_the_first_process_makes_a_folder_and_speaks(tmp_path):
    class Second(Processes):
        def of_main(self, value):
            assert value is None
            return tmp_path / "of_the_first"

    assert run_folder(tmp_path, "x", False, Second(1, 2)) == tmp_path / "of_the_first"
    assert list(tmp_path.iterdir()) == []


def test_what_a_backend_says_of_how_it_trains_reaches_the_user_before_the_first_step(session, toy_backend, monkeypatch):
    remark = Message.of("model.slow_way", field="model", network="Toy")
    monkeypatch.setattr(type(toy_backend), "remarks", lambda self: (remark,), raising=False)
    run = session(steps=1)
    run.train()
    text = (run.folder / LOG).read_text()
    assert text.index(str(remark)) < text.index("finished after step 1")


def test_what_goes_on_between_two_steps_is_told_before_it_begins(toy_config, run_toy, tmp_path):
    class Course(Listener):
        def __init__(self):
            self.lines = []

        def on_progress(self, what, done, total):
            if what in ("progress.samples", "progress.saving", "progress.validating", "progress.writing"):
                self.lines.append(f"{what.partition('.')[2]} {done}/{total}")

        def on_save(self, step, path):
            self.lines.append(f"saved {step}")

        def on_sample(self, step, images, path):
            self.lines.append("drawn")

    course = Course()
    samples = {"every": 2, "prompt": "a red circle\na blue circle", "steps": 1, "width_px": 32, "height_px": 32}
    run_toy(toy_config(steps=3, save={"every": 2}, samples=samples), tmp_path / "run", course)
    drawn = ["samples 1/2", "samples 2/2", "drawn"]
    assert course.lines == ["saving 2/3", "saved 2", *drawn, *drawn, "saving 3/3", "saved 3", *drawn, "writing 3/3"]


def test_no_part_of_a_run_is_silent(toy_config, run_toy, tmp_path, monkeypatch):
    """Whatever takes long is told before it begins: measuring the memory, encoding, the first measurement, the first step."""

    class Course(Listener):
        def __init__(self):
            self.lines = []

        def on_progress(self, what, done, total):
            if [what] != self.lines[-1:]:
                self.lines.append(what)

        def on_start(self, first_step, steps, facts):
            self.lines.append("start")

        def on_validation(self, measure, best):
            self.lines.append("measured")

        def on_step(self, report):
            self.lines.append("step")

    course = Course()
    held_out = {"every": 10, "share": 0.3}
    run_toy(toy_config(steps=2, auto_fit=True, validation=held_out), tmp_path / "run", course)
    assert [line.removeprefix("progress.") for line in course.lines] == [
        "pictures", "held_out_pictures", "captions", "fitting", "start", "validating", "measured", "first_step", "step", "validating", "measured", "step",
        "saving", "writing",
    ]  # fmt: skip
