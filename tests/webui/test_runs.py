"""Runs by the routes of the tab: beside pictures, in order, ended by what the host does, with files in its lists at once."""

import base64
import io
import threading
import time

import pytest
from live_webui import ROOT, Server
from lora_loom.nodes.page.works import WORKS

QUICK = {
    "data.resolution": 64,
    "data.bucket_step_px": 16,
    "batch_size": 1,
    "adapter.rank": 4,
    "samples.every": 0,
    "save.every": 1000,
}
ROUTE = "/lora-loom/v1"
PROMPT = {"prompt": "a cat", "steps": 4, "width": 64, "height": 64, "seed": 5, "sampler_name": "Euler"}


@pytest.fixture(scope="module")
def packages(server):
    return server.inside("packages")


def start(server, pictures, name, **settings):
    values = {**QUICK, "name": name, "data.folder": pictures, "data.trigger": "sks", **settings}
    return server.post(f"{ROUTE}/start", {"settings": values, "preset": "quick test"})


def picture(server, **more):
    """(the picture's bytes, seconds it took)."""
    began = time.monotonic()
    images = server.post("/sdapi/v1/txt2img", {**PROMPT, **more})["images"]
    return base64.b64decode(images[0]), time.monotonic() - began


def pixels(server, data):
    """Without what the host writes beside them."""
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_a_run_ends_with_its_file_in_the_hosts_list(server, pictures, packages):
    start(server, pictures, "listed", steps=6, **{"samples.every": 3, "samples.steps": 2})
    panel = server.wait_for("finished", "failed")
    assert panel["status"] == "finished", panel["error"]
    assert panel["result"]["a1111"].endswith("<lora:listed:1>")
    assert [step for step, _ in panel["samples"]] == [0, 3, 6]
    assert "listed" in [lora["name"] for lora in server.get("/sdapi/v1/loras")]
    status, sample = server.ask(f"{ROUTE}/panel/sample?run=listed&step=6")
    assert (status, sample[:2]) == (200, b"\xff\xd8")
    assert server.inside("packages") == packages


def test_pictures_come_through_while_a_run_goes_on_and_are_the_same(server, pictures):
    before, alone_s = picture(server)
    start(server, pictures, "beside", steps=400)
    server.wait_for("training")
    during, _ = picture(server)
    panel = server.get(f"{ROUTE}/state")["panel"]
    assert panel["status"] == "training", "the picture waited for the end of the run"
    assert pixels(server, during) == pixels(server, before)
    server.post(f"{ROUTE}/stop", {"node": "page"})
    assert server.wait_for("stopped", "failed")["status"] == "stopped"
    assert pixels(server, picture(server)[0]) == pixels(server, before)


def test_a_picture_waits_for_the_step_that_goes_on_and_no_longer(server):
    found = server.inside("pictures_asked_for", file="turns.py")
    print(server.kind.name, found)
    assert found["steps"] == 60
    assert found["same"] == [True] * 3, found
    assert max(found["waited"]) <= 1, found
    assert max(found["disturbed"]) == 0, found


def test_a_picture_between_two_steps_changes_nothing_that_is_trained(server, pictures):
    start(server, pictures, "undisturbed", steps=30)
    alone = server.wait_for("finished", "failed")
    start(server, pictures, "disturbed", steps=30)
    server.wait_for("training")
    picture(server, tiling=True, prompt="a cat <lora:undisturbed:1>")
    beside = server.wait_for("finished", "failed")
    assert beside["status"] == "finished", beside["error"]
    assert [row[2] for row in beside["rows"]] == [row[2] for row in alone["rows"]]


def test_the_hosts_interrupt_stops_a_run_and_keeps_its_work(server, pictures):
    start(server, pictures, "interrupted", steps=400)
    server.wait_until_step(3)
    server.ask("/sdapi/v1/interrupt", {})
    panel = server.wait_for("stopped", "failed", "finished")
    assert panel["status"] == "stopped"
    assert panel["result"]["files"] == ["interrupted.safetensors"]


def test_a_run_that_was_paused_goes_on_where_it_was(server, pictures):
    start(server, pictures, "paused", steps=40)
    server.wait_for("training")
    server.post(f"{ROUTE}/pause", {"node": "page"})
    panel = server.wait_for("paused", "finished", "failed")
    assert panel["status"] == "paused"
    server.post(f"{ROUTE}/go_on", {"node": "page", "run": "paused"})
    after = server.wait_for("finished", "failed")
    assert (after["status"], after["step"]) == ("finished", 40)


def test_runs_wait_for_each_other_in_order(server, pictures):
    assert start(server, pictures, "first", steps=40)["before"] == 0
    assert start(server, pictures, "second", steps=3)["before"] == 1
    assert server.get(f"{ROUTE}/state")["waiting"] == ["second"]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        panel = server.get(f"{ROUTE}/state")["panel"]
        if (panel["run"], panel["status"]) == ("second", "finished"):
            break
        time.sleep(0.5)
    assert (panel["run"], panel["status"]) == ("second", "finished")


def test_another_checkpoint_under_a_run_ends_it_with_its_work_kept(server, pictures):
    if server.kind.name != "A1111":
        pytest.skip("the others take another checkpoint with the next picture, which the page chooses")
    own = server.get("/sdapi/v1/options")["sd_model_checkpoint"]
    start(server, pictures, "changed", steps=400)
    server.wait_until_step(3)
    server.post("/sdapi/v1/options", {"sd_model_checkpoint": "tiny_sd15"})
    panel = server.wait_for("failed", "stopped", "finished")
    assert (panel["status"], panel["error"]["code"]) == ("failed", "webui.model_changed")
    assert (server.data / "lora_loom" / "runs" / "changed" / "changed.safetensors").is_file()
    assert "files" not in panel["result"], "what failed is among the Loras only when it is asked for"
    assert server.post(f"{ROUTE}/runs/export", {"id": "changed", "save": "result"})["files"] == ["changed.safetensors"]
    assert "changed" in [lora["name"] for lora in server.get("/sdapi/v1/loras")]
    server.post("/sdapi/v1/options", {"sd_model_checkpoint": own})
    assert picture(server)[0]


def test_what_cannot_be_trained_is_said_in_one_sentence_and_leaves_no_run(server, pictures):
    status, body = server.ask(f"{ROUTE}/start", {"settings": {"name": "a/b", "data.folder": pictures}})
    assert (status, b'"field":"name"' in body.replace(b" ", b"")) == (409, True)
    start(server, "/no/such/folder", "nothing")
    panel = server.wait_for("failed")
    assert panel["error"]["field"] == "data.folder"
    assert not (server.data / "lora_loom" / "runs" / "nothing").exists()


def test_only_the_hosts_own_page_is_answered(server):
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        status, body = server.ask(f"{ROUTE}/state", headers=headers)
        assert (status, b"request.stranger" in body) == (403, True), headers


def test_nothing_of_a_run_is_among_the_files_the_host_serves(server):
    runs = server.data / "lora_loom" / "runs"
    for file in [*runs.rglob("*.safetensors"), *runs.rglob("config.json")][:4]:
        for prefix in ("/file=", "/gradio_api/file="):
            status, _ = server.ask(f"{prefix}{file}")
            assert status in (403, 404), file


def test_neighbours_with_our_folders_names_are_left_alone(server):
    found = server.inside("whose_modules")
    assert found["package"] == "lora_loom.nodes.webui.page"
    assert not any(str(ROOT) in str(found[name]) for name in ("nodes", "convert", "lora_core"))


def test_the_routes_stand_in_the_hosts_description_of_its_api(server):
    paths = server.get("/openapi.json")["paths"]
    tools = ("inspect", "convert", "merge", "resize", "extract", "bake")
    assert {f"{ROUTE}/{name}" for name in ("start", "state", "stop", *tools)} <= paths.keys()
    body = paths[f"{ROUTE}/start"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["work"]["enum"] == list(WORKS)
    assert server.ask("/docs")[0] == 200


def test_a_lora_is_inspected_and_converted_beside_the_others(server):
    report = server.post(f"{ROUTE}/inspect", {"files": ["listed"]})["report"]
    assert "listed.safetensors" in report
    written = server.post(f"{ROUTE}/convert", {"files": ["listed"], "to": "diffusers"})["files"]
    assert [file.rpartition("/")[2] for file in written] == ["listed_diffusers.safetensors"]


def test_the_hosts_password_guards_the_routes_too(kind, tmp_path):
    server = Server(kind, tmp_path / "data", flags=("--api-auth", "anna:secret"))
    try:
        server.start()
        assert server.ask(f"{ROUTE}/state")[0] == 401
        token = base64.b64encode(b"anna:secret").decode()
        assert server.ask(f"{ROUTE}/state", headers={"Authorization": f"Basic {token}"})[0] == 200
        described = server.get("/openapi.json")["paths"][f"{ROUTE}/state"]["get"]
        assert described["security"] == [{"HTTPBasic": []}]
    finally:
        server.stop()


def test_a_login_of_the_hosts_page_opens_the_routes_too(kind, tmp_path):
    server = Server(kind, tmp_path / "data", flags=("--gradio-auth", "anna:secret"), page=True)
    try:
        server.start()
        assert server.ask(f"{ROUTE}/state")[0] == 401
        assert server.ask(f"{ROUTE}/state", headers={"Cookie": "access-token=made-up"})[0] == 401
        assert server.ask(f"{ROUTE}/state", headers={"Cookie": server.login("anna", "secret")})[0] == 200
    finally:
        server.stop()


def test_a_learning_rate_is_found_and_nothing_is_left(server, pictures):
    values = {**QUICK, "name": "rate", "data.folder": pictures, "data.trigger": "sks"}
    server.post(
        f"{ROUTE}/start", {"settings": values, "preset": "quick test", "work": "find-lr", "more": {"steps": 10}}
    )
    panel = server.wait_for("finished", "failed")
    if panel["status"] == "failed":  # random weights may have no rate at which they learn
        assert panel["error"]["code"] == "learning_rate.none_found", panel["error"]
        return
    status, drawn = server.ask(f"{ROUTE}/picture?id={panel['result']['picture']}")
    assert (status, drawn[:2]) == (200, b"\xff\xd8")


def test_a_slider_is_trained_without_a_picture(server):
    prompts = {"slider.positive": "an old cat", "slider.negative": "a young cat", "slider.sampler_steps": 2}
    values = {"name": "slid", "method": "slider", "data.resolution": 64, "batch_size": 1, "adapter.rank": 2, "steps": 2}
    status, body = server.ask(f"{ROUTE}/start", {"settings": {**values, "data.trigger": "sks"}})
    assert (status, b"slider.positive" in body) == (409, True)
    server.post(f"{ROUTE}/start", {"settings": {**values, **prompts, "samples.every": 0}, "preset": "quick test"})
    panel = server.wait_for("finished", "failed")
    assert (panel["status"], panel["run"], panel["step"]) == ("finished", "slid", 2), panel["error"]
    assert "slid" in [lora["name"] for lora in server.get("/sdapi/v1/loras")]


def test_variants_are_trained_and_compared(server, pictures):
    runs = '[[runs]]\nname = "a"\nadapter = { rank = 2 }\n[[runs]]\nname = "b"\nadapter = { rank = 3 }\n'
    values = {**QUICK, "name": "sweep", "data.folder": pictures, "data.trigger": "sks", "steps": 2, "samples.every": 2}
    body = {"settings": {**values, "samples.steps": 2}, "preset": "quick test", "work": "sweep", "more": {"runs": runs}}
    server.post(f"{ROUTE}/start", body)
    deadline = time.monotonic() + 200
    while server.get(f"{ROUTE}/state")["busy"] and time.monotonic() < deadline:
        time.sleep(0.5)
    panel = server.get(f"{ROUTE}/state")["panel"]
    assert (panel["run"], panel["status"]) == ("sweep_b", "finished"), panel["error"]
    assert panel["result"]["picture"]
    assert {"sweep_a", "sweep_b"} <= {lora["name"] for lora in server.get("/sdapi/v1/loras")}


def test_tools_write_loras_that_the_host_lists_at_once(server):
    assert server.post(f"{ROUTE}/resize", {"files": ["listed"], "rank": 2})["files"][0].endswith(
        "listed_rank2.safetensors"
    )
    server.post(f"{ROUTE}/merge", {"files": ["listed=0.5", "listed_rank2"], "to": "kohya"})
    names = {lora["name"] for lora in server.get("/sdapi/v1/loras")}
    assert {"listed_rank2", "listed_merge"} <= names


def test_captions_of_a_folder_are_edited_and_taken_back(server, pictures):
    session = server.post(f"{ROUTE}/dataset/open", {"folder": pictures})["session"]
    shown = server.get(f"{ROUTE}/dataset?session={session}")["pictures"][0]
    change = {"session": session, "captions": {shown["id"]: [shown["caption"], "another one"]}}
    assert server.post(f"{ROUTE}/dataset/edit", change)["changed"] == 1
    assert server.get(f"{ROUTE}/dataset?session={session}")["pictures"][0]["caption"] == "another one"
    assert server.post(f"{ROUTE}/dataset/undo", {"session": session})["changed"] == 1
    assert server.get(f"{ROUTE}/dataset?session={session}")["pictures"][0]["caption"] == shown["caption"]


def test_two_pages_that_ask_do_not_hold_up_a_run(server, pictures):
    start(server, pictures, "watched", steps=25)
    ended = threading.Event()

    def page():
        while not ended.is_set():
            server.ask(f"{ROUTE}/panel?node=page")
            time.sleep(0.25)

    pages = [threading.Thread(target=page) for _ in range(2)]
    for one in pages:
        one.start()
    try:
        assert server.wait_for("finished", "failed")["status"] == "finished"
    finally:
        ended.set()
        for one in pages:
            one.join()
