"""Headless base models that read more than noise and text are refused when they are opened."""

import json
import shutil

import pytest
import tiny_flow
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from lora_loom.lora_core.backends.base_model import require_plain_file, require_plain_network
from lora_loom.lora_core.backends.layout import stored_names
from lora_loom.lora_core.backends.opening import open_backend
from lora_loom.lora_core.messages.errors import LoomError
from safetensors.torch import load_file, save_file
from shapes import MODEL

END = "which it cannot be given in training yet; give the text-to-image model it was made from"


def toy_with(tmp_path, pipeline, **unet):
    """The toy's folder with another UNet in it, under the name of another pipeline."""
    folder = shutil.copytree(MODEL, tmp_path / "base")
    config = {**UNet2DConditionModel.load_config(MODEL / "unet"), **unet}
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text()) if (folder / "model_index.json").exists() else {}
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": pipeline}))
    return folder


@pytest.mark.parametrize("pipeline", ["StableDiffusionInpaintPipeline", "StableDiffusionPipeline"])
def test_a_unet_that_reads_a_mask_and_a_picture_is_refused_whatever_its_folder_calls_it(tmp_path, pipeline):
    folder = toy_with(tmp_path, pipeline, in_channels=17)  # the toy's latents have 8 channels
    with pytest.raises(
        LoomError, match=f"^base: this is a model with 17 input channels and needs what belongs into them, {END}[.]$"
    ):
        open_backend(str(folder), device="cpu")


def test_a_unet_with_class_labels_is_refused(tmp_path):
    folder = toy_with(
        tmp_path, "StableDiffusionPipeline", class_embed_type="projection", projection_class_embeddings_input_dim=16
    )
    with pytest.raises(
        LoomError,
        match="^base: this is a model with class labels .such as unCLIP. and needs an image embedding or a noise level",
    ):
        open_backend(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("channels", "kind"),
    [(9, "an inpainting model"), (8, "an instruct-pix2pix model"), (7, "an upscaler"), (5, "a depth model")],
)
def test_the_published_kinds_of_unet_are_named(channels, kind):
    require_plain_network({"in_channels": 4}, 4)
    with pytest.raises(LoomError, match=f"^base: this is {kind} and needs .*{END}"):
        require_plain_network({"in_channels": channels}, 4)


def test_a_flux_transformer_that_reads_a_control_picture_is_refused(tmp_path):
    folder = tiny_flow.saved("flux1", tmp_path)
    config = {**FluxTransformer2DModel.load_config(folder / "transformer"), "in_channels": 32, "out_channels": 16}
    FluxTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    with pytest.raises(LoomError, match=f"^base: this is a model with 32 input channels .*{END}"):
        open_backend(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("first", "last", "shape", "kind"),
    [
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "model.diffusion_model.out.2.weight",
            (32, 9, 3, 3),
            "an inpainting model",
        ),
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "model.diffusion_model.out.2.weight",
            (32, 8, 3, 3),
            "an instruct-pix2pix model",
        ),
        ("img_in.weight", "final_layer.linear.weight", (32, 384), "a fill .inpainting. model"),
        (
            "model.diffusion_model.img_in.weight",
            "model.diffusion_model.final_layer.linear.weight",
            (32, 128),
            "a control model .such as Canny or Depth.",
        ),
    ],
)
def test_a_single_file_is_told_by_its_first_and_last_layer_before_anything_else_is_asked_for(
    tmp_path, first, last, shape, kind
):
    written = 64 if len(shape) == 2 else 4
    save_file({first: torch.zeros(shape), last: torch.zeros(written, 32)}, tmp_path / "base.safetensors")
    with pytest.raises(LoomError, match=f"^base: this is {kind} and needs .*{END}"):
        open_backend(str(tmp_path / "base.safetensors"), device="cpu")


@pytest.mark.parametrize(
    ("first", "last", "channels"),
    [("input_blocks.0.0.weight", "out.2.weight", 4), ("img_in.weight", "final_layer.linear.weight", 64)],
)
def test_a_plain_single_file_is_not_refused(first, last, channels):
    require_plain_file({first, last}, lambda name: [channels, channels])


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.a.scale_weight",
        "scaled_fp8",
        "double_blocks.0.img_mod.lin.weight_scale",
        "a.weight.absmax",
    ],
)
def test_a_single_file_with_scales_beside_its_weights_is_refused(tmp_path, key):
    save_file({"model.diffusion_model.a.weight": torch.zeros(4, 4), key: torch.ones(1)}, tmp_path / "base.safetensors")
    with pytest.raises(
        LoomError,
        match=f"^base: base.safetensors holds weights that are quantised with scales beside them .such as {key}., .* give the fp16",
    ):
        open_backend(str(tmp_path / "base.safetensors"), device="cpu")


def test_a_folder_with_scales_is_refused_unless_its_config_says_how_it_is_quantised(tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "base")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "conv_in.scale_weight": torch.ones(1)}, file)
    with pytest.raises(
        LoomError,
        match="^base: base holds weights that are quantised with scales beside them .such as conv_in.scale_weight",
    ):
        open_backend(str(folder), device="cpu")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    assert "conv_in.scale_weight" not in stored_names(folder)
    assert "encoder.conv_in.weight" in stored_names(folder)  # the VAE is looked at still
