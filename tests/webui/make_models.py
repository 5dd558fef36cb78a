"""Small checkpoints of random weights, made of A1111's own classes: make_models.py A1111_FOLDER OUT NAME, run with A1111's Python.

For Flux.1 see make_flux.py. tiny: Stable Diffusion 1 at a tenth of the width, with a .yaml beside it that A1111 reads. tiny_sd15: the
same with VAE and text encoder of full size, whose configurations Forge has built in. tiny_sdxl: SDXL's classes, with ViT-B-32 as second
text encoder.
"""

import os
import sys
from pathlib import Path

WEBUI, OUT, NAME = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
for companion in ("stable-diffusion-stability-ai", "generative-models"):
    sys.path.insert(0, str(WEBUI / "repositories" / companion))

import pytorch_lightning.utilities.rank_zero  # noqa: E402
import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

sys.modules.setdefault("pytorch_lightning.utilities.distributed", pytorch_lightning.utilities.rank_zero)
GAIN = 0.6  # of the random weights: activations neither die nor grow through the network


def filled(module):
    """The module with random weights that are the same each time."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=rng) * GAIN / p[0].numel() ** 0.5)
            else:
                p.fill_(1.0 if name.endswith("weight") else 0.0)
    return module


def clip_l():
    """The mean of what the encoder says must not be zero: A1111's emphasis divides by it."""
    encoder = filled(CLIPTextModel(CLIPTextConfig.from_pretrained("openai/clip-vit-large-patch14")))
    with torch.no_grad():
        encoder.text_model.embeddings.token_embedding.weight.mul_(10)
        encoder.text_model.final_layer_norm.bias.fill_(0.05)
    return encoder


def write(parts, config):
    OUT.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, OUT / f"{NAME}.yaml")
    state = {f"{prefix}.{key}": value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    encoder = next(prefix for prefix in parts if prefix.endswith(".transformer"))
    state[f"{encoder}.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    whole = {key: (v.half() if v.is_floating_point() else v).contiguous().clone() for key, v in state.items()}
    temp = OUT / f".{NAME}.{os.getpid()}"
    save_file(whole, temp)
    temp.rename(OUT / f"{NAME}.safetensors")


def sd1():
    from ldm.util import instantiate_from_config as made

    config = OmegaConf.create(OmegaConf.to_container(OmegaConf.load(WEBUI / "configs" / "v1-inference.yaml")))
    part = config.model.params
    part.unet_config.params.model_channels = 32
    if NAME == "tiny":
        part.unet_config.params.num_heads = 4
        part.first_stage_config.params.ddconfig.ch = 32
    network, vae = filled(made(part.unet_config)), filled(made(part.first_stage_config))
    write(
        {"model.diffusion_model": network, "first_stage_model": vae, "cond_stage_model.transformer": clip_l()}, config
    )


def sdxl():
    import open_clip
    from sgm.util import instantiate_from_config as made

    config = OmegaConf.load(WEBUI / "repositories/generative-models/configs/inference/sd_xl_base.yaml")
    part = config.model.params
    unet = part.network_config.params
    unet.model_channels, unet.num_head_channels, unet.spatial_transformer_attn_type = 32, 32, "softmax"
    unet.context_dim, unet.adm_in_channels, unet.transformer_depth = 768 + 512, 512 + 1536, [1, 1, 2]
    unet.use_checkpoint = False
    part.first_stage_config.params.ddconfig.ch = 32
    part.first_stage_config.params.ddconfig.attn_type = "vanilla"
    part.conditioner_config.params.emb_models[1].params.arch = "ViT-B-32"
    second = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None)[0]
    del second.visual
    filled(second)
    with torch.no_grad():
        second.token_embedding.weight.mul_(10)
        second.ln_final.bias.fill_(0.05)
    parts = {
        "model.diffusion_model": filled(made(part.network_config)),
        "first_stage_model": filled(made(part.first_stage_config)),
        "conditioner.embedders.0.transformer": clip_l(),
        "conditioner.embedders.1.model": second,
    }
    write(parts, config)


{"tiny": sd1, "tiny_sd15": sd1, "tiny_sdxl": sdxl}[NAME]()
