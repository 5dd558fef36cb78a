"""Clip skip: the layer that captions are read from, counted from the end as WebUIs do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lora_loom.lora_core.backends.base import SampleJob
from lora_loom.lora_core.backends.marks import marks_of_name
from lora_loom.lora_core.config import ObjectiveConfig, SampleConfig, TrainConfig, parse
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.jobs.headless import open_base

TEXT = "a red circle on a white ground"


def opened(folder, skip: int = 1):
    return open_base(parse({"base": str(folder), "text_encoder": {"clip_skip": skip}}), "cpu")


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("skip", [1, 2])
def test_captions_are_read_from_the_layer_that_the_pipeline_reads_at_this_clip_skip(kind, skip, models):
    from diffusers import StableDiffusionPipeline

    folder, _ = models(kind)
    parts = {"safety_checker": None, "feature_extractor": None}
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **parts)
    inner = SimpleNamespace(final_layer_norm=pipe.text_encoder.final_layer_norm)
    object.__setattr__(
        pipe.text_encoder, "text_model", inner
    )  # where transformers before 5.6 have it, and the pipeline looks
    theirs, _ = pipe.encode_prompt(TEXT, "cpu", 1, False, clip_skip=skip - 1 or None)  # it counts the layers left out
    torch.testing.assert_close(opened(folder, skip).encode([TEXT]).hidden, theirs, rtol=0, atol=1e-5)


def test_what_is_drawn_kept_and_told_follows_it(models):
    folder, _ = models("sd1")
    one, two = opened(folder), opened(folder, 2)
    job = SampleJob(TEXT, 16, 16, SampleConfig(steps=2))
    assert one.sample(job)[0].tobytes() != two.sample(job)[0].tobytes()
    assert one.text_fingerprint() != two.text_fingerprint()
    assert "captions read at clip skip 2" in str(two.base_model(ObjectiveConfig()).message())
    assert "clip skip" not in str(one.base_model(ObjectiveConfig()).message())
    assert two.base_model(ObjectiveConfig()).as_json()["clip_skip"] == 2


def test_more_layers_than_there_are_is_refused_with_their_number(models):
    folder, _ = models("sd1")
    with pytest.raises(
        LoomError, match="^text_encoder.clip_skip: the text encoder has 2 layers, so clip skip is 1 to 2; 3 is"
    ):
        opened(folder, 3)


@pytest.mark.parametrize("kind", ["sdxl", "flux1"])
def test_where_it_changes_nothing_that_is_told_before_the_first_step(kind, models, toy_config, pictures, tmp_path):
    from lora_loom.lora_core.data.folder import scan
    from lora_loom.lora_core.events import Listener
    from lora_loom.lora_core.training.job import Job
    from lora_loom.lora_core.training.settling import settled

    heard = []

    class Hears(Listener):
        def on_warning(self, message):
            heard.append(message.code)

    _, backend = models(kind)
    config = toy_config(text_encoder={"clip_skip": 2}, samples={"every": 0})
    settled(Job(config, backend, scan(config.data), tmp_path, listener=Hears()))
    assert heard == ["text_encoder.clip_skip_idle"]


@pytest.mark.parametrize(
    ("name", "anime"),
    [("anything-v5", True), ("animefull-final-pruned", True), ("nai", True), ("AOM3A1B_orangemixs", True), ("meinamix_v11", True), ("pastelmix-fp16", True),
     ("dreamshaper_8", False), ("v1-5-pruned-emaonly", False), ("snail_photos", False), ("realistic_vision", False)],
)  # fmt: skip
def test_anime_models_are_guessed_by_their_names(name, anime):
    assert (marks_of_name(name).anime is not None) == anime


def test_an_anime_model_read_at_clip_skip_1_is_told_how_to_read_it_at_2(models):
    folder, _ = models("sd1")
    backend, other = opened(folder), opened(folder, 2)
    backend.marks = other.marks = marks_of_name("anything-v5")
    [sentence] = map(str, backend.base_model(ObjectiveConfig()).warnings(ObjectiveConfig()))
    assert (
        "it is called 'anything-v5', and anime models of Stable Diffusion 1 are usually made for clip skip 2"
        in sentence
    )
    assert "set text_encoder.clip_skip to 2" in sentence
    assert other.base_model(ObjectiveConfig()).warnings(ObjectiveConfig()) == ()
    assert TrainConfig().text_encoder.clip_skip == 1
