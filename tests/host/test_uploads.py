"""Dropped pictures over HTTP: routes as guarded as the others, bounded memory, folders that the server's owner allows."""

from __future__ import annotations

import http.client
import io
import json
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from live_server import Graph, running
from PIL import Image

ROUTES = ("begin", "claim", "part", "finish", "cancel", "place")
PART = 8 * 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(out, "PNG")
    return out.getvalue()


def send(server, key: str, parts: list, data: bytes, **headers: str) -> int:
    listed = json.dumps(parts).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    kind = {"Content-Type": "application/octet-stream", **headers}
    connection.request("POST", f"/lora_loom/upload/part?id={key}", struct.pack(">I", len(listed)) + listed + data, kind)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def dropped(server, name: str, files: dict[str, int], batches: Iterable[tuple[list, bytes]]) -> dict:
    """What the server made of files (path -> bytes) that came in these requests."""
    status, begun = server.post("/lora_loom/upload/begin", {"name": name, "files": [[n, s] for n, s in files.items()]})
    assert status == 200, begun
    for parts, data in batches:
        assert send(server, begun["id"], parts, data) == 200
    status, made = server.post("/lora_loom/upload/finish", {"id": begun["id"]})
    assert status == 200, made
    return made


def arrived(server) -> list[str]:
    """What lies in the input folder beside the host's own folder."""
    return sorted(path.name for path in (server.base / "input").iterdir() if path.name != "3d")


def peak_mb(server) -> float:
    """The most memory the server has ever held."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def test_another_sites_page_is_refused_on_every_route(server):
    for name in ROUTES:
        body = {"name": "x", "files": [["a.png", 1]], "id": "0" * 32, "folder": "x"}
        for header in ({"Origin": "https://example.org"}, {"Sec-Fetch-Site": "cross-site"}):
            assert server.post(f"/lora_loom/upload/{name}", body, headers=header)[0] == 403, name
    assert send(server, "0" * 32, [], b"", Origin="https://example.org") == 403
    assert arrived(server) == []


def test_a_request_that_is_too_large_or_none_is_refused(server):
    status, begun = server.post("/lora_loom/upload/begin", {"name": "x", "files": [["a.png", 10**9]]})
    assert status == 200
    assert send(server, begun["id"], [[0, 0, 2 * PART]], bytes(2 * PART)) == 413
    for parts in ([[0, 0]], [[0, 0, -1]], [["a", 0, 1]], {"a": 1}, [[0, 5, 1]]):
        assert send(server, begun["id"], parts, b"x") in (400, 409), parts
    assert send(server, begun["id"], [[0, 0, 1]], b"x", **{"Content-Type": "text/plain"}) == 400
    server.post("/lora_loom/upload/cancel", {"id": begun["id"]})
    assert arrived(server) == []


def test_ten_thousand_small_files_come_in_bounded_memory_and_are_trained_on(server):
    picture, count, at_once = png(), 10_000, 400
    before = peak_mb(server)
    files = {f"{n:05}.png": len(picture) for n in range(count)}
    batches = (
        ([[n, 0, len(picture)] for n in range(at, at + at_once)], picture * at_once) for at in range(0, count, at_once)
    )
    made = dropped(server, "many", files, batches)
    assert (made["folder"], made["pictures"]) == ("many", count)
    assert peak_mb(server) - before < 150
    graph = Graph(server)
    graph.add("LoraLoomLoadFolder", folder="many")
    graph.run()


@pytest.mark.slow
def test_a_file_of_two_gigabytes_comes_in_bounded_memory(server):
    size = 2 * 2**30
    before = peak_mb(server)
    block = bytes(PART)
    parts = (([[1, at, PART]], block) for at in range(0, size, PART))
    first = ([[0, 0, len(png())]], png())
    made = dropped(server, "large", {"a.png": len(png()), "big.tif": size}, (p for p in [first, *parts]))
    assert made["pictures"] == 1
    assert (server.base / "input" / "large" / "big.tif").stat().st_size == size
    assert peak_mb(server) - before < 100
    (server.base / "input" / "large" / "big.tif").unlink()


def test_a_typed_path_works_where_the_servers_owner_allows_it_and_is_told_where_to_put_it_elsewhere(server, tmp_path):
    outside = tmp_path / "sets" / "cats"
    outside.mkdir(parents=True)
    (outside / "a.png").write_bytes(png())
    (tmp_path / "sets" / "way out").symlink_to("/etc")

    def place(folder: Path | str) -> tuple[int, dict]:
        return server.post("/lora_loom/upload/place", {"folder": str(folder)})

    status, answer = place(outside)
    assert (status, answer["error"]["code"]) == (409, "folder.outside")
    assert "base/input" in answer["error"]["text"]
    graph = Graph(server)
    graph.add("LoraLoomLoadFolder", folder=str(outside), trigger="zog")
    status, refused = server.post("/prompt", {"prompt": graph.nodes})
    assert status == 400
    assert "user/lora_loom.toml" in json.dumps(refused)
    owners = server.base / "user" / "lora_loom.toml"
    try:
        owners.write_text(f"training_roots = ['{tmp_path / 'sets'}']\n")
        assert place(f'"{outside}"') == (200, {"folder": outside.as_posix()})
        graph.run()
        assert outside.as_posix() in json.dumps(server.get("/object_info/LoraLoomLoadFolder"))
        for bad in (tmp_path, "/etc", tmp_path / "sets" / ".." / "x", tmp_path / "sets" / "way out", "", "a\0b"):
            assert place(bad)[1]["error"]["code"] == "folder.outside", bad
        owners.write_text("training_roots = ['relative']\n")
        assert place(outside)[1]["error"]["code"] == "roots.not_absolute"
        owners.write_text("training_roots = [")
        assert place(outside)[1]["error"]["code"] == "roots.unreadable"
    finally:
        owners.unlink()
