"""The state of a panel without any host: what it remembers, what a restart finds, what it does not believe."""

import json

import pytest
from lora_loom.lora_core.config import as_dict
from lora_loom.lora_core.events import StepReport
from lora_loom.lora_core.messages.message import Message
from lora_loom.nodes.jobs import panel as panels
from lora_loom.nodes.jobs.panel import PanelHost, PanelListener, Panels


@pytest.fixture
def host(tmp_path):
    """A host whose runs lie in a folder, and the events it was sent."""
    sent = []
    return PanelHost(lambda: tmp_path, sent.append, lambda: None), sent


def trained(host, folder, steps):
    """A panel after some steps of a run called `run`."""
    folder.mkdir()
    panel = Panels(host).begin("7", "flow", "LoraLoomTrainLora", {"steps": steps})
    panel.run = folder.name
    listener = PanelListener(panel)
    listener.on_start(0, 10, {"layers": 2, "trained_values": 100, "pictures": 3})
    lines = []
    for step in range(1, steps + 1):
        listener.on_step(StepReport(step, 1.0 / step, 0.0, 1.0, 1e-4, ["a.png"]))
        lines.append(json.dumps({"step": step, "loss": 1.0 / step, "lr": 1e-4, "grad_norm": 1.0}))
    (folder / "log.jsonl").write_text("\n".join(lines))
    panel.write(force=True)
    return panel


def test_the_size_of_the_file_is_told_before_the_first_step(host, toy_config, run_toy, tmp_path):
    panel = Panels(host[0]).begin("7")
    told = []
    panel.say = told.append
    result = run_toy(toy_config(steps=1, adapter={"rank": 16}), tmp_path / "run", PanelListener(panel))
    message = next(m for m in told if m.code == "run.trains")
    number, unit = str(message.values["size"]).split()
    told_bytes = float(number) * {"kB": 1e3, "MB": 1e6}[unit]
    assert message.values["layers"] == result.facts["layers"]
    assert told_bytes == pytest.approx(result.file.stat().st_size, rel=0.2)  # the header comes on top


def test_a_server_that_comes_back_finds_the_run_it_was_ended_in(host, tmp_path):
    before = trained(host[0], tmp_path / "run", 4)
    assert {event["run"] for event in host[1]} >= {"run"}
    found = Panels(host[0]).find("7", "flow")
    assert (found.status, found.error["code"]) == ("interrupted", "run.server_ended")
    assert (found.step, found.steps, found.inputs) == (4, 10, {"steps": 4})
    assert found.series.rows == before.series.rows
    assert Panels(host[0]).find("7", "another workflow") is None
    assert Panels(host[0]).find("8", "flow") is None


def test_only_a_run_that_goes_on_is_the_running_one(host):
    known = Panels(host[0])
    first = known.begin("7")
    assert known.running("7") is first
    first.changed(status="finished")
    assert known.running("7") is None
    assert known.find("7", "") is first


def test_old_panels_are_forgotten(host):
    known = Panels(host[0])
    for n in range(panels.MAX_PANELS + 5):
        known.begin(str(n)).changed(status="finished")
    assert known.find("4", "") is None
    assert known.find("5", "") is not None


@pytest.mark.parametrize("text", ["[]", "{", '{"saves": "all"}', '{"step": null}', "nothing", '{"inputs": 3}'])
def test_a_state_on_disk_that_someone_changed_is_not_read(text, host, tmp_path):
    trained(host[0], tmp_path / "run", 1)
    assert panels._on_disk(tmp_path / "run")["node"] == "7"
    (tmp_path / "run" / panels.FILE).write_text(text)
    assert panels._on_disk(tmp_path / "run") == {}


def test_a_run_that_a_program_queued_is_in_no_graph(host, tmp_path):
    panels_of_host = Panels(host[0])
    panels_of_host.begin("7").changed(status="finished")
    assert panels_of_host.find("7", "flow") is None
    trained(host[0], tmp_path / "run", 1)
    assert Panels(host[0]).find("7", "") is None


def test_what_goes_on_between_two_steps_is_told_at_once_and_forgotten_with_the_next_step(host, tmp_path):
    panel = trained(host[0], tmp_path / "run", 2)
    listener = PanelListener(panel)
    for picture in (1, 2):
        listener.on_progress("progress.samples", picture, 2)
        assert host[1][-1]["doing"]["text"] == f"Generating samples {picture}/2"
    listener.on_step(StepReport(3, 0.5, 0.0, 1.0, 1e-4, ["a.png"]))
    assert panel.doing == {}


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_kept_of_a_failed_run_is_not_offered_again(host, tmp_path, restarted):
    panel = trained(host[0], tmp_path / "run", 2)
    panel.say(Message.of("run.result_stays", folder="output/run", files=["run.safetensors"]))
    panel.changed(status="failed")
    known = Panels(host[0])
    if not restarted:
        known._panels["flow", "7"] = panel  # which has written its state a moment ago
    known.kept("run")
    known.kept("no such run")
    for place in (known, Panels(host[0])):
        found = place.find("7", "flow")
        assert (found.status, [m["code"] for m in found.messages]) == ("failed", ["run.trains"])


def test_the_time_left_knows_what_an_earlier_run_took_before_its_own_is_measured(host, toy_config, tmp_path):
    config = as_dict(toy_config(steps=100, samples={"every": 50, "prompt": "a"}))
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    pace = {"seconds_per_step": 1.0, "peak_bytes": 1, "seconds": {"samples": 1000.0}}
    (earlier / "run.json").write_text(json.dumps({"base_model": {"family": "sd1"}, "pace": pace}))
    (earlier / "config.json").write_text(json.dumps(config))
    left = []
    for family in ("sd1", "sdxl"):
        (tmp_path / family).mkdir()
        panel = Panels(host[0]).begin("7")
        panel.run = family
        listener = PanelListener(panel)
        facts = {"layers": 2, "trained_values": 100, "pictures": 3, "config": config, "base_model": {"family": family}}
        listener.on_start(0, 100, facts)
        for step in (1, 2):
            listener.on_step(StepReport(step, 1.0, 0.0, 1.0, 1e-4, []))
        left.append(panel.heart()["left_s"])
    assert left[0] >= 3 * 1000.0 > left[1]  # two samples, and one without the LoRA
