"""Training without pictures: what a slider is told to aim at, where its noisy latents come from, and that a run of it is a run like any other."""

import dataclasses

import pytest
import shapes
import torch
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.config import ConfigError, SampleConfig, SliderConfig, parse
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.data.shown import Showing
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.losses import MSE
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs import checkpoints
from lora_loom.lora_core.training import slider as sliders
from lora_loom.lora_core.training.assemble import assembled, dry_run
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.run import Source
from lora_loom.lora_core.training.slider import Axis, Slider, axes_of, partly_drawn
from lora_loom.lora_core.training.step import losses_of, optimizer_step
from PIL import Image

JOB = {
    "name": "slide", "base": shapes.BASE, "method": "slider", "steps": 3, "batch_size": 2, "seed": 7,
    "data": {"resolution": 32, "bucket_step_px": 16}, "adapter": {"rank": 4}, "optimizer": {"lr": 1e-3},
    "save": {"every": 1000}, "samples": {"every": 0},
}  # fmt: skip
PROMPTS = {
    "target": "a red circle on a gray ground",
    "positive": "a red circle on a white ground",
    "negative": "a red circle on a black ground",
    "sampler_steps": 3,
}


def job(slider=None, **changes):
    return parse({**JOB, "slider": {**PROMPTS, **(slider or {})}, **changes})


@pytest.fixture
def assemble(toy_backend, tmp_path):
    """`with assemble(config) as run:` a run on the toy model, ready for its first step."""
    return lambda config: assembled(Job(config, toy_backend, open_sets(config), tmp_path))


def changed(run, by=0.05):
    """The adapters away from their start, where they change nothing."""
    with torch.no_grad():
        for n, p in enumerate(run.adapters.parameters()):
            p.add_(by * torch.randn(p.shape, generator=torch.Generator().manual_seed(n)))
    run.adapters.weights_changed()


# ---- what is aimed at ------------------------------------------------------------------------------------------------


def test_each_attribute_is_a_line_and_one_target_serves_all():
    config = SliderConfig(target="person", positive="old person\nsmiling person", negative="young person\nsad person")
    assert axes_of(config) == [
        Axis("person", "person", "old person", "young person"),
        Axis("person", "person", "smiling person", "sad person"),
    ]
    assert axes_of(SliderConfig(positive="night")) == [Axis("", "", "night", "")]  # from every picture to night


def test_words_across_stand_in_front_of_all_prompts_in_turn():
    config = SliderConfig(target="person", positive="old person", across="male\nfemale")
    assert [axis.positive for axis in axes_of(config)] == ["male old person", "female old person"]
    assert [axis.target for axis in axes_of(config)] == ["male person", "female person"]


def test_erasing_leads_away_from_the_target_around_what_comes_in_its_place():
    assert axes_of(SliderConfig(mode="erase", target="van gogh\nmonet")) == [
        Axis("van gogh", "", "", "van gogh"),
        Axis("monet", "", "", "monet"),
    ]
    assert axes_of(SliderConfig(mode="erase", target="a cat", positive="a dog")) == [
        Axis("a cat", "a dog", "a dog", "a cat")
    ]


def predicted(run, prompt, x_t, sigma, batch):
    return run.backend.predict(x_t, sigma, dataclasses.replace(batch, captions=[prompt] * len(batch.captions)))


@pytest.mark.parametrize("mode", ["slide", "erase"])
def test_losses_and_gradients_are_those_of_the_papers_formula_by_plain_autograd(mode, assemble):
    """Against the formula written out: frozen answers without adapters, the answers at both strengths, their mean squared errors, autograd."""
    kept = "a blue square on a gray ground"
    with assemble(job({"mode": mode, "guidance": 2.0, "preserve": kept, "preserve_weight": 0.5})) as run:
        changed(run)
        (source,), batch = run.sources, run.batches.at(0, 0)
        x_t, sigma = torch.randn(2, *batch.latents.shape[1:], generator=torch.Generator().manual_seed(1)), None
        sigma = run.objective.levels(torch.tensor([0.6, 0.6], dtype=torch.float64))
        lesson = dataclasses.replace(source.lesson)
        object.__setattr__(lesson, "_noisy", lambda *_: (x_t, sigma))
        total = torch.zeros(2)
        for part in losses_of(
            run, Source(run.batches, lesson=lesson), run.objective, batch, torch.Generator().manual_seed(0)
        ):
            part.mean().backward()
            total += part.detach()
        found = [p.grad.clone() for p in run.adapters.parameters()]

        axis = axes_of(run.config.slider)[0]
        scales = {name: adapter.scale for name, adapter in run.adapters}
        with torch.no_grad(), run.adapters.switched_off():
            e = {p: predicted(run, p, x_t, sigma, batch) for p in (*axis.prompts(), kept)}
        expected = torch.zeros(2)
        for strength in (1, -1) if mode == "slide" else (1,):
            for name, adapter in run.adapters:
                adapter.scale = scales[name] * strength
            answer = predicted(run, axis.target, x_t, sigma, batch)
            if mode == "slide":
                goal = e[PROMPTS["target"]] + strength * 2.0 * (e[PROMPTS["positive"]] - e[PROMPTS["negative"]])
                expected = expected + (answer - goal).square().flatten(1).mean(1) / 2
            else:  # away from the concept, around what replaces it
                goal = e[PROMPTS["positive"]] - 2.0 * (e[PROMPTS["negative"]] - e[PROMPTS["positive"]])
                expected = expected + (answer - goal).square().flatten(1).mean(1)
        side = 1 if mode == "erase" else _side_drawn(source.lesson)
        for name, adapter in run.adapters:
            adapter.scale = scales[name] * side
        expected = expected + 0.5 * (predicted(run, kept, x_t, sigma, batch) - e[kept]).square().flatten(1).mean(1)
        plain = torch.autograd.grad(expected.mean(), run.adapters.parameters())
        for name, adapter in run.adapters:
            adapter.scale = scales[name]
    assert torch.allclose(total, expected.detach(), rtol=1e-5)
    assert total.min() > 1e-3
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(found, plain, strict=True)) <= 1e-5


def _side_drawn(lesson):
    """The strength at which a pass with this generator draws and preserves."""
    rng = torch.Generator().manual_seed(0)
    sliders.pick(len(lesson.axes), rng)
    return lesson.sides[sliders.pick(len(lesson.sides), rng)]


def test_a_network_that_aims_right_has_no_loss(assemble):
    """At strength 0 of guidance there is nothing to learn: adapters that change nothing are where they should be."""
    with assemble(job({"positive": "a red circle", "negative": "a red circle"})) as run:
        parts = list(
            losses_of(run, run.sources[0], run.objective, run.batches.at(0, 0), torch.Generator().manual_seed(0))
        )
    assert len(parts) == 2
    assert max(float(part.detach().max()) for part in parts) <= 1e-10


def test_one_strength_is_trained_where_only_one_is_wanted(assemble):
    for changes, count in (({"both_ways": False}, 1), ({"both_ways": True}, 2), ({"mode": "erase"}, 1)):
        with assemble(job(changes)) as run:
            parts = list(
                losses_of(run, run.sources[0], run.objective, run.batches.at(0, 0), torch.Generator().manual_seed(0))
            )
        assert len(parts) == count


# ---- where noisy latents come from -----------------------------------------------------------------------------------


def test_latents_drawn_all_the_way_are_those_of_the_models_own_sampler(assemble, toy_backend):
    """The same noise, guidance and levels, drawn to the end: what the sampler hands to the VAE."""
    with assemble(job()) as run:
        batch = dataclasses.replace(run.batches.largest(1), captions=[PROMPTS["target"]])
        noise = torch.randn(1, *batch.latents.shape[1:], generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            x, _ = partly_drawn(run, run.objective, batch, 0.0, noise, 6, 3.0)
        handed = []
        decode = toy_backend.vae.decode
        toy_backend.vae.decode = lambda z: handed.append(z) or decode(z)
        try:
            settings = SampleConfig(seed=4, cfg=3.0, steps=6, sampler="euler")
            toy_backend.sample(SampleJob(PROMPTS["target"], 32, 32, settings))
        finally:
            del toy_backend.vae.decode
    expected = handed[0] * toy_backend.vae.config.scaling_factor
    assert float((x - expected).norm()) < 0.2 * float(expected.norm())  # the levels of both differ by less than a step
    assert float((noise - expected).norm()) > 0.8 * float(expected.norm())


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow", "x0"])
def test_the_target_means_the_clean_latents(kind):
    from lora_loom.lora_core.objectives import DiscreteLevels, FlowLevels, Objective

    levels = FlowLevels(3.0) if kind == "flow" else DiscreteLevels(torch.linspace(0.03, 14.6, 1000).double())
    objective, rng = Objective(kind, levels), torch.Generator().manual_seed(0)
    x0, noise = torch.randn(5, 4, 3, 3, generator=rng), torch.randn(5, 4, 3, 3, generator=rng)
    sigma = objective.draw_sigma(5, rng)
    found = objective.denoised(objective.corrupt(x0, noise, sigma), objective.target(x0, noise, sigma), sigma)
    assert torch.allclose(found, x0, atol=1e-4)


def test_the_way_ends_at_the_level_that_was_drawn_and_takes_its_share_of_the_steps(assemble):
    with assemble(job()) as run:
        batch = run.batches.at(0, 0)
        asked = []
        predict = run.backend.predict
        run.backend.predict = lambda x, s, b: asked.append(float(s[0])) or predict(x, s, b)
        try:
            with torch.no_grad():
                _, sigma = partly_drawn(run, run.objective, batch, 0.5, torch.randn_like(batch.latents), 10, 3.0)
        finally:
            del run.backend.predict
    assert sigma.tolist() == run.objective.levels(torch.tensor([0.5, 0.5], dtype=torch.float64)).tolist()
    assert len(asked) == 10  # five steps, each with and without the prompt
    assert asked == sorted(asked, reverse=True)


def test_with_a_folder_noisy_latents_are_its_pictures_with_noise(assemble, pictures):
    with assemble(job(data={**JOB["data"], "folder": str(pictures)})) as run:
        assert not run.sources[0].lesson.drawn
        asked = []
        predict = run.backend.predict
        run.backend.predict = lambda x, s, b: asked.append(x) or predict(x, s, b)
        try:
            optimizer_step(run, 0)
        finally:
            del run.backend.predict
    assert len(asked) == 5  # three prompts of the frozen model, two strengths
    assert all(torch.equal(x, asked[0]) for x in asked)


# ---- a run like any other --------------------------------------------------------------------------------------------


def states(folder):
    return dict(checkpoints.latest(folder / "checkpoints")[0].adapter)


@pytest.mark.parametrize("folder", [False, True])
def test_a_run_goes_on_bit_for_bit(run_toy, tmp_path, folder, pictures):
    data = {"data": {**JOB["data"], "folder": str(pictures)}} if folder else {}
    whole = run_toy(job({"preserve": "a blue square"}, **data), tmp_path / "whole" / "run")
    first = job({"preserve": "a blue square"}, **{**data, "steps": 2})
    run_toy(first, tmp_path / "parts" / "run")
    run_toy(job({"preserve": "a blue square"}, **data), tmp_path / "parts" / "run", resume=True)
    one, other = states(tmp_path / "whole" / "run"), states(tmp_path / "parts" / "run")
    assert whole.step == 3
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(float(value.abs().max()) > 0 for name, value in one.items() if "lora_up" in name)


def test_other_prompts_are_another_run(run_toy, tmp_path):
    run_toy(job(), tmp_path / "run")
    with pytest.raises(LoomError, match="slider.positive"):
        run_toy(job({"positive": "a blue circle"}, steps=4), tmp_path / "run", resume=True)


def test_samples_are_one_sheet_of_all_strengths(run_toy, tmp_path, toy_backend):
    class Seen(Listener):
        def on_sample(self, step, images, path):
            self.images, self.path = images, path

    seen = Seen()
    samples = {"every": 100, "steps": 1, "prompt": "a red circle\na blue square"}
    result = run_toy(job(samples=samples, steps=1), tmp_path / "run", seen)
    assert len(seen.images) == 2 * 5
    with Image.open(seen.path) as sheet:
        assert sheet.width > 4 * 192
    assert (tmp_path / "run" / "before-after.png").is_file()
    assert result.facts["pictures"] == 0
    assert result.tensors


def test_the_model_is_given_back_as_it_was(run_toy, tmp_path, toy_backend):
    before = toy_backend.fingerprint(), toy_backend.text_fingerprint()
    run_toy(job(), tmp_path / "run")
    assert (toy_backend.fingerprint(), toy_backend.text_fingerprint()) == before


def test_memory_is_tried_without_pictures_too(toy_backend, tmp_path):
    config = job()
    chosen, measured = dry_run(Job(config, toy_backend, open_sets(config), tmp_path))
    assert chosen == config
    assert measured.seconds > 0


def test_strength_acts_on_every_kind_that_has_strengths(assemble):
    for algorithm in ("lora", "loha", "lokr"):
        with assemble(job(adapter={"rank": 4, "algorithm": algorithm})) as run:
            changed(run)
            batch, x = run.batches.at(0, 0), torch.randn(2, *run.batches.shapes()[0])
            sigma = run.objective.levels(torch.tensor([0.5, 0.5], dtype=torch.float64))
            with torch.no_grad():
                plain, said = {}, {}
                for strength in (0.0, 1.0, -1.0):
                    with run.adapters.at_strength(strength):
                        said[strength] = run.backend.predict(x, sigma, batch)
                with run.adapters.switched_off():
                    plain = run.backend.predict(x, sigma, batch)
                after = run.backend.predict(x, sigma, batch)
            assert torch.equal(said[0.0], plain)
            assert torch.equal(said[1.0], after)
            assert not torch.allclose(said[1.0], said[-1.0], atol=1e-4)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"slider": {"positive": ""}}, "slider.positive"),
        ({"slider": {"mode": "erase"}}, "slider.target"),
        ({"slider": {"positive": "a\nb\nc", "negative": "d\ne"}}, "slider.negative"),
        ({"slider": {"positive": "a", "strengths": "-2, x"}}, "slider.strengths"),
        ({"slider": {"positive": "a", "strengths": "100"}}, "slider.strengths"),
        ({"slider": {"positive": "a", "strengths": ""}}, "slider.strengths"),
        ({"slider": {"positive": "a"}, "text_encoder": {"train": True}}, "text_encoder.train"),
        ({"slider": {"positive": "a"}, "validation": {"every": 5}}, "validation.every"),
        ({"slider": {"positive": "a"}, "prior": {"prompt": "a dog"}}, "prior.prompt"),
        ({"slider": {"positive": "a"}, "epochs": 2}, "epochs"),
        ({"slider": {"positive": "a"}, "steps_per_picture": 2}, "steps_per_picture"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_that_names_the_field(changes, field):
    with pytest.raises(ConfigError) as refused:
        parse({"method": "slider", **changes})
    assert refused.value.message.field == field
    assert str(refused.value).endswith(".")


def test_a_kind_without_strengths_is_refused(toy_backend, tmp_path):
    config = job(adapter={"rank": 4, "algorithm": "oft"})
    with (
        pytest.raises(LoomError, match="adapter.algorithm"),
        assembled(Job(config, toy_backend, open_sets(config), tmp_path)),
    ):
        pass


def test_a_model_that_is_shown_pictures_needs_a_folder_of_them(toy_backend, tmp_path, monkeypatch):
    monkeypatch.setattr(toy_backend, "showing", lambda: Showing(1, needed=True, filled=True), raising=False)
    monkeypatch.setattr(toy_backend, "encode_shown", toy_backend.encode_picture, raising=False)
    config = job()
    with (
        pytest.raises(LoomError) as refused,
        assembled(Job(config, toy_backend, open_sets(config), tmp_path)),
    ):
        pass
    assert (refused.value.message.code, refused.value.message.field) == ("slider.needs_folder", "data.folder")


def test_a_job_with_pictures_still_needs_some():
    with pytest.raises(LoomError, match="data.folder"):
        open_sets(parse({}))


def test_models_that_do_without_guidance_are_drawn_without(toy_backend):
    base = toy_backend.base_model(job().objective)
    config = job().slider
    assert Slider.of(config, base, MSE, True).cfg == 3.0
    assert Slider.of(config, dataclasses.replace(base, guidance=3.5), MSE, True).cfg == 1.0
    assert (
        Slider.of(dataclasses.replace(config, cfg=5.0), dataclasses.replace(base, guidance=3.5), MSE, True).cfg == 5.0
    )
