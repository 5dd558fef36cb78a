"""The 15,000-step job of the diffusers guide (recipe captioned_set) on a full-size SD1.5 with random weights: time per step, projected total, file.

    python benchmarks/seed_job.py [--steps 3] [--px 512] [--precision bf16]

Runs the real command: model folder, pictures and job file are written, `lora-loom train` reads them, for a few steps of the job, then the file it
wrote is counted. The projection is the median of the steps after the first one, times 15,000; on a CPU, where nobody would run it to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import engines
from engines import Case

WHOLE = 15_000


def model(folder: Path, dtype: str) -> None:
    """SD1.5 in diffusers layout: the UNet, VAE and text encoder at full size, random."""
    import shutil

    from diffusers import AutoencoderKL, DDPMScheduler
    from lora_loom.lora_core.toy.model import MODEL
    from transformers import CLIPTextConfig, CLIPTextModel

    engines.network(Case("sd15", dtype=dtype)).save_pretrained(folder / "unet")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae")
    words = dict(
        vocab_size=619, bos_token_id=617, eos_token_id=618, pad_token_id=618
    )  # the toy's tokenizer; the real one may not be shipped
    CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **words)
    ).save_pretrained(folder / "text_encoder")
    shutil.copytree(MODEL / "tokenizer", folder / "tokenizer")
    DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
    ).save_pretrained(folder / "scheduler")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--px", type=int, default=512)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    args = parser.parse_args()
    engines.enter_package()
    from PIL import Image
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model(folder / "sd15", args.precision)
        (folder / "pictures").mkdir()
        for n in range(4):
            Image.effect_noise((args.px, args.px), 40 + n).convert("RGB").save(folder / "pictures" / f"{n}.png")
            (folder / "pictures" / f"{n}.txt").write_text(f"a naruto of the kind {n}")
        (folder / "job.toml").write_text(
            f'recipe = "captioned_set"\nname = "seed"\nbase = {str(folder / "sd15")!r}\nprecision = "{args.precision}"\nsteps = {args.steps}\n'
            f"[data]\nfolder = {str(folder / 'pictures')!r}\nresolution = {args.px}\n[samples]\nevery = 0\n[adapter]\nrank = 4\n"
        )
        began = time.perf_counter()
        command = [
            sys.executable,
            str(engines.ROOT / "__main__.py"),
            "train",
            str(folder / "job.toml"),
            "--out",
            str(folder / "runs"),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        whole = time.perf_counter() - began
        rows = [json.loads(line) for line in (folder / "runs" / "seed" / "log.jsonl").read_text().splitlines()]
        each = statistics.median(b["time"] - a["time"] for a, b in zip(rows, rows[1:]))
        file = folder / "runs" / "seed" / "seed.safetensors"
        with safe_open(file, "pt") as opened:
            values = sum(opened.get_tensor(key).numel() for key in opened.keys() if not key.endswith("alpha"))  # noqa: SIM118
        size = file.stat().st_size
        accumulation = json.loads((folder / "runs" / "seed" / "config.json").read_text())["grad_accum"]
    engines.written(
        "seed_job",
        "captioned_set as a job file on a full-size random SD1.5, through lora-loom train, on the CPU",
        px=args.px,
        precision=args.precision,
        steps_run=args.steps,
        start_s=round(whole - each * (args.steps - 1), 1),
        grad_accum=accumulation,
        s_per_step=round(each, 2),
        projected_hours=round(each * WHOLE / 3600, 1),
        trained_values=values,
        file_mb=round(size / 1e6, 2),
    )
    sys.stdout.write((engines.RESULTS / "seed_job.json").read_text())


if __name__ == "__main__":
    main()
