"""Every pipeline of diffusers, as the base of a headless run: it opens, or one sentence says what it is."""

from __future__ import annotations

import json
import os
import re
import shutil

import diffusers
import pytest
import tiny_flow
import tiny_unet
import torch
from lora_loom.lora_core.backends.opening import ONE_NETWORK, TWO_STAGES, open_backend
from lora_loom.lora_core.backends.pipelines import plain_name
from lora_loom.lora_core.messages.errors import LoomError
from safetensors.torch import save_file
from shapes import MODEL

NAMES = sorted(
    {name for name in dir(diffusers) if name.endswith("Pipeline")} | {"StableDiffusionPipelineSafe", "ChatPipeline"}
)
OPENED = {*ONE_NETWORK, *TWO_STAGES}


def renamed(folder, copy, name: str):
    """A copy of a model folder whose model_index.json says that it is a `name`."""
    shutil.copytree(folder, copy, copy_function=os.link)
    index = json.loads((copy / "model_index.json").read_text()) if (copy / "model_index.json").is_file() else {}
    (copy / "model_index.json").unlink(missing_ok=True)
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
    return copy


def test_every_pipeline_that_is_not_trained_is_refused_by_its_name_though_it_has_a_unet(tmp_path):
    folder = renamed(MODEL, tmp_path / "some model", "FluxPipeline")
    refused = [name for name in NAMES if plain_name(name) not in OPENED]
    assert len(refused) > 200
    for name in refused:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(LoomError) as told:
            open_backend(str(folder), device="cpu")
        assert re.match(rf"base: some model is of the kind {name}\b", str(told.value))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("KolorsPipeline", "which is not trained here; give one of the kinds StableDiffusionPipeline, "),
        ("IFPipeline", "which is not trained here"),
        ("IFSuperResolutionPipeline", "an upscaler that needs the small picture"),
        ("PixArtSigmaPipeline", "which can only be trained in ComfyUI; train it there"),
        ("ChromaPipeline", "which can only be trained in ComfyUI"),
        ("Flux2Pipeline", "which can only be trained in ComfyUI"),
        ("FluxKontextPipeline", "an editing model that needs the picture to edit"),
        ("QwenImageEditPlusPipeline", "an editing model that needs the picture to edit"),
        ("QwenImageLayeredPipeline", "Qwen-Image-Layered that needs the picture to take apart"),
        ("StableDiffusionInstructPix2PixPipeline", "an editing model that needs the picture to edit"),
        ("StableDiffusionDepth2ImgPipeline", "a depth model that needs a depth map"),
        ("StableDiffusionXLInstructPix2PixPipeline", "an editing model"),
        ("StableUnCLIPPipeline", "a model that reads an image embedding that needs an image embedding"),
        ("WanImageToVideoPipeline", "an image-to-video model that needs a first frame"),
        ("HunyuanDiTControlNetPipeline", "a control model that needs a control picture"),
    ],
)  # fmt: skip
def test_a_pipeline_that_is_not_trained_is_told_with_its_reason(name, sentence, tmp_path):
    folder = renamed(MODEL, tmp_path / "model", name)
    with pytest.raises(LoomError, match=re.escape(f"base: model is of the kind {name}, {sentence}")):
        open_backend(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("kind", "name", "type_"),
    [
        ("sd1", "StableDiffusionImg2ImgPipeline", "DiffusersBackend"),
        ("sd1", "LatentConsistencyModelPipeline", "DiffusersBackend"),
        ("sdxl", "StableDiffusionXLControlNetPAGPipeline", "DiffusersBackend"),
        ("sd3", "StableDiffusion3InpaintPipeline", "FlowBackend"),
        ("flux1", "FluxImg2ImgPipeline", "FlowBackend"),
        ("z-image", "ZImageInpaintPipeline", "FlowBackend"),
        ("qwen-image", "QwenImageImg2ImgPipeline", "FlowBackend"),
    ],
)
def test_a_pipeline_that_draws_otherwise_with_the_same_networks_opens_as_its_plain_one(kind, name, type_, tmp_path):
    makers = tiny_unet if kind in tiny_unet.MAKERS else tiny_flow
    backend = open_backend(str(renamed(makers.saved(kind, tmp_path), tmp_path / "copy", name)), device="cpu")
    assert (type(backend).__name__, backend.family) == (type_, kind)


@pytest.mark.parametrize(
    ("part", "kind"), [("text_encoder", "ChatGLMModel"), ("text_encoder", "T5EncoderModel"), ("vae", "AutoencoderTiny"), ("unet", "UNetMotionModel")]
)  # fmt: skip
def test_a_folder_without_an_index_is_told_by_the_classes_of_its_parts(part, kind, tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    file = folder / part / "config.json"
    config = json.loads(file.read_text())
    config.pop("architectures", None)
    file.write_text(json.dumps({**config, "_class_name": kind}))
    with pytest.raises(LoomError, match=f"^base: model/{part} is a {kind}, and a Stable Diffusion model has "):
        open_backend(str(folder), device="cpu")


def test_the_refiner_is_refused_as_a_folder_by_its_numbers_and_as_a_file(tmp_path):
    folder = tiny_unet.sdxl(tmp_path / "sdxl")
    bare = renamed(folder, tmp_path / "refiner", "StableDiffusionXLImg2ImgPipeline")
    shutil.rmtree(bare / "text_encoder")
    config = json.loads((folder / "unet" / "config.json").read_text())
    config["projection_class_embeddings_input_dim"] = 40 + 5 * 8  # the aesthetic score in place of two sizes
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    network = diffusers.UNet2DConditionModel.from_config(config)
    network.save_pretrained(folder / "unet")
    file = tmp_path / "refiner.safetensors"
    save_file({"conditioner.embedders.0.model.ln_final.weight": torch.ones(4)}, file)
    for place in (bare, folder, file):
        with pytest.raises(
            LoomError, match=f"^base: {place.name} is an SDXL refiner, which can only be trained in ComfyUI"
        ):
            open_backend(str(place), device="cpu")
