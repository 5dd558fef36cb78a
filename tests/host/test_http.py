"""The whole way through a real server: templates run, results load, bad input is refused in one sentence, stop and cancel keep the work."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from live_server import ROOT, running
from PIL import Image
from safetensors import safe_open

TEMPLATES = ROOT / "example_workflows"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


def toy_prompt(server, **train) -> dict:
    """The toy template with a few steps; `train` overrides widgets of Train LoRA."""
    prompt = server.api_prompt(json.loads((TEMPLATES / "21 Train the toy, then try it.json").read_text()))
    node(prompt, "LoraLoomTrainLora").update({"steps": 8, "sample_every": 0, "targets": "attention", **train})
    return prompt


def node(prompt: dict, kind: str) -> dict:
    return next(n["inputs"] for n in prompt.values() if n["class_type"] == kind)


def id_of(prompt: dict, kind: str) -> str:
    return next(i for i, n in prompt.items() if n["class_type"] == kind)


def pictures(server, entry: dict) -> list[np.ndarray]:
    saved = [i for out in entry["outputs"].values() for i in out.get("images", []) if i["type"] == "output"]
    return [
        np.asarray(Image.open(server.base / "output" / i["subfolder"] / i["filename"]).convert("RGB"), int)
        for i in saved
    ]


def wait_for(condition, seconds: float = 60) -> None:
    for _ in range(int(seconds * 20)):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def test_toy_template_trains_saves_and_draws(server):
    prompt = toy_prompt(server, name="whole_way", steps=60, learning_rate=0.01, sample_every=30)
    before = {
        k: v
        for k, v in prompt.items()
        if v["class_type"] not in ("LoraLoomTrainLora", "LoraLoomSaveLora", "LoraLoomLoadFolder")
    }
    base, train = id_of(prompt, "LoraLoomLoadToyModel"), id_of(prompt, "LoraLoomTrainLora")
    before = json.loads(
        json.dumps(before).replace(f'["{train}", 0]', f'["{base}", 0]').replace(f'["{train}", 1]', f'["{base}", 1]')
    )
    untrained = pictures(server, server.execute(before))
    entry = server.execute(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    trained = pictures(server, entry)
    assert max(np.abs(a - b).max() for a, b in zip(untrained, trained)) > 50

    run = server.base / "output" / "lora_loom" / "whole_way"
    assert {p.name for p in run.iterdir()} >= {
        "config.json",
        "log.jsonl",
        "run.log",
        "loss.png",
        "whole_way.safetensors",
        "checkpoints",
        "samples",
    }
    assert len((run / "log.jsonl").read_text().splitlines()) == 60
    with safe_open(server.base / "output" / "loras" / "my_lora_webui.safetensors", "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sd_v1"
        assert file.metadata()["ss_output_name"] == "my_lora_webui"
        keys = list(file.keys())
        assert all(key.startswith("lora_unet_") for key in keys)

    reload = json.loads(
        json.dumps(before).replace(f'["{base}", 0]', '["99", 0]').replace(f'["{base}", 1]', '["99", 1]')
    )
    reload["99"] = {
        "class_type": "LoraLoader",
        "inputs": {
            "model": [base, 0],
            "clip": [base, 1],
            "lora_name": "whole_way.safetensors",
            "strength_model": 1.0,
            "strength_clip": 1.0,
        },
    }
    log_from = len(server.log.read_text())
    from_file = pictures(server, server.execute(reload))
    difference = max(np.abs(a - b).max() for a, b in zip(trained, from_file))
    print(f"live outputs against LoraLoader: {difference} of 255")
    assert difference == 0  # the same patches from the same numbers
    assert "not loaded" not in server.log.read_text()[log_from:].lower()


def test_same_name_never_overwrites(server):
    for _ in range(2):
        assert (
            server.execute(toy_prompt(server, name="twice", seed=int(time.time_ns() % 10**9)))["status"]["status_str"]
            == "success"
        )
    runs = {p.name for p in (server.base / "output" / "lora_loom").iterdir()}
    assert {"twice", "twice_2"} <= runs
    assert {"twice.safetensors", "twice_2.safetensors"} <= {
        p.name for p in (server.base / "output" / "loras").iterdir()
    }


def test_a_users_file_in_the_lora_folder_is_never_overwritten(server):
    theirs = server.base / "output" / "loras" / "mine.safetensors"
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_bytes(b"precious")
    assert server.execute(toy_prompt(server, name="mine"))["status"]["status_str"] == "success"
    assert theirs.read_bytes() == b"precious"
    assert (theirs.parent / "mine_2.safetensors").exists()


def test_stop_and_keep_ends_within_a_step_and_keeps_a_loadable_file(server):
    prompt = toy_prompt(server, name="stopped", steps=5000)
    queued = server.queue(prompt)
    log = server.base / "output" / "lora_loom" / "stopped" / "log.jsonl"
    wait_for(log.exists)
    time.sleep(1.5)
    began = time.time()
    assert server.post("/lora_loom/stop", {"node": id_of(prompt, "LoraLoomTrainLora")})[0] == 200
    wait_for((server.base / "output" / "loras" / "stopped.safetensors").exists)
    print(f"file {time.time() - began:.2f} s after stop")
    assert server.result(queued)["status"]["status_str"] == "success"
    assert 0 < len(log.read_text().splitlines()) < 5000


def test_cancel_keeps_the_work_and_continue_goes_on(server):
    prompt = toy_prompt(server, name="cancelled", steps=400, save_every=1000)
    queued = server.queue(prompt)
    run = server.base / "output" / "lora_loom" / "cancelled"
    wait_for((run / "log.jsonl").exists)
    time.sleep(1.5)
    server.post("/interrupt", {})
    server.result(queued)
    assert (run / "cancelled.safetensors").exists()
    assert (server.base / "output" / "loras" / "cancelled.safetensors").exists()
    done = len((run / "log.jsonl").read_text().splitlines())
    assert 0 < done < 400
    node(prompt, "LoraLoomTrainLora")["resume"] = "continue last"
    assert server.execute(prompt)["status"]["status_str"] == "success"
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 401))


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ([], "application/json", 400),
        ({"node": "999"}, "application/json", 404),
        ({"node": {}}, "application/json", 404),
        ({"node": "3"}, "text/plain", 400),
    ],
)
def test_stop_route_refuses_what_it_does_not_know(server, body, kind, status):
    assert server.post("/lora_loom/stop", body, kind)[0] == status


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}])
def test_stop_route_answers_only_the_hosts_own_page(server, headers):
    assert server.post("/lora_loom/stop", {"node": "3"}, headers=headers)[0] == 403


def make_folder(server, name: str, files: dict[str, bytes]) -> str:
    folder = server.base / "input" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return name


def picture_bytes(side: int = 64) -> bytes:
    import io

    out = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


def failure(server, prompt: dict) -> str:
    """The sentence a person sees: from validation or from the run."""
    status, answer = server.post("/prompt", {"prompt": prompt})
    if status != 200:
        return json.dumps(answer)
    entry = server.result(answer["prompt_id"])
    assert entry["status"]["status_str"] == "error", "the run should have been refused"
    return server.error_of(entry)


def folder_prompt(server, folder: str, **train) -> dict:
    prompt = toy_prompt(server, **train)
    node(prompt, "LoraLoomLoadFolder")["folder"] = folder
    return prompt


def test_bad_input_gets_one_sentence(server):
    good = make_folder(server, "good", {"a.png": picture_bytes(), "a.txt": b"a red thing"})
    for name, files in {
        "text_only": {"a.txt": b"hello"},
        "broken": {"a.png": b"no picture"},
        "tiny": {"a.png": picture_bytes(4)},
    }.items():
        make_folder(server, name, {**files, "b.png": b""} if name != "text_only" else files)
    cases = {
        "output name with a path": (folder_prompt(server, good, name="../x"), "name: '../x' contains a path"),
        "rank larger than a layer": (folder_prompt(server, good, rank=1024), "rank: 1024 is larger than layer"),
        "no matching layer": (folder_prompt(server, good, include="nothing"), "selects none"),
        "bad pattern": (folder_prompt(server, good, exclude="("), "exclude: '(' is not a valid regular expression"),
        "folder that is not there": (folder_prompt(server, "missing"), "no folder 'missing'"),
        "unreadable pictures": (folder_prompt(server, "broken"), "a.png cannot be read as a picture"),
        "picture smaller than a bucket": (folder_prompt(server, "tiny"), "smaller than the smallest bucket"),
        "continue without a run": (
            folder_prompt(server, good, name="never", resume="continue last"),
            "there is no run named 'never'",
        ),
    }
    for label, (prompt, sentence) in cases.items():
        found = failure(server, prompt)
        assert sentence in found, f"{label}: {found}"
    runs = server.base / "output" / "lora_loom"
    assert not (runs / "never").exists()
    for prompt in (cases["rank larger than a layer"][0],):
        name = node(prompt, "LoraLoomTrainLora")["name"]
        assert not any(p.name.startswith(name) and not any(p.glob("checkpoints/step-*")) for p in runs.iterdir())


def test_skipped_and_captionless_pictures_are_named_and_the_run_goes_on(server):
    files = {
        "a.png": picture_bytes(),
        "a.txt": b"a red thing",
        "b.png": picture_bytes(80),
        "c.png": b"broken",
        "orphan.txt": b"x",
    }
    prompt = folder_prompt(server, make_folder(server, "mixed", files), name="mixed")
    node(prompt, "LoraLoomLoadFolder")["trigger"] = "zork"
    entry = server.execute(prompt)
    assert entry["status"]["status_str"] == "success"
    report = entry["outputs"][id_of(prompt, "LoraLoomLoadFolder")]["text"][0]
    assert "2 pictures" in report
    assert "skipped c.png: cannot be read as a picture" in report
    assert "1 without caption, e.g. b.png: trained with the trigger 'zork'" in report
    assert "1 caption file without a picture, e.g. orphan.txt" in report


def test_wrong_vae_is_refused(server):
    prompt = toy_prompt(server, name="wrong_vae")
    prompt["50"] = {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}}
    node(prompt, "LoraLoomTrainLora")["vae"] = ["50", 0]
    assert "wire the VAE that belongs to this model" in failure(server, prompt)


def test_a_second_click_encodes_nothing_again(server, figure):
    server.execute(toy_prompt(server, name="warm", seed=8))
    output = server.base / "output" / "lora_loom"

    def encoded() -> set[Path]:
        return set((output / "cache").rglob("*.safetensors"))

    before = encoded()
    began = time.time()
    assert server.execute(toy_prompt(server, name="clock", steps=3, seed=9))["status"]["status_str"] == "success"
    first = json.loads((output / "clock" / "log.jsonl").read_text().splitlines()[0])["time"]
    figure("first step of the toy after the click", first - began)
    assert encoded() == before != set()
