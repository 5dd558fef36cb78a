"""The panel of a train node through a real server: its state, its buttons, what outlives a restart, and what strangers and malformed requests get."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import random
import time
import urllib.parse
import urllib.request

import pytest
from live_server import running
from PIL import Image
from safetensors.torch import load_file
from test_http import id_of, node, toy_prompt, wait_for

BUTTONS = ("stop", "save", "sample", "pause")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


def quick(server, **train) -> dict:
    """Model, pictures and training alone, with steps of a few hundredths of a second."""
    prompt = toy_prompt(server, **{"targets": "cross-attention", "batch_size": 1, "learning_rate": 0.001, **train})
    return {
        key: value
        for key, value in prompt.items()
        if value["class_type"] in ("LoraLoomLoadToyModel", "LoraLoomLoadFolder", "LoraLoomTrainLora")
    }


def train_id(server) -> str:
    return id_of(quick(server), "LoraLoomTrainLora")


def panel(server, node_id: str, **query) -> dict | None:
    more = "".join(f"&{key}={value}" for key, value in query.items())
    return server.get(f"/lora_loom/panel?node={node_id}{more}")["panel"]


def begun(server, node_id: str, name: str, steps: int = 3) -> None:
    wait_for(lambda: (p := panel(server, node_id)) and p["run"] == name and p["step"] >= steps, 120)


def logged(server, name: str) -> list[dict]:
    return [
        json.loads(line)
        for line in (server.base / "output" / "lora_loom" / name / "log.jsonl").read_text().splitlines()
    ]


def test_the_state_of_a_run_holds_every_step_its_marks_and_its_pictures(server):
    prompt = quick(server, name="seen", steps=12, save_every=5, sample_every=6)
    number = id_of(prompt, "LoraLoomTrainLora")
    assert server.execute(prompt)["status"]["status_str"] == "success"
    state = panel(server, number)
    assert (state["status"], state["step"], state["steps"], state["run"]) == ("finished", 12, 12, "seen")
    assert [row[:2] for row in state["rows"]] == [[n, n] for n in range(1, 13)]
    for row, line in zip(state["rows"], logged(server, "seen"), strict=True):
        assert row[2] == row[3] == pytest.approx(line["loss"], rel=1e-5)
        assert row[5] == pytest.approx(line["lr"], rel=1e-5)
    assert state["saves"] == [5, 10, 12]
    assert [s[0] for s in state["samples"]] == [0, 6, 12]
    assert any(message["code"] == "run.trains" for message in state["messages"])
    assert state["result"]["files"] == ["seen.safetensors"]
    assert "<lora:seen:1>" in state["result"]["a1111"]
    assert not state["can_continue"]
    assert (
        "seen.safetensors" in server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    )
    newer = panel(server, number, after=9, session=state["session"])
    assert [row[0] for row in newer["rows"]] == [10, 11, 12]
    assert len(panel(server, number, after=9, session="another")["rows"]) == 12
    for step, size in ((0, 128), (6, 1024)):
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.port}/lora_loom/panel/sample?run=seen&step={step}&size={size}"
        ) as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert max(Image.open(io.BytesIO(answer.read())).size) <= size


def test_a_panel_belongs_to_its_workflow(server):
    prompt = quick(server, name="owned", steps=2)
    number = id_of(prompt, "LoraLoomTrainLora")
    body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": {"id": "workflow-a"}}}}
    status, answer = server.post("/prompt", body)
    assert status == 200
    server.result(answer["prompt_id"])
    assert panel(server, number, workflow="workflow-a")["run"] == "owned"
    assert panel(server, number, workflow="workflow-b") is None


def test_buttons_save_draw_and_stop_between_two_steps(server):
    prompt = quick(server, name="pressed", steps=5000, sample_every=0, save_every=4000)
    number = id_of(prompt, "LoraLoomTrainLora")
    queued = server.queue(prompt)
    begun(server, number, "pressed")
    file = server.base / "output" / "loras" / "pressed.safetensors"
    assert server.post("/lora_loom/save", {"node": number}) == (200, {"asked": "save", "node": number})
    wait_for(file.exists)
    wait_for(lambda: any(m["code"] == "run.saved" for m in panel(server, number)["messages"]))
    saved = panel(server, number)
    assert saved["status"] == "training"
    assert len(saved["saves"]) == 1
    assert load_file(file)
    assert (
        "pressed.safetensors"
        in server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    )
    assert server.post("/lora_loom/sample", {"node": number})[0] == 200
    wait_for(lambda: len(panel(server, number)["samples"]) == 2)
    assert panel(server, number)["samples"][0][0] == 0
    assert server.post("/lora_loom/stop", {"node": number})[0] == 200
    pressed = time.time()
    assert server.result(queued)["status"]["status_str"] == "success"
    assert sum(line["time"] > pressed for line in logged(server, "pressed")) <= 1  # the step that was under way
    assert panel(server, number)["status"] == "stopped"


def test_a_paused_run_frees_the_queue_and_goes_on_as_if_it_had_never_stopped(server):
    def weights(name):
        return load_file(server.base / "output" / "lora_loom" / name / f"{name}.safetensors")

    whole = quick(server, name="whole", steps=60, sample_every=0)
    assert server.execute(whole)["status"]["status_str"] == "success"
    prompt = quick(server, name="paused", steps=60, sample_every=0)
    number = id_of(prompt, "LoraLoomTrainLora")
    queued = server.queue(prompt)
    begun(server, number, "paused", 1)
    assert server.post("/lora_loom/pause", {"node": number})[0] == 200
    entry = server.result(queued)
    assert [m[0] for m in entry["status"]["messages"]][-1] == "execution_interrupted"
    state = panel(server, number)
    assert state["status"] == "paused"
    assert state["can_continue"]
    assert 0 < state["step"] < 60
    assert state["samples"] == []
    node(prompt, "LoraLoomTrainLora").update(name=state["run"], resume="continue last")
    assert server.execute(prompt)["status"]["status_str"] == "success"
    state = panel(server, number)
    assert (state["status"], state["run"]) == ("finished", "paused")
    assert [row[:2] for row in state["rows"]] == [[n, n] for n in range(1, 61)]
    one, two = weights("whole"), weights("paused")
    assert one.keys() == two.keys()
    assert all(one[key].equal(two[key]) for key in one)


def test_cancel_keeps_the_last_save_and_can_go_on(server):
    prompt = quick(server, name="given_up", steps=5000, sample_every=0, save_every=4)
    number = id_of(prompt, "LoraLoomTrainLora")
    queued = server.queue(prompt)
    begun(server, number, "given_up", 6)
    server.post("/interrupt", {})
    server.result(queued)
    state = panel(server, number)
    assert (state["status"], state["can_continue"]) == ("cancelled", True)
    assert len(logged(server, "given_up")) == state["step"]
    assert load_file(server.base / "output" / "loras" / "given_up.safetensors")


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"name": "../x"}, "name: '../x' contains a path"), ({"rank": 1024}, "rank: 1024 is larger than layer"), ({"include": "nothing"}, "selects none"),
        ({"exclude": "("}, "is not a valid regular expression"), ({"name": "never", "resume": "continue last"}, "there is no run named 'never'"),
    ],
)  # fmt: skip
def test_an_error_is_a_sentence_in_the_panel(server, train, sentence):
    prompt = quick(server, **{"name": "refused", **train})
    assert server.execute(prompt)["status"]["status_str"] == "error"
    state = panel(server, id_of(prompt, "LoraLoomTrainLora"))
    assert state["status"] == "failed"
    assert sentence in state["error"]["text"]


def test_the_learning_rate_test_has_a_panel_too(server):
    prompt = quick(server)
    training = id_of(prompt, "LoraLoomTrainLora")
    wires = {key: prompt[training]["inputs"][key] for key in ("model", "clip", "vae", "dataset")}
    spec = server.get("/object_info/LoraLoomFindLearningRate")["LoraLoomFindLearningRate"]["input"]["required"]
    values = {k: v[1].get("default", (v[1].get("options") or [None])[0]) for k, v in spec.items() if k not in wires}
    prompt["90"] = {
        "class_type": "LoraLoomFindLearningRate",
        "inputs": {**values, **wires, "test_steps": 12, "rank": 4, "targets": "cross-attention"},
    }
    del prompt[training]
    server.execute(prompt)
    state = panel(server, "90")
    assert [row[0] for row in state["rows"]] == list(range(1, len(state["rows"]) + 1))
    assert state["rows"][-1][5] > state["rows"][0][5]


def test_the_state_comes_back_from_disk_after_the_server_died(tmp_path, figure):
    with running(tmp_path / "base") as server:
        prompt = quick(server, name="survivor", steps=5000, sample_every=5, save_every=4)
        number = id_of(prompt, "LoraLoomTrainLora")
        server.queue(prompt)
        begun(server, number, "survivor", 12)
        wait_for(lambda: len(panel(server, number)["samples"]) >= 3)
        before = panel(server, number)
        server.kill()
        server.start()
        server.wait_ready()
        asked = time.time()
        after = panel(server, number)
        figure("state of a run asked for after a restart", time.time() - asked)
        assert (after["status"], after["run"], after["can_continue"]) == ("interrupted", "survivor", True)
        assert [row[:2] for row in after["rows"]] == [[n, n] for n in range(1, len(after["rows"]) + 1)]
        kept = len(after["rows"])
        assert kept >= before["saves"][-1]  # the log is flushed with every save
        assert after["rows"][: min(kept, len(before["rows"]))] == before["rows"][:kept]
        assert [s[0] for s in after["samples"]] == [s[0] for s in before["samples"]][: len(after["samples"])]
        assert after["inputs"]["name"] == "survivor"
        assert after["messages"]


def tree(server) -> str:
    """A hash of every file a route of ours could touch, and of what is queued."""
    found = hashlib.sha256()
    for place in ("output", "input", "models", "temp", "user/default"):
        for path in sorted((server.base / place).rglob("*")):
            found.update(f"{path} {path.stat().st_size if path.is_file() else ''} {path.stat().st_mtime_ns}".encode())
    queue = server.get("/queue")
    return found.hexdigest() + str([len(queue["queue_running"]), len(queue["queue_pending"])])


def raw(
    server, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


HOSTILE = (
    "", "../..", "..%2f..%2fetc", "/etc/passwd", "C:\\x", "seen/../seen", "seen%00", "%ff", "a" * 3000, "💣", "'\";--", "NaN", "-1", "1e9", "0x10", "12:3:4",
    "__proto__", "{}", "[]", "null", "..", ".", "~", "%2e%2e", "con", "seen.safetensors", " ", "\u202e", "9" * 400, "1.5", "+1", "٣",
)  # fmt: skip


def malformed(draw: random.Random) -> tuple[str, str, bytes | None, dict[str, str]]:
    """One request that means nothing."""
    value = draw.choice(HOSTILE)
    quoted = urllib.parse.quote(value, safe="%")
    if draw.random() < 0.45:
        path = draw.choice(
            [
                f"/lora_loom/panel?node={quoted}&after={quoted}", f"/lora_loom/panel?after={quoted}", f"/lora_loom/panel?node=999&workflow={quoted}&after=x",
                f"/lora_loom/panel/sample?run={quoted}&step={draw.choice(['0', '6', quoted])}", f"/lora_loom/panel/sample?run=seen&step={quoted}",
                f"/lora_loom/panel/sample?run=seen&step=999999&size={quoted}", "/lora_loom/panel/sample", f"/lora_loom/panel/sample?step=0&run=..%2F{quoted}",
            ]
        )  # fmt: skip
        return "GET", path, None, {}
    bodies: list[bytes] = [
        b"", b"{", b"[]", b"null", b"NaN", b'{"node": NaN}', b'{"node": Infinity}', b'{"node": null}', b'{"node": []}', b'{"node": {"a": 1}}',
        b'{"node": true}',
        b'{"node": 1e400}', b'{"node": -1}', b"\xff\xfe", b'"3"', b'{"node": "999", "node": "998"}', json.dumps({"node": value}).encode(), b"[" * 4000,
        b'{"a":' * 700,
        json.dumps({"node": "9" * 4090}).encode(), b"x" * 5000, json.dumps({"run": value}).encode(),
    ]  # fmt: skip
    kind = draw.choice(["application/json"] * 6 + ["text/plain", "application/x-www-form-urlencoded", ""])
    return "POST", f"/lora_loom/{draw.choice(BUTTONS)}", draw.choice(bodies), {"Content-Type": kind} if kind else {}


def test_two_thousand_malformed_requests_change_nothing_and_none_is_a_server_error(server):
    if not (server.base / "output" / "lora_loom" / "seen").exists():
        server.execute(quick(server, name="seen", steps=6, sample_every=6))
    draw, before, counts, slowest = random.Random(7), tree(server), {}, 0.0
    for _ in range(2000):
        method, path, body, headers = malformed(draw)
        began = time.perf_counter()
        status, answer = raw(server, method, path, body, headers)
        slowest = max(slowest, time.perf_counter() - began)
        counts[status] = counts.get(status, 0) + 1
        allowed = (
            {200, 400, 404} if path.startswith("/lora_loom/panel?") else {400, 404, 413}
        )  # a node nobody ran has an empty panel
        if path.startswith("/lora_loom/panel/sample?run=seen&step=6") or (method, status) == ("GET", 200):
            continue
        assert status in allowed, (method, path, body, status, answer[:200])
        assert json.loads(answer)["error"]["text"], (method, path)
    print(f"answers {counts}, slowest {slowest * 1000:.0f} ms")
    assert 500 not in counts
    assert tree(server) == before
    status, _ = raw(server, "POST", "/lora_loom/stop", b"x" * 50_000_000, {"Content-Type": "application/json"})
    assert status == 413


def strangers(server) -> list[tuple[dict[str, str], bool]]:
    """(headers, whether our own page may send them)."""
    here, other = f"127.0.0.1:{server.port}", "evil.example"
    return [
        ({}, True), ({"Origin": f"http://{here}"}, True), ({"Sec-Fetch-Site": "same-origin", "Origin": f"http://{here}"}, True),
        ({"Host": f"localhost:{server.port}"}, True), ({"Host": f"localhost:{server.port}", "Origin": f"http://localhost:{server.port}"}, True),
        ({"Host": other}, False), ({"Host": f"{other}:{server.port}"}, False), ({"Host": other, "Origin": f"http://{other}"}, False),
        ({"Origin": f"http://{other}"}, False), ({"Origin": "null"}, False), ({"Origin": f"http://127.0.0.1.{other}"}, False),
        ({"Origin": "http://127.0.0.1:1"}, False), ({"Sec-Fetch-Site": "cross-site"}, False), ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Host": f"localhost.{other}", "Origin": f"http://localhost.{other}"}, False),
    ]  # fmt: skip


def test_only_comfyuis_own_page_is_answered_under_every_name_and_origin(server):
    before = tree(server)
    assert len(strangers(server)) == 15
    for headers, ours in strangers(server):
        for path in ("/lora_loom/panel?node=999", "/lora_loom/panel/sample?run=none&step=0"):
            status, _ = raw(server, "GET", path, None, headers)
            assert status in ((200, 404) if ours else (403,)), (path, headers, status)
        for name in BUTTONS:
            status, _ = raw(
                server,
                "POST",
                f"/lora_loom/{name}",
                b'{"node": "999"}',
                {"Content-Type": "application/json", **headers},
            )
            assert status == (404 if ours else 403), (name, headers, status)
    assert tree(server) == before


def test_a_stranger_cannot_stop_a_run_that_is_going_on(server):
    prompt = quick(server, name="guarded", steps=5000, sample_every=0)
    number = id_of(prompt, "LoraLoomTrainLora")
    queued = server.queue(prompt)
    begun(server, number, "guarded")
    for headers, ours in strangers(server):
        if not ours:
            for name in BUTTONS:
                body, sent = json.dumps({"node": number}).encode(), {"Content-Type": "application/json", **headers}
                assert raw(server, "POST", f"/lora_loom/{name}", body, sent)[0] == 403
    step = panel(server, number)["step"]
    wait_for(lambda: panel(server, number)["step"] > step + 2)
    state = panel(server, number)
    assert (state["status"], state["saves"], state["samples"]) == ("training", [], [])
    server.post("/lora_loom/stop", {"node": number})
    server.result(queued)
