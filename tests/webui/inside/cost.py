"""Runs inside a WebUI's process: what a training step of the loaded model takes, beside the least that a LoRA step on the same network can be."""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from statistics import median

import psutil
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
sys.modules.pop("proof", None)  # the file may have changed since the host was asked last

import proof  # noqa: E402

LR = 1e-4


class Peak:
    """The most memory the process held inside, looked at 20 times a second."""

    def __enter__(self):
        self.bytes, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self):
        process = psutil.Process()
        while not self._ended.wait(0.05):
            self.bytes = max(self.bytes, process.memory_info().rss)

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()


@contextlib.contextmanager
def as_it_stands(network):
    """Inside, autograd goes through the host's network: no weight wants a gradient, inference tensors have aliases that it takes, and norms read copies
    of what blocks of Forge update in place."""
    aliases, guards = proof.package("lora_core.borrowing.aliases"), proof.package("lora_core.borrowing.guards")
    override = proof.package("lora_core.adapters.attach").override_forward
    with contextlib.ExitStack() as undo:
        for p in [p for p in network.parameters() if p.requires_grad and not p.is_inference()]:
            undo.callback(p.requires_grad_, True)
            p.requires_grad_(False)
        for module in network.modules():
            undo.callback(aliases.put_back, aliases.aliased(module, aliases.as_normal))
        for norm in guards.norms(network) if proof.host() == "FORGE" else ():
            undo.enter_context(override(norm, guards.cloned_input(norm)))
        yield


def minimal(backend, layers, steps, px, rank):
    """CPU seconds of each step of a loop with nothing in it but the network, two products per layer, and AdamW."""
    override = proof.package("lora_core.adapters.attach").override_forward
    pairs, undo = [], contextlib.ExitStack()
    for layer in layers.values():
        down = torch.nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        up = torch.nn.Parameter(torch.zeros(layer.out_features, rank))
        pairs += [down, up]

        def forward(x, layer=layer, down=down, up=up):
            return F.linear(x, layer.weight, layer.bias) + F.linear(F.linear(x, down), up)

        undo.enter_context(override(layer, forward))
    with torch.inference_mode(False):
        text = backend.captions.of("a dog")["crossattn"].detach().clone()
    noise = torch.randn(1, 4, px // 8, px // 8)
    target, t = torch.randn_like(noise), torch.tensor([500])
    optimizer = torch.optim.AdamW(pairs, lr=LR)
    times = []
    with as_it_stands(backend.network), undo, torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            began = time.process_time()
            loss = F.mse_loss(backend.network(noise, t, context=text).float(), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.process_time() - began)
    return times


def ours(steps, checkpointing, px, rank):
    """(CPU seconds of each step, memory when loaded, most memory while it runs)."""
    events, marks = proof.package("lora_core.events"), []

    class Clock(events.Listener):
        def on_start(self, first_step, steps, facts):
            marks.append(time.process_time())

        def on_step(self, report):
            marks.append(time.process_time())

    data = {"folder": str(proof.pictures_folder(1, px)), "resolution": px, "bucket_step_px": 64}
    config = proof.config_of(steps=steps, batch_size=1, data=data, adapter={"rank": rank}, optimizer={"lr": LR}, checkpointing=checkpointing)  # fmt: skip
    with Peak() as peak:
        proof.trained(config, listener=Clock())
    return [b - a for a, b in zip(marks, marks[1:])], peak.bytes


def step(steps=4, rounds=2, px=256, rank=16):
    """Figures of a step, of ours and of the least one in turns. reForge is not asked for the least one: its network is ComfyUI's."""
    torch.set_num_threads(1)
    with proof.locked():
        proof.lend()
        proof.picture(size=px)
        backend = proof.lend().backend
        layers = {n: m for n, m in backend.layers().items() if ".transformer_blocks." in n and "attn" in n}
        backend.encode_texts(["a dog"], lambda done, total: None)
        loaded = psutil.Process().memory_info().rss
        turns = {"ours": lambda: ours(steps, False, px, rank)}
        if proof.host() != "REFORGE":
            turns["minimal"] = lambda: (minimal(backend, layers, steps, px, rank), 0)
        all_of, peak = {name: [] for name in turns}, 0
        for _ in range(rounds):
            for name, turn in turns.items():
                times, most = turn()
                all_of[name] += times[1:]
                peak = max(peak, most)
        all_of["checkpointed"], low = ours(steps, True, px, rank)
        return {
            "torch": torch.__version__, "layers": len(layers), "loaded_gb": round(loaded / 1e9, 2), "load": round(os.getloadavg()[0], 1),
            "cpu_s": {name: round(median(times), 3) for name, times in all_of.items()},
            "shortest_ms": {name: round(min(times) * 1e3, 2) for name, times in all_of.items()},
            "peak_above_gb": round((peak - loaded) / 1e9, 2), "checkpointed_above_gb": round((low - loaded) / 1e9, 2),
        }  # fmt: skip
