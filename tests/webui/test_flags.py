"""Flags by which a host keeps its model elsewhere or in other numbers: trained right, or refused in one sentence.

On the CPU the hooks of --medvram and --lowvram are there and move nothing, so `gradients_while_moved` stands in for what moving does to weights.
"""

import pytest
from live_webui import A1111, FORGE, running

FILE = "flags.py"
CPU = ("--use-cpu", "all")
ROWS = {
    "A1111 --medvram": (A1111, ("--medvram",), ["torch.float32"]),
    "A1111 --lowvram": (A1111, ("--lowvram",), ["torch.float32"]),
    "A1111 --precision full": (A1111, ("--precision", "full"), ["torch.float32"]),
    "Forge in bf16": (FORGE, ("--unet-in-bf16",), ["torch.bfloat16"]),
    "Forge in fp8": (FORGE, ("--unet-in-fp8-e4m3fn",), ["torch.float8_e4m3fn"]),
}


@pytest.fixture(scope="module", params=list(ROWS))
def flagged(request, tmp_path_factory):
    """A host with a flag, and the numbers its network has to be stored in."""
    kind, flags, types = ROWS[request.param]
    if reason := kind.missing():
        pytest.skip(reason)
    for server in running(kind, tmp_path_factory.mktemp("flags"), flags=flags):
        yield server, types


def test_a_model_kept_by_a_flag_is_trained_and_given_back(flagged):
    server, types = flagged
    kept = server.inside("kept", file=FILE)
    same = server.inside("integrity", text_encoder={"train": True})
    assert set(types) <= set(kept["types"]), kept
    assert same["picture_repeats"]
    assert (same["changed"], same["tree"], same["picture_same"]) == (0, [], True), same
    assert all(0.5 < loss < 2 for loss in same["losses"]), same["losses"]


def test_gradients_are_exact_though_weights_leave_between_forward_and_backward(flagged):
    server, _ = flagged
    if not {"--medvram", "--lowvram"} & set(server.flags) or server.kind is not A1111:
        pytest.skip("nothing is moved by a hook")
    by_blocks = "--lowvram" in server.flags  # else the network and the text encoders take turns as wholes
    for config in ({}, {"text_encoder": {"train": True}}, {"checkpointing": True}):
        found = server.inside("gradients_while_moved", file=FILE, **config)
        assert (found["moves"] > 100) == (by_blocks or "text_encoder" in config), (config, found)
        assert found["error"] < 1e-5, (config, found)
