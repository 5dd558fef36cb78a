"""The time and memory a run is said to take, beside what it then takes: in a real ComfyUI on the CPU, on the toy and on a full-size random SD1.5.

    ~/comfy/venv/bin/python benchmarks/estimates.py [--models toy sd15] [--px 256]

A first short run is measured, as a user's would be; then, in a new process of the server, the node says what a longer one with samples and saves will cost,
it is run, and its time left is noted four times a second. The checkpoint (2 GB) is made of ComfyUI's own classes and kept in the system's temporary folder.
Memory is that of the whole process while the run goes on. On a busy machine seconds change from minute to minute: CPU seconds stand beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import engines

sys.path.insert(0, str(engines.ROOT / "tests" / "host"))

from live_server import Graph, Server  # noqa: E402

START_S = 1800.0  # of a busy machine
LOOK_S = 0.25
FIRST_STEP_TOLD = 10  # after which the time left is compared
LEAST_LEFT_S = 2.0  # below that a ratio says nothing
JOBS: dict[str, tuple[dict[str, Any], ...]] = {  # settings of all runs, of the short one, of the one that is foretold
    "toy": (
        {"batch_size": 4, "targets": "linear"},
        {"steps": 40, "sample_every": 20, "save_every": 20},
        {"steps": 600, "sample_every": 150, "save_every": 200},
    ),
    "sd15": (
        {"batch_size": 1, "targets": "attention"},
        {"steps": 9, "sample_every": 9, "save_every": 9},
        {"steps": 40, "sample_every": 20, "save_every": 20},
    ),
}


def checkpoint(path: Path) -> Path:
    """A full-size SD1.5 of ComfyUI's own classes with random weights, in bf16, as one file."""
    if path.exists():
        return path
    engines.enter_package()
    engines.enter_host()
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models
    import torch
    from safetensors.torch import save_file

    config = comfy.supported_models.SD15(dict(engines.UNET))
    config.set_inference_dtype(torch.bfloat16, None)
    parts = {
        "model.diffusion_model.": config.get_model({}, "", device="cpu").diffusion_model,
        "cond_stage_model.transformer.": comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.bfloat16).transformer,
        "first_stage_model.": comfy.sd.VAE(sd=_vae_keys(), dtype=torch.bfloat16).first_stage_model,
    }
    out: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for prefix, module in parts.items():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                out[prefix + name] = value.contiguous()
            elif "norm" in name or value.ndim == 1:
                out[prefix + name] = torch.full_like(value, float(name.endswith("weight")), dtype=torch.bfloat16)
            else:
                spread = 1 / max(1.0, float(value[0].numel())) ** 0.5
                out[prefix + name] = (torch.randn(value.shape, generator=generator) * spread).to(torch.bfloat16)
    out.pop("cond_stage_model.transformer.text_projection.weight", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(out, part)
    part.rename(path)
    return path


def _vae_keys() -> dict[str, Any]:
    """The keys by which the host tells SD1's VAE, empty."""
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL

    ddconfig = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2,
        "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    with torch.device("meta"):
        vae = AutoencoderKL(ddconfig=ddconfig, embed_dim=4)
    return {name: torch.zeros(value.shape) for name, value in vae.state_dict().items()}


def pictures(folder: Path, px: int, count: int = 6) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for n in range(count):
        small = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((px, px), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"a zog, picture {n}", encoding="utf-8")


class Watch(threading.Thread):
    """What a run of the server shows from outside: memory and CPU seconds of its process, and what its panel says of the time left."""

    def __init__(self, server: Server, node: str):
        super().__init__(daemon=True)
        self.server, self.node = server, node
        self.peak_bytes = 0
        self.forecasts: list[tuple[float, int, float]] = []  # time, step, seconds left
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(LOOK_S):
            panel = self.server.get(f"/lora_loom/panel?node={self.node}&after=1000000")["panel"]
            if panel is None or panel["status"] != "training":
                continue
            self.peak_bytes = max(self.peak_bytes, resident(self.server.pid))
            if panel["left_s"] is not None:
                self.forecasts.append((time.time(), panel["step"], panel["left_s"]))


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def graph(server: Server, model: str, px: int, name: str, settings: dict[str, Any]) -> tuple[Graph, str]:
    out = Graph(server)
    loader = {"toy": "LoraLoomLoadToyModel", "sd15": "CheckpointLoaderSimple"}[model]
    base = out.add(loader, **({"ckpt_name": "full_sd15.safetensors"} if model == "sd15" else {}))
    folder = out.add(
        "LoraLoomLoadFolder",
        folder="toy: object" if model == "toy" else "pictures",
        trigger="TOK" if model == "toy" else "zog",
    )
    wires = {"model": [base, 0], "clip": [base, 1], "vae": [base, 2], "dataset": [folder, 0]}
    values = {
        "name": name,
        "rank": 16,
        "learning_rate": 1e-4,
        "sample_prompt": "a TOK bird" if model == "toy" else "a zog",
        "resolution": 128 if model == "toy" else px,
        **settings,
    }
    return out, out.add("LoraLoomTrainLora", **wires, **values)


def foretold(server: Server, prompt: Graph, node: str) -> dict[str, float]:
    status, answer = server.post("/lora_loom/plan", {"prompt": prompt.nodes, "node": node})
    assert status == 200, answer
    return answer["plan"]["cost"]


def carried(server: Server, prompt: Graph, node: str) -> dict[str, Any]:
    """What a run has cost: by its own record of its beginning and end, and as seen from outside."""
    watch, before = Watch(server, node), cpu_s(server.pid)
    watch.start()
    prompt.run()
    watch.over.set()
    watch.join()
    name = prompt.nodes[node]["inputs"]["name"]
    record = json.loads((server.base / "output" / "lora_loom" / name / "run.json").read_text(encoding="utf-8"))
    forecasts = [(said, record["ended"] - when) for when, step, said in watch.forecasts if step >= FIRST_STEP_TOLD]
    off = [max(said / real, real / said) for said, real in forecasts if real > LEAST_LEFT_S and said > 0]
    return {
        "s": record["ended"] - record["started"], "cpu_s": cpu_s(server.pid) - before, "bytes": watch.peak_bytes, "off": max(off, default=1.0),
        "told": len(off), "pace": record["pace"],
    }  # fmt: skip


def compared(model: str, px: int, file: Path, base: Path) -> dict[str, Any]:
    shared, short, long = JOBS[model]
    if model == "sd15":
        checkpoint(file)
    server = Server(base)
    try:
        if model == "sd15":
            (base / "models" / "checkpoints" / "full_sd15.safetensors").symlink_to(file)
            pictures(base / "input" / "pictures", px)
        server.wait_ready(START_S)
        measured = carried(server, *graph(server, model, px, "measured", {**shared, **short}))
        server.stop()
        server.start()  # a new process, so that the memory is the run's own
        server.wait_ready(START_S)
        prompt, node = graph(server, model, px, "foretold", {**shared, **long})
        cost = foretold(server, prompt, node)
        real = carried(server, prompt, node)
    finally:
        server.stop()
    print(model, measured, cost, real, sep="\n")
    return {
        "model": model, "px": 128 if model == "toy" else px, "steps": long["steps"], "said_s": round(cost["seconds"], 1), "took_s": round(real["s"], 1),
        "said_gb": round(cost["bytes"] / 1e9, 2), "took_gb": round(real["bytes"] / 1e9, 2), "worst_left": round(real["off"], 2), "looks": real["told"],
        "cpu_s": round(real["cpu_s"], 1), "measured_cpu_s": round(measured["cpu_s"], 1), "step_s": real["pace"]["seconds_per_step"],
        "measured_step_s": measured["pace"]["seconds_per_step"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--px", type=int, default=256)
    args = parser.parse_args()
    file, rows = Path(tempfile.gettempdir()) / "lora_loom_benchmarks" / "full_sd15.safetensors", []
    for model in args.models:
        with tempfile.TemporaryDirectory() as place:
            rows.append(compared(model, args.px, file, Path(place) / "base"))
    what = "what Train LoRA says before the click beside what the run takes, samples and saves included, after one short run with the same settings"
    engines.written("estimates", what, rows=rows)


if __name__ == "__main__":
    main()
