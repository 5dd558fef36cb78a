"""Times one training step of a full-size random SD1.5 inside ComfyUI beside a minimal hand-written loop, alternating in one process.

    python benchmarks/step_sd15.py [--dtypes fp32 bf16] [--threads 1 2] [--steps 4] [--rounds 3] [--out benchmarks/results]

Needs a ComfyUI checkout ($COMFYUI_DIR, else ~/comfy/ComfyUI) and its Python environment with diffusers. 256 px, batch 1, rank 16 on
attention, latents and text cached, AdamW. CPU seconds are the process's own, so other load on the machine disturbs them less than wall time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOST = Path(os.environ.get("COMFYUI_DIR", "~/comfy/ComfyUI")).expanduser()
UNET = {
    "image_size": 32, "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None, "in_channels": 4, "out_channels": 4,
    "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1, "use_linear_in_transformer": False,
    "context_dim": 768, "use_temporal_attention": False, "disable_self_attentions": None,
}  # fmt: skip
RANK, LR = 16, 1e-4
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def enter_host() -> None:
    """Our package under its own name, the host's modules importable, CPU mode."""
    sys.path[:] = [str(HOST), *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "benchmarks"))]
    spec = importlib.util.spec_from_file_location("lora_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["lora_loom"] = package
    spec.loader.exec_module(package)
    before, sys.argv = sys.argv, ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401

    sys.argv = before


def randomize(module: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, p in module.named_parameters():
            p.normal_(std=0.02, generator=rng) if p.ndim > 1 else p.fill_(1.0 if "norm" in key and key.endswith("weight") else 0.0)


class Loom:
    """Our own step on a backend, with stand-ins for latents; `checkpointing` recomputes blocks."""

    def __init__(self, dtype: Any, checkpointing: bool = False, **more: Any):
        import torch
        from lora_loom.lora_core.build import make_adapters
        from lora_loom.lora_core.config import parse
        from lora_loom.lora_core.data.batches import Batch
        from lora_loom.lora_core.data.buckets import fit
        from lora_loom.lora_core.groups import make_groups
        from lora_loom.lora_core.optimizers import filled, make_optimizer
        from lora_loom.lora_core.run import Run

        backend = self.backend(dtype)
        self.rss_loaded = rss()
        job = filled(parse({"steps": 10**6, "adapter": {"rank": RANK}, "optimizer": {"lr": LR}, **more}))
        layers, adapters = make_adapters(job, backend)
        latents = torch.randn(4, 1, 4, 32, 32, generator=torch.Generator().manual_seed(2))
        how = fit(256, 256, 256, 64)

        class Cached:
            def at(self, step: int, micro: int) -> Batch:
                return Batch(latents[step % 4], ["a photo"], [how], ["one.png"], torch.ones(1))

        scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.trained = adapters.count()
        self._training = backend.training(layers, adapters, checkpointing)
        self._run = Run(job, backend, adapters, Cached(), backend.objective(job.objective), make_optimizer(make_groups(job, adapters), job.optimizer), scaler)
        began = time.perf_counter()
        with torch.inference_mode(False):
            self._training.__enter__()
        self.start_s = time.perf_counter() - began
        self._step = 0

    def step(self) -> float:
        from lora_loom.lora_core.step import optimizer_step

        self._step += 1
        return optimizer_step(self._run, self._step).loss


def text() -> Any:
    """(1, 77, 768) in place of an encoded caption."""
    import torch

    return torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1))


class InHost(Loom):
    """On the host's own SD1.5 class, as the node trains."""

    def backend(self, dtype: Any) -> Any:
        import comfy.model_patcher
        import comfy.supported_models as sm
        import torch
        from lora_loom.nodes.host.backend import HostBackend

        with torch.inference_mode():
            config = sm.SD15(dict(UNET))
            config.set_inference_dtype(dtype, None)
            model = config.get_model({}, "", device=torch.device("cpu"))
            randomize(model.diffusion_model)
            patcher = comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
        known = text()
        clip = type("Text", (), {"tokenize": lambda s, t: t, "encode_from_tokens_scheduled": lambda s, t: [[known, {"pooled_output": None}]]})()
        vae = type("NoVae", (), {"downscale_ratio": 8, "latent_channels": 4})()
        return HostBackend(patcher, clip, vae)


class Headless(Loom):
    """On diffusers' UNet, as the terminal trains."""

    def backend(self, dtype: Any) -> Any:
        import types

        from diffusers import AutoencoderKL, DDPMScheduler
        from lora_loom.lora_core.backends.clip_text import Text
        from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
        from transformers import CLIPTextConfig, CLIPTextModel

        names = {"text_encoder": CLIPTextModel(CLIPTextConfig(num_hidden_layers=1)), "tokenizer": None}
        schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        parts = types.SimpleNamespace(unet=diffusers_unet(dtype), vae=AutoencoderKL(block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                                      up_block_types=("UpDecoderBlock2D",) * 4), components=names, scheduler=schedule)  # fmt: skip
        backend = DiffusersBackend(Path("random"), {"float32": "fp32", "bfloat16": "bf16"}[str(dtype).removeprefix("torch.")], "cpu", parts)
        backend._texts["a photo"] = Text(text())
        return backend


def diffusers_unet(dtype: Any) -> Any:
    """SD1.5's UNet with random weights."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    unet = unet.to_empty(device="cpu").to(dtype).requires_grad_(False)
    randomize(unet)
    return unet


class Minimal:
    """The least a LoRA step can be: diffusers' UNet, hand-written branches, cached inputs, fused AdamW."""

    def __init__(self, dtype: Any):
        import torch
        import torch.nn.functional as F
        from diffusers import DDPMScheduler

        torch.manual_seed(0)
        self._unet = diffusers_unet(dtype)
        self._dtype, self._params = dtype, []
        for name, layer in self._unet.named_modules():
            if isinstance(layer, torch.nn.Linear) and name.endswith(TARGETS) and ".attn" in name:
                down = torch.nn.Parameter(torch.randn(RANK, layer.in_features) / RANK)
                up = torch.nn.Parameter(torch.zeros(layer.out_features, RANK))
                self._params += [down, up]

                def forward(x, base=layer.forward, down=down, up=up):
                    return base(x) + F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))

                layer.forward = forward
        self.trained = sum(p.numel() for p in self._params)
        self._optimizer = torch.optim.AdamW(self._params, lr=LR, fused=True)
        self._schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self._latents = torch.randn(4, 1, 4, 32, 32, generator=torch.Generator().manual_seed(2))
        self._text = text().to(dtype)
        self._step = 0

    def step(self) -> float:
        import torch

        self._step += 1
        x0 = self._latents[self._step % 4]
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (1,))
        pred = self._unet(self._schedule.add_noise(x0, noise, t).to(self._dtype), t, self._text).sample
        loss = (pred.float() - noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._params, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def timed(engine: Any, steps: int) -> list[tuple[float, float]]:
    """(CPU seconds, wall seconds) of each step."""
    out = []
    for _ in range(steps):
        cpu, wall = time.process_time(), time.perf_counter()
        engine.step()
        out.append((time.process_time() - cpu, time.perf_counter() - wall))
    return out


def compare(dtype_name: str, threads: int, steps: int, rounds: int) -> dict[str, Any]:
    """Ours on both backends and the minimal loop, taking turns in one process."""
    import torch

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype_name]
    engines = {"host": InHost(dtype), "headless": Headless(dtype), "minimal": Minimal(dtype)}
    assert len({engine.trained for engine in engines.values()}) == 1
    median = turns(engines, steps, rounds)
    return {
        "dtype": dtype_name, "threads": threads, "trained_values": engines["host"].trained, "install_s": round(engines["host"].start_s, 3),
        **{f"{name}_{unit}_s": round(value, 3) for name, pair in median.items() for unit, value in zip(("cpu", "wall"), pair)},
        **{f"{name}_{unit}_ratio": round(median[name][n] / median["minimal"][n], 3) for name in ("host", "headless") for n, unit in enumerate(("cpu", "wall"))},
    }  # fmt: skip


def turns(engines: dict[str, Any], steps: int, rounds: int) -> dict[str, list[float]]:
    """Median (CPU seconds, wall seconds) of a step of each, after two to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for engine in engines.values():
        timed(engine, 2)
    for _ in range(rounds):
        for name, engine in engines.items():
            times[name] += timed(engine, steps)
    return {name: [statistics.median(column) for column in zip(*rows)] for name, rows in times.items()}


def memory(dtype_name: str, kind: str, checkpointing: str) -> dict[str, Any]:
    """Peak resident memory above the loaded model, over start and three steps, in a process of its own."""
    import torch

    torch.set_num_threads(1)
    engine = BACKENDS[kind]({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype_name], checkpointing or False)
    loaded = engine.rss_loaded
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    timed(engine, 3)
    peak = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    seconds = statistics.median(cpu for cpu, _ in timed(engine, 4))
    return {
        "dtype": dtype_name, "backend": kind, "recomputed": checkpointing or "nothing", "loaded_gb": round(loaded / 1e9, 2),
        "peak_above_loaded_gb": round((peak - loaded) / 1e9, 2), "cpu_s": round(seconds, 3),
    }  # fmt: skip


BACKENDS = {"host": InHost, "headless": Headless}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, dtype, threads = args.one.split(",")
        enter_host()
        row = memory(dtype) if kind == "memory" else compare(dtype, int(threads), args.steps, args.rounds)
        sys.stdout.write("ROW " + json.dumps(row) + "\n")
        return

    def one(kind: str, dtype: str, threads: int = 1) -> dict[str, Any]:
        command = [sys.executable, __file__, "--one", f"{kind},{dtype},{threads}", "--steps", str(args.steps), "--rounds", str(args.rounds)]
        done = subprocess.run(command, capture_output=True, text=True)
        rows = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
        if not rows:
            raise SystemExit(done.stderr[-3000:])
        sys.stdout.write(rows[0] + "\n")
        sys.stdout.flush()
        return json.loads(rows[0])

    import torch

    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor())
    report = {
        "what": "one training step of full-size random SD1.5, 256 px, batch 1, rank 16 attention, cached latents and text",
        "date": date.today().isoformat(), "hardware": f"{os.cpu_count()} cores, {cpu}", "torch": torch.__version__, "python": platform.python_version(),
        "speed": [one("speed", d, t) for d in args.dtypes for t in args.threads],
        "memory": [one("memory", d) for d in args.dtypes],
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "step_sd15.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
