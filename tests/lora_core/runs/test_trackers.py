import json

import pytest
from lora_loom.__main__ import main
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs import checkpoints, step_log
from lora_loom.lora_core.runs.trackers import Tracker, _flat


@pytest.fixture
def job(pictures, tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(
        f'name = "tracked"\nsteps = 4\ntrackers = "tensorboard"\n[data]\nfolder = {str(pictures)!r}\nresolution = 32\nbucket_step_px = 16\n'
        "[adapter]\nrank = 2\n[validation]\nevery = 2\nshare = 0.25\n[samples]\nevery = 2\nsteps = 1\n"
    )
    return path


def test_tensorboard_holds_every_step_the_probes_the_samples_and_the_settings_without_paths(job, tmp_path, pictures):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["train", str(job), "--out", str(tmp_path / "runs")]) == 0
    place = tmp_path / "runs" / "tracked" / "tracking" / "tracked"
    events = EventAccumulator(str(place), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    run = tmp_path / "runs" / "tracked"
    rows = [json.loads(line) for line in (run / step_log.FILE).read_text(encoding="utf-8").splitlines()]
    whole, _ = checkpoints.latest(run / "checkpoints")
    measures = whole.facts["validation"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [step for step, *_ in measures] == [0, 2, 4]
    assert all(held_out != trained for _, held_out, trained, _ in measures)
    for tag in ("loss", "lr", "grad_norm"):
        assert scalars[tag] == [(row["step"], pytest.approx(row[tag])) for row in rows]
    assert scalars["held_out_loss"] == [(step, pytest.approx(held_out)) for step, held_out, *_ in measures]
    assert scalars["trained_loss"] == [(step, pytest.approx(trained)) for step, _, trained, *_ in measures]
    assert events.Tags()["images"]
    everything = b"".join(p.read_bytes() for p in place.rglob("*") if p.is_file())
    assert b"optimizer.lr" in everything
    assert str(pictures.parent).encode() not in everything


def test_a_tracker_that_is_unknown_or_not_installed_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(LoomError, match="trackers: 'nope' is not known; allowed are .*tensorboard"):
        Tracker("nope", "run", tmp_path)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(LoomError, match="trackers: tensorboard is not installed"):
        Tracker("tensorboard", "run", tmp_path)


def test_folders_are_passed_on_by_their_last_part():
    flat = _flat(
        {"base": "/home/me/models/sdxl", "data": {"folder": "/home/me/cat", "flip": True}, "sets": [{"folder": "/x"}]}
    )
    assert flat == {"base": "sdxl", "data.folder": "cat", "data.flip": True, "sets": 1}
