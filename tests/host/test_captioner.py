"""The host's own vision-language models as captioners: the words are those of its Generate Text, and the model is as it was."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image
from tiny_vlm import tiny_vlm


@pytest.fixture(scope="module")
def clip():
    return tiny_vlm()


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8))


def digest(clip) -> str:
    out = hashlib.sha256()
    for name, value in sorted(clip.cond_stage_model.state_dict().items()):
        out.update(name.encode() + value.float().numpy().tobytes())
    return out.hexdigest()


def test_the_words_are_those_of_the_host_s_own_node_and_of_the_picture(clip):
    from comfy_extras.nodes_textgen import TextGenerate
    from lora_loom.nodes.host.engine.captioner import HostCaptioner, looks

    captioner, said = HostCaptioner(clip, 6), []
    before, state = digest(clip), torch.get_rng_state()
    for seed in (1, 2):
        pixels = torch.from_numpy(np.asarray(noise(seed), np.float32) / 255)[None]
        with torch.inference_mode():
            wanted = TextGenerate.execute(clip, "What is here?", 6, {"sampling_mode": "off"}, image=pixels).args[0]
        said.append(captioner.caption(noise(seed), "What is here?"))
        assert said[-1] == wanted
        assert looks(clip.tokenize("What is here?", image=pixels))
    assert said[0] != said[1]
    assert digest(clip) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_writes_nothing_or_sees_nothing_is_told():
    from comfy import sd1_clip
    from lora_loom.nodes.host.engine.captioner import HostCaptioner

    class Blind:
        tokenizer = sd1_clip.SD1Tokenizer()

        def tokenize(self, text, **options):
            return self.tokenizer.tokenize_with_weights(text, **options)

        def generate(self, *args, **options):
            raise AssertionError("asked without its picture")

        decode = generate

    with pytest.raises(LoomError) as error:
        HostCaptioner(Blind(), 5).caption(noise(1), "x")
    assert error.value.message.code == "captioning.blind"
    assert error.value.message.field == "clip"
    with pytest.raises(LoomError) as error:
        HostCaptioner(object(), 5)
    assert error.value.message.code == "captioning.old_host"
