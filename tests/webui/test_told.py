"""What is told before the first step is what the host has: names of samplers and schedules, and the layer that captions are read from."""

import pytest

FILE = "told.py"
IDLE = "text_encoder.clip_skip_idle"


@pytest.fixture(scope="module")
def samplers(server):
    if server.kind.name == "reForge":
        pytest.skip(
            "samples are drawn there with the sampler that it has from ComfyUI, whose names tests/host asks for"
        )
    return server.inside("samplers", file=FILE)


def test_every_sampler_of_the_host_has_a_name_that_is_drawn_with_it_and_no_other_name_is_taken(samplers):
    assert len(samplers["host"]) > 10
    assert {*samplers["drawn"].values()} == {*samplers["host"]}
    for name in ("euler", "dpmpp_2m", "heun"):  # as other hosts call them
        assert samplers["drawn"][name].lower().replace("++", "pp").replace(" ", "_") in (name, "dpmpp_2m")
    assert samplers["refused"].keys() == {"sampler dpm++ 2m carass", "scheduler dpm++ 2m carass"}


def test_every_schedule_of_the_host_has_a_name_and_a_name_of_ours_alone_is_its_own(samplers):
    assert {*samplers["schedules"].values()} | {"Automatic"} == {*samplers["host_schedules"], "Automatic"}
    for name in ("karras", "exponential", *(["sgm_uniform"] if "sgm_uniform" in samplers["schedules"] else [])):
        assert samplers["schedules"][name].lower().replace(" ", "_") == name


@pytest.mark.parametrize("skip", [1, 2])
def test_the_clip_skip_of_the_host_is_told_and_written_and_a_jobs_own_is_said_to_be_idle(server, skip):
    found = server.inside("clip_skip", file=FILE, skip=skip)
    if found["family"] != "sd1":
        assert found["told"] is None
        assert found["header"] in (None, "")
        return
    assert found["told"] == skip
    assert found["header"] == str(skip)
    assert (f"clip skip {skip}" in found["facts"]) is (skip > 1)
    assert (IDLE in found["warnings"]) is (skip != 2)
