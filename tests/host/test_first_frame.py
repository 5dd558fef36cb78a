"""Image-to-video models: they are shown the first frame of each clip as the host's own nodes show it, and nothing of what they are to learn."""

from __future__ import annotations

import architectures
import comfy.clip_vision
import comfy.sample
import comfy.samplers
import film_models
import numpy as np
import pytest
import test_gradients
import torch
from comfy_extras.nodes_hunyuan import HunyuanImageToVideo, HunyuanVideo15ImageToVideo
from comfy_extras.nodes_kandinsky5 import Kandinsky5ImageToVideo
from comfy_extras.nodes_lt import LTXVConditioning, LTXVImgToVideo
from comfy_extras.nodes_wan import Wan22ImageToVideoLatent, WanFirstLastFrameToVideo, WanImageToVideo
from film_files import rising, write_gif
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.backends.encoder import encoder_of
from lora_loom.lora_core.config import DataConfig, Recompute, SampleConfig, parse
from lora_loom.lora_core.data.batches import Batches
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.latents import LatentCache, View
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.pictures.films import frames_of, read_film
from lora_loom.lora_core.training.trainer import train
from lora_loom.nodes.host.engine.backend import HostBackend
from lora_loom.nodes.host.engine.shown import use_of
from PIL import Image
from runs import differences, export, fingerprint
from stand_ins import NoVae, RandomClip
from test_audit import EXPLAINED, calls_of, flat, same, trained_calls
from test_clips import job_of, trained
from test_gradients import BOTH, assert_exact, loss_and_gradients, make_adapters
from tiny_families import TextOfNumbers

VAES = {
    "Wan 2.1 I2V": film_models.wan_vae,
    "Wan 2.2 I2V": film_models.wan_vae,
    "HunyuanVideo I2V": film_models.hunyuan_vae,
    "HunyuanVideo v2 I2V": film_models.hunyuan_vae,
    "HunyuanVideo 1.5": film_models.hunyuan15_vae,
    "Kandinsky 5": film_models.hunyuan_vae,
    "Wan 2.2 TI2V": film_models.wan22_vae,
    "LTXV": film_models.ltx_vae,
    "LTXAV": film_models.ltx_vae,
}
ALONE = ("Wan 2.1 I2V", "Wan 2.2 I2V", "HunyuanVideo I2V")  # film from a picture alone, the others from text too
BESIDE = (*ALONE, "HunyuanVideo 1.5")  # are shown the frame beside the noise; the others have it in place of noise
RATE = 20.0  # frames a second of the films below
TWO_FRAMES = ("Wan 2.1 I2V", "Wan 2.2 I2V")


def loaded(name: str):
    return architectures.build(name), TextOfNumbers(name), VAES[name]()


def by_the_hosts_node(name: str, text: list, vae, pixels: torch.Tensor, last: torch.Tensor | None, see) -> tuple:
    """(conditioning, latents, mask of the noise or None) that the host's node makes of the first frame (1, H, W, 3) for a clip of 9 frames.

    `see`: CLIP Vision on a frame, or None.
    """
    height, width = pixels.shape[1:3]
    size = width, height, 9, 1
    seen = {} if see is None else {"clip_vision_output": see(pixels)}
    if last is not None:
        both = {} if see is None else {"clip_vision_start_image": see(pixels), "clip_vision_end_image": see(last)}
        made = WanFirstLastFrameToVideo.execute(text, text, vae, *size, start_image=pixels, end_image=last, **both)
    elif name == "Wan 2.2 TI2V":
        made = (text, text, Wan22ImageToVideoLatent.execute(vae, *size, start_image=pixels)[0])
    elif name.startswith("Wan"):
        made = WanImageToVideo.execute(text, text, vae, *size, start_image=pixels, **seen)
    elif name.startswith("LTX"):
        text = LTXVConditioning.execute(text, text, RATE)[0]
        made = LTXVImgToVideo.execute(text, text, pixels, vae, *size, 1.0)
    elif name == "HunyuanVideo 1.5":
        made = HunyuanVideo15ImageToVideo.execute(text, text, vae, *size, start_image=pixels, **seen)
    elif name == "Kandinsky 5":
        made = Kandinsky5ImageToVideo.execute(text, text, vae, *size, start_image=pixels)
    else:
        way = "v2 (replace)" if "v2" in name else "v1 (concat)"
        made = HunyuanImageToVideo.execute(text, vae, *size, way, start_image=pixels)
        return made[0], made[1]["samples"], made[1].get("noise_mask")
    return made[0], made[2]["samples"], made[2].get("noise_mask")


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    write_gif(folder / "a.gif", rising(9), (64, 64))
    write_gif(folder / "b.gif", rising(20)[8:], (64, 64))
    return folder


def data_of(folder, **more) -> dict:
    data = {"folder": str(folder), "resolution": 64, "bucket_step_px": 16, "frames": "9", "trigger": "zog"}
    return {**data, "first_frame": "always", **more}


def batch_of(backend: HostBackend, folder, size: int = 1, **more):
    config = parse({"batch_size": size, "data": data_of(folder, **more)})
    cache = LatentCache(scan(config.data), encoder_of(backend), lambda n, of: None)
    return Batches(cache, config, "cpu").at(0, 0), cache


def given_by_both(name: str, films, last: bool = False, vision=None) -> tuple[dict, dict, tuple[int, ...]]:
    """(what the network gets in a step, what the host's node and sampler give it for the same clip and noise, shape of the latents)."""
    models = loaded(name)
    backend = HostBackend(*models, vision=vision)
    (films / "b.gif").unlink()
    with torch.inference_mode(False):
        batch, _ = batch_of(backend, films, last_frame=last)
    sigma, x_t = torch.tensor([0.6]), torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(2))
    [given] = trained_calls(backend, batch, batch.as_given(x_t), sigma)
    frames = [
        np.asarray(frame, np.float32) / 255.0
        for frame in frames_of(films / "a.gif", read_film(films / "a.gif"), range(9))
    ]
    first, end = (torch.from_numpy(frames[n])[None] for n in (0, -1))

    def once(model, x, sigmas, extra_args, **_):
        return model(x_t, sigmas[0] * x.new_ones(len(x)), **extra_args)

    def sample() -> None:
        text = backend.texts.text("zog")
        see = None if vision is None else lambda frame: vision.encode_image(frame, crop=name == "HunyuanVideo 1.5")
        text, latents, mask = by_the_hosts_node(name, text, models[2], first, end if last else None, see)
        steps, sampler = torch.tensor([float(sigma), 0.0]), comfy.samplers.KSAMPLER(once)
        comfy.sample.sample_custom(
            backend.model.patcher, torch.zeros_like(x_t), 1.0, sampler, steps, text, text, latents, noise_mask=mask,
            disable_pbar=True, seed=0,
        )  # fmt: skip

    with torch.inference_mode():
        [sampled] = calls_of(backend.network, sample)
    return flat(given), flat(sampled), tuple(batch.latents.shape)


@pytest.mark.parametrize("name", VAES)
def test_the_network_is_given_in_training_what_the_hosts_node_and_sampler_give_it(name, films):
    left, right, shape = given_by_both(name, films)
    if name == "Kandinsky 5":  # whose network puts the frame over the noise itself
        right["x"] = right["x"].clone()
        right["x"][:, : shape[1], :1] = left["x"][:, : shape[1], :1]
        assert torch.equal(left["time_dim_replace"], right["time_dim_replace"])
    elif name not in BESIDE:
        torch.testing.assert_close(
            left["x"], right["x"], rtol=1e-6, atol=1e-6
        )  # there and back through the host's units
        right["x"] = left["x"]
    explained = {row.argument for row in EXPLAINED}
    assert {a for a in left.keys() | right.keys() if not same(left.get(a), right.get(a))} <= explained
    if name in BESIDE:
        assert left["x"].shape[1] > shape[1]  # noise and what is joined to it
        assert left["x"][:, shape[1] :].abs().sum() > 0


@pytest.mark.parametrize("name", TWO_FRAMES)
def test_with_the_last_frame_it_is_what_the_hosts_node_of_both_gives(name, films):
    left, right, shape = given_by_both(name, films, last=True)
    explained = {row.argument for row in EXPLAINED}
    assert {a for a in left.keys() | right.keys() if not same(left.get(a), right.get(a))} <= explained
    mask = left["x"][0, shape[1] : shape[1] + 4, :, 0, 0]
    assert mask.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize("name", VAES)
def test_what_follows_the_first_frame_changes_nothing_of_what_is_shown(name, films):
    backend = HostBackend(*loaded(name))
    clip = torch.rand(9, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    other = torch.cat([clip[:1], torch.rand(8, 32, 32, 3, generator=torch.Generator().manual_seed(1))])
    shown, of_other = (backend.encode_first_frame(pixels) for pixels in (clip, other))
    assert all(map(torch.equal, shown.latents, of_other.latents))
    assert (shown.clean is None) == (name in BESIDE)
    assert shown.clean is None or torch.equal(shown.clean, of_other.clean)
    assert not torch.equal(backend.encode_first_frame(clip.flip(0)).latents[0], shown.latents[0])


def plainly(name: str, patcher) -> HostBackend:
    """Without conditioning from other nodes, which would have to give the first frame itself."""
    return HostBackend(patcher, RandomClip(name), NoVae(patcher))


@BOTH
@pytest.mark.parametrize("name", VAES)
def test_gradients_with_a_first_frame_equal_plain_autograd(name, recompute, films, monkeypatch):
    monkeypatch.setattr(test_gradients, "opened", plainly)
    monkeypatch.setattr(
        test_gradients, "WRITES_IN_INFERENCE_MODE", tuple(VAES)
    )  # the host scales the frame's latents in place
    with torch.inference_mode(False):
        batch, _ = batch_of(HostBackend(*loaded(name)), films, 2)
        backend = plainly(name, architectures.build(name))
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, Recompute(recompute), tuple(batch.latents.shape)):
            loss, gradients = loss_and_gradients(backend, adapters, batch)
    assert_exact(name, loss, gradients, batch)


def test_an_image_to_video_model_is_trained_sampled_and_continued_and_the_host_left_alone(films, tmp_path):
    Image.new("RGB", (64, 64)).save(films / "still.png")
    models = loaded("Wan 2.1 I2V")
    data = {"folder": str(films), "resolution": 64, "bucket_step_px": 16, "frames": "9", "trigger": "zog"}
    changes = {"data": data, "samples": {"every": 4, "prompt": "zog", "steps": 2}}
    whole = trained(models, films, tmp_path / "whole", **changes)
    assert len(read_film(tmp_path / "whole" / "samples" / "step-4.webp").times_s) == 9
    before = fingerprint(models)
    trained(models, films, tmp_path / "part", steps=2, **changes)
    continued = trained(models, films, tmp_path / "part", resume=True, **changes)
    assert differences(before, fingerprint(models)) == []
    assert all(torch.equal(whole.tensors[key], value) for key, value in continued.tensors.items())


def vision_of(width: int) -> comfy.clip_vision.ClipVisionModel:
    """A CLIP Vision of the host's class, small, whose tokens are `width` wide."""
    config = {
        "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_channels": 3, "patch_size": 14,
        "image_size": 28, "projection_dim": 8, "hidden_act": "gelu", "model_type": "clip_vision_model",
    }  # fmt: skip
    with torch.inference_mode():
        vision = comfy.clip_vision.ClipVisionModel(config)
        film_models.seeded(vision.model)
        return vision


@pytest.mark.parametrize(
    ("name", "width", "last"),
    [("Wan 2.1 I2V", 1280, False), ("Wan 2.1 I2V", 1280, True), ("HunyuanVideo 1.5", 40, False)],
)
def test_what_clip_vision_sees_reaches_the_network_as_the_hosts_nodes_give_it(name, width, last, films):
    left, right, _ = given_by_both(name, films, last, vision_of(width))
    assert left["clip_fea"].shape == (1, 5 * (1 + last), width)
    assert same(left["clip_fea"], right["clip_fea"])
    explained = {row.argument for row in EXPLAINED}
    assert {a for a in left.keys() | right.keys() if not same(left.get(a), right.get(a))} <= explained


class Told(Listener):
    def __init__(self):
        self.codes = []

    def on_warning(self, message):
        self.codes.append(message.code)


@pytest.mark.parametrize(("name", "first_frame", "told"), [
    ("Wan 2.1 I2V", "auto", True), ("Wan 2.2 I2V", "auto", False), ("HunyuanVideo 1.5", "auto", False), ("HunyuanVideo 1.5", "always", True),
])  # fmt: skip
def test_a_missing_clip_vision_is_told_where_the_network_reads_one(name, first_frame, told, films, tmp_path):
    models, listener = loaded(name), Told()
    with torch.inference_mode(), torch.inference_mode(False):
        job = job_of(
            films, tmp_path, HostBackend(*models), listener, steps=1, data=data_of(films, first_frame=first_frame)
        )
        train(job, tmp_path / "run", export)
    assert ("vision.not_wired" in listener.codes) is told


def test_a_run_that_goes_on_asks_for_the_clip_vision_it_had_and_blames_no_vae(films, tmp_path):
    models, seen_by = loaded("Wan 2.1 I2V"), vision_of(1280)

    def run(steps: int, vision, resume: bool = False) -> None:
        with torch.inference_mode(), torch.inference_mode(False):
            backend = HostBackend(*models, vision=vision)
            train(job_of(films, tmp_path, backend, steps=steps, data=data_of(films)), tmp_path / "run", export, resume)

    run(1, seen_by)
    with pytest.raises(LoomError) as refused:
        run(2, None, resume=True)
    assert [change.code for change in refused.value.message.values["changes"]] == ["resume.other_vision"]
    run(2, seen_by, resume=True)


@pytest.mark.parametrize("name", ["LTXV", "Wan 2.2 TI2V", "Kandinsky 5", "HunyuanVideo v2 I2V"])
def test_models_that_film_from_text_too_learn_from_frames_half_of_the_time_and_go_on_bit_for_bit(name, films, tmp_path):
    models = loaded(name)
    changes = {
        "data": data_of(films, first_frame="half of the time"),
        "samples": {"every": 4, "prompt": "zog", "steps": 2},
    }
    whole = trained(models, films, tmp_path / "whole", **changes)
    drawn = read_film(tmp_path / "whole" / "samples" / "step-4.webp")
    assert len(drawn.times_s) == 9
    before = fingerprint(models)
    trained(models, films, tmp_path / "part", steps=2, **changes)
    continued = trained(models, films, tmp_path / "part", resume=True, **changes)
    assert differences(before, fingerprint(models)) == []
    assert all(torch.equal(whole.tensors[key], value) for key, value in continued.tensors.items())
    never = trained(models, films, tmp_path / "never", data=data_of(films, first_frame="never"))
    assert not all(torch.equal(whole.tensors[key], value) for key, value in never.tensors.items())


@pytest.mark.parametrize("name", ["LTXV", "Wan 2.2 TI2V", "Kandinsky 5", "HunyuanVideo v2 I2V"])
def test_a_sample_begins_with_the_frame_it_is_given(name, films):
    """What the host's VAE makes of the latents begins with the frame's own latents, whatever the network drew there."""
    models = loaded(name)
    backend, seen = HostBackend(*models), []
    with torch.inference_mode(False):
        batch, cache = batch_of(backend, films)
    shown = cache.shown(View(0))
    decode = backend.pictures.decode
    backend.pictures.decode = lambda latents: (seen.append(latents.clone()), decode(latents))[1]
    backend.sample(SampleJob("zog", 64, 64, SampleConfig(steps=2, prompt="zog"), shown, 9))
    torch.testing.assert_close(
        seen[0][:, :, :1].float(), shown.latents[0].to(seen[0].device).float(), rtol=1e-4, atol=1e-4
    )
    assert seen[0].shape == batch.latents.shape[:1] + tuple(seen[0].shape[1:])


@pytest.mark.parametrize(("name", "changes", "code"), [
    ("Wan 2.1 I2V", {"first_frame": "half of the time"}, "data.first_frame.needed"),
    ("LTXV", {"last_frame": True}, "data.last_frame.not_taken"),
])  # fmt: skip
def test_frames_that_a_model_does_not_take_are_refused_before_anything_is_encoded(name, changes, code, films):
    vae = VAES.get(name, film_models.hunyuan_vae)()
    with torch.inference_mode(False), pytest.raises(LoomError) as refused:
        batch_of(HostBackend(architectures.build(name), TextOfNumbers(name), vae), films, **changes)
    assert refused.value.message.code == code


def test_a_model_named_for_pictures_is_shown_the_first_frame_of_itself(films):
    patcher = architectures.build("HunyuanVideo 1.5")
    plain = use_of(patcher.model, lambda: "hunyuanvideo1.5_720p_t2v.safetensors")
    both = use_of(architectures.build("Wan 2.2 TI2V").model, lambda: "wan2.2_ti2v_5B_fp16.safetensors")
    assert both.showing(False).share(DataConfig(folder=str(films))) == 0.0
    named = use_of(patcher.model, lambda: "hunyuanvideo1.5_720p_I2V_fp16.safetensors")
    shares = [use.showing(False).share(DataConfig(folder=str(films))) for use in (plain, named)]
    assert shares == [0.0, 1.0]


def test_a_still_picture_is_left_out_where_a_first_frame_is_needed(films):
    Image.new("RGB", (64, 64)).save(films / "still.png")
    with torch.inference_mode(False):
        _, cache = batch_of(HostBackend(*loaded("Wan 2.1 I2V")), films)
    assert [(name, why.code) for name, why in cache.skipped] == [("still.png", "picture.no_first_frame")]
