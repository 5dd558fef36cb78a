"""Times full-size models with random weights on a GPU: ours headless and in ComfyUI beside the least loop; all parts within six minutes, in one call.

    python benchmarks/gpu.py                     on a machine that has PyTorch and the packages below
    python benchmarks/gpu.py --pack DIR          puts what is needed into DIR, on a machine with a network: wheels (pip download), and the code of the ComfyUI
                                                 in $COMFYUI_DIR. --has torch torchvision: packages the other machine has; --python 3.12, --platform: its kind
    python benchmarks/gpu.py --packages DIR      on a bare machine: the wheels of DIR are unpacked into DIR/unpacked, and everything runs with them; no network
    python benchmarks/gpu.py --count             counts the operations of a step for the utilisation, on any machine, once; kept in results/operations.json
    python benchmarks/gpu.py --tiny              the whole script on models of a few layers, on the CPU where there is no GPU: to see that all of it runs

Each part runs in a process of its own with a limit of time; a row is written as soon as it is measured, so --out FILE (results/gpu.json) is whole however a
part ends. What fails is a row too. --only WORD: the parts whose names have it. --minutes: for all parts together.

Rows: milliseconds a step with three to warm up, pictures a second, peak memory as PyTorch allocates it; `waits`: the share of a step in which no kernel runs
(from one profiled step), so the device waits for the processor; utilisation: counted operations of the least loop's step, without recomputing, over time and
over what a large bf16 product reaches on the same GPU. Latents and texts are cached, rank 16 on attention. Streamed: Flux.1 with 4 + 8 blocks of full
width, with the host's dynamic VRAM and room for a third of it; ComfyUI's own loader opens it, and the self-test of gradients runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engines
from engines import Case

HERE = Path(__file__).resolve()
COUNTED = engines.RESULTS / "operations.json"
NEEDED = ("torch", "numpy", "diffusers", "transformers", "accelerate", "safetensors", "Pillow")
PAGES = (
    "comfyui-frontend-package",
    "comfyui-workflow-templates",
    "comfyui-embedded-docs",
)  # of ComfyUI: nothing here opens one
ALL, CHEAP = {"checkpointing": True}, {"checkpointing": True, "recompute": "cheap"}
SIZES = {"SD1.5": ("sd15", 512), "SDXL": ("sdxl", 1024), "Flux.1": ("flux", 1024)}

Ways = tuple[tuple[str, int, dict[str, Any]], ...]  # (name, batch, settings of the job)
LEAST, PLAIN = "least loop", "nothing recomputed"
HEADLESS: dict[str, Ways] = {
    "SD1.5": ((LEAST, 1, {}), (PLAIN, 1, {}), ("all recomputed", 1, ALL), (LEAST, 8, {}), (PLAIN, 8, {})),
    "SDXL": ((LEAST, 1, {}), (PLAIN, 1, {}), ("cheap recomputed", 1, CHEAP), ("all recomputed", 1, ALL), ("fp8 base", 1, {"storage": "fp8"}),
             (LEAST, 4, {}), (PLAIN, 4, {})),
    "Flux.1": ((LEAST, 1, {}), (PLAIN, 1, {}), ("cheap recomputed", 1, CHEAP), ("all recomputed", 1, ALL),
               ("fp8 base, all recomputed", 1, {"storage": "fp8", **ALL}), ("half offloaded, all recomputed", 1, {"offload": 0.5, **ALL})),
}  # fmt: skip
IN_HOST: dict[str, Ways] = {
    "SD1.5": ((PLAIN, 1, {}), ("all recomputed", 1, ALL), (PLAIN, 8, {})),
    "SDXL": ((PLAIN, 1, {}), ("all recomputed", 1, ALL), ("fp8 base", 1, {"storage": "fp8"}), (PLAIN, 4, {})),
    "Flux.1": ((PLAIN, 1, {}), ("all recomputed", 1, ALL), ("fp8 base, all recomputed", 1, {"storage": "fp8", **ALL})),
}
COMPILED: dict[str, Ways] = {name: (("compiled", 1, {"compile": True}),) for name in ("SDXL", "Flux.1")}
HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("SD15", engines.UNET),
    "sdxl": ("SDXL", {**engines.UNET, "adm_in_channels": 2816, "num_classes": "sequential", "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4],
                      "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
                      "transformer_depth_middle": 10, "use_linear_in_transformer": True, "context_dim": 2048}),
    "flux": ("Flux", {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
                      "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000,
                      "qkv_bias": True, "patch_size": 2, "guidance_embed": True, "txt_ids_dims": []}),
}  # fmt: skip
BLOCKS = {"depth": 4, "depth_single_blocks": 8}  # of the streamed model


@dataclasses.dataclass(frozen=True)
class Scale:
    """Full size on the GPU, or a few narrow layers on whatever there is."""

    tiny: bool
    device: str

    @property
    def turns(self) -> tuple[int, int, int]:
        """(steps to warm up, rounds, steps of a round)."""
        return (1, 1, 1) if self.tiny else (3, 3, 5)

    def case(self, model: str, batch: int, job: dict[str, Any]) -> Case:
        name, px = SIZES[model]
        return Case(name, 64 if self.tiny else px, batch, "bf16", self.device, 4 if self.tiny else 16, job)


def shrink() -> None:
    """The narrow models of launch.py in place of the full ones, with as few blocks as their kinds have."""
    import launch

    few: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "sd15": (
            {"layers_per_block": 1},
            {
                "num_res_blocks": [1] * 4,
                "transformer_depth": [1, 1, 1, 0],
                "transformer_depth_output": [1] * 6 + [0] * 2,
            },
        ),
        "sdxl": (
            {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)},
            {
                "num_res_blocks": [1] * 3,
                "transformer_depth": [0, 1, 1],
                "transformer_depth_output": [0, 0, 1, 1, 1, 1],
                "transformer_depth_middle": 1,
            },
        ),
        "flux": (  # heads of the full width, by which the host knows a checkpoint
            {
                "attention_head_dim": 128,
                "axes_dims_rope": (16, 56, 56),
                "num_attention_heads": 1,
                "num_layers": 2,
                "num_single_layers": 2,
            },
            {"hidden_size": 128, "num_heads": 1, "axes_dim": [16, 56, 56], "depth": 2, "depth_single_blocks": 2},
        ),
    }
    for name, (ours, hosts) in few.items():
        family = launch.FAMILIES[name]
        tokens, width, pooled = family.text
        engines.NETWORKS[name] = family.network[0], {**family.network[1], **ours}
        engines.TEXTS[name], HOSTS[name] = ((tokens, width), pooled), (family.host[0], {**family.host[1], **hosts})
    BLOCKS.update(depth=1, depth_single_blocks=1)


# ---- one row -------------------------------------------------------------------------------------------------------------


def wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def timed(engine: Any, scale: Scale) -> float:
    """Seconds of a step: the median of some rounds."""
    before, rounds, steps = scale.turns
    for _ in range(before):
        engine.step()
    times = []
    for _ in range(rounds):
        wait(scale.device)
        began = time.perf_counter()
        for _ in range(steps):
            engine.step()
        wait(scale.device)
        times.append((time.perf_counter() - began) / steps)
    return statistics.median(times)


def busy(engine: Any, device: str) -> tuple[float, int]:
    """(seconds of a step in which a kernel runs, how many kernels). Without a GPU, PyTorch's own operations are looked at in their place."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activity, kind = (
        (ProfilerActivity.CUDA, DeviceType.CUDA) if device == "cuda" else (ProfilerActivity.CPU, DeviceType.CPU)
    )
    with profile(activities=[activity]) as trace:
        engine.step()
        wait(device)
    spans = sorted((e.time_range.start, e.time_range.end) for e in trace.events() if e.device_type == kind)
    running, until = 0.0, 0.0
    for start, end in spans:
        running += max(0.0, end - max(start, until))
        until = max(until, end)
    return running / 1e6, len(spans)


def row(make: Callable[[Case], Any], case: Case, scale: Scale) -> dict[str, Any]:
    import torch

    if case.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    engine = make(case)
    try:
        made_s = time.perf_counter() - began
        seconds = timed(engine, scale)
        peak = torch.cuda.max_memory_allocated() if case.device == "cuda" else 0
        running, kernels = busy(engine, case.device)
    finally:
        engine.close()
    return {
        "ms": round(seconds * 1e3, 1),
        "pictures_per_s": round(case.batch / seconds, 2),
        "peak_gb": round(peak / 1e9, 2),
        "kernels": kernels,
        "waits": round(max(0.0, 1 - running / seconds), 2),
        "made_in_s": round(made_s, 1),
    }


def rows(
    model: str, ways: Ways, make: Callable[[str], Callable[[Case], Any]], scale: Scale
) -> Iterator[dict[str, Any]]:
    """A row of each way, or why there is none."""
    for way, batch, job in ways:
        case = scale.case(model, batch, job)
        facts = {"case": f"{model}, {case.px} px, batch {batch}", "model": case.model, "way": way}
        try:
            yield {**facts, **row(make(way), case, scale)}
        except Exception as error:  # noqa: BLE001 - out of memory is a result, and the next way may run
            yield {**facts, "failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        gc.collect()


# ---- the host ------------------------------------------------------------------------------------------------------------


class InHost(engines.Loom):
    """Ours on a model of ComfyUI with random weights made on the device, as the node trains."""

    def backend(self, case: Case) -> Any:
        from lora_loom.nodes.host.engine.backend import HostBackend

        channels = case.latent[1]
        return HostBackend(
            self.patcher(case), _clip(case), type("NoVae", (), {"downscale_ratio": 8, "latent_channels": channels})()
        )

    def patcher(self, case: Case) -> Any:
        import comfy.model_patcher
        import torch

        model = host_model(case, {})
        spare = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=torch.device(case.device), offload_device=spare)


def host_model(case: Case, changes: dict[str, Any]) -> Any:
    """Random weights in the case's type, or in fp8 that the host widens for each product."""
    import comfy.supported_models as sm
    import torch

    name, settings = HOSTS[case.model]
    settings = {**settings, **changes}
    fp8 = case.job.get("storage") == "fp8"
    with torch.inference_mode():
        config = getattr(sm, name)(dict(settings))
        if "model_channels" not in settings:  # some classes put the published sizes back
            config.unet_config.update(settings)
        stored = torch.float8_e4m3fn if fp8 else case.torch_dtype
        config.set_inference_dtype(stored, case.torch_dtype if fp8 else None)
        model = config.get_model({}, "", device=torch.device(case.device))
        for key, p in model.diffusion_model.named_parameters():
            plain = torch.empty(p.shape, dtype=case.torch_dtype, device=p.device)
            of_norms = 1.0 if key.endswith(("weight", "scale")) else 0.0
            p.copy_(plain.normal_(std=0.02) if p.ndim > 1 else plain.fill_(of_norms))
        return model


def _clip(case: Case) -> Any:
    known = engines.text(case)
    scheduled = [[known.hidden, {"pooled_output": known.pooled}]]
    members = {"layer_idx": None, "tokenize": lambda s, t: t, "encode_from_tokens_scheduled": lambda s, t: scheduled}
    return type("Text", (), members)()


class Streamed(InHost):
    """The same on a checkpoint that ComfyUI's own loader opens; with dynamic VRAM it brings weights to the device as they are needed."""

    def patcher(self, case: Case) -> Any:
        import comfy.sd
        import torch
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            file = Path(folder) / "flux.safetensors"
            model = host_model(dataclasses.replace(case, job={}), BLOCKS)
            save_file({k: v.cpu().contiguous() for k, v in model.diffusion_model.state_dict().items()}, file)
            del model
            gc.collect()
            if case.device == "cuda":
                torch.cuda.empty_cache()
            return comfy.sd.load_diffusion_model(str(file), model_options={"dtype": case.torch_dtype})


def enter_dynamic_vram() -> str:
    """What ComfyUI's main.py does before it loads a model, where the device can; what became of it, in a word."""
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy_aimdo.control
    from comfy.cli_args import args, enables_dynamic_vram

    if not enables_dynamic_vram():
        return "off: no GPU"
    comfy_aimdo.control.init(simple_vram_headroom=None, nvml_pressure=True)
    devices = comfy.model_management.get_all_torch_devices()
    if not comfy_aimdo.control.init_devices((d.index, int(args.vram_headroom * 2**30)) for d in devices):
        return "off: not supported here"
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    return "on"


# ---- parts ---------------------------------------------------------------------------------------------------------------


def headless(model: str, ways: Ways) -> Callable[[Scale], Iterator[dict[str, Any]]]:
    def part(scale: Scale) -> Iterator[dict[str, Any]]:
        yield from rows(model, ways, lambda way: engines.Minimal if way == LEAST else engines.Headless, scale)

    return part


def in_host(model: str) -> Callable[[Scale], Iterator[dict[str, Any]]]:
    def part(scale: Scale) -> Iterator[dict[str, Any]]:
        engines.enter_host([] if scale.device == "cuda" else ["--cpu"])
        for record in rows(model, IN_HOST[model], lambda way: InHost, scale):
            yield {**record, "way": f"in ComfyUI, {record['way']}"}

    return part


def streamed(scale: Scale) -> Iterator[dict[str, Any]]:
    """Resident, then with room for a third of the weights."""
    import torch

    weights_gb = 0.0 if scale.tiny else 6.0  # of the blocks above, bf16
    total_gb = torch.cuda.get_device_properties(0).total_memory / 2**30 if scale.device == "cuda" else 0.0
    room_gb = weights_gb / 3 + 6.0  # and a step's own memory
    options = ["--enable-dynamic-vram", "--vram-headroom", f"{max(0.0, total_gb - room_gb):.1f}"]
    engines.enter_host(options if scale.device == "cuda" else ["--cpu"])
    state = enter_dynamic_vram()
    for record in rows("Flux.1", ((PLAIN, 1, {}), ("all recomputed", 1, ALL)), lambda way: Streamed, scale):
        where = f"in ComfyUI, {BLOCKS['depth']} + {BLOCKS['depth_single_blocks']} blocks, dynamic VRAM {state}"
        yield {**record, "model": "", "way": f"{where}, {record['way']}"}


def rate(scale: Scale) -> Iterator[dict[str, Any]]:
    """TFLOP/s of a large bf16 product, and microseconds that the processor takes to start one small kernel."""
    import torch

    side = 64 if scale.tiny else 8192
    a, b = (torch.randn(side, side, device=scale.device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    wait(scale.device)
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    wait(scale.device)
    tflops = 20 * 2 * side**3 / (time.perf_counter() - began) / 1e12
    small = torch.zeros(8, device=scale.device)
    began = time.perf_counter()
    for _ in range(1000):
        small.add_(1)
    microseconds = (time.perf_counter() - began) * 1e3
    wait(scale.device)
    yield {"rate": {"bf16_tflops": round(tflops, 6 if scale.tiny else 1), "start_us": round(microseconds, 2)}}


PARTS: dict[str, tuple[int, Callable[[Scale], Iterator[dict[str, Any]]]]] = {  # seconds at most, in the order of worth
    "rate": (30, rate),
    "SDXL": (60, headless("SDXL", HEADLESS["SDXL"])),
    "SDXL in ComfyUI": (60, in_host("SDXL")),
    "Flux.1": (90, headless("Flux.1", HEADLESS["Flux.1"])),
    "Flux.1 in ComfyUI": (75, in_host("Flux.1")),
    "streamed in ComfyUI": (75, streamed),
    "SD1.5": (45, headless("SD1.5", HEADLESS["SD1.5"])),
    "SD1.5 in ComfyUI": (45, in_host("SD1.5")),
    "SDXL compiled": (100, headless("SDXL", COMPILED["SDXL"])),
    "Flux.1 compiled": (100, headless("Flux.1", COMPILED["Flux.1"])),
}


def operations(model: str, batch: int, scale: Scale) -> float:
    """Counted TFLOP of a step of the least loop on the meta device: forward, and backward through frozen weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    engine = engines.Minimal(dataclasses.replace(scale.case(model, batch, {}), device="meta"))
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        engine.forward_backward()
    return counted.get_total_flops() / 1e12


def counted(scale: Scale) -> dict[str, float]:
    """TFLOP of a step at batch 1; other batches are multiples."""
    if COUNTED.exists() and not scale.tiny:
        return json.loads(COUNTED.read_text())["tflop"]
    return {SIZES[model][0]: float(f"{operations(model, 1, scale):.4g}") for model in SIZES}


# ---- all of it -----------------------------------------------------------------------------------------------------------


def run_part(name: str, limit_s: float, tiny: bool) -> list[dict[str, Any]]:
    """The rows of a part; a last one says why it ended early."""
    command = [sys.executable, str(HERE), "--part", name, *(["--tiny"] if tiny else [])]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, text=True)
        ending = ""
        try:
            code = process.wait(limit_s)
            ending = f"ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ending = f"took longer than {limit_s:.0f} s"
        out.seek(0)
        errors.seek(0)
        lines = [line[4:] for line in out.read().splitlines() if line.startswith("ROW ")]
        words = (errors.read().strip().splitlines() or [""])[-1][:200]
    records = [json.loads(line) for line in lines]
    return records + ([{"case": name, "way": "", "failed": f"{ending}: {words}"}] if ending else [])


def with_utilisation(record: dict[str, Any], tflop: dict[str, float], rate: dict[str, Any]) -> dict[str, Any]:
    known = tflop.get(record.get("model", ""))
    if "ms" not in record or known is None or not rate.get("bf16_tflops"):
        return record
    whole = known * int(record["case"].rpartition(" ")[2])
    return {
        **record,
        "tflop": round(whole, 3),
        "utilisation": round(whole / record["ms"] * 1e3 / rate["bf16_tflops"], 3),
    }


def measure(args: argparse.Namespace) -> None:
    """Every part in turn; the file is written anew after each."""
    began, records, rate_of = time.perf_counter(), list[dict[str, Any]](), dict[str, Any]()
    tflop = counted(scale_of(args.tiny))
    for name, (limit_s, _) in PARTS.items():
        left_s = args.minutes * 60 - (time.perf_counter() - began)
        if args.only not in name and name != "rate":
            continue
        if left_s < 15:
            records.append({"case": name, "way": "", "failed": "no time was left"})
            continue
        part = run_part(name, left_s if args.tiny else min(limit_s, left_s), args.tiny)
        for one in part:
            rate_of |= one.get("rate", {})
            sys.stdout.write(json.dumps(one) + "\n")
            sys.stdout.flush()
        records += [with_utilisation(one, tflop, rate_of) for one in part if "rate" not in one]
        what = "one training step, bf16 base, rank 16 on attention, cached latents and text"
        engines.written(
            "gpu", what, file=args.out, rate=rate_of, seconds=round(time.perf_counter() - began), steps=records
        )


def scale_of(tiny: bool) -> Scale:
    import torch

    if tiny:
        shrink()
    return Scale(tiny, "cuda" if torch.cuda.is_available() else "cpu")


# ---- packages that travel ------------------------------------------------------------------------------------------------


def pack(folder: Path, has: list[str], python: str, platform: str) -> None:
    """Wheels of everything that is not there already, and the host's code."""
    host = engines.HOST / "requirements.txt"
    listed = host.read_text().splitlines() if host.exists() else []
    words = [line.partition("#")[0].strip() for line in listed]
    packages = [*NEEDED, *(w for w in words if w and not w.startswith(PAGES))]
    names = {w: w.partition(">")[0].partition("=")[0].partition("~")[0].strip().lower() for w in packages}
    present = {name.lower() for name in has}
    chosen = [w for w in packages if names[w] not in present]
    kind = [*(["--python-version", python] if python else []), *(["--platform", platform] if platform else [])]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--only-binary=:all:",
        *kind,
        "-d",
        str(folder / "wheels"),
        *chosen,
    ]
    subprocess.run(command, check=True)
    for wheel in (folder / "wheels").iterdir():  # what a package asks for and the machine has
        if wheel.name.partition("-")[0].lower().replace("_", "-") in {one.lower() for one in has}:
            wheel.unlink()
    if (engines.HOST / "comfy").is_dir():
        ignored = shutil.ignore_patterns(
            "models", "output", "input", "user", ".git", "tests*", "__pycache__", "temp", "custom_nodes"
        )
        shutil.copytree(engines.HOST, folder / "ComfyUI", ignore=ignored, dirs_exist_ok=True)


def unpack(folder: Path) -> dict[str, str]:
    """The environment in which the packages of the folder are found. Wheels are archives: no installer is needed."""
    place = folder / "unpacked"
    done = place / ".done"
    if not done.exists():
        for wheel in sorted((folder / "wheels").glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place)
        for part in [*place.glob("*.data/purelib"), *place.glob("*.data/platlib")]:
            shutil.copytree(part, place, dirs_exist_ok=True)
        place.mkdir(exist_ok=True)
        done.touch()
    host = {"COMFYUI_DIR": str(folder / "ComfyUI")} if (folder / "ComfyUI").is_dir() else {}
    return {
        **os.environ,
        **host,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH", "")])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the names of the parts to run")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--out", type=Path, default=engines.RESULTS / "gpu.json")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--has", nargs="+", default=[])
    parser.add_argument("--python", default="")
    parser.add_argument("--platform", default="")
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pack:
        pack(args.pack, args.has, args.python, args.platform)
        return
    if args.packages:
        at = sys.argv.index("--packages")
        rest = sys.argv[1:at] + sys.argv[at + 2 :]
        raise SystemExit(subprocess.run([sys.executable, str(HERE), *rest], env=unpack(args.packages)).returncode)
    engines.enter_package()
    if args.part:
        with contextlib.redirect_stdout(sys.stderr):  # a host prints as it starts
            for record in PARTS[args.part][1](scale_of(args.tiny)):
                sys.__stdout__.write("ROW " + json.dumps(record) + "\n")
                sys.__stdout__.flush()
        return
    if args.count:
        COUNTED.unlink(missing_ok=True)
        engines.written(
            "operations", "counted operations of a step of the least loop, batch 1", tflop=counted(Scale(False, "meta"))
        )
        return
    import torch

    if not torch.cuda.is_available() and not args.tiny:
        sys.stdout.write("no GPU here: nothing was timed, nothing written\n")
        return
    measure(args)


if __name__ == "__main__":
    main()
