"""Times LoRA on UNet and text encoder together beside its two parts, full-size random SD1.5 and CLIP-L inside ComfyUI, alternating in one process.

    python benchmarks/step_text_encoder.py [--threads 2] [--rounds 6] [--out benchmarks/results]

256 px, batch 1, rank 16 on attention, AdamW, fp32. "parts" is the step on the UNet alone plus the text encoder's own forward and backward pass.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

from engines import UNET, enter_host, randomize

CAPTION = "a photo of a cat on a wooden table in front of a window, soft light"


def build(train_text: bool) -> Any:
    """(run, backend, its training context) on models of their own."""
    import comfy.model_patcher
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models as sm
    import comfy.supported_models_base as base
    import torch
    from lora_loom.lora_core.config import parse
    from lora_loom.lora_core.data.batches import Batch
    from lora_loom.lora_core.data.buckets import fit
    from lora_loom.lora_core.optim.groups import make_groups
    from lora_loom.lora_core.optim.optimizers import filled, make_optimizer
    from lora_loom.lora_core.training.build import make_adapters
    from lora_loom.lora_core.training.run import Material, Run, Source
    from lora_loom.nodes.host.engine.backend import HostBackend

    with torch.inference_mode():
        config = sm.SD15(dict(UNET))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device=torch.device("cpu"))
        randomize(model.diffusion_model)
        patcher = comfy.model_patcher.ModelPatcher(
            model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
        )
        target = base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
        clip = comfy.sd.CLIP(
            target, embedding_directory=[], model_options={"dtype": torch.float32}, disable_dynamic=True
        )
        randomize(clip.cond_stage_model)
    vae = type("NoVae", (), {"downscale_ratio": 8, "latent_channels": 4})()
    job = filled(parse({"steps": 10**6, "adapter": {"rank": 16}, "text_encoder": {"train": train_text}}))
    backend = HostBackend(patcher, clip, vae)
    layers, adapters = make_adapters(job, backend)
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    batch = Batch(latents, [CAPTION], [fit(256, 256, 256, 64)], ["one.png"], torch.ones(1))
    cached: Any = type("Cached", (), {"at": lambda self, step, micro: batch})()
    optimizer, scaler = (
        make_optimizer(make_groups(job, adapters), job.optimizer),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    material = Material(
        job,
        backend,
        backend.base_model(job.objective),
        layers,
        adapters,
        backend.objective(job.objective),
        [Source(cached)],
    )
    run = Run(material, optimizer, scaler)
    return run, backend, backend.training(layers, adapters)


def text_pass(backend: Any) -> None:
    """One caption encoded with gradients, and their way back to the adapters."""
    ((hidden, _),) = backend.texts.encode_live(CAPTION)
    hidden.square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    args = parser.parse_args()
    enter_host()
    import torch
    from lora_loom.lora_core.training.step import optimizer_step

    torch.set_num_threads(args.threads)
    (alone, _, first), (both, backend, second) = build(False), build(True)
    times: dict[str, list[float]] = {"unet": [], "text": [], "both": []}
    with torch.inference_mode(False), first, second:
        acts = {
            "unet": lambda n: optimizer_step(alone, n),
            "text": lambda n: text_pass(backend),
            "both": lambda n: optimizer_step(both, n),
        }
        for n in range(args.rounds + 1):
            for name, act in acts.items():
                began = time.process_time()
                act(n)
                times[name].append(time.process_time() - began)
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    result = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": args.threads,
        **{f"{name}_cpu_s": round(value, 3) for name, value in median.items()},
        "both_over_parts": round(median["both"] / (median["unet"] + median["text"]), 3),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "step_text_encoder.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
