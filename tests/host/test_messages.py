"""How messages reach the page: a node's error as data beside the host's own event, and the sentences of a language on a route."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from comfy_api.latest import io
from live_server import running
from lora_loom.convert import FormatError
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.messages.message import LANGUAGES, Message, Setting, table
from lora_loom.nodes.host.access.shown import on
from lora_loom.nodes.host.web import message_routes
from lora_loom.nodes.sockets import in_english, in_words, plain_errors


class FakeServer:
    client_id = "tab"

    def __init__(self):
        self.sent = []

    def send_sync(self, event, data, sid=None):
        self.sent.append((event, data, sid))


@pytest.fixture
def host(monkeypatch):
    fake = FakeServer()
    monkeypatch.setattr(message_routes, "server", lambda: fake)
    return fake


def node(error):
    class Node(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="LoraLoomConvertLora", inputs=[], outputs=[])

        @classmethod
        @plain_errors("file")
        def execute(cls):
            raise error

    return message_routes.telling(Node)


def test_the_page_that_queued_a_node_is_told_its_error_as_data(host):
    error = LoomError("lora.unknown_layer", field="lora", layer="q")
    with pytest.raises(LoomError):
        node(error).execute()
    told = error.message.as_json(on("LoraLoomConvertLora"))
    assert host.sent == [("lora_loom.error", told, "tab")]


def test_an_error_says_what_its_widget_is_called_to_the_host_and_to_the_page(host):
    error = LoomError("setting.not_finite", field="optimizer.lr", value=float("nan"))
    with pytest.raises(LoomError, match=r"^learning_rate \(Train LoRA\): found nan"):
        node(error).execute()
    [(_, told, _)] = host.sent
    assert (told["field"], told["text"]) == ("optimizer.lr", str(error))


def test_an_error_about_a_file_names_the_widget_it_came_in_by_or_its_own(host):
    way = Message.of("way.approximate", approximate=Setting("approximate"))
    with pytest.raises(
        LoomError,
        match="^file: unet.q: diffusers has no form for a module of kind loha; .* or else: convert it to a LoRA first .approximate_rank.[.]$",
    ):
        node(FormatError("diffusers.no_form", name="unet.q", kind="loha", way=way)).execute()
    with pytest.raises(LoomError, match="^approximate_rank: 0 is not a rank"):
        node(FormatError("rank.unusable", field="approximate", rank=0)).execute()
    assert [data["field"] for _, data, _ in host.sent] == ["file", "approximate"]


def test_other_errors_are_the_hosts_own(host):
    with pytest.raises(KeyError):
        node(KeyError("x")).execute()
    assert host.sent == []


def test_every_node_tells_its_errors():
    from lora_loom.nodes.extension import NODES

    files = {n.__name__: n.execute.__func__.__code__.co_filename for n in NODES}
    assert {name for name, file in files.items() if not file.endswith("message_routes.py")} == set()


def test_a_report_is_english_for_every_page_and_messages_for_ours():
    lines = ["name", Message.of("note.only_t5", option=Setting("family"))]
    shown = in_words(lines, images=[1])
    assert shown["text"] == (in_english(lines),)
    assert "Say which one it is with base_model (Convert LoRA)." in shown["text"][0]
    assert [m["text"] for m in shown["loom_messages"]] == in_english(lines).split("\n")
    assert shown["loom_messages"][1]["code"] == "note.only_t5"
    assert shown["images"] == [1]


def test_the_sentences_of_a_language_are_asked_for_once(tmp_path):
    with running(tmp_path / "base") as server:
        address = f"http://127.0.0.1:{server.port}/lora_loom/messages"
        for language in LANGUAGES:
            with urllib.request.urlopen(f"{address}/{language}", timeout=30) as answer:
                told = json.loads(answer.read())
                assert told["sentences"] == table(language)
                assert told["names"]["optimizer.lr"][0][0] == "LoraLoomTrainLora"
                tag = answer.headers["ETag"]
            again = urllib.request.Request(f"{address}/{language}", headers={"If-None-Match": tag})
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(again, timeout=30)
            assert caught.value.code == 304
        for other in ("fr", "..%2fen", "en.json"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{address}/{other}", timeout=30)
            assert caught.value.code == 404
