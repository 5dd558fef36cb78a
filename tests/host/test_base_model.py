"""What a base model is: the guidance it is trained at, and what it reads beside noise and text, against what the host's own sampler gives it."""

from __future__ import annotations

import architectures
import comfy.sampler_helpers
import comfy.samplers
import comfy.weight_adapter
import pytest
import torch
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import Fit
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.host.engine import base_model
from lora_loom.nodes.host.engine.backend import HostBackend
from stand_ins import NoVae, RandomClip
from test_gradients import loss_and_gradients, make_adapters

SQUARE = Fit((64, 64), (64, 64), (0, 0), (64, 64))
CAPTION = "a red cat"


def opened(name: str) -> HostBackend:
    patcher = architectures.build(name)
    return HostBackend(patcher, RandomClip(name), NoVae(patcher))


def batch_of(name: str) -> Batch:
    latents = torch.randn(1, *architectures.row_of(name)[2], generator=torch.Generator().manual_seed(5))
    return Batch(latents, [CAPTION], [SQUARE], ["one.png"], torch.ones(1))


def trained_conditioning(backend: HostBackend, batch: Batch) -> dict:
    """What the network is given in a training step."""
    [(_, conds)] = backend.conditioning.of(batch, batch.latents)
    return conds


def sampled_conditioning(backend: HostBackend, batch: Batch) -> dict:
    """What the host's own sampler gives the model for the same caption and an empty latent."""
    with torch.inference_mode():
        conds = comfy.sampler_helpers.convert_cond(backend.texts.text(CAPTION))
        noise = batch.latents
        conds = comfy.samplers.encode_model_conds(
            backend.model.base.extra_conds,
            conds,
            noise,
            backend.device,
            "positive",
            latent_image=torch.zeros_like(noise),
            denoise_mask=None,
            seed=0,
        )
        return {
            key: value.process_cond(batch_size=1, area=None, device=backend.device).cond
            for key, value in conds[0]["model_conds"].items()
        }


@pytest.mark.parametrize("name", ["Chroma", "Chroma Radiance"])
def test_a_model_that_embeds_no_guidance_is_trained_at_the_guidance_it_is_sampled_with(name):
    backend, batch = opened(name), batch_of(name)
    trained, sampled = (
        trained_conditioning(backend, batch)["guidance"],
        sampled_conditioning(backend, batch)["guidance"],
    )
    assert trained.tolist() == sampled.tolist() == [0.0]


@pytest.mark.parametrize("name", ["Flux", "Flux2", "HunyuanVideo"])
def test_a_guidance_distilled_model_is_trained_at_guidance_1(name):
    backend, batch = opened(name), batch_of(name)
    assert trained_conditioning(backend, batch)["guidance"].tolist() == [1.0]


@pytest.mark.parametrize("name", ["Flux schnell", "Flux2 Klein"])
def test_what_a_model_without_guidance_is_given_is_what_it_is_sampled_with(name):
    backend, batch = opened(name), batch_of(name)
    assert (
        trained_conditioning(backend, batch)["guidance"].tolist()
        == sampled_conditioning(backend, batch)["guidance"].tolist()
    )


PLAIN = [
    *architectures.MODELS,
    "Flux schnell",
    "Flux2 Klein",
    "Chroma Radiance",
    "HunyuanVideo",
    "HunyuanVideo 1.5",
    "Kandinsky 5",
    "Wan 2.2 TI2V",
]
PLAIN += ["Cosmos Predict2 picture"]
REFUSED = {  # what of the sentence
    "SD15 inpaint": "an inpainting model and needs a mask and the masked picture", "SDXL inpaint": "an inpainting model",
    "SD15 ip2p": "an instruct-pix2pix model and needs the picture to edit", "SDXL ip2p": "an instruct-pix2pix model",
    "SD15 depth": "an inpainting model", "SD2 unCLIP": "an unCLIP model and needs a CLIP Vision output",
    "Flux Fill": "a fill .inpainting. model and needs a mask and the masked picture", "Flux Canny": "a control model .* needs a control picture",
    "HunyuanVideo I2V": "an image-to-video model and needs a first frame", "SkyReels I2V": "an image-to-video model",
    "HunyuanVideo 1.5 SR": "an upscaler", "HunyuanImage refiner": "a refiner", "Cosmos Predict2 video": "an image-to-video model",
    "Qwen Layered": "Qwen-Image-Layered", "Qwen Edit 2511": "Qwen-Image-Edit and needs the picture to edit",
    "Wan 2.1 I2V": "an image-to-video model", "Wan 2.2 I2V": "an image-to-video model", "Wan Fun-Control": "a control model and needs a control video",
    "Wan VACE": "a VACE model", "Wan camera": "a camera-control model", "Wan HuMo": "a HuMo model", "Wan S2V": "a speech-to-video model",
    "Wan Animate": "an Animate model", "Wan SCAIL": "a SCAIL model",
}  # fmt: skip


# A dataset's control pictures, input masks and films give what these need.
SHOWN = (
    "SD15 ip2p",
    "SDXL ip2p",
    "Flux Canny",
    "Qwen Edit 2511",
    "SD15 inpaint",
    "SDXL inpaint",
    "Flux Fill",
    "HunyuanVideo I2V",
    "Wan 2.1 I2V",
    "Wan 2.2 I2V",
)


@pytest.mark.parametrize("name", PLAIN)
def test_a_model_that_reads_noise_and_text_alone_is_not_refused(name):
    assert base_model.further_input(architectures.build(name).model) is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_reads_more_than_noise_and_text_is_refused_before_a_picture_is_encoded_and_before_a_step(name):
    backend = opened(name)
    with torch.inference_mode(False):
        layers, adapters = make_adapters(backend)
        if name not in SHOWN:
            with pytest.raises(
                LoomError,
                match=f"^model: this is {REFUSED[name]}.*, which it cannot be given in training yet; train [^.]*[.]$",
            ):
                backend.encode_picture(torch.zeros(1, 64, 64, 3))
            with pytest.raises(LoomError, match=f"^model: this is {REFUSED[name]}"), backend.training(layers, adapters):
                raise AssertionError("training began")
        with pytest.raises(LoomError, match=f"^model: this is {REFUSED[name]}"):
            backend.predict(torch.zeros(1, *architectures.row_of(name)[2]), torch.ones(1), batch_of(name))


@pytest.mark.parametrize("name", ["HunyuanVideo I2V", "SkyReels I2V"])
def test_no_model_is_shown_the_latent_it_learns_as_its_picture(name):
    backend, batch = opened(name), batch_of(name)
    shown = trained_conditioning(backend, batch)["c_concat"]
    assert shown.shape[1] >= 16
    assert not shown[:, :16].any()


@pytest.mark.parametrize(
    ("name", "entries"),
    [("SD15 inpaint", ("concat_latent_image", "concat_mask")), ("Flux Canny", ("concat_latent_image",))],
)
def test_a_conditioning_from_other_nodes_that_holds_the_further_input_is_trained_with_it(name, entries):
    backend, batch = opened(name), batch_of(name)
    picture, mask = torch.randn(batch.latents.shape), torch.ones(1, 1, *batch.latents.shape[-2:])
    text = RandomClip(name).encode_from_tokens_scheduled(CAPTION)
    extra = {"concat_latent_image": picture, "concat_mask": mask}
    backend.texts._wired = {CAPTION: [[text[0][0], {**text[0][1], **{entry: extra[entry] for entry in entries}}]]}
    with torch.inference_mode(False):
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters):
            loss, gradients = loss_and_gradients(backend, adapters, batch)
            given = trained_conditioning(backend, batch)["c_concat"]
    wanted = backend.model.base.process_latent_in(picture)
    assert torch.equal(given[:, -wanted.shape[1] :], wanted)
    assert loss > 0
    assert any(g.abs().max() > 0 for g in gradients.values())


def test_a_control_lora_that_widens_the_first_layer_when_it_is_loaded_is_refused():
    patcher = architectures.build("Flux")
    layer = patcher.model.diffusion_model.img_in
    down, up = torch.randn(2, 128), torch.randn(layer.weight.shape[0], 2)
    weight = comfy.weight_adapter.LoRAAdapter(set(), (up, down, None, None, None, [layer.weight.shape[0], 128]))
    patcher.add_patches({"diffusion_model.img_in.weight": weight})
    backend = HostBackend(patcher, RandomClip("Flux"), NoVae(patcher))
    with torch.inference_mode(False):
        layers, adapters = make_adapters(backend)
        with pytest.raises(LoomError, match="^model: this is a control model"), backend.training(layers, adapters):
            raise AssertionError("training began")
