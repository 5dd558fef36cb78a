"""Layers that the model does not run while it is trained: told, and never written as zeros."""

import pytest
import torch
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.runs import checkpoints, saves

UNUSED = "lora_unet_idle_blocks_0_attn1_to_q"


class Hears(Listener):
    def __init__(self):
        self.warnings, self.notes = [], []

    def on_warning(self, message):
        self.warnings.append(str(message))

    def on_note(self, message):
        self.notes.append(str(message))


def layers_in(result):
    """The layers that the main file of a run holds."""
    return {key.split(".", 1)[0] for key in result.tensors}


@pytest.fixture
def backend_with_an_idle_layer(toy_backend, monkeypatch):
    """The toy with one more attention layer that its forward never calls."""
    idle = torch.nn.Linear(8, 8)
    layers = {**toy_backend.layers(), "idle_blocks.0.attn1.to_q": idle}
    monkeypatch.setattr(toy_backend, "layers", lambda: layers)
    return toy_backend


def test_a_layer_without_any_gradient_is_told_at_once_and_left_out_of_every_file(
    backend_with_an_idle_layer, toy_config, run_toy, tmp_path
):
    heard = Hears()
    config = toy_config(steps=3, validation={"every": 1, "pictures": 1, "restore_best": True})
    result = run_toy(config, tmp_path / "run", heard, backend=backend_with_an_idle_layer)
    count = result.facts["layers"]
    own = [text for text in heard.warnings if "gradient" in text]
    assert own == [
        f"adapter.targets: 1 of {count} trained layers has received no gradient so far (such as {UNUSED}): this model does not use them for these pictures "
        "and captions. Layers that never receive one are left out of the file.",
        f"adapter.targets: 1 of {count} trained layers never received a gradient and is left out of the file: {UNUSED}.",
    ]
    names = layers_in(result)
    assert UNUSED not in names
    assert len(names) == count - 1
    [newest, *_] = checkpoints.all_steps(tmp_path / "run" / "checkpoints")
    assert checkpoints.read(newest).facts["untouched"] == [UNUSED]
    for save in saves.all_saves(tmp_path / "run"):
        assert not any(key.startswith(UNUSED) for key in saves.weights(tmp_path / "run", save)) or save.step == 0


def test_a_resumed_run_still_knows_which_layers_never_had_a_gradient(
    backend_with_an_idle_layer, toy_config, run_toy, tmp_path
):
    run_toy(toy_config(steps=2), tmp_path / "run", backend=backend_with_an_idle_layer)
    heard = Hears()
    result = run_toy(toy_config(steps=3), tmp_path / "run", heard, resume=True, backend=backend_with_an_idle_layer)
    assert not any(key.startswith(UNUSED) for key in result.tensors)
    assert sum("never received a gradient" in text for text in heard.warnings) == 1


def test_where_every_layer_is_trained_nothing_is_said_and_nothing_is_left_out(toy_config, run_toy, tmp_path):
    heard = Hears()
    result = run_toy(toy_config(steps=2), tmp_path / "run", heard)
    assert not [text for text in heard.warnings + heard.notes if "gradient" in text]
    assert len(layers_in(result)) == result.facts["layers"]


def test_a_token_that_no_caption_holds_is_told(toy_config, run_toy, tmp_path):
    heard = Hears()
    config = toy_config(steps=2, method="embedding", embedding={"tokens": "zog\nqux"})
    run_toy(config, tmp_path / "run", heard)
    assert [text for text in heard.warnings if "qux" in text] == [
        "the embedding qux never received a gradient: no caption that was trained contains it; it is written as it started."
    ]
    assert not [text for text in heard.warnings if "zog" in text and "gradient" in text]


def test_values_of_all_layers_are_kept_where_nothing_else_would_be_left():
    adapter = {"a.lora_up": torch.zeros(1), "b.lora_up": torch.zeros(1)}
    assert checkpoints.without_layers(adapter, ["a"]).keys() == {"b.lora_up"}
    assert checkpoints.without_layers(adapter, ["a", "b"]).keys() == adapter.keys()
