"""What the engine does beside plain training is done on a WebUI's model too, and what pictures leave in it changes nothing of it."""

import pytest
from lora_loom.convert.loaders import PROGRAMS, readers_of

FILE = "methods.py"
OTHER_SAMPLER = (
    16  # of 255: reForge's samples are drawn by its copy of ComfyUI's sampler, with another schedule than its pictures
)
ALGORITHMS = ["dora", "loha", "lokr", "oft", "boft", "glora", "ia3", "norm", "bias", "full"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_kind_of_adapter_is_trained_and_its_file_is_read_where_it_is_said_to_be(server, algorithm):
    """Of (IA)^3 the hosts read what changes linear layers alone, which every file of ours says of them."""
    linear = {"adapter": {"algorithm": algorithm, "targets": "attention"}, "optimizer": {"lr": 0.05}}
    every = {"adapter": {"algorithm": algorithm, "targets": "conv"}}
    found = server.inside("file_against_live", **(linear if algorithm == "ia3" else every))
    assert found["live_vs_plain"]["max"] > 3, found
    assert found["changed"] == 0, found
    if server.kind.name in PROGRAMS:  # nothing is said of what Forge classic reads
        reads = server.kind.name in readers_of(algorithm)
        assert (found["file_vs_live"]["max"] <= 2) == reads, found


def test_samples_are_drawn_by_the_hosts_own_sampler(server):
    found = server.inside("samples", file=FILE)
    assert found["steps"] == [2, 2, 4], "the first one without what was trained"
    assert found["before"]["max"] <= (OTHER_SAMPLER if server.kind.name == "reForge" else 0), found
    assert found["after"]["max"] > 3, found


def test_class_pictures_are_drawn_by_the_host_once_and_trained_beside_the_others(server):
    found = server.inside("prior", file=FILE)
    assert (found["drawn"], found["kept"]) == (2, 2)
    assert max(found["apart"]) <= (OTHER_SAMPLER if server.kind.name == "reForge" else 0), found
    assert found["losses"] == found["again"]
    assert found["losses"] != found["without"]


def test_masks_say_where_the_loss_looks(server):
    plain, nothing_left_out, half = server.inside("masks", file=FILE)
    assert nothing_left_out == pytest.approx(plain, abs=2e-6)
    assert all(abs(a - b) > 1e-4 for a, b in zip(plain, half, strict=True))


def test_held_out_pictures_are_measured_the_same_each_time(server):
    found = server.inside("validation", file=FILE)
    assert [row[0] for row in found["first"]] == [0, 2, 4]
    assert found["first"] == found["second"]


@pytest.mark.parametrize("method", ["embedding", "pivotal"])
def test_a_trained_token_draws_the_same_from_its_file(server, method):
    found = server.inside("embedding_file", file=FILE, method=method, embedding={"tokens": "TOK*2", "lr": 0.05})
    assert found["files"] == (1 if method == "embedding" else 2)
    assert found["live_vs_plain"]["max"] > 3, found
    assert found["changed"] == 0, found
    if server.kind.name == "reForge":  # its pictures come from another sampler, so what they are drawn from is compared
        assert found["text_apart"] < 1e-5, found
        assert found["text_moved"] > 0.1, found
    else:
        assert found["file_vs_live"]["max"] <= 2, found


def test_a_learning_rate_is_looked_for_and_the_weights_are_thrown_away(server):
    found = server.inside("learning_rate", file=FILE)
    assert len(found["points"]) >= 4
    assert found["changed"] == 0


def test_a_sweep_compares_runs_that_start_from_the_same_model(server):
    found = server.inside("sweep", file=FILE)
    first, second, third = found["losses"]
    assert first == second
    assert first != third
    assert found["sheet"][0] > found["sheet"][1]


def test_a_check_before_a_run_says_what_a_pass_takes(server):
    assert server.inside("planned", file=FILE)


@pytest.fixture(scope="session")
def untouched(server):
    """Losses and weights of a run that follows no picture."""
    return server.inside("after")


LEFT = ["clip_skip", "emphasis", "token_merging", "embedding", "hypernetwork", "another_vae"]


@pytest.mark.parametrize("left", LEFT)
def test_what_a_picture_leaves_changes_nothing_that_is_trained(server, untouched, left):
    if (server.kind.name, left) == ("reForge", "another_vae"):
        pytest.skip("its own option does not put back the VAE it had: the weights have another hash afterwards")
    if (server.kind.name, left) == ("Classic", "hypernetwork"):
        pytest.skip("it has no hypernetworks")
    found = server.inside("after_a_picture", file=FILE, left=left)
    assert found["losses"] == untouched["losses"]
    assert found["tensors"] == untouched["tensors"]
    drawn_with = left == "hypernetwork" and server.kind.name == "A1111"
    assert found["said"] == (["webui.settled_hypernetwork"] if drawn_with else [])
