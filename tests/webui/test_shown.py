"""Models that are shown a picture beside their noise, jobs that show one to models that are not, and jobs without any picture."""

import pytest

FILE = "shown.py"
TRAINED = {"tiny_inpaint": ("A1111", "Forge", "reForge", "Classic"), "tiny_pix2pix": ("A1111", "reForge")}
CHANNELS = {"tiny_inpaint": 5, "tiny_pix2pix": 4}


@pytest.fixture(params=list(TRAINED))
def shown(server, request):
    """The host with a model that is shown pictures; whether it fills masks, and how many channels it reads of them."""
    name = request.param
    if server.kind.name not in TRAINED[name]:
        pytest.skip("Forge refuses it, see test_refusals.py; Forge classic does not load it")
    with server.changed_to(name):
        yield server, name == "tiny_inpaint", CHANNELS[name]


def test_the_network_is_shown_in_training_and_in_samples_what_the_host_shows_it(shown):
    server, filled, channels = shown
    found = server.inside("against_the_host", file=FILE, filled=filled)
    assert (found["channels"], found["samples"]) == (channels, 2)
    assert found["mask"] == ([0.0, 1.0] if filled else [])
    assert found["size"] > 0.1
    alike = [apart for apart in found["apart"] if 0 <= apart < 1e-4 * found["size"]]
    assert len(alike) == 3, "the step, the sample before and the one after; the others are the self-test's"


def test_gradients_of_models_that_are_shown_pictures_are_those_of_plain_autograd(shown):
    errors = shown[0].inside("gradients")
    assert max(errors.values()) < 1e-5, errors


def test_models_that_are_shown_pictures_are_the_same_after_a_run(shown):
    server, filled, _ = shown
    for more in ({}, {"text_encoder": {"train": True}, "checkpointing": True}):
        found = server.inside("given_back", file=FILE, filled=filled, **more)
        assert (found["changed"], found["tree"]) == (0, []), found
        assert all(0 < loss < 5 for loss in found["losses"]), found


def test_a_file_of_an_inpainting_model_draws_what_the_live_model_drew(server):
    with server.changed_to("tiny_inpaint"):
        found = server.inside("file_against_live", data={"input_mask": "random"})
    assert found["live_vs_plain"]["max"] > 3, found
    assert found["file_vs_live"]["max"] <= 1, found
    assert (found["matched"], found["changed"]) == (found["adapters"], 0), found


def test_a_model_that_is_shown_pictures_asks_for_them_before_the_first_step(shown):
    server, filled, _ = shown
    found = server.inside("alone_refused", file=FILE)
    assert found["code"] == ("data.input_mask.needed" if filled else "data.controls.needed"), found
    assert found["steps"] == 0


REFUSED = {
    "pairs_refused": ("data.controls.not_taken", "data.controls"),
    "masks_refused": ("data.input_mask.not_taken", "data.input_mask"),
    "films_refused": ("data.frames.pictures_alone", "data.frames"),
}


@pytest.mark.parametrize("job", REFUSED)
def test_what_the_usual_model_is_not_shown_is_refused_in_one_sentence_before_the_first_step(server, job):
    found = server.inside(job, file=FILE)
    assert (found["code"], found["field"]) == REFUSED[job], found
    assert found["steps"] == 0
    assert found["text"].endswith("."), found


def test_a_slider_is_trained_without_a_picture_and_moves_pictures_both_ways(server):
    found = server.inside("slider_file", file=FILE)
    assert found["changed"] == 0
    assert len(found["losses"]) == 4
    assert [step for step, _ in found["samples"]] == [2, 4]
    assert min(found["moved"]) > 0, found
    assert found["apart"] > max(found["moved"]) / 2, found
