"""CLIP Set Last Layer on the wired CLIP is honoured: captions are encoded as the host's own node and sampler would have them."""

from __future__ import annotations

import pytest
import torch
from lora_loom.lora_core.config import ObjectiveConfig
from lora_loom.nodes.host.engine.backend import HostBackend

import nodes


def backend_at(toy, layer: int | None) -> tuple:
    model, clip, vae = toy
    with torch.inference_mode():
        clip = clip if layer is None else nodes.CLIPSetLastLayer().set_last_layer(clip, layer)[0]
        return HostBackend(model, clip, vae), clip


@pytest.mark.parametrize("layer", [None, -1, -2])
def test_captions_are_encoded_at_the_layer_of_the_wired_clip(layer, toy):
    backend, clip = backend_at(toy, layer)
    with torch.inference_mode():
        theirs = nodes.CLIPTextEncode().encode(clip, "a red circle")[0]
        ours = backend.texts.text("a red circle")
    assert torch.equal(ours[0][0], theirs[0][0])
    live = backend.texts.encode_live("a red circle")
    torch.testing.assert_close(live[0][0].float().cpu(), theirs[0][0].float().cpu(), rtol=0, atol=1e-5)


def test_it_is_told_and_tells_texts_in_the_store_apart(toy):
    (one, _), (two, _) = backend_at(toy, None), backend_at(toy, -2)
    assert (one.clip_skip, two.clip_skip) == (1, 2)
    assert one.text_fingerprint() != two.text_fingerprint()
    assert "captions read at clip skip 2" in str(two.base_model(ObjectiveConfig()).message())
    assert two.base_model(ObjectiveConfig()).as_json()["clip_skip"] == 2
