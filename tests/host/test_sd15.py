"""The template for real checkpoints, on a full-size SD1.5 with random weights, through the real loader and server."""

from __future__ import annotations

import datetime
import json
import time

import comfy.model_management
import comfy.sd
import comfy.supported_models as sm
import numpy as np
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from engines import UNET
from live_server import running
from PIL import Image
from safetensors.torch import save_file
from test_http import TEMPLATES, id_of, node

pytestmark = pytest.mark.slow
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2,
    "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def write_checkpoint(path) -> None:
    """A single file with every key of an SD1.5 checkpoint, random values, fp16."""
    config = sm.SD15(dict(UNET))
    config.set_inference_dtype(torch.float16, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    clip = comfy.sd.CLIP(config.clip_target(), model_options={"dtype": torch.float16})
    vae = AutoencoderKL(ddconfig=VAE, embed_dim=4)
    rng = torch.Generator().manual_seed(0)
    for module in (model, clip.cond_stage_model, vae):
        for key, p in module.named_parameters():
            if p.ndim > 1:
                p.data = torch.randn(p.shape, generator=rng).mul_(0.02).half()
            else:
                p.data = torch.full_like(p, 1.0 if "norm" in key and "weight" in key else 0.0).half()
    state = model.state_dict_for_saving(model.diffusion_model.state_dict(), clip.get_sd(), vae.state_dict())
    save_file({k: v.contiguous() for k, v in state.items() if v.numel()}, path)


def test_sd15_template_trains_a_real_size_checkpoint(tmp_path_factory, figure):
    base = tmp_path_factory.mktemp("sd15") / "base"
    with running(base) as server:
        write_checkpoint(base / "models" / "checkpoints" / "random.safetensors")
        folder = base / "input" / "cats"
        folder.mkdir()
        for n, size in enumerate([(300, 300), (320, 256), (256, 400), (280, 280)]):
            Image.fromarray(np.random.default_rng(n).integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{n}.png")
            (folder / f"{n}.txt").write_text("a cat")
        prompt = server.api_prompt(
            json.loads((TEMPLATES / "3 Train, then try it (SDXL or SD1.5, 8 GB).json").read_text())
        )
        node(prompt, "CheckpointLoaderSimple")["ckpt_name"] = "random.safetensors"
        node(prompt, "LoraLoomLoadFolder").update(folder="cats", trigger="zork")
        node(prompt, "LoraLoomTrainLora").update(steps=3, resolution=256, sample_every=0, save_every=1000, name="cats")
        node(prompt, "EmptyLatentImage").update(width=128, height=128)
        node(prompt, "KSampler").update(steps=1)
        loader = {k: v for k, v in prompt.items() if v["class_type"] in ("CheckpointLoaderSimple", "EmptyLatentImage")}
        checkpoint = id_of(prompt, "CheckpointLoaderSimple")
        text, sampler, decode, save = (str(i) for i in range(90, 94))
        sampling = node(prompt, "KSampler")
        warm = {
            **loader,
            text: {"class_type": "CLIPTextEncode", "inputs": {"clip": [checkpoint, 1], "text": "x"}},
            sampler: {
                "class_type": "KSampler",
                "inputs": {**sampling, "model": [checkpoint, 0], "positive": [text, 0], "negative": [text, 0]},
            },
            decode: {"class_type": "VAEDecode", "inputs": {"samples": [sampler, 0], "vae": [checkpoint, 2]}},
            save: {"class_type": "SaveImage", "inputs": {"images": [decode, 0], "filename_prefix": "warm"}},
        }
        assert (
            server.execute(warm, 600)["status"]["status_str"] == "success"
        )  # the model is loaded, as it is for a user who has drawn with it
        began = time.time()
        entry = server.execute(prompt, 600)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
        run = base / "output" / "lora_loom" / "cats"
        steps = [json.loads(line)["time"] for line in (run / "log.jsonl").read_text().splitlines()]
        lines = [
            (datetime.datetime.fromisoformat(line[:23]).timestamp(), line[24:])
            for line in (run / "run.log").read_text().splitlines()
        ]
        start = next(t for t, text in lines if text.startswith("training steps"))
        pictures = [t for t, text in lines if text.startswith("Encoding pictures")]
        captions = [t for t, text in lines if text.startswith("Encoding captions")]
        step = min(b - a for a, b in zip(steps, steps[1:]))
        encoding = (pictures[-1] - pictures[0]) + (start - captions[0])
        overhead = steps[0] - began - encoding - step
        print(
            f"click to first step {steps[0] - began:.2f} s: encoding {encoding:.2f} s, one step {step:.2f} s, everything else {overhead:.2f} s"
        )
        figure("first step of SD1.5 after the click, less encoding and the step itself", overhead)
        facts = json.loads((run / "config.json").read_text())
        assert (facts["adapter"]["rank"], facts["data"]["bucket_step_px"]) == (16, 64)
        assert "not loaded" not in server.log.read_text().lower()
