"""Open tabs and the run: what a step costs with none, one and three of them, one of which never reads (a figure, no verdict); and what the others are sent."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import statistics
import threading
import time

import aiohttp
import psutil
import pytest
from live_server import running
from test_panel import begun, logged, panel, quick

pytestmark = pytest.mark.slow
ROUNDS = int(os.environ.get("ROUNDS", "2"))  # more of them see a smaller change
BLOCK_S = float(os.environ.get("BLOCK_S", "3"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


class Tab(threading.Thread):
    """A page that reads what it is sent."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.address, self.events, self.others, self.ending = (
            f"http://127.0.0.1:{server.port}/ws",
            [],
            0,
            threading.Event(),
        )
        self.start()

    def run(self) -> None:
        asyncio.run(self._read())

    async def _read(self) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(self.address) as socket_:
            while not self.ending.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    message = await asyncio.wait_for(socket_.receive(), 0.2)
                    if message.type == aiohttp.WSMsgType.TEXT and '"lora_loom.panel"' in message.data[:60]:
                        self.events.append((time.monotonic(), len(message.data), json.loads(message.data)["data"]))
                    elif message.type == aiohttp.WSMsgType.BINARY:
                        self.others += 1

    def close(self) -> None:
        self.ending.set()
        self.join(5)


def stalled_tab(server) -> socket.socket:
    """A page that opened its websocket and never reads it."""
    tab = socket.socket()
    tab.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    tab.connect(("127.0.0.1", server.port))
    key = base64.b64encode(os.urandom(16)).decode()
    head = [
        "GET /ws HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
    ]
    tab.sendall("\r\n".join([*head, "Sec-WebSocket-Version: 13", "", ""]).encode())
    return tab


def test_tabs_get_few_small_events_and_what_they_cost_a_step_is_told(server):
    prompt = quick(server, name="watched", steps=1_000_000, sample_every=0, save_every=1_000_000)
    number = next(key for key, value in prompt.items() if value["class_type"] == "LoraLoomTrainLora")
    queued = server.queue(prompt)
    begun(server, number, "watched", 40)
    blocks: dict[int, list[tuple[float, float, float]]] = {0: [], 1: [], 3: []}
    process = psutil.Process(server.pid)

    def spent() -> float:
        times = process.cpu_times()
        return times.user + times.system

    seen: list[Tab] = []
    for turn in range(ROUNDS):
        for count in (0, 1, 3) if turn % 2 == 0 else (3, 1, 0):  # a drift of the machine falls on all alike
            tabs = [Tab(server) for _ in range(min(count, 2))]
            stalled = [stalled_tab(server)] if count == 3 else []
            time.sleep(0.5)
            began, before = time.time(), spent()
            time.sleep(BLOCK_S)
            blocks[count].append((began, time.time(), spent() - before))
            for tab in tabs:
                tab.close()
                seen.append(tab)
            for tab in stalled:
                tab.close()
    server.post("/lora_loom/stop", {"node": number})
    server.result(queued)
    assert panel(server, number)["status"] == "stopped"
    times = [line["time"] for line in logged(server, "watched")]

    def steps_in(block: tuple[float, float, float]) -> int:
        return sum(block[0] <= t <= block[1] for t in times)

    def compared(label: str, each: dict[int, list[float]]) -> None:
        base = statistics.fmean(each[0])
        for count in (1, 3):
            changes = [
                a / b - 1 for a, b in zip(each[count], each[0], strict=True)
            ]  # of one round: minutes of the machine cancel out
            change, noise = statistics.fmean(changes), statistics.stdev(changes) / len(changes) ** 0.5
            print(f"{count} tabs: {label} {change:+.2%} of {base * 1000:.2f} ms, standard error {noise:.2%}")

    compared("time of a step", {n: [(b[1] - b[0]) / steps_in(b) for b in found] for n, found in blocks.items()})
    compared("processor time of a step", {n: [b[2] / steps_in(b) for b in found] for n, found in blocks.items()})
    sizes = [size for tab in seen for _, size, _ in tab.events]
    rate = max(len(tab.events) / max(1e-9, tab.events[-1][0] - tab.events[0][0]) for tab in seen if len(tab.events) > 5)
    print(f"{len(sizes)} events, at most {max(sizes)} bytes, at most {rate:.1f} a second")
    assert rate <= 5
    assert max(sizes) <= 16_000
    assert sum(tab.others for tab in seen) == 0  # no pictures
