"""Both experts of Wan 2.2 in one run: exact gradients, one of them loaded at a time, two files, resume bit for bit, samples as two samplers in a row give."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import architectures
import comfy.model_management
import comfy.samplers
import film_models
import pytest
import torch
from film_files import rising, write_gif
from lora_loom.convert.results import EXPERTS
from lora_loom.lora_core.adapters import AdapterSet
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.backends.encoder import encoder_of
from lora_loom.lora_core.config import DataConfig, ObjectiveConfig, Recompute, SampleConfig, parse
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.data.sources import from_latents
from lora_loom.lora_core.events import Control, Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.pictures.films import read_film
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.step import diffusion_loss
from lora_loom.lora_core.training.trainer import train
from lora_loom.nodes import train_lora
from lora_loom.nodes.host.access.check import require_matched
from lora_loom.nodes.host.engine.experts import HIGH, LOW, HostExperts
from lora_loom.nodes.host.engine.texts import split
from lora_loom.nodes.jobs.datasets import PictureSets
from lora_loom.nodes.jobs.formats import exporter
from lora_loom.nodes.widgets import rows
from safetensors.torch import load_file
from stand_ins import NoVae, RandomClip
from test_gradients import make_adapters, make_batch, opened

NAME = "Wan"
MODELS = {HIGH: 0, LOW: 1}  # seeds of their weights


def build(expert: str, file: str = ""):
    patcher = architectures.build(NAME, seed=MODELS[expert])
    if file:
        patcher.cached_patcher_init = (None, (file,))
    return patcher


def backend_of(every: int = 2, boundary: float = 0.0, high=None, low=None) -> HostExperts:
    high, low = high or build(HIGH), low or build(LOW)
    backend = HostExperts(high, low, RandomClip(NAME), NoVae(high), every, boundary)
    for member in backend._members.values():
        member.texts.layers = lambda: {}
        member.texts.keep = lambda store: None
        member.texts.fingerprint = "random"
        member.pictures.fingerprint = lambda: "none"
    return backend


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.ALL], ids=["plain", "checkpointed"])
def test_gradients_of_each_are_those_of_the_expert_alone_and_the_other_has_none(recompute):
    batch, seed = make_batch(NAME), 3
    with torch.inference_mode(False):
        both = backend_of()
        layers, adapters = make_adapters(both)
        objective = both.objective(ObjectiveConfig())
        losses, got = {}, {}
        with both.training(layers, adapters, recompute, tuple(batch.latents.shape)):
            for step, expert in ((0, HIGH), (2, LOW)):
                assert objective.expert_of(step) == objective.expert_of(step + 1) == expert
                for p in adapters.parameters():
                    p.grad = None
                rng = torch.Generator().manual_seed(seed)
                loss = diffusion_loss(both.predict, batch, objective.of_step(step), rng).mean()
                loss.backward()
                losses[expert] = loss.item()
                got[expert] = {k: p.grad for k, p in adapters.named_parameters() if p.grad is not None}
                assert all(key.startswith(f"{expert}.") for key in got[expert])
        for step, expert in ((0, HIGH), (2, LOW)):
            alone = opened(NAME, build(expert))
            theirs = alone.layers()
            mine = {
                n: theirs[n.removeprefix(f"{expert}.diffusion_model.")] for n in layers if n.startswith(f"{expert}.")
            }
            members = AdapterSet({name: adapters[name] for name in mine})
            for p in members.parameters():
                p.grad = None
            with alone.training(mine, members, recompute, tuple(batch.latents.shape)):
                rng = torch.Generator().manual_seed(seed)
                loss = diffusion_loss(alone.predict, batch, objective.of_step(step), rng).mean()
                loss.backward()
            assert losses[expert] == pytest.approx(loss.item(), rel=1e-6)
            wanted = {k: p.grad for k, p in members.named_parameters() if p.grad is not None}
            assert wanted.keys() == got[expert].keys()
            whole = torch.cat([v.flatten() for v in wanted.values()]).norm()
            assert torch.cat([(got[expert][k] - wanted[k]).flatten() for k in wanted]).norm() <= 1e-5 * whole


@pytest.mark.parametrize(("boundary", "shift"), [(0.0, 0.0), (0.9, 0.0), (0.875, 8.0), (0.5, 3.0)])
def test_each_draws_its_own_part_of_the_levels_and_every_level_goes_to_its_expert(boundary, shift, monkeypatch):
    with torch.inference_mode(False):
        both = backend_of(boundary=boundary)
        objective = both.objective(ObjectiveConfig(shift=shift))
        asked = []
        for name, member in both._members.items():
            monkeypatch.setattr(member, "predict", lambda x_t, sigma, batch, name=name: asked.append(name))
        ranges = {}
        for step, expert in ((0, HIGH), (2, LOW)):
            drawn = objective.of_step(step).draw_sigma(4000, torch.Generator().manual_seed(1))
            ranges[expert] = float(drawn.min()), float(drawn.max())
            for sigma in (drawn.min(), drawn.max()):
                both.predict(torch.zeros(1), sigma.float().view(1), None)
        assert asked == [HIGH, HIGH, LOW, LOW]
    border = boundary or 0.875
    assert ranges[HIGH][0] == pytest.approx(border, abs=0.03)
    assert ranges[LOW][1] == pytest.approx(border, abs=0.03)
    assert ranges[LOW][0] < 0.1 < 0.95 < ranges[HIGH][1]


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two latents with their texts, as another node of the host has them."""
    rng, clip = torch.Generator().manual_seed(0), RandomClip(NAME)
    shape = architectures.row_of(NAME)[2]
    latents = [torch.randn(1, *shape, generator=rng) for _ in range(2)]
    texts = [split(clip.encode_from_tokens_scheduled(text)) for text in ("a red cat", "two words and more")]
    return from_latents(latents, texts, 8, tmp_path_factory.mktemp("latents"))


def job(folder: Path, root: Path, backend: HostExperts, listener: Listener | None = None, **changes) -> Job:
    values = {
        "name": "pair", "steps": 6, "switch_every": 2, "data": {"folder": str(folder), "bucket_step_px": 8, "resolution": 64},
        "adapter": {"rank": 2}, "optimizer": {"lr": 0.01}, "save": {"every": 100}, "samples": {"every": 0},
    }  # fmt: skip
    config = parse({**values, **changes})
    control = getattr(listener, "control", Control())
    return Job(config, backend, open_sets(config), root, listener or Listener(), control)


def go(folder: Path, root: Path, backend=None, listener=None, resume=False, **changes):
    with torch.inference_mode(), torch.inference_mode(False):
        backend = backend or backend_of()
        return train(job(folder, root, backend, listener, **changes), root / "run", exporter("pair", "wan"), resume)


class Watch(Listener):
    """Which of the two is loaded after each step, and what the adapters are then. May stop the run."""

    def __init__(self, backend: HostExperts, stop: int = 0):
        self.backend, self.stop, self.control, self.loaded = backend, stop, Control(), []

    def on_step(self, report):
        bases = {id(m.model.base): name for name, m in self.backend._members.items()}
        loaded = [bases.get(id(one.model.model)) for one in comfy.model_management.current_loaded_models if one.model]
        self.loaded.append([report.expert, *filter(None, loaded)])
        if report.step == self.stop:
            self.control.stop_and_keep()


def test_a_run_of_both_writes_a_file_for_each_and_only_the_one_that_learns_is_loaded(folder, tmp_path):
    high, low = build(HIGH), build(LOW)
    before = [{k: v.clone() for k, v in m.model.diffusion_model.state_dict().items()} for m in (high, low)]
    backend = backend_of(high=high, low=low)
    watch = Watch(backend)
    result = go(folder, tmp_path, backend, watch)
    turns = [HIGH, HIGH, LOW, LOW, HIGH, HIGH]
    assert watch.loaded == [[expert, expert] for expert in turns]
    rows = [json.loads(row) for row in (tmp_path / "run" / "log.jsonl").open()]
    assert [row["expert"] for row in rows] == turns
    assert sorted(p.name for p in result.files) == [f"pair_{expert}.safetensors" for expert in sorted(EXPERTS)]
    for patcher, expert in ((high, HIGH), (low, LOW)):
        tensors = load_file(tmp_path / "run" / f"pair_{expert}.safetensors")
        assert require_matched(tensors, patcher) == len([k for k in tensors if k.endswith("lora_B.weight")])
        assert all(v.abs().max() > 0 for k, v in tensors.items() if k.endswith("lora_B.weight"))
    for patcher, weights in zip((high, low), before, strict=True):
        assert all(torch.equal(v, weights[k]) for k, v in patcher.model.diffusion_model.state_dict().items())
        assert not patcher.injections
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_an_expert_that_waits_does_not_move_and_a_run_goes_on_bit_for_bit(folder, tmp_path, optimizer):
    changes = {"optimizer": {"lr": 0.01, "name": optimizer}, "validation": {"every": 3, "share": 0.5, "levels": 2}}
    whole = go(folder, tmp_path / "whole", **changes)
    backend = backend_of()
    go(folder, tmp_path / "cut", backend, Watch(backend, stop=3), **changes)
    first = {e: load_file(tmp_path / "cut" / "run" / f"pair_{e}.safetensors") for e in EXPERTS}
    again = go(folder, tmp_path / "cut", resume=True, **changes)
    assert again.losses == whole.losses
    assert any(not torch.equal(v, first[LOW][k]) for k, v in again.products[f"pair_{LOW}"][0].items())
    for expert in EXPERTS:
        one, other = (r.products[f"pair_{expert}"][0] for r in (again, whole))
        assert all(torch.equal(one[k], other[k]) for k in other)
    backend = backend_of()
    go(folder, tmp_path / "longer", backend, Watch(backend, stop=4), **changes)
    stopped = {e: load_file(tmp_path / "longer" / "run" / f"pair_{e}.safetensors") for e in EXPERTS}
    backend = backend_of()
    go(folder, tmp_path / "longer", backend, Watch(backend, stop=6), resume=True, **changes)
    later = {e: load_file(tmp_path / "longer" / "run" / f"pair_{e}.safetensors") for e in EXPERTS}
    assert all(torch.equal(v, stopped[LOW][k]) for k, v in later[LOW].items())
    assert any(not torch.equal(v, stopped[HIGH][k]) for k, v in later[HIGH].items())


def test_another_interval_is_refused_on_resume(folder, tmp_path):
    backend = backend_of()
    go(folder, tmp_path, backend, Watch(backend, stop=2))
    with pytest.raises(LoomError, match="switch_every"):
        go(folder, tmp_path, resume=True, switch_every=3)


def film_backend(name: str) -> HostExperts:
    """Both experts with a CLIP and a VAE as the host's loaders give them."""
    _, clip, vae = film_models.loaded("Wan")
    return HostExperts(*(architectures.build(name, seed=seed) for seed in MODELS.values()), clip, vae, every=1)


@pytest.mark.parametrize("name", ["Wan", "Wan 2.2 I2V"])
def test_both_learn_films_draw_films_and_are_shown_first_frames_where_they_read_them(name, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    write_gif(films / "a.gif", rising(9), (64, 64))
    changes = {
        "steps": 2, "switch_every": 1, "samples": {"every": 2, "prompt": "zog", "steps": 4, "frames": 9},
        "data": {"folder": str(films), "resolution": 64, "bucket_step_px": 16, "frames": "9", "trigger": "zog"},
    }  # fmt: skip
    backend = film_backend(name)
    result = go(films, tmp_path, backend, **changes)
    assert len(result.files) == 2
    assert len(read_film(tmp_path / "run" / "samples" / "step-2.webp").times_s) == 9
    clip = torch.rand(9, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    alone = backend._first
    guide = encoder_of(backend).guide
    assert (guide is None) == (name == "Wan") == (encoder_of(alone).guide is None)
    if guide is not None:
        assert all(map(torch.equal, guide(clip, False).latents, alone.encode_first_frame(clip).latents))


def test_both_together_can_what_each_of_them_can():
    """A new ability of the host's backend is not lost for experts."""
    of_pictures_alone = {"clip_skip", "file"}  # no model with experts reads CLIP layers; each MODEL tells its own file
    parts = {"lending"}  # each member has its own
    both = backend_of()
    able = {name for name in dir(both._first) if not name.startswith("_")}
    assert able - of_pictures_alone - parts - set(dir(both)) == set()


def test_each_text_is_encoded_once_for_both_and_each_model_makes_its_own_of_it(monkeypatch):
    encoded, read = [], []
    encode = RandomClip.encode_from_tokens_scheduled
    monkeypatch.setattr(
        RandomClip, "encode_from_tokens_scheduled", lambda clip, text: encoded.append(text) or encode(clip, text)
    )
    batch = make_batch(NAME)
    with torch.inference_mode(), torch.inference_mode(False):
        both = backend_of()
        for name, member in both._members.items():
            monkeypatch.setattr(member.pictures, "decode", lambda latent: [])
            conds = member.model.base.extra_conds
            monkeypatch.setattr(
                member.model.base, "extra_conds", lambda n=name, c=conds, **of: read.append(n) or c(**of)
            )
        both.encode_texts(batch.captions[:1], lambda done, of: None)
        layers, adapters = make_adapters(both)
        with both.training(layers, adapters, Recompute.NONE, tuple(batch.latents.shape)):
            read.clear()  # of the self-test
            for level in (0.99, 0.01):
                both.predict(batch.latents, torch.full((len(batch.latents),), level), batch)
            assert {*read} == {*EXPERTS}
            both.sample(SampleJob("a cat", 64, 64, SampleConfig(steps=6, cfg=3.0, negative="bad")))
    assert {"a cat", "bad", *batch.captions} <= {*encoded}
    assert len(encoded) == len({*encoded})


@pytest.mark.parametrize("steps", [6, 20])
def test_a_sample_is_what_two_samplers_in_a_row_give(monkeypatch, steps):
    import nodes as host_nodes

    latents = []
    with torch.inference_mode():
        both = backend_of()
        monkeypatch.setattr(both._members[HIGH].pictures, "decode", lambda latent: latents.append(latent.clone()))
        config = SampleConfig(steps=steps, cfg=3.0, sampler="euler", scheduler="simple", negative="bad", seed=4)
        with torch.inference_mode(False):
            layers, adapters = make_adapters(both)
            for _, adapter in adapters:
                adapter.active = False
            with both.training(layers, adapters, Recompute.NONE, (1, *architectures.row_of(NAME)[2])):
                both.sample(SampleJob("a cat", 64, 64, config))
        high, low, clip = build(HIGH), build(LOW), RandomClip(NAME)
        positive, negative = (clip.encode_from_tokens_scheduled(text) for text in ("a cat", "bad"))
        sigmas = comfy.samplers.calculate_sigmas(high.get_model_object("model_sampling"), "simple", steps)
        turn = int((sigmas[:steps] >= 0.875).sum())
        assert 0 < turn < steps
        empty = {"samples": torch.zeros(1, 16, 1, 8, 8)}
        common = (steps, 3.0, "euler", "simple", positive, negative)
        (half,) = host_nodes.common_ksampler(high, 4, *common, empty, start_step=0, last_step=turn)
        (done,) = host_nodes.common_ksampler(
            low, 4, *common, half, disable_noise=True, start_step=turn, last_step=steps, force_full_denoise=True
        )
    assert torch.allclose(latents[0], done["samples"], atol=1e-6)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_no_pair_is_refused_by_its_socket(tmp_path):
    names = {e: str(tmp_path / f"wan2.2_t2v_{e}_14B.safetensors") for e in EXPERTS}
    with torch.inference_mode(False):
        same = build(HIGH)
        with pytest.raises(LoomError, match="is the same model"):
            backend_of(high=same, low=same.clone())
        with pytest.raises(LoomError, match="exchange the two wires"):
            backend_of(high=build(LOW, names[LOW]), low=build(HIGH, names[HIGH]))
        other = architectures.build(NAME, dim=128)
        with pytest.raises(LoomError, match="wire the two experts"):
            backend_of(low=other)
        i2v = str(tmp_path / "wan2.2_i2v_low_noise.safetensors")
        assert backend_of(low=build(LOW, i2v)).boundary == 0.9
        assert backend_of(high=build(HIGH, names[HIGH])).boundary == 0.875


def test_what_two_in_turn_cannot_have_is_refused_before_the_first_step(folder, tmp_path):
    for changes, code in (
        ({"objective": {"max_timestep": 900}}, "experts.range"),
        ({"optimizer": {"name": "prodigy"}}, "experts.clock"),
        ({"ema_decay": 0.9}, "experts.clock"),
    ):
        with pytest.raises(LoomError) as told:
            go(folder, tmp_path, **changes)
        assert told.value.message.code == code
    alone = opened(NAME, build(HIGH))
    with pytest.raises(LoomError) as told, torch.inference_mode(False):
        train(
            dataclasses.replace(job(folder, tmp_path, backend_of()), backend=alone),
            tmp_path / "x",
            exporter("x", "wan"),
        )
    assert told.value.message.code == "experts.one_model"


# ---- one of them alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "model", "file", "wanted", "name"),
    [
        ("Wan 2.2 high noise", NAME, "wan2.2_t2v_high_noise_14B.safetensors", (0.875, 1.0), "cat_high_noise"),
        ("Wan 2.2 low noise", NAME, "wan2.2_i2v_low_noise_14B.safetensors", (0.0, 0.9), "cat_low_noise"),
        ("SDXL refiner", "SDXL refiner", "", None, "cat_refiner"),
    ],
)
def test_a_preset_sets_the_range_that_the_host_asks_this_network_for(
    folder, tmp_path, preset, model, file, wanted, name
):
    patcher = architectures.build(model)
    if file:
        patcher.cached_patcher_init = (None, (str(tmp_path / file),))
    widgets = {entry.name: entry.default for entry in rows(train_lora.INPUTS)}
    widgets |= {"preset": preset, "name": "cat", "resolution": 64}
    with torch.inference_mode(False):
        backend = opened(model, patcher)
        sets = PictureSets.of(DataConfig(folder=str(folder)))
        config, _ = train_lora.config_from(widgets, sets, backend)
        assert config.name == name
        drawn = backend.objective(config.objective).draw_sigma(4000, torch.Generator().manual_seed(1))
        assert not [
            m for m in backend.base_model(config.objective).warnings(config.objective) if m.code == "base.expert"
        ]
        given, _ = train_lora.config_from({**widgets, "min_timestep": 5, "max_timestep": 50}, sets, backend)
    assert (given.objective.min_timestep, given.objective.max_timestep) == (5, 50)
    if wanted is None:
        assert (config.objective.min_timestep, config.objective.max_timestep) == (0, 200)
    else:
        low, high = wanted
        assert low - 0.01 <= float(drawn.min()) < low + 0.1
        assert high - 0.1 < float(drawn.max()) <= high + 0.01
