"""Films through the host: encoded by its own video VAEs, trained on its video models, sampled as clips that play, the host left as it was."""

from __future__ import annotations

import dataclasses
import shutil
import urllib.request
from pathlib import Path

import architectures
import comfy.ldm.wan.vae
import film_models
import pytest
import torch
from comfy_extras.nodes_lt import LTXVConditioning
from film_files import rising, write_film, write_gif
from live_server import Graph, running
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.config import Recompute, SampleConfig, parse
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.buckets import Fit
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.events import Control, Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.pictures.films import read_film
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.trainer import train
from lora_loom.nodes.host.engine.backend import HostBackend
from runs import differences, export, fingerprint
from stand_ins import NoVae, RandomClip
from test_audit import EXPLAINED, flat, same, sampled_call, trained_calls
from test_gradients import BOTH, assert_exact, loss_and_gradients, make_adapters, opened

ROOT = Path(__file__).resolve().parents[2]
FILMING = ["Wan", "HunyuanVideo", "HunyuanVideo 1.5", "Kandinsky 5", "Wan 2.2 TI2V", "LTXV", "LTXAV"]


@pytest.fixture
def films(tmp_path):
    """Two films and a picture."""
    folder = tmp_path / "films"
    folder.mkdir()
    write_film(folder / "a.mp4", rising(12), sound=True)
    write_film(folder / "b.webm", rising(24)[10:])
    write_gif(folder / "c.gif", rising(1))
    return folder


def job_of(folder: Path, base: Path, backend: HostBackend, listener: Listener | None = None, **changes) -> Job:
    values = {
        "name": "run", "steps": 4, "batch_size": 1, "adapter": {"rank": 2}, "save": {"every": 2}, "samples": {"every": 0},
        "data": {"folder": str(folder), "resolution": 64, "bucket_step_px": 16, "frames": "5, 9", "trigger": "zog"},
    }  # fmt: skip
    config = parse({**values, **changes})
    return Job(config, backend, scan(config.data), base, listener or Listener(), Control())


def trained(models, folder: Path, place: Path, resume: bool = False, **changes):
    with torch.inference_mode(), torch.inference_mode(False):
        job = job_of(folder, place.parent, HostBackend(*models), **changes)
        return train(job, place, export, resume)


@pytest.mark.parametrize("name", list(film_models.VAES))
def test_a_clip_becomes_what_the_hosts_vae_makes_of_it(name):
    model, clip, vae = film_models.loaded(name)
    backend = HostBackend(model, clip, vae)
    pixels = torch.rand(9, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    latent = backend.encode_picture(pixels)
    with torch.inference_mode():
        wanted = model.model.process_latent_in(vae.encode(pixels))
    assert latent.shape == (1, 16, 3, 4, 6)
    assert torch.equal(latent, wanted)
    assert backend.clip_lengths_near(18) == (17, 21)
    assert backend.clip_lengths_near(17) == (17, 17)
    assert backend.clip_lengths_near(1) == (1, 1)


def test_models_of_single_pictures_take_no_clips_though_their_vae_does(films, tmp_path):
    model = architectures.build("QwenImage")
    backend = HostBackend(model, RandomClip("QwenImage"), film_models.wan_vae())
    assert backend.clip_lengths_near(9) is None
    with torch.inference_mode(False), pytest.raises(LoomError, match="makes single pictures"):
        train(job_of(films, tmp_path, backend), tmp_path / "run", export)


def test_a_length_the_vae_does_not_take_is_refused_with_those_it_takes(films, tmp_path):
    models = film_models.loaded("Wan")
    data = {"folder": str(films), "resolution": 64, "bucket_step_px": 16, "frames": "10", "trigger": "zog"}
    with pytest.raises(LoomError, match=r"no clips of 10 frames; the nearest it takes: 9, 13 \(it takes 1, 5, 9, 13"):
        trained(models, films, tmp_path / "run", data=data)


@pytest.mark.parametrize("name", ["Wan", "HunyuanVideo"])
def test_films_are_trained_sampled_and_continued_bit_for_bit_and_the_host_is_left_alone(name, films, tmp_path):
    models = film_models.loaded(name)
    samples = {"every": 4, "prompt": "zog --f 5", "steps": 2}
    whole = trained(models, films, tmp_path / "whole", samples=samples)
    assert whole.outcome == "finished"
    playing = read_film(tmp_path / "whole" / "samples" / "step-4.webp")
    assert len(playing.times_s) == 5
    before = fingerprint(models)  # now that the host has loaded them once
    trained(models, films, tmp_path / "part", samples=samples, steps=2)
    continued = trained(models, films, tmp_path / "part", resume=True, samples=samples)
    assert differences(before, fingerprint(models)) == []
    assert all(torch.equal(whole.tensors[key], value) for key, value in continued.tensors.items())


def clips_batch(name: str, frames: int = 3) -> Batch:
    shape = list(architectures.row_of(name)[2])
    shape[1] = frames
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(7))
    mask = torch.ones(2, 1, frames, *shape[2:])
    mask[0, :, -1] = 0.25  # the loss looks away from the end of the first
    fits = [Fit((96, 64), (96, 64), (0, 0), (64, 64))] * 2
    return Batch(latents, ["a red cat", "two words and three more"], fits, ["a.mp4", "b.mp4"], torch.ones(2), mask)


@BOTH
@pytest.mark.parametrize("name", FILMING)
def test_gradients_of_clips_equal_plain_autograd(name, recompute):
    batch, patcher = clips_batch(name), architectures.build(name)
    with torch.inference_mode(False):
        backend = opened(name, patcher)
        layers, adapters = make_adapters(backend)
        with backend.training(layers, adapters, Recompute(recompute), tuple(batch.latents.shape)):
            loss, gradients = loss_and_gradients(backend, adapters, batch)
    assert_exact(name, loss, gradients, batch)


@pytest.mark.parametrize("name", [name for name in FILMING if name != "LTXAV"])  # its samples come with sound
def test_the_network_is_given_in_training_what_the_sampler_gives_it_for_a_clip(name):
    batch = clips_batch(name)
    size = (batch.latents.shape[3] * 8, batch.latents.shape[2] * 8)
    one = Batch(batch.latents[:1], batch.captions[:1], [Fit(size, size, (0, 0), size)], ["a.mp4"], torch.ones(1))
    model = architectures.build(name)
    backend = HostBackend(model, RandomClip(name), NoVae(model))
    sigma = torch.tensor([0.6])
    [given] = trained_calls(backend, one, one.latents, sigma)
    sampled = sampled_call(backend, one.captions[0], one.latents, sigma)
    left, right = flat(given), flat(sampled)
    explained = {row.argument for row in EXPLAINED}
    differing = [a for a in left.keys() | right.keys() if not same(left.get(a), right.get(a))]
    assert set(differing) <= explained


@pytest.mark.parametrize("name", ["LTXV", "LTXAV", "Wan"])
def test_the_frame_rate_of_a_clip_reaches_the_models_that_read_it(name):
    """As LTXVConditioning gives it; films that do not tell theirs have the host's default. Clips of two rates share a batch, each with its own."""
    batch = clips_batch(name)
    model = architectures.build(name)
    backend = HostBackend(model, RandomClip(name), NoVae(model))
    sigma = torch.full((len(batch.latents),), 0.6)
    told = dataclasses.replace(
        batch, captions=[batch.captions[0]] * len(batch.latents), frame_rates=[16.0, 30.0][: len(batch.latents)]
    )
    rates = [given.get("frame_rate") for given in trained_calls(backend, told, told.latents, sigma)]
    assert rates == ([16.0, 30.0] if name.startswith("LTX") else [None])
    [text] = LTXVConditioning.execute(backend.texts.text("zog"), backend.texts.text("zog"), 16.0)[0]
    wired = sampled_call(backend, "zog", batch.latents[:1], sigma[:1], [text])
    assert wired.get("frame_rate") == (16.0 if name.startswith("LTX") else None)
    job = SampleJob("zog", 64, 64, SampleConfig(), frames=9, frame_rate=16.0)
    assert backend.conditioning.of_sample(job)[0][0][1].get("frame_rate") == wired.get("frame_rate")


def test_encoding_a_long_clip_takes_a_piece_of_time_after_the_other(monkeypatch):
    """The VAE's own way: what its encoder is given never has more than a few frames, however long the clip."""
    model, clip, vae = film_models.loaded("Wan")
    backend = HostBackend(model, clip, vae)
    seen: list[int] = []
    forward = comfy.ldm.wan.vae.Encoder3d.forward

    def noted(self, x, *args, **kwargs):
        seen.append(x.shape[2])
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(comfy.ldm.wan.vae.Encoder3d, "forward", noted)
    assert backend.encode_picture(torch.rand(33, 32, 32, 3)).shape[2] == 9
    assert max(seen) <= 4


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("clips") / "base"
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "tiny_families").symlink_to(ROOT / "tests" / "host" / "tiny_families")
    with running(base) as server:
        yield server


def test_a_folder_of_films_is_trained_through_the_server_and_its_samples_play(server, films):
    shutil.copytree(films, server.base / "input" / "films")
    graph = Graph(server)
    models = graph.add("TinyFilmFamily", name="Wan")
    folder = graph.add("LoraLoomLoadFolder", folder="films", trigger="zog", frames="5, 9")
    node = graph.add(
        "LoraLoomTrainLora", model=[models, 0], clip=[models, 1], vae=[models, 2], dataset=[folder, 0], name="films", steps=2, resolution=64,
        sample_every=2, sample_prompt="zog --s 2", sample_frames=5,
    )  # fmt: skip
    graph.run()
    panel = server.get(f"/lora_loom/panel?node={node}")["panel"]
    run = panel["run"]
    address = f"http://127.0.0.1:{server.port}/lora_loom/panel/sample?run={run}&step=2&size=1024"
    with urllib.request.urlopen(address, timeout=60) as answer:
        data = answer.read()
        assert answer.headers["Content-Type"] == "image/webp"
    assert data[:4] == b"RIFF"
    assert data[8:12] == b"WEBP"
