"""Small checkpoints of random weights, made of A1111's own classes: make_models.py A1111_FOLDER OUT NAME, run with A1111's Python.

For Flux.1 see make_flux.py. tiny: Stable Diffusion 1 at a tenth of the width, with a .yaml beside it that A1111 reads. tiny_sd15: the
same with VAE and text encoder of full size, whose configurations Forge has built in. tiny_sdxl: SDXL's classes, with ViT-B-32 as second
text encoder; tiny_sdxl_vae: with a VAE of full size, which reForge has built in. tiny_sd2, tiny_sd2v: Stable Diffusion 2 with a text
encoder of three layers, for noise and for v. tiny_inpaint, tiny_pix2pix, tiny_refiner: models that want more than noise and text.
full_sd15: Stable Diffusion 1 at full size, for benchmarks.
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
    for encoder in (prefix for prefix in parts if prefix.endswith(".transformer")):
        state[f"{encoder}.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    whole = {key: (v.half() if v.is_floating_point() else v).contiguous().clone() for key, v in state.items()}
    temp = OUT / f".{NAME}.{os.getpid()}"
    save_file(whole, temp)
    temp.rename(OUT / f"{NAME}.safetensors")


def read(place):
    """A configuration of the host with a narrow network."""
    config = OmegaConf.create(OmegaConf.to_container(OmegaConf.load(WEBUI / place)))
    part = config.model.params
    unet = part.network_config.params if "network_config" in part else part.unet_config.params
    unet.use_checkpoint = False
    if NAME != "full_sd15":
        unet.model_channels = 32
    return config, part, unet


def sd1(place="configs/v1-inference.yaml"):
    from ldm.util import instantiate_from_config as made

    config, part, unet = read(place)
    if NAME == "tiny":
        unet.num_heads = 4
        part.first_stage_config.params.ddconfig.ch = 32
    network, vae = filled(made(part.unet_config)), filled(made(part.first_stage_config))
    write(
        {"model.diffusion_model": network, "first_stage_model": vae, "cond_stage_model.transformer": clip_l()}, config
    )


def inpaint():
    sd1("configs/v1-inpainting-inference.yaml")


def pix2pix():
    sd1("configs/instruct-pix2pix.yaml")


def narrow_open_clip():
    """Of three layers, by a name that the extension beside the tests makes known to the host too."""
    import open_clip

    open_clip.add_model_config(Path(__file__).parent / "narrow_extension" / "loom-narrow.json")
    encoder = open_clip.create_model_and_transforms("loom-narrow", pretrained=None)[0]
    del encoder.visual
    filled(encoder)
    with torch.no_grad():
        encoder.token_embedding.weight.mul_(10)
        encoder.ln_final.bias.fill_(0.05)
    return encoder


def sd2():
    from ldm.util import instantiate_from_config as made

    of_v = NAME == "tiny_sd2v"
    place = "repositories/stable-diffusion-stability-ai/configs/stable-diffusion"
    config, part, unet = read(f"{place}/v2-inference{'-v' if of_v else ''}.yaml")
    unet.num_head_channels, unet.use_fp16 = 32, False
    part.cond_stage_config.params.arch = "loom-narrow"
    network = filled(made(part.unet_config))
    if of_v:  # by the size of this bias Forge and ComfyUI tell them apart
        with torch.no_grad():
            bias = network.output_blocks[11][1].transformer_blocks[0].norm1.bias
            bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    vae = filled(made(part.first_stage_config))
    write(
        {"model.diffusion_model": network, "first_stage_model": vae, "cond_stage_model.model": narrow_open_clip()},
        config,
    )


def refiner():
    from sgm.util import instantiate_from_config as made

    config, part, unet = read("repositories/generative-models/configs/inference/sd_xl_refiner.yaml")
    unet.num_head_channels, unet.spatial_transformer_attn_type, unet.transformer_depth = 32, "softmax", 1
    unet.context_dim, unet.adm_in_channels = [1024] * 4, 1024 + 5 * 256
    part.first_stage_config.params.ddconfig.attn_type = "vanilla"
    part.conditioner_config.params.emb_models[0].params.arch = "loom-narrow"
    parts = {
        "model.diffusion_model": filled(made(part.network_config)),
        "first_stage_model": filled(made(part.first_stage_config)),
        "conditioner.embedders.0.model": narrow_open_clip(),
    }
    write(parts, config)


def sdxl():
    import open_clip
    from sgm.util import instantiate_from_config as made

    config = OmegaConf.load(WEBUI / "repositories/generative-models/configs/inference/sd_xl_base.yaml")
    part = config.model.params
    unet = part.network_config.params
    unet.model_channels, unet.num_head_channels, unet.spatial_transformer_attn_type = 32, 32, "softmax"
    unet.context_dim, unet.adm_in_channels, unet.transformer_depth = 768 + 512, 512 + 1536, [1, 1, 2]
    unet.use_checkpoint = False
    if NAME == "tiny_sdxl":
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


MAKERS = {
    "full_sd15": sd1, "tiny": sd1, "tiny_sd15": sd1, "tiny_inpaint": inpaint, "tiny_pix2pix": pix2pix, "tiny_sd2": sd2, "tiny_sd2v": sd2, "tiny_sdxl": sdxl,
    "tiny_sdxl_vae": sdxl, "tiny_refiner": refiner,
}  # fmt: skip
MAKERS[NAME]()
