"""Losses of a job of `inside/proof.py` through the two doors that are no WebUI: other_doors.py JOB_JSON FILE headless|comfyui PLACE.

PLACE: for headless the folder with the configurations of the checkpoint FILE, for ComfyUI its checkout. Run with a Python of that door.
"""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent / "inside"))

import proof  # noqa: E402


def our_package():
    spec = importlib.util.spec_from_file_location(
        "lora_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["lora_loom"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["lora_loom"])


def headless(config, file, folder):
    base = {"base": file, "base_config": folder}
    return proof.package("nodes.jobs.headless").open_base(proof.config_of(**config, **base), "cpu")


def comfyui(config, file, place):
    """ComfyUI knows models by their widths, so a narrow Stable Diffusion 1 has to be among those it knows."""
    sys.path.insert(0, place)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import comfy.supported_models as known
    import torch

    narrow = {**known.SD15.unet_config, "model_channels": 32}
    known.models.insert(0, type("SD15Narrow", (known.SD15,), {"unet_config": narrow}))
    with torch.inference_mode():
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(file)[:3]
    return proof.package("nodes.host.engine.backend").HostBackend(model, clip, vae)


if __name__ == "__main__":
    config, (file, door, place) = json.loads(sys.argv[1]), sys.argv[2:]
    our_package()
    backend = {"headless": headless, "comfyui": comfyui}[door](config, file, place)
    print(json.dumps(proof.losses_of(backend, proof.config_of(**config))[1]))
