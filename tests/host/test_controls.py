"""Control pictures through the host's own models: gradients against plain autograd, inputs against the host's own nodes, what is kept and what is refused."""

from __future__ import annotations

import dataclasses
import inspect

import architectures
import pytest
import test_gradients
import torch
from comfy_extras.nodes_boogu import TextEncodeBooguEdit
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxKontextMultiReferenceLatentMethod
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from comfy_extras.nodes_joyimage import TextEncodeJoyImageEdit
from comfy_extras.nodes_mage import TextEncodeMageFlowEdit
from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit, TextEncodeQwenImageEditPlus
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.config import ObjectiveConfig, SampleConfig
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.shown import Shown
from lora_loom.lora_core.data.store import Memory
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.host.engine.backend import HostBackend
from stand_ins import NoVae, RandomClip, SeeingClip, SmallVae
from test_audit import Difference, batch_of, explanation, flat, rows_of, same, sampled_call, short, trained_calls
from test_gradients import assert_exact, loss_and_gradients, make_adapters, make_batch

import nodes

LISTED = (
    "Flux",
    "Flux2",
    "QwenImage",
    "Qwen Edit 2511",
    "OmniGen2",
    "Krea 2",
    "Boogu",
    "JoyImage",
    "LongCat",
    "Mage-Flow",
)  # of any size, several of them
METHODS = {
    "Krea 2": "index_timestep_zero",
    "LongCat": "index",
}  # where the network has to be told how references are placed
FILLED = ("SD15 inpaint", "SDXL inpaint", "Flux Fill")  # with a mask
JOINED = ("SD15 ip2p", "SDXL ip2p", "Flux Canny", "HiDream")  # joined to the noise
NEEDED = ("Qwen Edit 2511", "SD15 ip2p", "SDXL ip2p", "Flux Canny")
CAPTION = "make it red"


def opened(name: str, clip: type[RandomClip] = RandomClip, file: str = "") -> HostBackend:
    patcher = architectures.build(name)
    if file:
        patcher.model.model_config.loom_name = file
    return HostBackend(patcher, clip(name), SmallVae(patcher))


def latent(name: str, seed: int, larger: int = 0) -> torch.Tensor:
    shape = list(architectures.row_of(name)[2])
    shape[-1] += larger
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def with_controls(name: str, batch: Batch) -> Batch:
    """The first sample has one control picture, the second one a larger one and another."""
    if name in FILLED:
        side = [8 * s for s in architectures.row_of(name)[2][-2:]]
        masks = [(torch.rand(1, 1, *side, generator=torch.Generator().manual_seed(n)) < 0.5).float() for n in (1, 2)]
        filled = [Shown((latent(name, n),), identity=f"{n}", mask=mask) for n, mask in enumerate(masks)]
        return dataclasses.replace(batch, shown=filled)
    one = Shown((latent(name, 1),), identity="one")
    two = Shown((latent(name, 2),) if name in JOINED else (latent(name, 2, 4), latent(name, 3)), identity="two")
    return dataclasses.replace(batch, shown=[one, two])


@test_gradients.BOTH
@pytest.mark.parametrize("name", [*LISTED, *JOINED, *FILLED])
def test_gradients_with_control_pictures_of_two_sizes_equal_plain_autograd(monkeypatch, name, recompute):
    monkeypatch.setattr(
        test_gradients, "opened", lambda name, patcher: HostBackend(patcher, RandomClip(name), NoVae(patcher))
    )
    monkeypatch.setattr(
        test_gradients, "WRITES_IN_INFERENCE_MODE", FILLED
    )  # blank masks, when the host is asked for them
    batch = with_controls(name, make_batch(name))
    with torch.inference_mode(False):
        backend = opened(name)
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, recompute, tuple(batch.latents.shape)):
            loss, gradients = loss_and_gradients(backend, adapters, batch)
            if name not in (*NEEDED, *FILLED):
                without, _ = loss_and_gradients(backend, adapters, dataclasses.replace(batch, shown=()))
                assert abs(loss - without) > 1e-4  # it looks at them
    assert_exact(name, loss, gradients, batch)


# ---- what the network is given ---------------------------------------------------------------------------------------


def references(caption, backend, latents, method=""):
    conditioning = backend.texts.text(caption)
    for one in latents:
        conditioning = ReferenceLatent.execute(conditioning, {"samples": one})[0]
    return FluxKontextMultiReferenceLatentMethod.execute(conditioning, method)[0] if method else conditioning


def differences(backend: HostBackend, name: str, batch: Batch, text: list, vae_latents: Shown):
    objective = backend.objective(ObjectiveConfig())
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(6))
    sigma = objective.levels(torch.tensor([0.5], dtype=torch.float64)).float()
    x_t = objective.corrupt(batch.latents, noise, sigma)
    [call] = trained_calls(backend, dataclasses.replace(batch, shown=[vae_latents]), x_t, sigma)
    [trained] = rows_of(flat(call))
    sampled = flat(sampled_call(backend, batch.captions[0], x_t, sigma, text))
    for argument in sorted({*trained, *sampled}):
        if not same(trained.get(argument), sampled.get(argument)):
            difference = Difference(argument, trained.get(argument), sampled.get(argument))
            if explanation("Flux" if name == "Flux Fill" else name, difference) is None:
                yield f"{argument}: {short(difference.trained)}, the sampler's is {short(difference.sampled)}"
    given = [key for key in ("ref_latents", "c_concat", "image_cond", "x") if key in sampled]
    assert given


@pytest.mark.parametrize("name", ["Flux", "Flux2", "OmniGen2", "Krea 2"])
def test_references_reach_the_network_as_by_the_hosts_own_node(name):
    backend = opened(name)
    shown = Shown((latent(name, 1), latent(name, 2, 4)), identity="two")
    method = METHODS.get(name, "")
    text = references(CAPTION, backend, shown.latents, method)
    assert not list(differences(backend, name, batch_of(name, [CAPTION]), text, shown))
    assert list(
        differences(
            backend, name, batch_of(name, [CAPTION]), references(CAPTION, backend, shown.latents[:1], method), shown
        )
    )


@pytest.mark.parametrize("name", ["SD15 ip2p", "SDXL ip2p"])
def test_the_picture_to_edit_reaches_the_network_as_by_the_hosts_own_node(name):
    backend = opened(name)
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    plain = backend.texts.text(CAPTION)
    text = InstructPixToPixConditioning.execute(plain, plain, picture, backend.pictures._vae)[0]
    shown = Shown((backend.encode_shown(picture),), identity="one")
    assert not list(differences(backend, name, batch_of(name, [CAPTION]), text, shown))
    other = InstructPixToPixConditioning.execute(plain, plain, 1 - picture, backend.pictures._vae)[0]
    assert list(differences(backend, name, batch_of(name, [CAPTION]), other, shown))


@pytest.mark.parametrize("name", FILLED)
def test_mask_and_masked_picture_reach_the_network_as_by_the_hosts_own_node(name):
    from lora_loom.lora_core.data.input_masks import drawn
    from lora_loom.lora_core.data.shown import kept_masked, shown_of

    backend = opened(name)
    size = 8 * architectures.row_of(name)[2][-1]
    pixels = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    masks = [drawn(seed, (size, size)) for seed in (b"one", b"two", b"four")]
    shown = shown_of(kept_masked(pixels.numpy(), masks, backend.encode_shown), 0.4)
    plain, image = backend.texts.text(CAPTION), pixels.float()[None] / 255.0

    def by_node(mask):
        given = torch.from_numpy(mask).float()[None] / 255.0
        return nodes.InpaintModelConditioning().encode(plain, plain, image, backend.pictures._vae, given)[0]

    assert not list(differences(backend, name, batch_of(name, [CAPTION]), by_node(masks[1]), shown))
    assert list(differences(backend, name, batch_of(name, [CAPTION]), by_node(masks[2]), shown))


def by_the_hosts_node(node, backend: HostBackend, images: list[torch.Tensor], caption: str = CAPTION) -> tuple:
    """(conditioning of the caption, that of an empty negative prompt where the node makes it) with pictures (1, H, W, 3) beside."""
    clip, vae = backend.texts._clip, backend.pictures._vae
    named = {f"image_{n}": image for n, image in enumerate(images, 1)}
    if node in (TextEncodeBooguEdit, TextEncodeMageFlowEdit):
        return node.execute(clip, caption, "", vae, named)[:2]
    if node is TextEncodeJoyImageEdit:
        return (node.execute(clip, caption, vae, named)[0],)
    return (node.execute(clip, caption, vae, *images)[0],)


@pytest.mark.parametrize(("name", "file", "node", "count"), [
    ("QwenImage", "qwen_image_edit_fp8.safetensors", TextEncodeQwenImageEdit, 1),
    ("QwenImage", "qwen_image_edit_2509_fp8.safetensors", TextEncodeQwenImageEditPlus, 2),
    ("QwenImage", "", TextEncodeQwenImageEditPlus, 3),
    ("Krea 2", "krea2_turbo_fp8.safetensors", TextEncodeQwenImageEditPlus, 2),
    ("LongCat", "longcat_image_edit_bf16.safetensors", TextEncodeQwenImageEdit, 1),
    ("Boogu", "", TextEncodeBooguEdit, 2),
    ("Mage-Flow", "", TextEncodeMageFlowEdit, 2),
    ("JoyImage", "", TextEncodeJoyImageEdit, 3),
])  # fmt: skip
def test_the_network_and_its_text_encoder_see_pictures_as_by_the_hosts_own_nodes(name, file, node, count):
    backend = opened(name, SeeingClip, file)
    generator = torch.Generator().manual_seed(1)
    pictures = [torch.randint(0, 256, (1, 1024, 1024, 3), generator=generator, dtype=torch.uint8) for _ in range(count)]
    images = [picture.float() / 255.0 for picture in pictures]
    text = by_the_hosts_node(node, backend, images)[0]
    if name in METHODS:
        text = FluxKontextMultiReferenceLatentMethod.execute(text, METHODS[name])[0]
    shown = Shown(tuple(backend.encode_shown(image) for image in images), tuple(pictures), "these")
    assert backend.showing().to_text
    limits = {TextEncodeQwenImageEdit: 1, TextEncodeQwenImageEditPlus: 3, TextEncodeJoyImageEdit: 6}
    assert backend.showing().limit == limits.get(node, 16)
    assert backend.showing().as_target == (name == "Mage-Flow")
    assert not list(differences(backend, name, batch_of(name, [CAPTION]), text, shown))
    blind = dataclasses.replace(shown, pixels=(), identity="blind")
    assert any("context" in line for line in differences(backend, name, batch_of(name, [CAPTION]), text, blind))


@pytest.mark.parametrize(("name", "file", "of_edits"), [
    ("Flux", "flux1-kontext-dev.safetensors", True), ("Flux", "flux1-dev-fp8.safetensors", False), ("Flux", "my_credits.safetensors", False),
    ("QwenImage", "qwen_image_edit_2509.safetensors", True), ("QwenImage", "qwen_image_edit.safetensors", True),
    ("QwenImage", "qwen_image.safetensors", False), ("LongCat", "longcat_image_edit_bf16.safetensors", True),
    ("HiDream", "hidream_e1_full_bf16.safetensors", True), ("HiDream", "hidream_i1_full.safetensors", False),
])  # fmt: skip
def test_a_model_is_known_to_be_made_for_edits_by_the_name_of_its_file(name, file, of_edits):
    assert opened(name, SeeingClip, file).showing().usual is of_edits


def test_the_words_around_a_prompt_are_the_hosts():
    from lora_loom.nodes.host.engine import shown

    source = inspect.getsource(TextEncodeQwenImageEditPlus)
    assert shown._INSTRUCTION.replace("\n", "\\n") in source
    assert shown._NUMBERED in source


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_a_caption_is_encoded_for_each_picture_once_and_kept_by_picture():
    store, tokens = Memory(), []

    class Counting(SeeingClip):
        class Encoder(torch.nn.Module):
            pass

        def encode_from_tokens_scheduled(self, text):
            tokens.append(text)
            return super().encode_from_tokens_scheduled(text)

    backend = opened("QwenImage", Counting)
    backend.texts.__dict__["fingerprint"] = "counting"
    backend.texts._store, backend.texts._identity = store, (1, "counting")
    pixels = [torch.full((1, 32, 32, 3), shade, dtype=torch.uint8) for shade in (10, 200)]
    pairs = [(CAPTION, Shown((latent("QwenImage", n),), (pixels[n],), f"picture {n}")) for n in range(2)]
    backend.encode_shown_texts([*pairs, *pairs], lambda n, of: None)
    assert len(tokens) == 2
    one, two = (backend.texts.text(CAPTION, shown=shown)[0][0] for _, shown in pairs)
    assert not torch.equal(one, two)
    backend.forget_texts()
    backend.encode_shown_texts(pairs, lambda n, of: None)
    assert len(tokens) == 2  # from the store
    assert torch.equal(backend.texts.text(CAPTION, shown=pairs[0][1])[0][0], one)


def test_two_pictures_beside_one_caption_and_size_are_not_taken_for_each_other():
    backend = opened("Flux")
    batch = batch_of("Flux", [CAPTION, CAPTION])
    batch = dataclasses.replace(batch, shown=[Shown((latent("Flux", n),), identity=f"{n}") for n in (1, 2)])
    given = [conds["ref_latents"] for _, conds in backend.conditioning.of(batch, batch.latents)]
    seen = torch.cat([part[0] for part in given])
    assert torch.equal(seen, backend.model.base.process_latent_in(torch.cat([latent("Flux", 1), latent("Flux", 2)])))


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEEDED)
def test_a_model_that_needs_a_control_picture_says_so_in_a_step_without_one(name):
    backend = opened(name)
    assert backend.showing().needed
    with torch.inference_mode(False):
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters), pytest.raises(LoomError, match="^model: this is .* needs"):
            backend.predict(torch.zeros(1, *architectures.row_of(name)[2]), torch.ones(1), batch_of(name, [CAPTION]))


@pytest.mark.parametrize("name", ["SD15", "SDXL", "Chroma", "Wan", "Qwen Layered", "SD15 depth"])
def test_models_that_take_no_control_picture_say_so(name):
    assert opened(name).showing() is None


# ---- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Flux", "QwenImage", "SD15 ip2p", "Boogu"])
def test_a_sample_edits_its_control_picture_as_the_hosts_sampler_does_with_its_own_nodes(name):
    import comfy.sample

    backend = opened(name, SeeingClip)
    size = 8 * architectures.row_of(name)[2][-1]
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (1, size, size, 3), generator=generator, dtype=torch.uint8)
    image = pixels.float() / 255.0
    shown = Shown((backend.encode_shown(image),), (pixels,) if name in ("QwenImage", "Boogu") else (), "one")
    config = SampleConfig(steps=2, cfg=3.0, seed=5, negative="blurry")
    drawn = backend.sample(SampleJob(CAPTION, size, size, config, shown))[0]

    def conditioning(text):
        if name == "Boogu":  # whose negative prompt is read without the picture
            both = TextEncodeBooguEdit.execute(backend.texts._clip, CAPTION, "blurry", None, {"image_1": image})
            return ReferenceLatent.execute(both[text == "blurry"], {"samples": shown.latents[0]})[0]
        if name == "QwenImage":
            seeing = TextEncodeQwenImageEditPlus.execute(backend.texts._clip, text, None, image)[0]
            return ReferenceLatent.execute(seeing, {"samples": shown.latents[0]})[0]
        plain = backend.texts.text(text)
        if name == "Flux":
            return ReferenceLatent.execute(plain, {"samples": shown.latents[0]})[0]
        return InstructPixToPixConditioning.execute(plain, plain, image, backend.pictures._vae)[0]

    with torch.inference_mode():
        latent = comfy.sample.fix_empty_latent_channels(backend.model.patcher, torch.zeros(1, 4, size // 8, size // 8))
        noise = comfy.sample.prepare_noise(latent, 5)
        positive, negative = conditioning(CAPTION), conditioning("blurry")
        out = comfy.sample.sample(
            backend.model.patcher,
            noise,
            2,
            3.0,
            config.sampler,
            config.scheduler,
            positive,
            negative,
            latent,
            seed=5,
            disable_pbar=True,
        )
        wanted = backend.pictures.decode(out)[0]
    assert drawn.tobytes() == wanted.tobytes()
    assert drawn.tobytes() != backend.sample(SampleJob(CAPTION, size, size, config))[0].tobytes()
