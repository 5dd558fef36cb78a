import dataclasses
import json

import pytest
import torch
from lora_loom.lora_core.adapters.tokens import Token, TokenSet, TokenTable, TokenVectors
from lora_loom.lora_core.config import from_values, parse
from lora_loom.lora_core.data.captions import Caption
from lora_loom.lora_core.data.dataset import Dataset, Picture
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs import checkpoints
from lora_loom.lora_core.training import assemble
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.prior import matched_captions, pictures_to_make, require_class_pictures
from lora_loom.lora_core.training.step import losses_of
from PIL import Image

PRIOR = {"prompt": "a red circle on a white ground", "count": 3, "steps": 2}


def subject(*captions, trigger="zog"):
    return Dataset(
        None, tuple(Picture(None, f"{n}.png", 64, 64, (Caption(c),)) for n, c in enumerate(captions)), (), (), trigger
    )


def tokens(word="TOK", init="ring"):
    return TokenSet(
        [TokenVectors(Token(word, 1, init), {"clip_l": TokenTable(4, 1.0, lambda w: torch.ones(1, 4))}, 0, "cpu")]
    )


def made(folder):
    return sorted((folder.parent / "class_pictures").glob("*.png"))


def test_matched_captions_have_the_class_word_where_the_trigger_or_a_token_was():
    found = subject("a zog on sand", "two zogs", "Zog, tree", "a TOK at sea", "a plain picture", "a zog on sand")
    assert matched_captions(found, tokens(), "dog") == ["a dog on sand", "dog, tree", "a dog at sea"]
    with pytest.raises(LoomError, match="prior.class_word: no caption contains the trigger or a token"):
        matched_captions(subject("a cat"), TokenSet(), "dog")


def test_each_caption_has_the_same_seed_in_every_run_and_repeats_have_others():
    config = parse({"prior": {"class_word": "dog", "count": 5}})
    jobs = pictures_to_make(config, subject("a zog", "my zog"), TokenSet(), 0)
    assert [j.caption for j in jobs] == ["a dog", "my dog", "a dog", "my dog", "a dog"]
    assert len({j.seed for j in jobs}) == 5
    assert jobs == pictures_to_make(config, subject("a zog", "my zog"), TokenSet(), 0)
    assert pictures_to_make(config, subject("a zog", "my zog"), TokenSet(), 3) == jobs[:2]


def test_a_token_in_the_class_prompt_is_made_from_its_words_and_trained_as_the_token():
    (job,) = pictures_to_make(parse({"prior": {"prompt": "a TOK here", "count": 1}}), subject("a TOK"), tokens(), 0)
    assert (job.caption, job.prompt) == ("a TOK here", "a ring here")


def test_class_pictures_are_made_once_and_again_only_when_something_they_depend_on_changes(
    toy_config, run_toy, toy_backend, tmp_path, monkeypatch
):
    drawn, plain = [], toy_backend.sample
    monkeypatch.setattr(toy_backend, "sample", lambda job: drawn.append(job) or plain(job))
    run_toy(toy_config(prior=PRIOR), tmp_path / "one")
    first = made(tmp_path / "one")
    assert len(drawn) == len(first) == 3
    assert len({p.read_bytes() for p in first}) == 3
    run_toy(toy_config(prior=PRIOR, name="other", seed=7), tmp_path / "two")
    assert len(drawn) == 3
    run_toy(toy_config(prior=PRIOR | {"count": 4}), tmp_path / "three")
    assert len(drawn) == 4
    first[0].write_bytes(b"damaged")
    run_toy(toy_config(prior=PRIOR), tmp_path / "four")
    assert len(drawn) == 5
    run_toy(toy_config(prior=PRIOR | {"steps": 3}), tmp_path / "five")
    assert len(drawn) == 8
    monkeypatch.setattr(type(toy_backend), "fingerprint", lambda self: "another base")
    run_toy(toy_config(prior=PRIOR), tmp_path / "six")
    assert len(drawn) == 11


def test_real_class_pictures_come_first_with_their_captions_and_the_rest_is_made(
    toy_config, run_toy, tmp_path, monkeypatch
):
    seen, class_dataset = [], assemble.class_dataset

    def noted(*given):
        seen.append(class_dataset(*given))
        return seen[-1]

    monkeypatch.setattr(assemble, "class_dataset", noted)
    real = tmp_path / "real"
    real.mkdir()
    for n in range(2):
        Image.new("RGB", (32, 32), (40 * n, 0, 0)).save(real / f"{n}.png")
    (real / "0.txt").write_text("a photo of a dog")
    before = sorted(p.name for p in real.iterdir())
    run_toy(toy_config(prior=PRIOR | {"folder": str(real)}), tmp_path / "run")
    assert len(made(tmp_path / "run")) == 1
    assert [(p.path.parent.name, p.caption) for p in seen[0].pictures] == [
        ("real", "a photo of a dog"),
        ("real", PRIOR["prompt"]),
        ("class_pictures", PRIOR["prompt"]),
    ]
    assert sorted(p.name for p in real.iterdir()) == before
    run_toy(toy_config(prior={"folder": str(real), "count": 0}), tmp_path / "run2")


def test_without_any_class_picture_the_run_says_so(toy_config, run_toy, tmp_path):
    with pytest.raises(LoomError, match="prior.count: 0 class pictures are wanted and prior.folder is empty"):
        run_toy(toy_config(prior={"prompt": "a dog", "count": 0}), tmp_path / "run")


def test_weight_zero_or_no_class_is_the_run_without(toy_config, run_toy, tmp_path):
    plain = run_toy(toy_config(), tmp_path / "plain")
    off = run_toy(toy_config(prior=PRIOR | {"weight": 0.0}), tmp_path / "off")
    assert off.losses == plain.losses
    assert all(torch.equal(off.tensors[k], plain.tensors[k]) for k in plain.tensors)
    assert not made(tmp_path / "off")


def test_the_gradient_is_that_of_the_subject_plus_weight_times_that_of_the_class(
    toy_config, run_toy, toy_backend, tmp_path, monkeypatch
):
    """Raw gradients of one step at three weights: the part that the class adds is linear in the weight."""
    from lora_loom.lora_core.training import step as step_module

    seen = []

    def keep(params, max_norm):
        seen.append(torch.cat([p.grad.flatten().clone() for p in params]))
        return seen[-1].norm()

    monkeypatch.setattr(step_module, "clip_grad_norm", keep)
    for weight in (1e-9, 0.5, 1.0):
        run_toy(toy_config(steps=1, prior=PRIOR | {"weight": weight}), tmp_path / f"run {weight}")
    alone, half, whole = seen
    run_toy(toy_config(steps=1), tmp_path / "plain")
    scale = (whole - alone).abs().max().item()
    assert scale > 0
    torch.testing.assert_close(seen[3], alone, rtol=0, atol=1e-5 * scale + 1e-8)
    torch.testing.assert_close(
        half - alone, 0.5 * (whole - alone), rtol=0, atol=1e-4 * scale
    )  # float32 sums over a network's backward


def test_the_class_loss_is_logged_and_drawn_samples_show_the_class(toy_config, run_toy, tmp_path):
    class Seen(Listener):
        images = 0

        def on_sample(self, step, images, path):
            self.images = len(images)

    seen = Seen()
    run_toy(toy_config(prior=PRIOR, samples={"every": 2, "steps": 2, "prompt": "a zog"}), tmp_path / "run", seen)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(row["class_loss"] > 0 for row in rows)
    assert seen.images == 2


def test_a_run_with_class_pictures_goes_on_bit_for_bit_and_refuses_other_pictures(toy_config, run_toy, tmp_path):
    from lora_loom.lora_core.events import Control

    class StopAt(Listener):
        def __init__(self):
            self.control = Control()

        def on_step(self, report):
            if report.step == 2:
                self.control.stop_and_keep()

    config = toy_config(prior=PRIOR, adapter={"dropout": 0.2}, data={"caption_dropout": 0.3})
    whole = run_toy(config, tmp_path / "whole")
    stopper = StopAt()
    run_toy(config, tmp_path / "parts", stopper, control=stopper.control)
    parts = run_toy(config, tmp_path / "parts", resume=True)
    assert parts.losses == whole.losses
    assert all(torch.equal(parts.tensors[k], whole.tensors[k]) for k in whole.tensors)
    picture = made(tmp_path / "parts")[0]
    Image.new("RGB", (32, 32), (1, 2, 3)).save(picture)
    with pytest.raises(LoomError, match="the class pictures changed"):
        run_toy(config, tmp_path / "parts", resume=True)


@pytest.mark.parametrize("job", [{"recipe": "face"}, {"recipe": "dreambooth"}, {"prior": {"count": 5}}])
def test_a_job_that_names_a_number_of_class_pictures_and_not_what_they_are_is_refused_before_anything_is_encoded(
    job, pictures, run_toy, tmp_path, toy_backend, monkeypatch
):
    def values(**prior):
        return {
            **job,
            "data": {"folder": str(pictures), "resolution": 32, "bucket_step_px": 16},
            "prior": {**job.get("prior", {}), **prior},
        }

    monkeypatch.setattr(toy_backend, "encode_picture", lambda pixels: pytest.fail("a picture was encoded"))
    sentence = r"^prior.prompt: \d+ class pictures are wanted .* prior.class_word and prior.folder are all empty; .* prior.weight to 0"
    with pytest.raises(LoomError, match=sentence):
        run_toy(from_values(values(), tmp_path), tmp_path / "run")
    for given in (
        {"weight": 0.0},
        {"prompt": "a dog"},
        {"class_word": "dog"},
        {"folder": "class"},
        {"required": False},
    ):
        require_class_pictures(from_values(values(**given), tmp_path).prior, subject("a zog"))
    of_class = dataclasses.replace(subject("a zog"), class_pictures=subject("a dog").pictures)
    require_class_pictures(from_values(values(), tmp_path).prior, of_class)  # those of a regularization set


def test_a_run_that_does_not_ask_for_class_pictures_needs_none(toy_config):
    require_class_pictures(toy_config().prior, subject("a zog"))


# ---- held without pictures -------------------------------------------------------------------------------------------

PREDICTIONS = {"held_by": "predictions", "class_word": "circle", "weight": 0.5}


def assembled_with(prior, toy_backend, toy_config, tmp_path, **changes):
    config = toy_config(prior=prior, **{"data": {"trigger": "zog", "shuffle_tags": True}, **changes})
    return assemble.assembled(Job(config, toy_backend, open_sets(config), tmp_path))


def test_predictions_ask_the_frozen_model_by_class_captions_and_make_no_picture(toy_backend, toy_config, tmp_path):
    """The gradients against plain autograd of the formula: both answers to the same latents, one of them with the adapters off."""
    with assembled_with(PREDICTIONS, toy_backend, toy_config, tmp_path) as run:
        with torch.no_grad():
            for n, p in enumerate(run.adapters.parameters()):
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(n)))
        run.adapters.weights_changed()
        training, held = run.sources
        assert held.batches is training.batches
        assert held.weight == 0.5
        batch, rng = run.batches.at(0, 0), torch.Generator().manual_seed(3)
        captions = held.lesson.captions(batch.captions)
        assert all("zog" in text for text in batch.captions)
        assert all("circle" in text and "zog" not in text for text in captions)
        (loss,) = (part for part in losses_of(run, held, run.objective, batch, rng))
        found = torch.autograd.grad(loss.mean(), run.adapters.parameters())

        rng = torch.Generator().manual_seed(3)
        sigma = run.objective.draw_sigma(2, rng)
        x_t = run.objective.corrupt(batch.latents, run.objective.draw_noise(batch.latents, rng), sigma)
        of_class = dataclasses.replace(batch, captions=captions)
        with torch.no_grad(), run.adapters.switched_off():
            goal = run.backend.predict(x_t, sigma, of_class)
        expected = (run.backend.predict(x_t, sigma, of_class) - goal).square().flatten(1).mean(1)
        plain = torch.autograd.grad(expected.mean(), run.adapters.parameters())
    assert float(expected.detach().min()) > 1e-4
    assert torch.allclose(loss.detach(), expected.detach(), rtol=1e-5)
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(found, plain, strict=True)) <= 1e-5
    assert not (tmp_path / "class_pictures").exists()


def test_a_run_held_by_predictions_goes_on_bit_for_bit_and_logs_what_they_cost(toy_config, run_toy, tmp_path):
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        for n, count in enumerate(steps):
            config = toy_config(prior=PREDICTIONS, data={"trigger": "zog"}, steps=count)
            run_toy(config, tmp_path / name / "run", resume=bool(n))
    one, other = (checkpoints.latest(tmp_path / name / "run" / "checkpoints")[0].adapter for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[0]["class_loss"] == 0.0  # nothing has moved yet
    assert rows[-1]["class_loss"] > 0


def test_predictions_hold_with_text_encoders_trained_too(toy_backend, toy_config, tmp_path):
    """What the frozen model is asked with was encoded by the frozen text encoder."""
    with assembled_with(PREDICTIONS, toy_backend, toy_config, tmp_path, text_encoder={"train": True}) as run:
        batch = run.batches.at(0, 0)
        (loss,) = losses_of(run, run.sources[1], run.objective, batch, torch.Generator().manual_seed(3))
        assert float(loss.detach().max()) <= 1e-10
        with torch.no_grad():
            for _, adapter in run.adapters:
                if adapter.part == "text_encoder":
                    for p in adapter.parameters():
                        p.add_(0.1)
        run.adapters.weights_changed()
        (moved,) = losses_of(run, run.sources[1], run.objective, batch, torch.Generator().manual_seed(3))
        assert float(moved.detach().max()) > 1e-6


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"prior": {**PREDICTIONS, "folder": "somewhere"}}, "prior.folder"),
        ({"prior": PREDICTIONS, "method": "embedding"}, "embedding"),
    ],
)
def test_what_predictions_cannot_hold_is_refused(changes, text):
    with pytest.raises(LoomError, match=text) as refused:
        parse(changes)
    assert refused.value.message.field == "prior.held_by"


def test_predictions_need_a_caption_with_what_the_class_word_replaces(toy_backend, toy_config, tmp_path):
    untold = {"trigger": "", "prefix": "a ring, "}
    with (
        pytest.raises(LoomError, match="prior.class_word"),
        assembled_with(PREDICTIONS, toy_backend, toy_config, tmp_path, data=untold),
    ):
        pass
