"""A small Flux.1 of random weights, made of Forge's own classes: make_flux.py FORGE_FOLDER OUT, run with Forge's Python in Forge's folder.

Writes tiny_flux.safetensors and, in tiny_flux/, the configurations that Forge has for its large sibling, narrowed.
"""

import json
import os
import shutil
import sys
from pathlib import Path

FORGE, OUT = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = ["launch.py", "--always-cpu", "--all-in-fp32"]
sys.path[:0] = [str(FORGE), str(FORGE / "repositories" / "huggingface_guess"), str(FORGE / "packages_3rdparty")]

import torch  # noqa: E402
from backend.nn.flux import IntegratedFluxTransformer2DModel  # noqa: E402
from backend.nn.t5 import IntegratedT5  # noqa: E402
from backend.nn.vae import IntegratedAutoencoderKL  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

GAIN = 0.6
NARROW = {  # file of configuration -> what is narrowed in it
    "text_encoder": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": 64},
    "text_encoder_2": {"d_model": 64, "d_ff": 128, "num_heads": 1, "num_layers": 2},
    "vae": {"block_out_channels": [32, 32, 64, 64]},
}  # fmt: skip
NETWORK = {
    "in_channels": 16, "vec_in_dim": 64, "context_in_dim": 64, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1,
    "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip


def filled(module):
    """The module with random weights that are the same each time."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=rng) * GAIN / p[0].numel() ** 0.5)
            else:
                p.fill_(1.0 if name.endswith(("weight", "scale")) else 0.0)
    return module


folder = OUT / "tiny_flux"
shutil.copytree(FORGE / "backend" / "huggingface" / "black-forest-labs" / "FLUX.1-dev", folder, dirs_exist_ok=True)
configs = {}
for part, changes in NARROW.items():
    file = folder / part / "config.json"
    configs[part] = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps(configs[part]))
clip = filled(CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])))
t5 = filled(IntegratedT5(configs["text_encoder_2"]))
with torch.no_grad():
    clip.text_model.embeddings.token_embedding.weight.mul_(4)
    t5.transformer.shared.weight.mul_(4)
parts = {
    "model.diffusion_model": filled(IntegratedFluxTransformer2DModel(**NETWORK)),
    "vae": filled(IntegratedAutoencoderKL.from_config(configs["vae"])),
    "text_encoders.clip_l.transformer": clip,
    "text_encoders.t5xxl": t5,
}
state = {f"{prefix}.{key}": value for prefix, part in parts.items() for key, value in part.state_dict().items()}
temp = OUT / f".tiny_flux.{os.getpid()}"
save_file({key: value.float().contiguous().clone() for key, value in state.items()}, temp)
temp.rename(OUT / "tiny_flux.safetensors")
