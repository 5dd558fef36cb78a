"""Results where a host lists them: never over a stranger's file, again over our own, an embedding apart."""

import json

import torch
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.disk.files import write_safetensors
from lora_loom.nodes.jobs.publishing import Shelf, prompts_for


def lora(folder, value, name="cat", **header):
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    tensors = {
        "lora_unet_x.lora_down.weight": torch.full((1, 2), value),
        "lora_unet_x.lora_up.weight": torch.ones(2, 1),
        "lora_unet_x.alpha": torch.ones(()),
    }
    write_safetensors(path, tensors, {"modelspec.trigger_phrase": "zog", **header})
    return path


def test_a_run_replaces_its_own_result_and_leaves_a_strangers_file_alone(tmp_path):
    shelf = Shelf(tmp_path / "loras", tmp_path / "embeddings")
    first = shelf.publish(lora(tmp_path / "run", 1.0))
    again = shelf.publish(lora(tmp_path / "run", 2.0))
    other = shelf.publish(lora(tmp_path / "another", 3.0))
    assert (first.name, again.name, other.name) == ("cat.safetensors", "cat.safetensors", "cat_2.safetensors")
    assert again.read_bytes() == (tmp_path / "run" / "cat.safetensors").read_bytes()
    assert prompts_for([again])["a1111"] == "zog, <lora:cat:1>"


def test_a_measured_strength_is_in_words_and_card_unless_the_user_has_set_another(tmp_path):
    shelf, card = Shelf(tmp_path / "loras", tmp_path / "embeddings"), tmp_path / "loras" / "cat.json"

    def weight():
        return json.loads(card.read_text())["preferred weight"]

    shelf.publish(lora(tmp_path / "run", 1.0))  # as a save on request does, before anything is measured
    assert weight() == 1.0
    done = shelf.publish(lora(tmp_path / "run", 2.0, ss_recommended_strength="0.8"))
    assert (prompts_for([done])["a1111"], prompts_for([done])["strength"]) == ("zog, <lora:cat:0.8>", 0.8)
    assert weight() == 0.8
    card.write_text(json.dumps({**json.loads(card.read_text()), "preferred weight": 0.6}))
    shelf.publish(lora(tmp_path / "run", 3.0, ss_recommended_strength="0.9"))
    assert weight() == 0.6


def test_an_embedding_is_put_apart_and_is_its_own_word(tmp_path):
    shelf = Shelf(tmp_path / "loras", tmp_path / "embeddings")
    (tmp_path / "run").mkdir()
    write_safetensors(
        tmp_path / "run" / "zog.safetensors", {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, {}
    )
    target = shelf.publish(tmp_path / "run" / "zog.safetensors")
    assert target == tmp_path / "embeddings" / "zog.safetensors"
    assert prompts_for([target])["comfyui"] == "embedding:zog"


def test_a_name_is_taken_by_what_the_run_would_write(tmp_path):
    shelf = Shelf(tmp_path / "loras", tmp_path / "embeddings")
    plain, pivotal = parse({}), parse({"method": "pivotal", "embedding": {"tokens": "zog"}})
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings" / "cat_emb.safetensors").touch()
    assert not shelf.holds("cat", plain, "")
    assert shelf.holds("cat", pivotal, "")
    lora(tmp_path / "loras", 1.0)
    assert shelf.holds("cat", plain, "")
