from lora_loom.convert.loaders import readers_of
from lora_loom.lora_core.algebra import NAMES


def test_comfyui_was_seen_to_read_every_kind_but_one_and_others_read_that():
    assert [kind for kind in NAMES if "ComfyUI" not in readers_of(kind)] == ["ia3"]
    assert "A1111" in readers_of("ia3")
    assert readers_of("no such kind") == []
