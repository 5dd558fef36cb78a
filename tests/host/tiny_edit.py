"""A node pack for tests: the bundled toy widened to a model that edits a picture, as instruct-pix2pix is: as many channels again, which mean nothing yet."""

import comfy.model_base
import torch

import nodes


def widened(patcher):
    """The toy's MODEL as the host's class for instruct-pix2pix on SD1.5."""
    model = patcher.model
    first = model.diffusion_model.input_blocks[0][0]
    wide = type(first)(2 * first.in_channels, first.out_channels, 3, padding=1, dtype=torch.float32)
    with torch.no_grad():
        torch.nn.init.normal_(wide.weight, std=0.02, generator=torch.Generator().manual_seed(1))
        wide.weight[:, : first.in_channels] = first.weight
        wide.bias.copy_(first.bias)
    wide.requires_grad_(False)
    model.diffusion_model.input_blocks[0][0] = wide
    model.model_config.unet_config["in_channels"] = 2 * first.in_channels
    model.__class__ = comfy.model_base.SD15_instructpix2pix
    model.process_ip2p_image_in = lambda image: image
    return patcher


class TinyEdit:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "load", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        model, clip, vae = nodes.NODE_CLASS_MAPPINGS["LoraLoomLoadToyModel"].execute().result
        return widened(model), clip, vae


NODE_CLASS_MAPPINGS = {"TinyEdit": TinyEdit}
