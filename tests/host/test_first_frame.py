"""Image-to-video models: they are shown the first frame of each clip as the host's own nodes show it, and nothing of what they are to learn."""

from __future__ import annotations

import architectures
import comfy.sample
import comfy.samplers
import film_models
import numpy as np
import pytest
import test_gradients
import torch
from comfy_extras.nodes_hunyuan import HunyuanImageToVideo
from comfy_extras.nodes_wan import WanImageToVideo
from film_files import rising, write_gif
from lora_loom.lora_core.backends.encoder import encoder_of
from lora_loom.lora_core.config import Recompute, parse
from lora_loom.lora_core.data.batches import Batches
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.latents import LatentCache
from lora_loom.lora_core.pictures.films import first_frame, read_film
from lora_loom.nodes.host.engine.backend import HostBackend
from PIL import Image
from runs import differences, fingerprint
from stand_ins import NoVae, RandomClip
from test_audit import EXPLAINED, calls_of, flat, same, trained_calls
from test_clips import trained
from test_gradients import BOTH, assert_exact, loss_and_gradients, make_adapters
from tiny_families import TextOfNumbers

VAES = {
    "Wan 2.1 I2V": film_models.wan_vae,
    "Wan 2.2 I2V": film_models.wan_vae,
    "HunyuanVideo I2V": film_models.hunyuan_vae,
}


def loaded(name: str):
    return architectures.build(name), TextOfNumbers(name), VAES[name]()


def by_the_hosts_node(name: str, text: list, vae, pixels: torch.Tensor) -> list:
    """The conditioning that the host's node makes of the first frame (1, H, W, 3) for a clip of 9 frames."""
    height, width = pixels.shape[1:3]
    if name.startswith("Wan"):
        return WanImageToVideo.execute(text, text, vae, width, height, 9, 1, start_image=pixels)[0]
    return HunyuanImageToVideo.execute(text, vae, width, height, 9, 1, "v1 (concat)", start_image=pixels)[0]


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    write_gif(folder / "a.gif", rising(9), (64, 64))
    write_gif(folder / "b.gif", rising(20)[8:], (64, 64))
    return folder


def batch_of(backend: HostBackend, folder, size: int = 1):
    config = parse(
        {
            "batch_size": size,
            "data": {"folder": str(folder), "resolution": 64, "bucket_step_px": 16, "frames": "9", "trigger": "zog"},
        }
    )
    cache = LatentCache(scan(config.data), encoder_of(backend), lambda n, of: None)
    return Batches(cache, config, "cpu").at(0, 0), cache


@pytest.mark.parametrize("name", VAES)
def test_the_network_is_given_in_training_what_the_hosts_node_and_sampler_give_it(name, films):
    models = loaded(name)
    backend = HostBackend(*models)
    (films / "b.gif").unlink()
    with torch.inference_mode(False):
        batch, _ = batch_of(backend, films)
    sigma, x_t = torch.tensor([0.6]), torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(2))
    [given] = trained_calls(backend, batch, x_t, sigma)
    first = torch.from_numpy(np.asarray(first_frame(films / "a.gif"), np.float32) / 255.0)[None]

    def once(model, x, sigmas, extra_args, **_):
        return model(x_t, sigmas[0] * x.new_ones(len(x)), **extra_args)

    def sample() -> None:
        text = by_the_hosts_node(name, backend.texts.text("zog"), models[2], first)
        steps, sampler = torch.tensor([float(sigma), 0.0]), comfy.samplers.KSAMPLER(once)
        empty = torch.zeros_like(x_t)
        comfy.sample.sample_custom(
            backend.model.patcher, empty, 1.0, sampler, steps, text, text, empty, disable_pbar=True, seed=0
        )

    with torch.inference_mode():
        [sampled] = calls_of(backend.network, sample)
    left, right = flat(given), flat(sampled)
    assert left["x"].shape[1] > batch.latents.shape[1]  # noise and what is joined to it
    explained = {row.argument for row in EXPLAINED}
    assert {a for a in left.keys() | right.keys() if not same(left.get(a), right.get(a))} <= explained
    assert left["x"][:, batch.latents.shape[1] :].abs().sum() > 0


@pytest.mark.parametrize("name", VAES)
def test_what_follows_the_first_frame_changes_nothing_of_what_is_shown(name, films):
    backend = HostBackend(*loaded(name))
    clip = torch.rand(9, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    other = torch.cat([clip[:1], torch.rand(8, 32, 32, 3, generator=torch.Generator().manual_seed(1))])
    shown, of_other = (backend.encode_first_frame(pixels) for pixels in (clip, other))
    assert all(map(torch.equal, shown, of_other))
    assert not torch.equal(backend.encode_first_frame(clip.flip(0))[0], shown[0])


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


def test_a_still_picture_is_left_out_where_a_first_frame_is_needed(films):
    Image.new("RGB", (64, 64)).save(films / "still.png")
    with torch.inference_mode(False):
        _, cache = batch_of(HostBackend(*loaded("Wan 2.1 I2V")), films)
    assert [(name, why.code) for name, why in cache.skipped] == [("still.png", "picture.no_first_frame")]
