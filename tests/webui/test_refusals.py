"""Models that want more than noise and text are refused in one sentence; Stable Diffusion 2 is trained for what it predicts."""

import pytest

FILE = "methods.py"
REFUSED = {"tiny_pix2pix": ("Forge",), "tiny_refiner": ("A1111", "Forge")}  # by the hosts that refuse them
TEXT = {"train": True, "lr": 0.005}


@pytest.mark.parametrize("name", REFUSED)
def test_models_with_further_inputs_are_refused_in_one_sentence(server, name):
    if server.kind.name not in REFUSED[name]:
        pytest.skip(
            "what A1111 and reForge train of them is in test_shown.py; Forge's forks know no refiner as narrow, Forge classic no pix2pix"
        )
    with server.changed_to(name):
        found = server.inside("refused", file=FILE)
    assert found["code"] == "webui.model_kind", found
    assert found["text"].endswith(".")
    assert ". " not in found["text"], found
    assert server.inside("refused", file=FILE)["code"] == "", "the usual model is trained again"


@pytest.mark.parametrize(("name", "prediction"), [("tiny_sd2", "epsilon"), ("tiny_sd2v", "v")])
def test_stable_diffusion_2_is_trained_exactly_and_given_back(server, name, prediction):
    with server.changed_to(name):
        lent = server.inside("what_is_lent", file=FILE)
        errors = server.inside("gradients")
        same = server.inside("integrity", text_encoder=TEXT)
        file = server.inside("file_against_live", text_encoder=TEXT)
    assert (lent["family"], lent["prediction"]) == ("sd2-v" if prediction == "v" else "sd2", prediction)
    assert max(errors.values()) < 1e-5, errors
    assert (same["changed"], same["tree"], same["picture_same"]) == (0, [], True), same
    assert file["live_vs_plain"]["max"] > 3, file
    assert file["file_vs_live"]["max"] <= 1, file
    assert (file["matched"], file["changed"]) == (file["adapters"], 0), file


@pytest.mark.parametrize("schedule", ["Default", "Zero Terminal SNR"])
def test_noise_levels_are_those_that_pictures_are_drawn_with(server, schedule):
    found = server.inside("noise_levels", file=FILE, sd_noise_schedule=schedule)
    assert found["last"] == pytest.approx(found["drawn"], rel=1e-4)
    rescaled = schedule != "Default" and server.kind.name != "Classic"  # which does so to models of v alone
    assert (found["last"] > 1000) == rescaled


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_captions_are_read_with_the_clip_skip_of_pictures(server, skip):
    found = server.inside("clip_skip", file=FILE, skip=skip)
    assert max(found["differences"]) < 1e-4 * found["mean"], found


def test_another_clip_skip_is_another_text(server):
    texts = {tuple(server.inside("clip_skip", file=FILE, skip=skip)["text"]) for skip in (1, 2, 3)}
    assert len(texts) == 3
