"""How long converting takes and how much memory: an SDXL rank 32 LoRA of 1052 modules, and baking into a 6.9 GB checkpoint.

    python benchmarks/convert_files.py [--bake]

Each job runs in a process of its own; its peak memory is what it used above an import of the package. Files are made of random numbers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RANK = 32


def sdxl_layers() -> dict[str, tuple[int, ...]]:
    """Weight shapes of every linear and convolution layer inside SDXL's blocks and both text encoders, by diffusers path."""
    from diffusers import UNet2DConditionModel
    from torch import nn

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    layers = {n: m for n, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and "_block" in n}
    shapes = {f"unet.{n}": tuple(m.weight.shape) for n, m in layers.items()}
    for part, width, layers in (("text_encoder", 768, 12), ("text_encoder_2", 1280, 32)):
        for n in range(layers):
            block = f"{part}.text_model.encoder.layers.{n}"
            shapes |= {f"{block}.self_attn.{p}": (width, width) for p in ("q_proj", "k_proj", "v_proj", "out_proj")}
            shapes |= {f"{block}.mlp.fc1": (4 * width, width), f"{block}.mlp.fc2": (width, 4 * width)}
    return shapes


def make_lora(path: Path, uniform: bool) -> int:
    """A Kohya SDXL file; returns its number of modules."""
    from lora_loom.convert import cast, read, write
    from lora_loom.convert.files.disk import save

    rng, state = torch.Generator().manual_seed(0), {}
    for n, (name, shape) in enumerate(sdxl_layers().items()):
        state[f"{name}.lora_A.weight"] = torch.randn(RANK, *shape[1:], generator=rng).half() * 0.02
        state[f"{name}.lora_B.weight"] = (
            torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=rng).half() * 0.02
        )
        state[f"{name}.alpha"] = torch.tensor(16.0 if uniform or n % 2 else 8.0)
    tensors, _ = cast(write(read(state, family="sdxl"), "kohya", one_alpha=False), "fp16")
    save(path, tensors, {"ss_base_model_version": "sdxl_base_v1-0"})
    return sum(k.endswith("lora_up.weight") for k in tensors)


def convert_job(source: Path, target: Path, form: str) -> None:
    from lora_loom.convert.files.jobs import Options, convert, open_lora

    convert(open_lora(source), target, Options(form, "fp16"))


def bake_job(source: Path, lora: Path, target: Path) -> None:
    from lora_loom.convert.files.jobs import bake_file

    bake_file(source, [(lora, 1.0)], target)


def measured(job, *args) -> tuple[float, float]:
    """(seconds, peak MB above the imports) of a job in a fresh process."""
    receiver, sender = multiprocessing.get_context("spawn").Pipe(False)
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(sender, job, args))
    process.start()
    out = receiver.recv()
    process.join()
    return out


def peak_kb() -> int:
    """Peak resident memory of this process, from the kernel's own high-water mark."""
    return next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )


def _child(pipe, job, args) -> None:
    import lora_loom.convert.files.jobs  # noqa: F401

    before = peak_kb()
    began = time.perf_counter()
    job(*args)
    pipe.send((time.perf_counter() - began, (peak_kb() - before) / 1024))


def make_checkpoint(path: Path) -> None:
    """A single-file SDXL checkpoint with a VAE-sized rest, fp16, 6.9 GB."""
    from lora_loom.convert.families import FAMILIES
    from lora_loom.convert.files.disk import save_streamed

    layout = {}
    for name, shape in sdxl_layers().items():
        part, _, rest = name.partition(".")
        if part == "unet":
            entry = FAMILIES["sdxl"].table.find(rest)
            native = entry.rows[0].native
            for number in entry.numbers:
                native = native.replace("*", number, 1)
            layout[f"model.diffusion_model.{native}.weight"] = (torch.float16, shape)
        elif part == "text_encoder":
            layout[f"conditioner.embedders.0.transformer.{rest}.weight"] = (torch.float16, shape)
    for n in range(32):
        block = f"conditioner.embedders.1.model.transformer.resblocks.{n}"
        layout[f"{block}.attn.in_proj_weight"] = (torch.float16, (3840, 1280))
        others = {"attn.out_proj": (1280, 1280), "mlp.c_fc": (5120, 1280), "mlp.c_proj": (1280, 5120)}
        layout |= {f"{block}.{p}.weight": (torch.float16, shape) for p, shape in others.items()}
    have = sum(torch.Size(s).numel() * 2 for _, s in layout.values())
    layout["first_stage_model.rest"] = (torch.float16, ((6_900_000_000 - have) // 2,))
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(1)).half() * 0.02

    def tensor(key: str) -> torch.Tensor:
        count = torch.Size(layout[key][1]).numel()
        return noise.repeat(count // len(noise) + 1)[:count].reshape(layout[key][1])

    save_streamed(path, layout, tensor)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bake", action="store_true")
    args = parser.parse_args()
    results = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "jobs": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for uniform in (True, False):
            source = Path(folder) / f"sdxl-{uniform}.safetensors"
            modules = make_lora(source, uniform)
            size = source.stat().st_size / 2**20
            for form in ("diffusers", "comfyui", "kohya", "peft"):
                runs = [
                    measured(convert_job, source, Path(folder) / f"{uniform}-{form}-{n}.safetensors", form)
                    for n in range(3)
                ]
                seconds, peak = min(r[0] for r in runs), max(r[1] for r in runs)
                row = {
                    "job": f"Kohya to {form}",
                    "alphas": "one" if uniform else "two",
                    "modules": modules,
                    "file_mb": round(size),
                    "seconds": round(seconds, 2),
                    "peak_over_file": round(peak / size, 2),
                }
                results["jobs"].append(row)
                print(row)
        if args.bake:
            checkpoint = Path(folder) / "sdxl.safetensors"
            make_checkpoint(checkpoint)
            seconds, peak = measured(
                bake_job, checkpoint, Path(folder) / "sdxl-True.safetensors", Path(folder) / "baked.safetensors"
            )
            row = {
                "job": "bake",
                "checkpoint_gb": round(checkpoint.stat().st_size / 1e9, 2),
                "seconds": round(seconds, 1),
                "peak_mb": round(peak),
            }
            results["jobs"].append(row)
            print(row)
    (ROOT / "benchmarks" / "results" / "convert_files.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
